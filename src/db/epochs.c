/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Epochs of a file in an mm: when each began, and what was dirty when it ended. */
#include <errno.h>

#include "base/cleanup.h"
#include "db/chunks.h"
#include "db/db.h"
#include "db/marks.h"
#include "db/marks_internal.h"

int db_last_epoch(struct db_tx *tx, uint64_t *number)
{
	int64_t last = 0;
	int r = sql_get_i64(tx, &last,
			    "SELECT max(coalesce((SELECT max(epoch) FROM mm), 0),"
			    " coalesce((SELECT value FROM meta WHERE key = ?1), 0))",
			    "t", DB_META_LAST_EPOCH);

	*number = (uint64_t)last;
	return r;
}

int db_epoch_is_open(struct db_tx *tx, uint64_t mm, uint64_t file)
{
	int64_t nr;
	int r = sql_get_i64(tx, &nr,
			    "SELECT count(*) FROM epoch"
			    " WHERE mm = ?1 AND file = ?2 AND closed_ns IS NULL",
			    "ii", (int64_t)mm, (int64_t)file);

	return r < 0 ? r : (int)nr;
}

static int epochs_prune(struct db_tx *tx, uint64_t mm, uint64_t file)
{
	return sql_exec(tx,
			"DELETE FROM epoch WHERE mm = ?1 AND file = ?2 AND number <= ("
			" SELECT number FROM epoch WHERE mm = ?1 AND file = ?2"
			" AND closed_ns IS NOT NULL ORDER BY number DESC LIMIT 1 OFFSET ?3)",
			"iii", (int64_t)mm, (int64_t)file, (int64_t)DB_EPOCHS_KEPT);
}

int db_epoch_close(struct db_tx *tx, uint64_t mm, uint64_t file, int64_t now_ns,
		   const struct mm_set *last, enum mm_written written)
{
	struct chunk_key key = {CHUNKS_EPOCH, mm, file, 0};
	int64_t number;
	int r = sql_get_i64(
		tx, &number,
		"SELECT number FROM epoch WHERE mm = ?1 AND file = ?2 AND closed_ns IS NULL", "ii",
		(int64_t)mm, (int64_t)file);

	if (r < 0)
		return r == -ENODATA ? 0 : r;
	key.k3 = (uint64_t)number;
	r = sql_exec(tx,
		     "UPDATE epoch SET closed_ns = max(?4, opened_ns), written = ?5"
		     " WHERE mm = ?1 AND file = ?2 AND number = ?3",
		     "iiiii", (int64_t)mm, (int64_t)file, number, now_ns, (int64_t)written);
	if (r == 0 && last)
		r = chunks_put(tx, &key, last);
	if (r == 0)
		r = epochs_prune(tx, mm, file);
	return r;
}

int db_epoch_open(struct db_tx *tx, uint64_t mm, uint64_t file, uint64_t number, int64_t now_ns,
		  const struct mm_set *last, enum mm_written written)
{
	int64_t open;
	int r = marks_file_need(tx, mm, file);

	if (r == 0)
		r = sql_get_i64(tx, &open,
				"SELECT closed_ns IS NULL FROM epoch"
				" WHERE mm = ?1 AND file = ?2 AND number = ?3",
				"iii", (int64_t)mm, (int64_t)file, (int64_t)number);
	if (r == 0)
		return open ? 0 : -EEXIST;
	if (r == -ENODATA)
		r = db_epoch_close(tx, mm, file, now_ns, last, written);
	if (r == 0)
		r = sql_exec(tx,
			     "INSERT INTO epoch (mm, file, number, opened_ns, closed_ns)"
			     " VALUES (?1, ?2, ?3, ?4, NULL)",
			     "iiii", (int64_t)mm, (int64_t)file, (int64_t)number, now_ns);
	return r;
}

/* ---- two histories become one ---- */

/* Adds what the epoch ended with that `mm` was in at the time `number` begins; nothing: in none. */
static int epochs_add_at(struct db_tx *tx, uint64_t mm, uint64_t file, int64_t number,
			 struct mm_set *set, int64_t *written)
{
	struct chunk_key key = {CHUNKS_EPOCH, mm, file, 0};
	int64_t at, was;
	int r = sql_get_i64(
		tx, &at,
		"SELECT max(number) FROM epoch WHERE mm = ?1 AND file = ?2 AND number <= ?3", "iii",
		(int64_t)mm, (int64_t)file, number);

	if (r < 0)
		return r == -ENODATA ? 0 : r;
	r = sql_get_i64(tx, &was,
			"SELECT written FROM epoch WHERE mm = ?1 AND file = ?2 AND number = ?3",
			"iii", (int64_t)mm, (int64_t)file, at);
	if (r < 0)
		return r;
	if (*written != MM_WRITTEN_YES && was != MM_WRITTEN_NO)
		*written = was;
	key.k3 = (uint64_t)at;
	return chunks_get(tx, &key, set);
}

static int epochs_merge_at(struct db_tx *tx, uint64_t from, uint64_t into, uint64_t file,
			   int64_t number)
{
	const struct chunk_key key = {CHUNKS_EPOCH, into, file, (uint64_t)number};
	_cleanup_set_ struct mm_set set = {NULL};
	int64_t written = MM_WRITTEN_NO;
	int r = epochs_add_at(tx, into, file, number, &set, &written);

	if (r == 0)
		r = epochs_add_at(tx, from, file, number, &set, &written);
	if (r == 0)
		r = sql_exec(tx,
			     "INSERT INTO epoch (mm, file, number, opened_ns, closed_ns)"
			     " SELECT ?1, file, number, opened_ns, closed_ns FROM epoch"
			     " WHERE mm = ?2 AND file = ?3 AND number = ?4"
			     " ON CONFLICT DO NOTHING",
			     "iiii", (int64_t)into, (int64_t)from, (int64_t)file, number);
	if (r == 0)
		r = sql_exec(tx,
			     "UPDATE epoch SET written = ?4"
			     " WHERE mm = ?1 AND file = ?2 AND number = ?3",
			     "iiii", (int64_t)into, (int64_t)file, number, written);
	return r < 0 ? r : chunks_put(tx, &key, &set);
}

static int epochs_merge_file(struct db_tx *tx, uint64_t from, uint64_t into, uint64_t file,
			     uint64_t end)
{
	int64_t first, at = INT64_MAX;
	int r = marks_file_need(tx, into, file);

	/* At the end it is in none any more: one that ended with nothing says so. */
	if (r == 0)
		r = sql_exec(tx,
			     "INSERT INTO epoch (mm, file, number, opened_ns, closed_ns, written)"
			     " SELECT ?1, ?2, ?3, max(closed_ns), max(closed_ns), 0 FROM epoch"
			     " WHERE mm = ?1 AND file = ?2 ON CONFLICT DO NOTHING",
			     "iii", (int64_t)from, (int64_t)file, (int64_t)end);
	if (r == 0)
		r = sql_get_i64(tx, &first,
				"SELECT min(number) FROM epoch WHERE mm = ?1 AND file = ?2", "ii",
				(int64_t)from, (int64_t)file);
	/* From the last one on: each is made of those before it, as they were. */
	while (r == 0) {
		r = sql_get_i64(tx, &at,
				"SELECT max(number) FROM epoch WHERE (mm = ?1 OR mm = ?2)"
				" AND file = ?3 AND number >= ?4 AND number < ?5",
				"iiiii", (int64_t)from, (int64_t)into, (int64_t)file, first, at);
		if (r == 0)
			r = epochs_merge_at(tx, from, into, file, at);
	}
	return r == -ENODATA ? epochs_prune(tx, into, file) : r;
}

int db_epochs_tell(struct db_tx *tx, uint64_t mm)
{
	int64_t any;
	int r = sql_get_i64(tx, &any,
			    "SELECT EXISTS (SELECT 1 FROM epoch_chunk WHERE mm = ?1)"
			    " OR EXISTS (SELECT 1 FROM epoch WHERE mm = ?1"
			    " AND closed_ns IS NOT NULL AND written <> 0)",
			    "i", (int64_t)mm);

	return r < 0 ? r : any != 0;
}

int db_epochs_merge(struct db_tx *tx, uint64_t from, uint64_t into, uint64_t end)
{
	int64_t file = 0;
	int r;

	do {
		r = sql_get_i64(tx, &file,
				"SELECT min(file) FROM epoch WHERE mm = ?1 AND file > ?2", "ii",
				(int64_t)from, file);
		if (r == 0)
			r = epochs_merge_file(tx, from, into, (uint64_t)file, end);
	} while (r == 0);
	return r == -ENODATA ? 0 : r;
}
