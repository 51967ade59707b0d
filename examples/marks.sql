-- SPDX-License-Identifier: LGPL-2.1-or-later
-- Questions to the database of a store, as wpfs(5) describes it. While the store is mounted the
-- answers are as of the last commit: `wpctl sync MNT` makes one.
--
--	sqlite3 -cmd '.load LIBDIR/wpfs/wpfs_sqlite' STORE/wpfs.db <marks.sql

.headers on
.mode column

-- Who has marks.
SELECT name, uid, state, epoch FROM mm_v ORDER BY name;

-- What each program wrote of each file since it was protected, as byte ranges.
SELECT name, path, pgoff * 4096 AS offset, pages * 4096 AS bytes
FROM dirty_v ORDER BY name, path, offset;

-- How many pages are still marked.
SELECT name, path, sum(pages) AS marked FROM run_v GROUP BY mm, file ORDER BY name, path;
