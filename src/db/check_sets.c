/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sets of pages that cannot be read, dirty pages that are not armed, mappings that cannot be, marks
 * outside of mappings. Whatever is in doubt counts as dirty afterwards.
 */
#include <errno.h>
#include <stdio.h>

#include "base/units.h"
#include "db/check_internal.h"
#include "db/marks.h"
#include "mm/model.h"

/* 0, -EBADMSG or -ENOMEM. */
static int set_read(struct mm_set *set, const void *bytes, size_t len)
{
	return mm_set_add_chunk(set, 0, len ? MM_CHUNK_BITS : MM_CHUNK_FULL, bytes, len);
}

static int row_read(struct mm_set *set, const struct check_row *row)
{
	return set_read(set, row->bytes, row->len);
}

static int set_is_bad(const struct check_row *row)
{
	_cleanup_set_ struct mm_set set = {NULL};
	int r = row_read(&set, row);

	return r == -EBADMSG ? 1 : r;
}

/* ---- sets that cannot be read ---- */

/* mm, owner or number, file, chunk, the set; mend has ?1 .. ?4 for the first four. */
struct set_table {
	const char *name, *repair;
	const char *find;
	const char *mend[2];
};

static const struct set_table tables[] = {
	{"marked",
	 "remove it: armed pages there are dirty",
	 "SELECT mm, owner, 0, chunk, marked FROM mark_chunk",
	 {"DELETE FROM mark_chunk WHERE mm = ?1 AND owner = ?2 AND chunk = ?3 + ?4", NULL}},
	{"armed",
	 "take all of it as armed and dirty",
	 "SELECT mm, owner, file, chunk, armed FROM armed_chunk",
	 {"UPDATE armed_chunk SET armed = x'' WHERE mm = ?1 AND owner = ?2 AND file = ?3"
	  " AND chunk = ?4",
	  "INSERT INTO dirty_chunk (mm, owner, file, chunk, dirty) VALUES (?1, ?2, ?3, ?4, x'')"
	  " ON CONFLICT DO UPDATE SET dirty = x''"}},
	{"dirty",
	 "take all that is armed there as dirty",
	 "SELECT mm, owner, file, chunk, dirty FROM dirty_chunk",
	 {"INSERT OR IGNORE INTO armed_chunk (mm, owner, file, chunk, armed)"
	  " VALUES (?1, ?2, ?3, ?4, x'')",
	  "UPDATE dirty_chunk AS d SET dirty = (SELECT armed FROM armed_chunk AS a"
	  " WHERE a.mm = d.mm AND a.owner = d.owner AND a.file = d.file AND a.chunk = d.chunk)"
	  " WHERE mm = ?1 AND owner = ?2 AND file = ?3 AND chunk = ?4"}},
	{"dirty of a closed epoch",
	 "take all of it as dirty",
	 "SELECT mm, number, file, chunk, dirty FROM epoch_chunk",
	 {"UPDATE epoch_chunk SET dirty = x'' WHERE mm = ?1 AND number = ?2 AND file = ?3"
	  " AND chunk = ?4",
	  NULL}},
};

static int mend_set(struct db_check *check, const struct set_table *table,
		    const struct check_row *row)
{
	const int64_t *v = row->v;
	char where[96];
	int r;

	snprintf(where, sizeof(where), v[2] ? ", file %lld" : "", (long long)v[2]);
	r = check_found(check, "set", "a set of pages that cannot be read", table->repair,
			"%s pages of mm %lld%s, chunk %lld", table->name, (long long)v[0], where,
			(long long)v[3]);
	for (size_t i = 0; r == 0 && i < 2 && table->mend[i]; i++)
		r = sql_exec(&check->tx, table->mend[i], "iiii", v[0], v[1], v[2], v[3]);
	return r;
}

static int check_table(struct db_check *check, const struct set_table *table)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_rows_get(check, &rows, table->find);

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		r = set_is_bad(&rows.rows[i]);
		if (r > 0)
			r = mend_set(check, table, &rows.rows[i]);
	}
	return r;
}

/* ---- dirty within armed ---- */

static int put_armed(struct db_check *check, const int64_t *v, const struct mm_set *set)
{
	struct mm_chunk chunk;

	mm_set_get_chunk(set, 0, &chunk);
	return sql_exec(&check->tx,
			"INSERT INTO armed_chunk (mm, owner, file, chunk, armed)"
			" VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET armed = ?5",
			"iiiib", v[0], v[1], v[2], v[3], chunk.bytes, (size_t)chunk.len);
}

static int get_armed(struct db_check *check, const int64_t *v, struct mm_set *set)
{
	sqlite3_stmt *st;
	int r = sql_query(&check->tx, &st,
			  "SELECT armed FROM armed_chunk WHERE mm = ?1 AND owner = ?2 AND file = ?3"
			  " AND chunk = ?4",
			  "iiii", v[0], v[1], v[2], v[3]);

	if (r == 0)
		r = sql_step(&check->tx, st);
	if (r <= 0)
		return r;
	r = set_read(set, sqlite3_column_blob(st, 0), (size_t)sqlite3_column_bytes(st, 0));
	sql_reset(st);
	return r;
}

static int check_within(struct db_check *check, const struct check_row *row)
{
	_cleanup_set_ struct mm_set armed = {NULL}, dirty = {NULL};
	int r = row_read(&dirty, row);

	if (r == 0)
		r = get_armed(check, row->v, &armed);
	if (r < 0 || mm_set_is_subset(&dirty, &armed))
		return r;
	r = check_found(check, "not-armed", "pages are dirty and were never armed",
			"take them as armed", "mm %lld, file %lld, chunk %lld",
			(long long)row->v[0], (long long)row->v[2], (long long)row->v[3]);
	if (r == 0)
		r = mm_set_or(&armed, &dirty);
	return r ? r : put_armed(check, row->v, &armed);
}

int check_sets(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = 0;

	for (size_t i = 0; r == 0 && i < sizeof(tables) / sizeof(tables[0]); i++)
		r = check_table(check, &tables[i]);
	if (r == 0)
		r = check_rows_get(check, &rows,
				   "SELECT mm, owner, file, chunk, dirty FROM dirty_chunk");
	for (size_t i = 0; r == 0 && i < rows.nr; i++)
		r = check_within(check, &rows.rows[i]);
	return r;
}

/* ---- mappings ---- */

/* All that is armed of a file in an mm is dirty: its mapping cannot be believed. */
static int drop_mapping(struct db_check *check, const int64_t *v)
{
	int r = sql_exec(&check->tx,
			 "INSERT INTO dirty_chunk (mm, owner, file, chunk, dirty)"
			 " SELECT mm, owner, file, chunk, armed FROM armed_chunk WHERE mm = ?1"
			 " AND file = ?2 ON CONFLICT DO UPDATE SET dirty = excluded.dirty",
			 "ii", v[0], v[2]);

	return r ? r
		 : sql_exec(&check->tx, "DELETE FROM vma WHERE mm = ?1 AND addr = ?2", "ii", v[0],
			    v[1]);
}

static int check_vmas(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int64_t mm = 0, end = 0;
	int r = check_rows_get(check, &rows,
			       "SELECT mm, addr, file, pages, pgoff, owner FROM vma"
			       " ORDER BY mm, addr");

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		const int64_t *v = rows.rows[i].v;

		if (v[0] != mm)
			end = 0;
		mm = v[0];
		if (v[1] >= end && (uint64_t)v[1] < DB_ADDR_MAX && v[1] % WPFS_PAGE_SIZE == 0 &&
		    v[3] > 0 && v[3] <= (int64_t)MM_PGOFF_MAX && v[4] >= 0 &&
		    v[4] <= (int64_t)MM_PGOFF_MAX - v[3] && v[5] >= 0 && v[5] <= 2) {
			end = v[1] + (v[3] << WPFS_PAGE_SHIFT);
			continue;
		}
		r = check_found(check, "mapping", "a mapping that cannot be",
				"remove it: what is armed of the file there is dirty",
				"mm %lld, address 0x%llx, file %lld", (long long)v[0],
				(unsigned long long)v[1], (long long)v[2]);
		if (r == 0)
			r = drop_mapping(check, v);
	}
	return r;
}

/* Takes from the set of chunk `chunk` the pages of one mapping. */
static int set_without(struct mm_set *set, int64_t chunk, int64_t addr, int64_t pages)
{
	int64_t first = (addr >> WPFS_PAGE_SHIFT) - (chunk << MM_CHUNK_SHIFT), end = first + pages;

	if (first < 0)
		first = 0;
	return end > first ? mm_set_remove_range(set, (uint64_t)first, (uint64_t)(end - first)) : 0;
}

/* The marks of a chunk that no mapping of their owner has. */
static int stray_marks(struct db_check *check, const int64_t *v, struct mm_set *set)
{
	sqlite3_stmt *st;
	int r = sql_query(&check->tx, &st,
			  "SELECT addr, pages FROM vma WHERE mm = ?1 AND owner = ?2"
			  " AND addr < (?3 + 1) << 28 AND addr + pages * 4096 > ?3 << 28",
			  "iii", v[0], v[1], v[2]);

	while (r == 0 && (r = sql_step(&check->tx, st)) > 0) {
		r = set_without(set, v[2], sqlite3_column_int64(st, 0),
				sqlite3_column_int64(st, 1));
		if (r < 0)
			sql_reset(st);
	}
	return r;
}

static int put_marks(struct db_check *check, const int64_t *v, const struct mm_set *set)
{
	struct mm_chunk chunk;

	mm_set_get_chunk(set, 0, &chunk);
	if (chunk.kind == MM_CHUNK_EMPTY)
		return sql_exec(
			&check->tx,
			"DELETE FROM mark_chunk WHERE mm = ?1 AND owner = ?2 AND chunk = ?3", "iii",
			v[0], v[1], v[2]);
	return sql_exec(&check->tx,
			"UPDATE mark_chunk SET marked = ?4 WHERE mm = ?1 AND owner = ?2"
			" AND chunk = ?3",
			"iiib", v[0], v[1], v[2], chunk.bytes, (size_t)chunk.len);
}

static int check_marks(struct db_check *check, const struct check_row *row)
{
	_cleanup_set_ struct mm_set marked = {NULL}, stray = {NULL};
	int r = row_read(&marked, row);

	if (r == 0)
		r = mm_set_copy(&stray, &marked);
	if (r == 0)
		r = stray_marks(check, row->v, &stray);
	if (r < 0 || mm_set_is_empty(&stray))
		return r;
	r = check_found(check, "stray-marks", "marks outside of every mapping", "remove them",
			"mm %lld, addresses 0x%llx up to 0x%llx", (long long)row->v[0],
			(unsigned long long)row->v[2] << 28,
			(unsigned long long)(row->v[2] + 1) << 28);
	if (r == 0)
		r = mm_set_andnot(&marked, &stray);
	return r ? r : put_marks(check, row->v, &marked);
}

int check_mappings(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_vmas(check);

	if (r == 0)
		r = check_rows_get(check, &rows, "SELECT mm, owner, chunk, marked FROM mark_chunk");
	for (size_t i = 0; r == 0 && i < rows.nr; i++)
		r = check_marks(check, &rows.rows[i]);
	return r;
}
