-- SPDX-License-Identifier: LGPL-2.1-or-later
-- Rows of the tree are kept from one mount to the next and changed one by one: what number a file
-- had in the tmpfs of some mount tells nothing.
ALTER TABLE inode DROP COLUMN lower_ino;
