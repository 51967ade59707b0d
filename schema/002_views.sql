-- SPDX-License-Identifier: LGPL-2.1-or-later
-- Views for people: what schema/README.md says about reading a page, as SQL. wpfs(5) has examples.
--
-- file_v, mm_v and map_v work in any SQLite. The others look into sets of pages and need the function
-- mark_runs() of the loadable extension wpfs_sqlite.so. tests/unit/views_test.c holds them against
-- what wpctl reports.

-- Where a file is in the stored tree; a file that is not there, where it was seen last.
CREATE VIEW file_v AS
SELECT f.id AS file, coalesce(
	(WITH RECURSIVE up(parent, path, depth) AS (
		SELECT * FROM (SELECT parent, '/' || CAST(name AS TEXT), 1 FROM dirent
			WHERE id = f.id ORDER BY parent, name LIMIT 1)
		UNION ALL
		SELECT d.parent, '/' || CAST(d.name AS TEXT) || up.path, up.depth + 1
		FROM up JOIN dirent AS d ON d.id = up.parent
		WHERE up.parent <> 1 AND up.depth < 4096)
	SELECT path FROM up WHERE parent = 1 LIMIT 1),
	nullif(f.path, ''), printf('(no name, file %d)', f.id)) AS path
FROM file AS f;

-- Address spaces. pid: NULL = detached; conservative: pages counted as dirty without proof.
CREATE VIEW mm_v AS
SELECT m.id AS mm, m.name, m.uid, CASE m.state WHEN 1 THEN 'live' ELSE 'detached' END AS state,
	nullif(m.pid, 0) AS pid, m.comm, m.epoch, m.protect,
	(SELECT count(*) FROM mm_file AS f WHERE f.mm = m.id) AS files,
	(SELECT count(*) FROM vma AS v WHERE v.mm = m.id) AS mappings,
	m.conservative
FROM mm AS m;

-- Mappings, as of the last harvest. start: address in hex; owner: whose userfaultfd it is
-- registered with.
CREATE VIEW map_v AS
SELECT v.mm, m.name, v.file, f.path, printf('0x%x', v.addr) AS start, v.pgoff, v.pages,
	iif(v.prot & 1, 'r', '-') || iif(v.prot & 2, 'w', '-') || iif(v.prot & 4, 'x', '-') AS prot,
	CASE v.owner WHEN 0 THEN 'none' WHEN 1 THEN 'wpfs' ELSE 'program' END AS owner
FROM vma AS v JOIN mm AS m ON m.id = v.mm JOIN file_v AS f ON f.file = v.file;

-- Marks of mappings, by page of the file: a row per run and mapping. A run that goes on in the next
-- chunk is one run. addr: of the mapping.
CREATE VIEW mark_v AS
WITH piece AS (
	SELECT v.mm, v.owner, v.file, v.addr, v.pgoff - (v.addr >> 12) AS shift,
		max(r.first, v.addr >> 12) AS head,
		min(r.first + r.pages, (v.addr >> 12) + v.pages) AS tail
	FROM vma AS v
	JOIN mark_chunk AS c ON c.mm = v.mm AND c.owner = v.owner
		AND c.chunk BETWEEN v.addr >> 28 AND (v.addr + v.pages * 4096 - 1) >> 28
	JOIN mark_runs(c.marked, c.chunk) AS r
	WHERE r.first < (v.addr >> 12) + v.pages AND r.first + r.pages > v.addr >> 12),
jump AS (
	SELECT *, head IS NOT lag(tail) OVER (PARTITION BY mm, addr ORDER BY head) AS begins
	FROM piece),
island AS (
	SELECT *, sum(begins) OVER (PARTITION BY mm, addr ORDER BY head) AS number FROM jump)
SELECT mm, owner, file, addr, min(head) + shift AS pgoff, max(tail) - min(head) AS pages
FROM island GROUP BY mm, addr, number;

-- Armed pages of the open epoch by what is true of them. For each mm, owner (1, 2) and file all that
-- begins or ends at a page is summed up from page 0 on:
--	armed, known    it is in armed_chunk, in dirty_chunk
--	cover           mappings of it
--	exposed         mappings through which it may have been written: registered by the owner and
--	                not marked; for wpfs also writable ones that it has not registered
CREATE VIEW page_v AS
WITH event(mm, owner, file, page, armed, known, cover, exposed) AS (
	SELECT c.mm, c.owner, c.file, r.first + s.value * r.pages, 1 - 2 * s.value, 0, 0, 0
	FROM armed_chunk AS c JOIN mark_runs(c.armed, c.chunk) AS r
	JOIN (SELECT 0 AS value UNION ALL SELECT 1) AS s
	UNION ALL
	SELECT c.mm, c.owner, c.file, r.first + s.value * r.pages, 0, 1 - 2 * s.value, 0, 0
	FROM dirty_chunk AS c JOIN mark_runs(c.dirty, c.chunk) AS r
	JOIN (SELECT 0 AS value UNION ALL SELECT 1) AS s
	UNION ALL
	SELECT v.mm, o.value, v.file, v.pgoff + s.value * v.pages, 0, 0, 1 - 2 * s.value,
		(1 - 2 * s.value) * (v.owner = o.value
			OR (o.value = 1 AND v.owner <> 1 AND v.prot & 2 <> 0))
	FROM vma AS v JOIN (SELECT 1 AS value UNION ALL SELECT 2) AS o
	JOIN (SELECT 0 AS value UNION ALL SELECT 1) AS s
	UNION ALL
	SELECT v.mm, v.owner, v.file, v.pgoff + s.value * v.pages, 0, 0, 0, 2 * s.value - 1
	FROM mark_v AS v JOIN (SELECT 0 AS value UNION ALL SELECT 1) AS s),
point AS (
	SELECT mm, owner, file, page, sum(armed) AS armed, sum(known) AS known, sum(cover) AS cover,
		sum(exposed) AS exposed
	FROM event GROUP BY mm, owner, file, page),
span AS (
	SELECT mm, owner, file, page AS pgoff,
		lead(page) OVER w - page AS pages,
		sum(armed) OVER w > 0 AS armed, sum(known) OVER w > 0 AS known,
		sum(cover) OVER w > 0 AS mapped, sum(exposed) OVER w > 0 AS exposed
	FROM point WINDOW w AS (PARTITION BY mm, owner, file ORDER BY page))
SELECT mm, owner, file, pgoff, pages, mapped, known OR exposed AS dirty
FROM span WHERE armed OR known;

-- Marked pages, a row per run: of each mapping its own, and with addr NULL the parked ones: armed,
-- not written when they were mapped last, to be armed again when the name maps them again.
CREATE VIEW run_v AS
WITH jump AS (
	SELECT *, pgoff IS NOT lag(pgoff + pages) OVER (PARTITION BY mm, owner, file ORDER BY pgoff)
		AS begins
	FROM page_v WHERE NOT mapped AND NOT dirty),
island AS (
	SELECT *, sum(begins) OVER (PARTITION BY mm, owner, file ORDER BY pgoff) AS number FROM jump),
run(mm, owner, file, pgoff, pages, addr) AS (
	SELECT r.mm, r.owner, r.file, r.pgoff, r.pages, v.addr + ((r.pgoff - v.pgoff) << 12)
	FROM mark_v AS r JOIN vma AS v ON v.mm = r.mm AND v.addr = r.addr
	UNION ALL
	SELECT mm, owner, file, min(pgoff), sum(pages), NULL FROM island
	GROUP BY mm, owner, file, number)
SELECT r.mm, m.name, iif(r.owner = 1, 'wpfs', 'program') AS owner, r.file, f.path, r.pgoff, r.pages,
	iif(r.addr IS NULL, NULL, printf('0x%x', r.addr)) AS addr
FROM run AS r JOIN mm AS m ON m.id = r.mm JOIN file_v AS f ON f.file = r.file;

-- Pages that were written since they were armed, a row per run; a page that both owners have armed can
-- be there for each.
CREATE VIEW dirty_v AS
WITH jump AS (
	SELECT *, pgoff IS NOT lag(pgoff + pages) OVER (PARTITION BY mm, owner, file ORDER BY pgoff)
		AS begins
	FROM page_v WHERE dirty),
island AS (
	SELECT *, sum(begins) OVER (PARTITION BY mm, owner, file ORDER BY pgoff) AS number FROM jump),
run AS (
	SELECT mm, owner, file, min(pgoff) AS pgoff, sum(pages) AS pages FROM island
	GROUP BY mm, owner, file, number)
SELECT r.mm, m.name, iif(r.owner = 1, 'wpfs', 'program') AS owner, r.file, f.path, r.pgoff, r.pages
FROM run AS r JOIN mm AS m ON m.id = r.mm JOIN file_v AS f ON f.file = r.file;
