-- SPDX-License-Identifier: LGPL-2.1-or-later
-- Did write(2) or a call like it change the file since its epoch in this mm began? 0 no, 1 yes, 2
-- not known: nobody looked for a part of the time. What was stored before this is not known.
ALTER TABLE mm_file ADD COLUMN written INTEGER NOT NULL DEFAULT 2 CHECK (written IN (0, 1, 2));

-- The same, as it was when the epoch was closed.
ALTER TABLE epoch ADD COLUMN written INTEGER NOT NULL DEFAULT 2 CHECK (written IN (0, 1, 2));
