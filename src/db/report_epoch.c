/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A closed epoch in a report: what was dirty when it ended, in the place of what is now. */
#include <errno.h>

#include "db/chunks.h"
#include "db/report_internal.h"
#include "db/sql.h"

/* The epoch of a file in an mm that a number means there. */
struct epoch_row {
	uint64_t number;
	bool closed;
	enum wpfs_written written; /* as it was closed */
};

/* 0, or -ENODATA: it has none of that number, or of one before. */
static int epoch_find(struct db_tx *tx, uint64_t mm, uint64_t file, uint64_t number,
		      struct epoch_row *epoch)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st,
			  "SELECT number, closed_ns IS NOT NULL, written FROM epoch"
			  " WHERE mm = ?1 AND file = ?2 AND number <= ?3"
			  " ORDER BY number DESC LIMIT 1",
			  "iii", (int64_t)mm, (int64_t)file, (int64_t)number);

	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r < 0 ? r : -ENODATA;
	epoch->number = (uint64_t)sqlite3_column_int64(st, 0);
	epoch->closed = sqlite3_column_int64(st, 1) != 0;
	epoch->written = report_written_of((int)sqlite3_column_int64(st, 2));
	sql_reset(st);
	return 0;
}

/* What it had been in at the time may have been dropped. 1, 0 or -errno. */
static int epochs_were_dropped(struct db_tx *tx, uint64_t mm, uint64_t file)
{
	int64_t kept;
	int r = sql_get_i64(tx, &kept,
			    "SELECT count(*) FROM epoch"
			    " WHERE mm = ?1 AND file = ?2 AND closed_ns IS NOT NULL",
			    "ii", (int64_t)mm, (int64_t)file);

	return r < 0 ? r : kept >= DB_EPOCHS_KEPT;
}

static const char *view_name(const struct report_view *view)
{
	return view->row->name[0] ? view->row->name : "(unnamed)";
}

/*
 * It was in no epoch of the file then, but in a later one. Whether it had the file mapped at the
 * time nobody knows any more: it may have stored to it.
 */
static int note_before_first(struct db_tx *tx, struct report *rp, const struct report_view *view,
			     const struct report_file *rf)
{
	int64_t later;
	int r = sql_get_i64(tx, &later, "SELECT count(*) FROM epoch WHERE mm = ?1 AND file = ?2",
			    "ii", (int64_t)view->row->id, (int64_t)rf->id);

	if (r < 0 || later == 0)
		return r;
	return report_note_gap(
		rp,
		"%.80s: %.300s: not protected in epoch %llu: what it stored then is not "
		"known",
		view_name(view), rf->path, (unsigned long long)rp->q->epoch);
}

/* Puts what an epoch ended with in the place of today's sets. Without that epoch: nothing. */
static int file_turn_back(struct db_tx *tx, struct report *rp, const struct report_view *view,
			  struct report_file *rf)
{
	struct epoch_row epoch = {0};
	struct chunk_key key = {CHUNKS_EPOCH, view->row->id, rf->id, 0};
	int r = epoch_find(tx, view->row->id, rf->id, rp->q->epoch, &epoch);

	if (r < 0 && r != -ENODATA)
		return r;
	if (r == 0 && !epoch.closed)
		return 0;
	report_file_free(rf);
	rf->written = WPFS_WRITTEN_NONE;
	if (r == -ENODATA) {
		r = epochs_were_dropped(tx, view->row->id, rf->id);
		if (r > 0)
			return report_note_gap(
				rp,
				"%.80s: %.300s: what was changed in epoch %llu is not kept "
				"any more: only the last %d epochs are",
				view_name(view), rf->path, (unsigned long long)rp->q->epoch,
				DB_EPOCHS_KEPT);
		return r < 0 ? r : note_before_first(tx, rp, view, rf);
	}
	rf->written = epoch.written;
	key.k3 = epoch.number;
	r = chunks_get(tx, &key, &rf->own[MM_WPFS].dirty);
	if (r == 0)
		r = mm_set_copy(&rf->own[MM_WPFS].armed, &rf->own[MM_WPFS].dirty);
	return r < 0 ? r : mm_set_keep_range(&rf->own[MM_WPFS].dirty, rp->first, rp->nr);
}

int report_epoch_turn_back(struct db_tx *tx, struct report *rp, struct report_view *view)
{
	view->rec.files = 0;
	view->rec.armed = view->rec.dirty = view->rec.marked = 0;
	for (size_t i = 0; i < view->nr; i++) {
		struct report_file *rf = &view->files[i];
		int r = file_turn_back(tx, rp, view, rf);

		if (r)
			return r;
		view->rec.dirty += mm_set_count(&rf->own[MM_WPFS].dirty);
		view->rec.files += !mm_set_is_empty(&rf->own[MM_WPFS].dirty);
	}
	view->rec.armed = view->rec.dirty;
	return 0;
}

/* Is there anything of that file to tell about the epoch? */
static bool file_turned_tells(const struct report_file *rf)
{
	return !mm_set_is_empty(&rf->own[MM_WPFS].dirty) || rf->written == WPFS_WRITTEN_YES ||
	       rf->written == WPFS_WRITTEN_UNKNOWN;
}

int report_epoch_emit(struct report *rp, const struct report_view *view)
{
	bool any = false;
	int r;

	for (size_t i = 0; i < view->nr; i++)
		any |= file_turned_tells(&view->files[i]);
	if (!any)
		return 0;
	r = report_view_begin(rp, view);
	for (size_t i = 0; r == 0 && i < view->nr; i++) {
		const struct report_file *rf = &view->files[i];
		const struct mm_set *dirty = &rf->own[MM_WPFS].dirty;
		struct wpfs_rec_map map = {.dirty = mm_set_count(dirty)};

		map.armed = map.dirty;
		if (file_turned_tells(rf))
			r = report_parked_emit(rf, MM_WPFS, dirty, &map, rp->emit, rp->ctx);
	}
	if (r == 0)
		r = report_view_written(rp, view);
	return r ? r
		 : report_note(rp, "epoch %llu: only its dirty pages are kept, by file and offset",
			       (unsigned long long)rp->q->epoch);
}
