/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is dirty. For owner wpfs: armed, and in the stored dirty set, or in a mapping that wpfs has
 * registered and not marked there, or in a writable mapping that wpfs has not registered. For
 * owner program: armed, and in the stored set or unmarked in a mapping that the program has
 * registered; what it writes elsewhere it does not ask about (a lower bound).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "db/report_file.h"

/* The pages a mapping shows marked, as page offsets, of [first, first + nr). */
static int vma_marked(const struct mm_vma *v, uint64_t first, uint64_t nr, struct mm_set *marked)
{
	int r = mm_set_shift(marked, &v->marked, (int64_t)v->pgoff);

	return r < 0 ? r : mm_set_keep_range(marked, first, nr);
}

static bool vma_is_registered(const struct mm_vma *v, enum mm_owner owner)
{
	return v->registered && v->owner == owner;
}

/* Adds to *dirty what the mapping shows of the armed pages. */
static int fold_vma(const struct mm_vma *v, enum mm_owner owner, const struct mm_set *armed,
		    const struct mm_set *marked, struct mm_set *dirty)
{
	_cleanup_set_ struct mm_set found = {NULL};
	bool registered = vma_is_registered(v, owner);
	int r;

	if (!registered && (owner == MM_PROGRAM || !(v->prot & PROT_WRITE)))
		return 0;
	r = mm_set_or_range(&found, armed, v->pgoff, mm_vma_pages(v));
	if (r == 0 && registered)
		r = mm_set_andnot(&found, marked);
	return r < 0 ? r : mm_set_or(dirty, &found);
}

static int fill_owned(struct report_owned *ro, const struct mm *mm, const struct mm_file *f,
		      enum mm_owner owner, uint64_t first, uint64_t nr)
{
	int r = mm_set_or_range(&ro->armed, &f->own[owner].armed, first, nr);

	if (r == 0)
		r = mm_set_copy(&ro->parked, &ro->armed);
	if (r == 0)
		r = mm_set_copy(&ro->dirty, &f->own[owner].dirty);
	if (r == 0)
		r = mm_set_and(&ro->dirty, &ro->armed);
	for (size_t i = 0; r == 0 && i < mm->nr_vmas; i++) {
		const struct mm_vma *v = &mm->vmas[i];
		_cleanup_set_ struct mm_set marked = {NULL};

		if (v->file != f->id)
			continue;
		if (vma_is_registered(v, owner))
			r = vma_marked(v, first, nr, &marked);
		if (r == 0)
			r = fold_vma(v, owner, &ro->armed, &marked, &ro->dirty);
		if (r == 0)
			r = mm_set_or(&ro->marked, &marked);
		if (r == 0)
			r = mm_set_remove_range(&ro->parked, v->pgoff, mm_vma_pages(v));
	}
	return r;
}

/* Parked and not dirty is marked as well. */
static int fill_parked(struct report_owned *ro)
{
	_cleanup_set_ struct mm_set clean = {NULL};
	int r = mm_set_copy(&clean, &ro->parked);

	if (r == 0)
		r = mm_set_andnot(&clean, &ro->dirty);
	return r < 0 ? r : mm_set_or(&ro->marked, &clean);
}

enum wpfs_written report_written_of(int written)
{
	return written == MM_WRITTEN_NO	   ? WPFS_WRITTEN_NO
	       : written == MM_WRITTEN_YES ? WPFS_WRITTEN_YES
					   : WPFS_WRITTEN_UNKNOWN;
}

int report_file_fill(struct report_file *rf, const struct mm *mm, const struct mm_file *f,
		     uint64_t first, uint64_t nr)
{
	int r = 0;

	rf->id = f->id;
	if (!mm_set_is_empty(&f->own[MM_WPFS].armed))
		rf->written = report_written_of((int)f->written);
	for (size_t i = 0; i < mm->nr_vmas; i++)
		rf->mapped |= mm->vmas[i].file == f->id;
	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++) {
		r = fill_owned(&rf->own[o], mm, f, o, first, nr);
		if (r == 0)
			r = fill_parked(&rf->own[o]);
	}
	return r;
}

void report_file_free(struct report_file *rf)
{
	for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
		mm_set_free(&rf->own[o].armed);
		mm_set_free(&rf->own[o].dirty);
		mm_set_free(&rf->own[o].marked);
		mm_set_free(&rf->own[o].parked);
	}
}

static const struct mm_set *owned_set(const struct report_owned *ro, enum report_set set)
{
	return set == REPORT_ARMED ? &ro->armed : set == REPORT_DIRTY ? &ro->dirty : &ro->marked;
}

int64_t report_file_count(const struct report_file *rf, enum report_set set)
{
	_cleanup_set_ struct mm_set all = {NULL};
	int r = mm_set_copy(&all, owned_set(&rf->own[MM_WPFS], set));

	if (r == 0)
		r = mm_set_or(&all, owned_set(&rf->own[MM_PROGRAM], set));
	return r < 0 ? r : (int64_t)mm_set_count(&all);
}

/* ---- records ---- */

static int emit_map(const struct report_file *rf, struct wpfs_rec_map *map, enum mm_owner owner,
		    db_report_emit emit, void *ctx)
{
	map->file = rf->id;
	map->owner = owner == MM_WPFS ? WPFS_OWNER_WPFS : WPFS_OWNER_PROGRAM;
	map->written = owner == MM_WPFS ? rf->written : WPFS_WRITTEN_NONE;
	snprintf(map->path, sizeof(map->path), "%s", rf->path);
	return emit(ctx, WPFS_REC_MAP, map, sizeof(*map));
}

/* `v` is the mapping all pages of the set are in; NULL: not mapped. */
static int emit_runs(const struct mm_set *set, const struct mm_vma *v, db_report_emit emit,
		     void *ctx)
{
	struct wpfs_rec_run run = {0};
	struct mm_runs runs;
	int r;

	mm_runs_begin(&runs, set, 0, MM_SET_MAX);
	while (mm_runs_next(&runs, &run.pgoff, &run.pages)) {
		if (v)
			run.vaddr = v->start + ((run.pgoff - v->pgoff) << WPFS_PAGE_SHIFT);
		r = emit(ctx, WPFS_REC_RUN, &run, sizeof(run));
		if (r)
			return r;
	}
	return 0;
}

/* The first and last page of a set as a range of the file. */
static void set_extent(const struct mm_set *set, uint64_t *first, uint64_t *nr)
{
	uint64_t begin, len, end = 0;
	struct mm_runs runs;

	*first = 0;
	mm_runs_begin(&runs, set, 0, MM_SET_MAX);
	while (mm_runs_next(&runs, &begin, &len)) {
		if (end == 0)
			*first = begin;
		end = begin + len;
	}
	*nr = end - *first;
}

int report_parked_emit(const struct report_file *rf, enum mm_owner owner, const struct mm_set *runs,
		       const struct wpfs_rec_map *counts, db_report_emit emit, void *ctx)
{
	struct wpfs_rec_map map = *counts;
	int r = emit_map(rf, &map, owner, emit, ctx);

	return r ? r : emit_runs(runs, NULL, emit, ctx);
}

/* Moves the pages of *dirty within the range that nobody listed yet into *runs. */
static int take_unlisted(struct mm_set *runs, struct mm_set *listed, const struct mm_set *dirty,
			 uint64_t first, uint64_t nr)
{
	int r = mm_set_or_range(runs, dirty, first, nr);

	if (r == 0)
		r = mm_set_andnot(runs, listed);
	return r < 0 ? r : mm_set_or(listed, runs);
}

static int emit_vma(const struct report_file *rf, const struct mm_vma *v, enum mm_owner owner,
		    enum wpfs_report_kind kind, const uint64_t *range, struct mm_set *listed,
		    db_report_emit emit, void *ctx)
{
	const struct report_owned *ro = &rf->own[owner];
	_cleanup_set_ struct mm_set marked = {NULL}, runs = {NULL};
	uint64_t nr = mm_vma_pages(v);
	struct wpfs_rec_map map = {
		.start = v->start,
		.end = v->end,
		.prot = v->prot,
		.pgoff = v->pgoff,
		.pages = nr,
		.armed = mm_set_count_range(&ro->armed, v->pgoff, nr),
		.dirty = mm_set_count_range(&ro->dirty, v->pgoff, nr),
	};
	int r = 0;

	if (vma_is_registered(v, owner))
		r = vma_marked(v, range[0], range[1], &marked);
	if (r == 0 && kind == WPFS_REPORT_DIRTY)
		r = take_unlisted(&runs, listed, &ro->dirty, v->pgoff, nr);
	else if (r == 0)
		r = mm_set_copy(&runs, &marked);
	if (r < 0)
		return r;
	map.marked = mm_set_count(&marked);
	r = emit_map(rf, &map, owner, emit, ctx);
	return r ? r : emit_runs(&runs, v, emit, ctx);
}

/* An owner's MAP of a mapping is there if it registered it, or has armed pages under it; a mapping
 * that concerns nobody is wpfs's. */
static bool vma_concerns(const struct report_file *rf, const struct mm_vma *v, enum mm_owner owner)
{
	if (vma_is_registered(v, owner) ||
	    mm_set_count_range(&rf->own[owner].armed, v->pgoff, mm_vma_pages(v)))
		return true;
	return owner == MM_WPFS && !vma_concerns(rf, v, MM_PROGRAM);
}

static int emit_vma_owners(const struct report_file *rf, const struct mm_vma *v,
			   enum wpfs_report_kind kind, const uint64_t *range, struct mm_set *listed,
			   db_report_emit emit, void *ctx)
{
	int r = 0;

	if (v->file != rf->id || v->pgoff >= range[0] + range[1] ||
	    v->pgoff + mm_vma_pages(v) <= range[0])
		return 0;
	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++) {
		if (vma_concerns(rf, v, o))
			r = emit_vma(rf, v, o, kind, range, listed, emit, ctx);
	}
	return r;
}

static int emit_parked(const struct report_file *rf, enum mm_owner owner,
		       enum wpfs_report_kind kind, struct mm_set *listed, db_report_emit emit,
		       void *ctx)
{
	const struct report_owned *ro = &rf->own[owner];
	_cleanup_set_ struct mm_set dirty = {NULL}, marked = {NULL};
	struct wpfs_rec_map map = {.armed = mm_set_count(&ro->parked)};
	int r;

	if (map.armed == 0)
		return 0;
	r = mm_set_copy(&dirty, &ro->parked);
	if (r == 0)
		r = mm_set_and(&dirty, &ro->dirty);
	if (r == 0)
		r = mm_set_copy(&marked, &ro->parked);
	if (r == 0)
		r = mm_set_andnot(&marked, &ro->dirty);
	if (r < 0)
		return r;
	set_extent(&ro->parked, &map.pgoff, &map.pages);
	map.dirty = mm_set_count(&dirty);
	map.marked = mm_set_count(&marked);
	if (kind == WPFS_REPORT_MARKS)
		return report_parked_emit(rf, owner, &marked, &map, emit, ctx);
	r = mm_set_andnot(&dirty, listed);
	if (r == 0)
		r = mm_set_or(listed, &dirty);
	return r < 0 ? r : report_parked_emit(rf, owner, &dirty, &map, emit, ctx);
}

int report_union_emit(const struct report_file *rf, const struct mm_set *armed,
		      const struct mm_set *dirty, db_report_emit emit, void *ctx)
{
	struct wpfs_rec_map map = {
		.armed = mm_set_count(armed),
		.dirty = mm_set_count(dirty),
		.file = rf->id,
		.written = rf->written,
	};
	int r;

	snprintf(map.path, sizeof(map.path), "%s", rf->path);
	set_extent(armed, &map.pgoff, &map.pages);
	r = emit(ctx, WPFS_REC_UNION, &map, sizeof(map));
	return r ? r : emit_runs(dirty, NULL, emit, ctx);
}

int report_file_emit(const struct report_file *rf, const struct mm *mm, enum wpfs_report_kind kind,
		     uint64_t first, uint64_t nr, db_report_emit emit, void *ctx)
{
	_cleanup_set_ struct mm_set listed = {NULL};
	const uint64_t range[2] = {first, nr};
	int r = 0;

	for (size_t i = 0; r == 0 && i < mm->nr_vmas; i++)
		r = emit_vma_owners(rf, &mm->vmas[i], kind, range, &listed, emit, ctx);
	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++)
		r = emit_parked(rf, o, kind, &listed, emit, ctx);
	return r;
}
