/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One mm in a report: its files with their sets, the records about them, and the notes that say
 * what numbers alone would not.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "db/report_internal.h"
#include "db/sql.h"
#include "db/tree.h"

static int note_va(struct report *rp, enum wpfs_note kind, const char *fmt, va_list ap)
	__attribute__((format(printf, 3, 0)));

static int note_va(struct report *rp, enum wpfs_note kind, const char *fmt, va_list ap)
{
	struct wpfs_rec_note n = {.kind = kind};

	vsnprintf(n.text, sizeof(n.text), fmt, ap);
	return rp->emit(rp->ctx, WPFS_REC_NOTE, &n, sizeof(n));
}

int report_note(struct report *rp, const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = note_va(rp, WPFS_NOTE_PLAIN, fmt, ap);
	va_end(ap);
	return r;
}

int report_note_gap(struct report *rp, const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = note_va(rp, WPFS_NOTE_GAP, fmt, ap);
	va_end(ap);
	return r;
}

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

/* ---- its sets ---- */

static void view_free(struct report_view *view)
{
	for (size_t i = 0; i < view->nr; i++)
		report_file_free(&view->files[i]);
	free(view->files);
}

static int view_add_file(struct db_tx *tx, const struct report *rp, struct report_view *view,
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

static int view_fill(struct db_tx *tx, const struct report *rp, struct report_view *view)
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

/* ---- what is told ---- */

static bool view_is_mapped(const struct report_view *view)
{
	for (size_t i = 0; i < view->nr; i++) {
		if (view->files[i].mapped)
			return true;
	}
	return false;
}

static bool view_has_program(const struct report_view *view)
{
	for (size_t i = 0; i < view->nr; i++) {
		if (!mm_set_is_empty(&view->files[i].own[MM_PROGRAM].armed))
			return true;
	}
	return false;
}

int report_view_written(struct report *rp, const struct report_view *view)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < view->nr; i++) {
		const struct report_file *rf = &view->files[i];

		if (rf->written == WPFS_WRITTEN_YES)
			r = report_note(
				rp,
				"%.300s: changed in this epoch by write(2) too, which clears no "
				"mark: the dirty pages are not all",
				rf->path);
		else if (rf->written == WPFS_WRITTEN_UNKNOWN)
			r = report_note(
				rp,
				"%.300s: whether write(2) changed it in this epoch is not known: "
				"its daemon did not run all the time",
				rf->path);
	}
	return r;
}

static int emit_notes(struct report *rp, const struct report_view *view)
{
	const struct db_mm *row = view->row;
	const char *slash = strchr(row->name, '/');
	bool live = row->state == WPFS_MM_LIVE;
	int r = 0;

	if (rp->q->kind == WPFS_REPORT_DIRTY)
		r = report_view_written(rp, view);
	if (r)
		return r;
	if (view->rec.armed == 0 && view_is_mapped(view))
		r = report_note(rp, "nothing armed: `wpctl protect`, or run it with --protect");
	else if (view->rec.armed == 0 && live)
		r = report_note(
			rp, "nothing mapped shared now: only shared mappings of files are tracked");
	else if (view->rec.armed == 0 && slash && strcmp(slash, DB_ENDED_NAME) == 0)
		r = report_note(rp,
				"fork children that ended: what their closed epochs ended with");
	else if (view->rec.armed == 0)
		r = report_note(rp, "nothing was armed when it ended");
	if (r == 0 && row->flags & DB_MM_PRIVATE_MAPS)
		r = report_note(rp,
				"maps files MAP_PRIVATE: stores to such a mapping stay its own and "
				"are not tracked");
	if (r == 0 && view_has_program(view))
		r = report_note(rp, "own userfaultfd: its dirty pages are a lower bound");
	if (r == 0 && row->conservative && rp->q->kind != WPFS_REPORT_MARKS)
		r = report_note(rp, "%llu pages were counted as dirty for want of proof",
				(unsigned long long)row->conservative);
	if (r == 0 && live && row->flags & DB_MM_NO_WITNESS)
		r = report_note(rp, "no witness: if it is killed, what was armed counts as dirty");
	if (r == 0 && live && row->name[0] == '\0')
		r = report_note(rp, "no name: its marks end with it");
	return r;
}

/* Of several, the one that must not be overlooked. */
static enum wpfs_written written_worse(enum wpfs_written a, enum wpfs_written b)
{
	if (a == WPFS_WRITTEN_YES || b == WPFS_WRITTEN_YES)
		return WPFS_WRITTEN_YES;
	return a > b ? a : b;
}

static int add_to_union(struct report *rp, const struct report_view *view)
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

int report_view_begin(struct report *rp, const struct report_view *view)
{
	int r = add_to_union(rp, view);

	rp->mms++;
	return r < 0 ? r : rp->emit(rp->ctx, WPFS_REC_MM, &view->rec, sizeof(view->rec));
}

static int emit_view(struct report *rp, const struct report_view *view)
{
	int r;

	if (rp->q->kind != WPFS_REPORT_PS && view->nr == 0 && rp->file)
		return 0; /* asked about one file, and this mm has nothing to do with it */
	r = report_view_begin(rp, view);
	for (size_t i = 0; r == 0 && rp->q->kind != WPFS_REPORT_PS && i < view->nr; i++)
		r = report_file_emit(&view->files[i], view->mm, rp->q->kind, rp->first, rp->nr,
				     rp->emit, rp->ctx);
	return r ? r : emit_notes(rp, view);
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

int report_mm(struct db_tx *tx, struct report *rp, uint64_t id)
{
	struct report_view view = {NULL};
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
		r = report_epoch_turn_back(tx, rp, &view);
		if (r == 0)
			r = report_epoch_emit(rp, &view);
	} else if (r == 0) {
		r = emit_view(rp, &view);
	}
	view_free(&view);
	mm_free(&model);
	return r;
}
