/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reports: which mms and files a query means, the records about them, and the notes that say what
 * numbers alone would not.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "db/chunks.h"
#include "db/db_internal.h"
#include "db/marks.h"
#include "db/report_file.h"
#include "db/tree.h"

struct report {
	const struct db_report_query *q;
	bool unmounted;	    /* the stored tree is the truth about names */
	uint64_t file;	    /* only this one; 0: any */
	uint64_t first, nr; /* pages of files */
	db_report_emit emit;
	void *ctx;
	char *why;
	unsigned mms;	    /* emitted */
	bool epoch_seen;    /* the epoch asked for exists */
	bool written_known; /* what the rows call not written is not */
	bool want_union;
	struct report_file all; /* the file over all mms; its sets are not used */
	struct mm_set all_armed, all_dirty;
};

static int report_fail(struct report *rp, int error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int report_fail(struct report *rp, int error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (rp->why)
		vsnprintf(rp->why, DB_WHY_SIZE, fmt, ap);
	va_end(ap);
	return error;
}

static int note(struct report *rp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int note_va(struct report *rp, enum wpfs_note kind, const char *fmt, va_list ap)
	__attribute__((format(printf, 3, 0)));

static int note_va(struct report *rp, enum wpfs_note kind, const char *fmt, va_list ap)
{
	struct wpfs_rec_note n = {.kind = kind};

	vsnprintf(n.text, sizeof(n.text), fmt, ap);
	return rp->emit(rp->ctx, WPFS_REC_NOTE, &n, sizeof(n));
}

static int note(struct report *rp, const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = note_va(rp, WPFS_NOTE_PLAIN, fmt, ap);
	va_end(ap);
	return r;
}

static int note_gap(struct report *rp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int note_gap(struct report *rp, const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = note_va(rp, WPFS_NOTE_GAP, fmt, ap);
	va_end(ap);
	return r;
}

/*
 * Parameter n means the mm of that name and its instances: name/2 and name/PID. What a fork child
 * wrote is changed for a backup as much as what its parent wrote.
 */
#define NAME_IS(n) "(name = ?" #n " OR substr(name, 1, length(?" #n ") + 1) = ?" #n " || '/')"

/* ---- names of files ---- */

static int path_by_file(struct db_tx *tx, uint64_t id, char *path, size_t size)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, "SELECT path FROM file WHERE id = ?1 AND path <> ''", "i",
			  (int64_t)id);

	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r < 0 ? r : -ENODATA;
	snprintf(path, size, "%s", sql_text(st, 0));
	sql_reset(st);
	return 0;
}

static int file_path(struct db_tx *tx, const struct report *rp, struct report_file *rf)
{
	int r = -ENODATA;

	if (rp->unmounted)
		r = db_tx_tree_path(tx, rf->id, rf->path, sizeof(rf->path));
	if (r == -ENODATA)
		r = path_by_file(tx, rf->id, rf->path, sizeof(rf->path));
	if (r == -ENODATA) {
		snprintf(rf->path, sizeof(rf->path), "(no name, file %llu)",
			 (unsigned long long)rf->id);
		r = 0;
	}
	return r;
}

static int find_file(struct db_tx *tx, struct report *rp)
{
	const struct db_report_query *q = rp->q;
	int64_t id;
	int r;

	rp->file = q->file;
	if (q->file || !q->path)
		return 0;
	r = db_tx_tree_find(tx, q->path, &rp->file);
	if (r == -ENODATA) {
		r = sql_get_i64(tx, &id, "SELECT max(id) FROM file WHERE path = ?1", "t", q->path);
		if (r == 0)
			rp->file = (uint64_t)id;
	}
	return r == -ENODATA ? report_fail(rp, -ENOENT, "%.200s: no such file", q->path) : r;
}

/* ---- one mm ---- */

/* What a query shows of an mm. */
struct view {
	const struct db_mm *row;
	const struct mm *mm;
	struct report_file *files;
	size_t nr;
	struct wpfs_rec_mm rec;
};

static void view_free(struct view *view)
{
	for (size_t i = 0; i < view->nr; i++)
		report_file_free(&view->files[i]);
	free(view->files);
}

static int view_add_file(struct db_tx *tx, const struct report *rp, struct view *view,
			 const struct mm_file *f)
{
	struct report_file *rf = &view->files[view->nr++];
	int64_t armed, dirty, marked;
	int r = report_file_fill(rf, view->mm, f, rp->first, rp->nr);

	if (r == 0)
		r = file_path(tx, rp, rf);
	if (r < 0)
		return r;
	armed = report_file_count(rf, REPORT_ARMED);
	dirty = report_file_count(rf, REPORT_DIRTY);
	marked = report_file_count(rf, REPORT_MARKED);
	if (armed < 0 || dirty < 0 || marked < 0)
		return -ENOMEM;
	if (rf->written == WPFS_WRITTEN_NO && !rp->written_known)
		rf->written = WPFS_WRITTEN_UNKNOWN;
	view->rec.armed += (uint64_t)armed;
	view->rec.dirty += (uint64_t)dirty;
	view->rec.marked += (uint64_t)marked;
	view->rec.files += armed > 0 || rf->mapped;
	return 0;
}

static int compare_paths(const void *a, const void *b)
{
	const struct report_file *x = a, *y = b;
	int order = strcmp(x->path, y->path);

	return order ? order : (x->id > y->id) - (x->id < y->id);
}

static int view_fill(struct db_tx *tx, const struct report *rp, struct view *view)
{
	const struct mm_file *f;
	int r = 0;

	view->rec = (struct wpfs_rec_mm){
		.id = view->row->id,
		.uid = view->row->uid,
		.pid = view->row->pid,
		.state = view->row->state,
		.epoch = rp->q->epoch ? rp->q->epoch : view->row->epoch,
	};
	_Static_assert(sizeof(view->rec.name) == sizeof(view->row->name), "same layout");
	memcpy(view->rec.name, view->row->name, sizeof(view->rec.name));
	memcpy(view->rec.comm, view->row->comm, sizeof(view->rec.comm));
	view->files = calloc(HASH_COUNT(view->mm->files) + 1, sizeof(*view->files));
	if (!view->files)
		return -ENOMEM;
	for (f = view->mm->files; r == 0 && f; f = f->hh.next) {
		if (rp->file == 0 || rp->file == f->id)
			r = view_add_file(tx, rp, view, f);
	}
	if (r == 0)
		qsort(view->files, view->nr, sizeof(*view->files), compare_paths);
	return r;
}

static bool view_is_mapped(const struct view *view)
{
	for (size_t i = 0; i < view->nr; i++) {
		if (view->files[i].mapped)
			return true;
	}
	return false;
}

static bool view_has_program(const struct view *view)
{
	for (size_t i = 0; i < view->nr; i++) {
		if (!mm_set_is_empty(&view->files[i].own[MM_PROGRAM].armed))
			return true;
	}
	return false;
}

static int emit_written(struct report *rp, const struct view *view)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < view->nr; i++) {
		const struct report_file *rf = &view->files[i];

		if (rf->written == WPFS_WRITTEN_YES)
			r = note(rp,
				 "%.300s: changed in this epoch by write(2) too, which clears no "
				 "mark: the dirty pages are not all",
				 rf->path);
		else if (rf->written == WPFS_WRITTEN_UNKNOWN)
			r = note(rp,
				 "%.300s: whether write(2) changed it in this epoch is not known: "
				 "its daemon did not run all the time",
				 rf->path);
	}
	return r;
}

static int emit_notes(struct report *rp, const struct view *view)
{
	const struct db_mm *row = view->row;
	const char *slash = strchr(row->name, '/');
	bool live = row->state == WPFS_MM_LIVE;
	int r = 0;

	if (rp->q->kind == WPFS_REPORT_DIRTY)
		r = emit_written(rp, view);
	if (r)
		return r;
	if (view->rec.armed == 0 && view_is_mapped(view))
		r = note(rp, "nothing armed: `wpctl protect`, or run it with --protect");
	else if (view->rec.armed == 0 && live)
		r = note(rp,
			 "nothing mapped shared now: only shared mappings of files are tracked");
	else if (view->rec.armed == 0 && slash && strcmp(slash, DB_ENDED_NAME) == 0)
		r = note(rp, "fork children that ended: what their closed epochs ended with");
	else if (view->rec.armed == 0)
		r = note(rp, "nothing was armed when it ended");
	if (r == 0 && row->flags & DB_MM_PRIVATE_MAPS)
		r = note(rp, "maps files MAP_PRIVATE: stores to such a mapping stay its own and "
			     "are not tracked");
	if (r == 0 && view_has_program(view))
		r = note(rp, "own userfaultfd: its dirty pages are a lower bound");
	if (r == 0 && row->conservative && rp->q->kind != WPFS_REPORT_MARKS)
		r = note(rp, "%llu pages were counted as dirty for want of proof",
			 (unsigned long long)row->conservative);
	if (r == 0 && live && row->flags & DB_MM_NO_WITNESS)
		r = note(rp, "no witness: if it is killed, what was armed counts as dirty");
	if (r == 0 && live && row->name[0] == '\0')
		r = note(rp, "no name: its marks end with it");
	return r;
}

/* Of several, the one that must not be overlooked. */
static enum wpfs_written written_worse(enum wpfs_written a, enum wpfs_written b)
{
	if (a == WPFS_WRITTEN_YES || b == WPFS_WRITTEN_YES)
		return WPFS_WRITTEN_YES;
	return a > b ? a : b;
}

static int add_to_union(struct report *rp, const struct view *view)
{
	int r = 0;

	for (size_t i = 0; r == 0 && rp->want_union && i < view->nr; i++) {
		const struct report_file *rf = &view->files[i];

		rp->all.id = rf->id;
		memcpy(rp->all.path, rf->path, sizeof(rp->all.path));
		rp->all.written = written_worse(rp->all.written, rf->written);
		for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++) {
			r = mm_set_or(&rp->all_armed, &rf->own[o].armed);
			if (r == 0)
				r = mm_set_or(&rp->all_dirty, &rf->own[o].dirty);
		}
	}
	return r;
}

static int emit_view(struct report *rp, const struct view *view)
{
	int r;

	if (rp->q->kind != WPFS_REPORT_PS && view->nr == 0 && rp->file)
		return 0; /* asked about one file, and this mm has nothing to do with it */
	rp->mms++;
	r = add_to_union(rp, view);
	if (r == 0)
		r = rp->emit(rp->ctx, WPFS_REC_MM, &view->rec, sizeof(view->rec));
	for (size_t i = 0; r == 0 && rp->q->kind != WPFS_REPORT_PS && i < view->nr; i++)
		r = report_file_emit(&view->files[i], view->mm, rp->q->kind, rp->first, rp->nr,
				     rp->emit, rp->ctx);
	return r ? r : emit_notes(rp, view);
}

/* ---- a closed epoch ---- */

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

static const char *view_name(const struct view *view)
{
	return view->row->name[0] ? view->row->name : "(unnamed)";
}

/*
 * It was in no epoch of the file then, but in a later one. Whether it had the file mapped at the
 * time nobody knows any more: it may have stored to it.
 */
static int note_before_first(struct db_tx *tx, struct report *rp, const struct view *view,
			     const struct report_file *rf)
{
	int64_t later;
	int r = sql_get_i64(tx, &later, "SELECT count(*) FROM epoch WHERE mm = ?1 AND file = ?2",
			    "ii", (int64_t)view->row->id, (int64_t)rf->id);

	if (r < 0 || later == 0)
		return r;
	return note_gap(rp,
			"%.80s: %.300s: not protected in epoch %llu: what it stored then is not "
			"known",
			view_name(view), rf->path, (unsigned long long)rp->q->epoch);
}

/* Puts what an epoch ended with in the place of today's sets. Without that epoch: nothing. */
static int file_turn_back(struct db_tx *tx, struct report *rp, const struct view *view,
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
			return note_gap(rp,
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

static int view_turn_back(struct db_tx *tx, struct report *rp, struct view *view)
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

static int emit_turned_back(struct report *rp, const struct view *view)
{
	bool any = false;
	int r;

	for (size_t i = 0; i < view->nr; i++)
		any |= file_turned_tells(&view->files[i]);
	if (!any)
		return 0;
	rp->mms++;
	r = add_to_union(rp, view);
	if (r == 0)
		r = rp->emit(rp->ctx, WPFS_REC_MM, &view->rec, sizeof(view->rec));
	for (size_t i = 0; r == 0 && i < view->nr; i++) {
		const struct report_file *rf = &view->files[i];
		const struct mm_set *dirty = &rf->own[MM_WPFS].dirty;
		struct wpfs_rec_map map = {.dirty = mm_set_count(dirty)};

		map.armed = map.dirty;
		if (file_turned_tells(rf))
			r = report_parked_emit(rf, MM_WPFS, dirty, &map, rp->emit, rp->ctx);
	}
	if (r == 0)
		r = emit_written(rp, view);
	return r ? r
		 : note(rp, "epoch %llu: only its dirty pages are kept, by file and offset",
			(unsigned long long)rp->q->epoch);
}

/* ---- all ---- */

static int report_lose(struct mm *mm)
{
	struct mm_file *f, *next;
	int r = 0;

	HASH_ITER (hh, mm->files, f, next) {
		if (r == 0 && f->unsettled)
			r = mm_file_lost(mm, f);
	}
	return r;
}

static int report_mm(struct db_tx *tx, struct report *rp, uint64_t id)
{
	struct view view = {NULL};
	struct db_mm row;
	struct mm model;
	int r;

	mm_init(&model);
	r = db_mm_get(tx, id, &row, &model);
	if (r == 0 && rp->q->lower_lost)
		r = report_lose(&model);
	view.row = &row;
	view.mm = &model;
	if (r == 0)
		r = view_fill(tx, rp, &view);
	if (r == 0 && rp->q->epoch && rp->q->kind == WPFS_REPORT_DIRTY) {
		r = view_turn_back(tx, rp, &view);
		if (r == 0)
			r = emit_turned_back(rp, &view);
	} else if (r == 0) {
		r = emit_view(rp, &view);
	}
	view_free(&view);
	mm_free(&model);
	return r;
}

/* Nothing was shown: why? */
static int report_nothing(struct db_tx *tx, struct report *rp)
{
	const struct db_report_query *q = rp->q;
	/* That others have some is neither said nor denied. */
	const char *yours = q->all_uids ? "" : " of yours";
	const char *others = q->all_uids ? "" : "; only root sees the programs of other users";
	int64_t known;
	int r;

	if (q->name) {
		r = sql_get_i64(tx, &known,
				"SELECT count(*) FROM mm WHERE " NAME_IS(1) " AND (?2 OR uid = ?3)",
				"tii", q->name, (int64_t)q->all_uids, (int64_t)q->uid);
		if (r < 0)
			return r;
		if (known == 0)
			return report_fail(
				rp, -ENOENT,
				"no program%s named '%.80s' has mapped a file of this mount shared "
				"(MAP_PRIVATE mappings and write(2) are not tracked%s)",
				yours, q->name, others);
	}
	if (q->epoch && q->kind == WPFS_REPORT_DIRTY && !rp->epoch_seen)
		return report_fail(rp, -ENOENT, "no epoch %llu is kept",
				   (unsigned long long)q->epoch);
	if (rp->epoch_seen)
		return note(rp, "nothing was written in epoch %llu", (unsigned long long)q->epoch);
	if (rp->file)
		return note(rp, "no tracked program%s has mapped this file shared%s", yours,
			    others);
	return note(rp,
		    "no program%s that is attached has mapped a file of this mount shared: start "
		    "it with `wpctl run`%s",
		    yours, others);
}

/*
 * Was any mm that is known in an epoch when the one of that number began? Whose it was may be
 * forgotten.
 */
static int find_epoch(struct db_tx *tx, struct report *rp)
{
	uint64_t last;
	int64_t known;
	int r;

	if (!rp->q->epoch)
		return 0;
	r = db_last_epoch(tx, &last);
	if (r == 0)
		r = sql_get_i64(tx, &known,
				"SELECT EXISTS (SELECT 1 FROM epoch WHERE number <= ?1)", "i",
				(int64_t)rp->q->epoch);
	rp->epoch_seen = r == 0 && known && rp->q->epoch <= last;
	return r;
}

/* A daemon keeps its rows true; without one they may be from before its death. */
static int find_written_known(struct db_tx *tx, struct report *rp)
{
	uint64_t known = 0;
	int r;

	rp->written_known = !rp->unmounted;
	if (!rp->unmounted)
		return 0;
	r = db_tx_meta_get_u64(tx, DB_META_WRITTEN_KNOWN, &known);
	rp->written_known = r == 0 && known == 1;
	return r == -ENODATA ? 0 : r;
}

static int report_job(struct db_tx *tx, void *arg)
{
	struct report *rp = arg;
	const struct db_report_query *q = rp->q;
	int64_t id = 0;
	int r = find_file(tx, rp);

	if (r == 0)
		r = find_epoch(tx, rp);
	if (r == 0)
		r = find_written_known(tx, rp);
	if (r == 0 && q->epoch && q->kind == WPFS_REPORT_DIRTY && !rp->epoch_seen)
		return report_nothing(tx, rp);
	rp->want_union = rp->file && !q->name && q->kind == WPFS_REPORT_DIRTY;
	while (r == 0) {
		r = sql_get_i64(tx, &id,
				"SELECT min(id) FROM mm WHERE id > ?1 AND (?2 OR uid = ?3)"
				" AND (?4 IS NULL OR " NAME_IS(4) ")",
				"iiit", id, (int64_t)q->all_uids, (int64_t)q->uid, q->name);
		if (r == 0)
			r = report_mm(tx, rp, (uint64_t)id);
	}
	if (r != -ENODATA)
		return r;
	if (rp->mms && rp->want_union)
		return report_union_emit(&rp->all, &rp->all_armed, &rp->all_dirty, rp->emit,
					 rp->ctx);
	return rp->mms ? 0 : report_nothing(tx, rp);
}

int db_report(struct db *db, const struct db_report_query *query, db_report_emit emit, void *ctx,
	      char *why)
{
	struct report rp = {
		.q = query,
		.unmounted = !db->writer,
		.nr = MM_SET_MAX,
		.emit = emit,
		.ctx = ctx,
		.why = why,
	};
	int r;

	if (query->len) {
		rp.first = query->offset >> WPFS_PAGE_SHIFT;
		if (query->len <= UINT64_MAX - query->offset)
			rp.nr = ((query->offset + query->len - 1) >> WPFS_PAGE_SHIFT) + 1 -
				rp.first;
	}
	if (why)
		why[0] = '\0';
	r = db_read(db, report_job, &rp);
	mm_set_free(&rp.all_armed);
	mm_set_free(&rp.all_dirty);
	return r;
}

struct counts {
	int64_t live, detached;
};

static int count_job(struct db_tx *tx, void *arg)
{
	struct counts *counts = arg;
	int r = sql_get_i64(tx, &counts->live, "SELECT count(*) FROM mm WHERE state = 1", "");

	if (r == 0)
		r = sql_get_i64(tx, &counts->detached, "SELECT count(*) FROM mm WHERE state = 2",
				"");
	return r;
}

int db_count_mms(struct db *db, uint64_t *live, uint64_t *detached)
{
	struct counts counts;
	int r = db_read(db, count_job, &counts);

	if (r == 0) {
		*live = (uint64_t)counts.live;
		*detached = (uint64_t)counts.detached;
	}
	return r;
}
