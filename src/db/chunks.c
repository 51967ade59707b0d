/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sets of pages as rows. */
#include <errno.h>
#include <string.h>

#include "db/chunks.h"

/* ?1-?3 the key, ?4 the chunk's index in the set, ?5 its bytes. */
struct chunk_sql {
	const char *list, *get, *put, *del;
};

static const struct chunk_sql chunk_sql[] = {
	[CHUNKS_MARKS] =
		{
			"SELECT chunk & 65535, marked FROM mark_chunk WHERE mm = ?1 AND owner = ?2"
			" AND chunk BETWEEN ?3 << 16 AND (?3 << 16) + 65535 ORDER BY chunk",
			"SELECT marked FROM mark_chunk WHERE mm = ?1 AND owner = ?2"
			" AND chunk = (?3 << 16) + ?4",
			"INSERT INTO mark_chunk VALUES (?1, ?2, (?3 << 16) + ?4, ?5)"
			" ON CONFLICT DO UPDATE SET marked = ?5",
			"DELETE FROM mark_chunk WHERE mm = ?1 AND owner = ?2"
			" AND chunk = (?3 << 16) + ?4",
		},
	[CHUNKS_ARMED] =
		{
			"SELECT chunk, armed FROM armed_chunk WHERE mm = ?1 AND owner = ?2 AND "
			"file = ?3",
			"SELECT armed FROM armed_chunk WHERE mm = ?1 AND owner = ?2 AND file = ?3"
			" AND chunk = ?4",
			"INSERT INTO armed_chunk (mm, owner, file, chunk, armed)"
			" VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET armed = ?5",
			"DELETE FROM armed_chunk WHERE mm = ?1 AND owner = ?2 AND file = ?3"
			" AND chunk = ?4",
		},
	[CHUNKS_DIRTY] =
		{
			"SELECT chunk, dirty FROM dirty_chunk WHERE mm = ?1 AND owner = ?2 AND "
			"file = ?3",
			"SELECT dirty FROM dirty_chunk WHERE mm = ?1 AND owner = ?2 AND file = ?3"
			" AND chunk = ?4",
			"INSERT INTO dirty_chunk (mm, owner, file, chunk, dirty)"
			" VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET dirty = ?5",
			"DELETE FROM dirty_chunk WHERE mm = ?1 AND owner = ?2 AND file = ?3"
			" AND chunk = ?4",
		},
	[CHUNKS_EPOCH] =
		{
			"SELECT chunk, dirty FROM epoch_chunk"
			" WHERE mm = ?1 AND file = ?2 AND number = ?3",
			"SELECT dirty FROM epoch_chunk WHERE mm = ?1 AND file = ?2 AND number = ?3"
			" AND chunk = ?4",
			"INSERT INTO epoch_chunk (mm, file, number, chunk, dirty)"
			" VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET dirty = ?5",
			"DELETE FROM epoch_chunk WHERE mm = ?1 AND file = ?2 AND number = ?3"
			" AND chunk = ?4",
		},
};

/* The chunk indices that are stored, as a set of numbers. */
static int chunks_list(struct db_tx *tx, const struct chunk_key *key, struct mm_set *indices)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, chunk_sql[key->table].list, "iii", (int64_t)key->k1,
			  (int64_t)key->k2, (int64_t)key->k3);

	while (r == 0 && (r = sql_step(tx, st)) > 0) {
		r = mm_set_add_range(indices, (uint64_t)sqlite3_column_int64(st, 0), 1);
		if (r < 0)
			sql_reset(st);
	}
	return r;
}

/* 1: the stored chunk has these bytes. */
static int chunk_is_stored(struct db_tx *tx, const struct chunk_key *key, uint32_t index,
			   const struct mm_chunk *chunk)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, chunk_sql[key->table].get, "iiii", (int64_t)key->k1,
			  (int64_t)key->k2, (int64_t)key->k3, (int64_t)index);

	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r;
	r = (uint32_t)sqlite3_column_bytes(st, 0) == chunk->len &&
	    (chunk->len == 0 || memcmp(sqlite3_column_blob(st, 0), chunk->bytes, chunk->len) == 0);
	sql_reset(st);
	return r;
}

static int chunk_put(struct db_tx *tx, const struct chunk_key *key, uint32_t index,
		     const struct mm_set *set, const struct mm_set *stored)
{
	struct mm_chunk chunk;
	int r = 0;

	mm_set_get_chunk(set, index, &chunk);
	if (mm_set_contains(stored, index))
		r = chunk_is_stored(tx, key, index, &chunk);
	if (r != 0)
		return r < 0 ? r : 0;
	return sql_exec(tx, chunk_sql[key->table].put, "iiiib", (int64_t)key->k1, (int64_t)key->k2,
			(int64_t)key->k3, (int64_t)index, chunk.bytes, (size_t)chunk.len);
}

int chunks_put_part(struct db_tx *tx, const struct chunk_key *key, const struct mm_set *set,
		    uint64_t first, uint64_t last)
{
	_cleanup_set_ struct mm_set stored = {NULL};
	uint64_t gone, nr;
	uint32_t index = (uint32_t)first;
	struct mm_runs runs;
	int r = chunks_list(tx, key, &stored);

	for (; r == 0 && mm_set_next_chunk(set, &index) && index <= last; index++) {
		r = chunk_put(tx, key, index, set, &stored);
		if (r == 0)
			r = mm_set_remove_range(&stored, index, 1);
	}
	mm_runs_begin(&runs, &stored, first, last - first + 1);
	while (r == 0 && mm_runs_next(&runs, &gone, &nr)) {
		for (uint64_t i = gone; r == 0 && i < gone + nr; i++)
			r = sql_exec(tx, chunk_sql[key->table].del, "iiii", (int64_t)key->k1,
				     (int64_t)key->k2, (int64_t)key->k3, (int64_t)i);
	}
	return r;
}

int chunks_put(struct db_tx *tx, const struct chunk_key *key, const struct mm_set *set)
{
	return chunks_put_part(tx, key, set, 0, MM_SET_MAX - 1);
}

/* Adds the chunk in a column of a row, which counts as the set's chunk `index`. */
static int chunk_add(sqlite3_stmt *st, int column, uint32_t index, struct mm_set *set)
{
	const void *bytes = sqlite3_column_blob(st, column);
	size_t len = (size_t)sqlite3_column_bytes(st, column);

	return mm_set_add_chunk(set, index, len ? MM_CHUNK_BITS : MM_CHUNK_FULL, bytes, len);
}

int chunks_get(struct db_tx *tx, const struct chunk_key *key, struct mm_set *set)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, chunk_sql[key->table].list, "iii", (int64_t)key->k1,
			  (int64_t)key->k2, (int64_t)key->k3);

	while (r == 0 && (r = sql_step(tx, st)) > 0) {
		int64_t index = sqlite3_column_int64(st, 0);

		r = index < 0 || index > 65535 ? -EBADMSG : chunk_add(st, 1, (uint32_t)index, set);
		if (r < 0)
			sql_reset(st);
	}
	return r;
}

int chunks_get_one(struct db_tx *tx, const struct chunk_key *key, uint32_t index,
		   struct mm_set *set)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, chunk_sql[key->table].get, "iiii", (int64_t)key->k1,
			  (int64_t)key->k2, (int64_t)key->k3, (int64_t)index);

	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r;
	r = chunk_add(st, 0, index, set);
	sql_reset(st);
	return r;
}

/* Adds one row of marks to the pages of a mapping that begins at `page`. */
static int marks_add(sqlite3_stmt *st, uint64_t page, uint64_t nr, struct mm_set *set)
{
	_cleanup_set_ struct mm_set part = {NULL};
	int64_t chunk = sqlite3_column_int64(st, 0);
	int r = chunk_add(st, 1, 0, &part);

	if (r == 0)
		r = mm_set_shift(&part, &part, (chunk << MM_CHUNK_SHIFT) - (int64_t)page);
	return r < 0 ? r : mm_set_or_range(set, &part, 0, nr);
}

int chunks_get_marks(struct db_tx *tx, uint64_t mm, enum mm_owner owner, uint64_t page, uint64_t nr,
		     struct mm_set *set)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st,
			  "SELECT chunk, marked FROM mark_chunk WHERE mm = ?1 AND owner = ?2"
			  " AND chunk BETWEEN ?3 AND ?4 ORDER BY chunk",
			  "iiii", (int64_t)mm, (int64_t)chunk_owner(owner),
			  (int64_t)(page >> MM_CHUNK_SHIFT),
			  (int64_t)((page + nr - 1) >> MM_CHUNK_SHIFT));

	while (r == 0 && (r = sql_step(tx, st)) > 0) {
		r = marks_add(st, page, nr, set);
		if (r < 0)
			sql_reset(st);
	}
	return r;
}
