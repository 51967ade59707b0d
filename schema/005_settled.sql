-- SPDX-License-Identifier: LGPL-2.1-or-later
-- 1: the contents that the armed pages of the file had when they were armed are not known to be
-- durable. If the lower tmpfs is lost then, all of them are dirty: what is in the store may be older
-- than what was marked. What was stored before this is not known.
ALTER TABLE mm_file ADD COLUMN unsettled INTEGER NOT NULL DEFAULT 1 CHECK (unsettled IN (0, 1));
