-- SPDX-License-Identifier: LGPL-2.1-or-later
-- The first schema. Units: page offsets and counts in pages of 4096 bytes, addresses and sizes in
-- bytes, times in ns since 1970 unless said otherwise. Owners: 1 wpfs, 2 the program itself.
-- What a row means, and what a crash can leave: schema/README.md.

-- Single values; the keys stand in src/db/db.h.
CREATE TABLE meta (
	key TEXT NOT NULL PRIMARY KEY,
	value ANY NOT NULL
) STRICT, WITHOUT ROWID;

---- the tree ---------------------------------------------------------------------------------

-- Ids are st_ino on the mount and never used again; 1 is the root directory.
CREATE TABLE inode (
	id INTEGER PRIMARY KEY CHECK (id > 0),
	mode INTEGER NOT NULL CHECK (mode BETWEEN 0 AND 0xffff),
	uid INTEGER NOT NULL CHECK (uid BETWEEN 0 AND 0xffffffff),
	gid INTEGER NOT NULL CHECK (gid BETWEEN 0 AND 0xffffffff),
	nlink INTEGER NOT NULL CHECK (nlink >= 0),
	rdev INTEGER NOT NULL CHECK (rdev >= 0),
	size INTEGER NOT NULL CHECK (size >= 0),
	atime_ns INTEGER NOT NULL,
	mtime_ns INTEGER NOT NULL,
	ctime_ns INTEGER NOT NULL,
	lower_ino INTEGER NOT NULL CHECK (lower_ino >= 0), -- in the lower tmpfs named in meta
	target BLOB,                                       -- of a symbolic link
	CHECK ((target IS NOT NULL) = ((mode & 0xf000) = 0xa000))
) STRICT;

CREATE TABLE dirent (
	parent INTEGER NOT NULL REFERENCES inode DEFERRABLE INITIALLY DEFERRED,
	name BLOB NOT NULL CHECK (length(name) BETWEEN 1 AND 255 AND instr(name, x'2f') = 0
		AND name NOT IN (x'2e', x'2e2e')),
	id INTEGER NOT NULL REFERENCES inode DEFERRABLE INITIALLY DEFERRED CHECK (id > 1),
	PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX dirent_id ON dirent (id);

CREATE TABLE xattr (
	id INTEGER NOT NULL REFERENCES inode DEFERRABLE INITIALLY DEFERRED,
	name BLOB NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
	value BLOB NOT NULL,
	PRIMARY KEY (id, name)
) STRICT, WITHOUT ROWID;

---- marks ---------------------------------------------------------------------------------------

-- Files that marks refer to. They are not those of `inode`, which is written at a flush only.
CREATE TABLE file (
	id INTEGER PRIMARY KEY CHECK (id > 0),
	handle BLOB NOT NULL, -- finds it in the lower tmpfs named in meta; empty = none
	path TEXT NOT NULL    -- where it was seen last; for people; empty = nowhere
) STRICT;

-- Address spaces.
CREATE TABLE mm (
	id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
	uid INTEGER NOT NULL CHECK (uid BETWEEN 0 AND 0xffffffff),
	name TEXT NOT NULL,              -- empty = unnamed
	state INTEGER NOT NULL CHECK (state IN (1, 2)), -- 1 live, 2 detached
	pid INTEGER NOT NULL,            -- of the program; 0 = detached
	start_time INTEGER NOT NULL,     -- of pid: clock ticks since boot
	boot_id TEXT NOT NULL,           -- the boot that pid and start_time belong to
	witness_pid INTEGER NOT NULL,    -- 0 = none
	witness_start INTEGER NOT NULL,
	uffd_fd INTEGER NOT NULL,        -- in the witness's fd table; -1 = none
	chan_fd INTEGER NOT NULL,        -- the same
	lower_id TEXT NOT NULL,          -- the lower tmpfs it maps or mapped last
	epoch INTEGER NOT NULL CHECK (epoch >= 0),          -- the open one; 0 = none yet
	protect INTEGER NOT NULL CHECK (protect IN (0, 1)), -- arms new mappings as they are made
	flags INTEGER NOT NULL,          -- DB_MM_* of src/db/marks.h
	conservative INTEGER NOT NULL CHECK (conservative >= 0), -- pages dirty without proof, so far
	comm TEXT NOT NULL,
	untold INTEGER NOT NULL,         -- address of what it could not tell; 0 = none
	untold_seen INTEGER NOT NULL,    -- how much of that is accounted for
	CHECK ((state = 1) = (pid > 0)),
	CHECK (witness_pid >= 0 AND (witness_pid > 0 OR (uffd_fd = -1 AND chan_fd = -1)))
) STRICT;

CREATE UNIQUE INDEX mm_name ON mm (uid, name) WHERE name <> '';

-- What an mm maps now.
CREATE TABLE vma (
	mm INTEGER NOT NULL REFERENCES mm ON DELETE CASCADE,
	addr INTEGER NOT NULL CHECK (addr >= 0 AND addr % 4096 = 0),
	pages INTEGER NOT NULL CHECK (pages > 0),
	file INTEGER NOT NULL REFERENCES file ON DELETE CASCADE,
	pgoff INTEGER NOT NULL CHECK (pgoff >= 0 AND pgoff + pages <= 0x100000000),
	prot INTEGER NOT NULL,  -- PROT_* of mmap(2)
	dev INTEGER NOT NULL,   -- st_dev of the mount it was mapped through
	owner INTEGER NOT NULL CHECK (owner IN (0, 1, 2)),    -- whose uffd; 0 = not registered
	async INTEGER NOT NULL CHECK (async IN (0, 1) AND (async = 0 OR owner > 0)), -- WP_ASYNC
	sealed INTEGER NOT NULL CHECK (sealed IN (0, 1)),     -- can never become writable
	PRIMARY KEY (mm, addr)
) STRICT, WITHOUT ROWID;

CREATE INDEX vma_file ON vma (file);

-- A file in an mm: parent of its sets.
CREATE TABLE mm_file (
	mm INTEGER NOT NULL REFERENCES mm ON DELETE CASCADE,
	file INTEGER NOT NULL REFERENCES file ON DELETE CASCADE,
	protect INTEGER NOT NULL CHECK (protect IN (0, 1)), -- all of it, also what it grows by
	PRIMARY KEY (mm, file)
) STRICT, WITHOUT ROWID;

CREATE INDEX mm_file_file ON mm_file (file);

-- Sets of pages, 65536 pages to a row. No row: none of them; a blob of length 0: all of them; else
-- CRoaring's portable format of the numbers 0 .. 65535 within the chunk.

-- Marked, by address: chunk = address >> 28.
CREATE TABLE mark_chunk (
	mm INTEGER NOT NULL REFERENCES mm ON DELETE CASCADE,
	owner INTEGER NOT NULL CHECK (owner IN (1, 2)),
	chunk INTEGER NOT NULL CHECK (chunk >= 0),
	marked BLOB NOT NULL,
	PRIMARY KEY (mm, owner, chunk)
) STRICT, WITHOUT ROWID;

-- Armed in the open epoch, by file and offset: chunk = page offset >> 16.
CREATE TABLE armed_chunk (
	mm INTEGER NOT NULL,
	owner INTEGER NOT NULL CHECK (owner IN (1, 2)),
	file INTEGER NOT NULL,
	chunk INTEGER NOT NULL CHECK (chunk BETWEEN 0 AND 65535),
	armed BLOB NOT NULL,
	PRIMARY KEY (mm, file, owner, chunk),
	FOREIGN KEY (mm, file) REFERENCES mm_file ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Known to be dirty in the open epoch, whatever the mappings say: written before an unmap, contents
-- dropped, or not proven clean.
CREATE TABLE dirty_chunk (
	mm INTEGER NOT NULL,
	owner INTEGER NOT NULL CHECK (owner IN (1, 2)),
	file INTEGER NOT NULL,
	chunk INTEGER NOT NULL CHECK (chunk BETWEEN 0 AND 65535),
	dirty BLOB NOT NULL,
	PRIMARY KEY (mm, file, owner, chunk),
	FOREIGN KEY (mm, file) REFERENCES mm_file ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Epochs of a file in an mm; the one that is not closed is the open one.
CREATE TABLE epoch (
	mm INTEGER NOT NULL,
	file INTEGER NOT NULL,
	number INTEGER NOT NULL CHECK (number > 0),
	opened_ns INTEGER NOT NULL,
	closed_ns INTEGER, -- NULL = open
	PRIMARY KEY (mm, file, number),
	FOREIGN KEY (mm, file) REFERENCES mm_file ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX epoch_open ON epoch (mm, file) WHERE closed_ns IS NULL;

-- The dirty pages with which an epoch ended (owner wpfs).
CREATE TABLE epoch_chunk (
	mm INTEGER NOT NULL,
	file INTEGER NOT NULL,
	number INTEGER NOT NULL,
	chunk INTEGER NOT NULL CHECK (chunk BETWEEN 0 AND 65535),
	dirty BLOB NOT NULL,
	PRIMARY KEY (mm, file, number, chunk),
	FOREIGN KEY (mm, file, number) REFERENCES epoch ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
