/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * protect begins an epoch: per file, what is dirty by now is kept as the closed epoch's set, and
 * everything is marked. Both happen in one atomic step per page (PAGEMAP_SCAN says of a page
 * whether it was written and marks it), so every store falls into exactly one epoch. Around it
 * two commits:
 *
 *   1. all that will be armed is armed and, for now, dirty. If the daemon dies between 1 and 2,
 *      the epoch that was to begin counts everything as changed: too much, never too little.
 *   2. the closed epoch's exact set, and the new epoch with nothing dirty.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "db/db.h"
#include "track/residency.h"
#include "track/written.h"
#include "uffd/harvest.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

/* One file of one mm on its way from one epoch to the next. */
struct turn {
	struct mm_file *f;
	struct mm_set was_armed; /* in the epoch that closes */
	struct mm_set was_dirty; /* exact, within the selection */
	struct mm_set stays;	 /* dirty in the new epoch: outside of it, or could not be marked */
	enum mm_written written; /* in the epoch that closes */
};

static void turns_free(struct turn *turns, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		mm_set_free(&turns[i].was_armed);
		mm_set_free(&turns[i].was_dirty);
		mm_set_free(&turns[i].stays);
	}
	free(turns);
}

bool protect_part(const struct protect_selection *sel, const struct mm_vma *vma, uint64_t *start,
		  uint64_t *end, uint64_t *pgoff)
{
	uint64_t from = vma->pgoff > sel->pgoff ? vma->pgoff : sel->pgoff;
	uint64_t to = vma->pgoff + mm_vma_pages(vma);

	if (to > sel->pgoff + sel->nr)
		to = sel->pgoff + sel->nr;
	if (from >= to)
		return false;
	*pgoff = from;
	*start = vma->start + ((from - vma->pgoff) << WPFS_PAGE_SHIFT);
	*end = vma->start + ((to - vma->pgoff) << WPFS_PAGE_SHIFT);
	return true;
}

/*
 * A row of children that nobody watches (fork.c), or of an mm whose memory another process may have
 * still: whatever they stored is in the epoch that closes, and what one of them that lives on will
 * store is in the next one. Nobody is known to be one of them, so any process that is not tracked
 * may be: a child that has the file, who has the memory only as long as it maps the file.
 */
static int turn_doubt_untracked(struct track *t, const struct tmm *tm,
				const struct protect_selection *sel, struct turn *turn)
{
	const char *slash = strchr(tm->name, '/');
	char line[512] = "";

	if (tm->state == TMM_DETACHED && slash && strcmp(slash, STRAYS_NAME) == 0)
		unseen_holders(t, turn->f->id, "", line, sizeof(line));
	if (!line[0] && (!tm->maybe_shared || !unseen_is_mapped(t, turn->f->id)))
		return 0;
	return mm_set_or_range(&turn->stays, &turn->f->own[MM_WPFS].armed, sel->pgoff, sel->nr);
}

/* Step 1 for one file: remember the old epoch, arm all that is mapped, all of it dirty for now. */
static int turn_begin(struct track *t, struct tmm *tm, const struct protect_selection *sel,
		      struct turn *turn)
{
	struct mm_owned *own = &turn->f->own[MM_WPFS];
	int r = mm_set_copy(&turn->was_armed, &own->armed);

	mm_file_unsettle(turn->f);
	turn->written = written_turn(t, turn->f, !sel->ranged || mm_set_is_empty(&turn->was_armed));
	if (r == 0)
		r = mm_set_or_range(&turn->was_dirty, &own->dirty, sel->pgoff, sel->nr);
	if (r == 0)
		r = mm_set_copy(&turn->stays, &own->dirty);
	if (r == 0)
		r = mm_set_remove_range(&turn->stays, sel->pgoff, sel->nr);
	if (r == 0)
		r = turn_doubt_untracked(t, tm, sel, turn);
	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t start, end, pgoff;

		if (vma->file == turn->f->id && !vma->sealed &&
		    protect_part(sel, vma, &start, &end, &pgoff))
			r = mm_set_add_range(&own->armed, pgoff, (end - start) >> WPFS_PAGE_SHIFT);
	}
	return r < 0 ? r : mm_set_or_range(&own->dirty, &own->armed, sel->pgoff, sel->nr);
}

/* Marks one mapping and moves what it had seen written into the old epoch. */
static int turn_mark(struct track *t, struct tmm *tm, int uffd, int pagemap,
		     const struct protect_selection *sel, struct turn *turn, size_t vma_index)
{
	struct mm_vma *vma = &tm->mm.vmas[vma_index];
	_cleanup_set_ struct mm_set written = {0};
	uint64_t start, end, pgoff;
	int r = 0;

	if (vma->file != turn->f->id || vma->sealed ||
	    !protect_part(sel, vma, &start, &end, &pgoff))
		return 0;
	if (!vma->registered || vma->owner == MM_PROGRAM) {
		/* Where the program is about to register its own it must find nothing. */
		if (vma->start < tm->announced.aside_end && tm->announced.aside_start < vma->end)
			r = -EBUSY;
		else
			r = residency_register(t, uffd, vma->start, vma->end, vma->file);
		if (r == -EPERM) {
			vma->sealed = true;
			return 0;
		}
		if (r == 0)
			r = mm_set_registered(&tm->mm, vma->start, vma->end, true, MM_WPFS, true);
	}
	if (r == 0)
		r = residency_protect(t, tm, uffd, pagemap, start, end, &written);
	if (r < 0) {
		/* Unmarked, so dirty from the first moment of the new epoch; and what was stored
		 * since the harvest may be marked already. */
		log_warn("track: cannot protect a mapping of pid %d: %s", tm->program.pid,
			 log_errstr(r));
		r = mm_set_or_range(&turn->was_dirty, &turn->was_armed, pgoff,
				    (end - start) >> WPFS_PAGE_SHIFT);
		if (r == 0)
			r = mm_doubt_carried(&tm->mm, turn->f, pgoff,
					     (end - start) >> WPFS_PAGE_SHIFT);
		return r < 0 ? r
			     : mm_set_add_range(&turn->stays, pgoff,
						(end - start) >> WPFS_PAGE_SHIFT);
	}
	/* As a look just then would have shown it: what is stored of it is read by the next daemon.
	 */
	r = mm_set_add_range(&vma->marked, (start - vma->start) >> WPFS_PAGE_SHIFT,
			     (end - start) >> WPFS_PAGE_SHIFT);
	if (r < 0)
		return r;
	r = mm_set_shift(&written, &written, (int64_t)pgoff);
	if (r == 0)
		r = mm_carried_written(&tm->mm, turn->f, &written);
	if (r == 0)
		r = mm_set_and(&written, &turn->was_armed);
	return r < 0 ? r : mm_set_or(&turn->was_dirty, &written);
}

static int protect_mark_all(struct track *t, struct tmm *tm, const struct protect_selection *sel,
			    struct turn *turns, size_t nr)
{
	_cleanup_close_ int uffd = -1, pagemap = -1;

	if (tm->state != TMM_LIVE || tm->mm.nr_vmas == 0)
		return 0;
	uffd = tmm_uffd(tm);
	if (uffd < 0)
		return uffd;
	pagemap = pagemap_open(tmm_pid(tm));
	if (pagemap < 0)
		return pagemap;
	for (size_t i = 0; i < nr; i++) {
		for (size_t v = 0; v < tm->mm.nr_vmas; v++) {
			int r = turn_mark(t, tm, uffd, pagemap, sel, &turns[i], v);

			if (r < 0)
				return r;
		}
	}
	return 0;
}

/* What a mapping shows of the turns' files is in doubt: changed in the old epoch and in the new. */
static int protect_doubt(struct tmm *tm, const struct protect_selection *sel, struct turn *turns,
			 size_t nr, const struct mm_vma *vma)
{
	for (size_t i = 0; i < nr; i++) {
		const struct mm_owned *own = &turns[i].f->own[MM_WPFS];
		uint64_t start, end, pgoff, pages;
		int r;

		if (turns[i].f->id != vma->file || !protect_part(sel, vma, &start, &end, &pgoff))
			continue;
		pages = (end - start) >> WPFS_PAGE_SHIFT;
		tm->mm.conservative += mm_set_count_range(&own->armed, pgoff, pages);
		r = mm_set_or_range(&turns[i].was_dirty, &turns[i].was_armed, pgoff, pages);
		if (r == 0)
			r = mm_set_or_range(&turns[i].stays, &own->armed, pgoff, pages);
		if (r == 0)
			r = mm_doubt_carried(&tm->mm, turns[i].f, pgoff, pages);
		if (r < 0)
			return r;
	}
	return 0;
}

/*
 * Is all of `vma` there among these, showing the same pages of the same file? The kernel merges
 * neighbours once they are registered alike, so it may be in other pieces. They ascend by address;
 * *from is where to begin, and only goes forward for a `vma` that ascends too.
 */
static bool protect_is_among(const struct mm_vma *vma, const struct mm_vma *vmas, size_t nr,
			     size_t *from)
{
	uint64_t at = vma->start;

	while (*from < nr && vmas[*from].end <= at)
		(*from)++;
	for (size_t i = *from; i < nr && at < vma->end && vmas[i].start <= at; i++) {
		const struct mm_vma *v = &vmas[i];

		if (v->file != vma->file || (v->start >> WPFS_PAGE_SHIFT) - v->pgoff !=
						    (vma->start >> WPFS_PAGE_SHIFT) - vma->pgoff)
			return false;
		at = v->end;
	}
	return at >= vma->end;
}

/*
 * Were the mappings, while they were being marked, those that the harvest had seen? One that had
 * moved meanwhile was not marked, or another one in its place was; a registered one that turned up
 * was not marked either.
 */
static int protect_recheck(struct track *t, struct tmm *tm, const struct protect_selection *sel,
			   struct turn *turns, size_t nr)
{
	struct harvest h;
	size_t from = 0;
	int r = tmm_look(t, tm, 0, 0, &h);

	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		if (!protect_is_among(&tm->mm.vmas[i], h.vmas, h.nr, &from))
			r = protect_doubt(tm, sel, turns, nr, &tm->mm.vmas[i]);
	}
	from = 0;
	for (size_t i = 0; r == 0 && i < h.nr; i++) {
		if (h.vmas[i].registered &&
		    !protect_is_among(&h.vmas[i], tm->mm.vmas, tm->mm.nr_vmas, &from))
			r = protect_doubt(tm, sel, turns, nr, &h.vmas[i]);
	}
	mm_vmas_free(h.vmas, h.nr);
	return r;
}

/* Step 2 for one file: the new epoch has nothing dirty but what stays. */
static int turn_end(struct track *t, const struct protect_selection *sel, struct turn *turn)
{
	struct mm_owned *own = &turn->f->own[MM_WPFS];
	int r = mm_set_copy(&own->dirty, &turn->stays);

	if (r == 0)
		r = drops_under_way(t, turn->f->id, &own->armed, &own->dirty);
	if (r == 0)
		r = mm_set_and(&own->dirty, &own->armed);
	if (!sel->ranged)
		turn->f->protect = true;
	return r;
}

static int protect_commit(struct track *t, struct tmm *tm, struct turn *turns, size_t nr)
{
	_cleanup_free_ struct persist_epoch *epochs = calloc(nr + 1, sizeof(*epochs));

	if (!epochs)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++)
		epochs[i] = (struct persist_epoch){turns[i].f->id, tm->mm.epoch,
						   &turns[i].was_dirty, turns[i].written};
	return persist_mm_epochs(t, tm, epochs, nr);
}

/* The epoch goes on, and with it that write(2) changed the file. */
static void protect_written_stays(struct turn *turns, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		if (turns[i].f->written == MM_WRITTEN_NO)
			turns[i].f->written = turns[i].written;
	}
}

/*
 * The epoch that was to end goes on, since its end could not be stored: what was written in it
 * is dirty still. Everything is marked anew, so what follows is seen all the same.
 */
static void protect_stay(struct track *t, struct tmm *tm, uint64_t epoch, struct turn *turns,
			 size_t nr)
{
	int r = 0;

	tm->mm.epoch = epoch;
	for (size_t i = 0; i < nr; i++) {
		if (mm_set_or(&turns[i].f->own[MM_WPFS].dirty, &turns[i].was_dirty) < 0)
			r = mm_lost(&tm->mm);
	}
	if (r == 0)
		r = persist_mm(t, tm);
	if (r < 0)
		log_err("track: the epoch of %s is not stored: %s",
			tm->name[0] ? tm->name : tm->comm, log_errstr(r));
}

/* Collects the files of the mm that the selection means: mapped, or armed before. */
static int protect_collect(struct tmm *tm, const struct protect_selection *sel, struct turn **turns,
			   size_t *nr)
{
	struct mm_file *f, *next;

	*nr = 0;
	*turns = calloc(HASH_COUNT(tm->mm.files) + 1, sizeof(**turns));
	if (!*turns)
		return -ENOMEM;
	HASH_ITER (hh, tm->mm.files, f, next) {
		bool mapped = false;

		if (sel->file && f->id != sel->file)
			continue;
		for (size_t i = 0; i < tm->mm.nr_vmas; i++)
			mapped |= tm->mm.vmas[i].file == f->id;
		if (mapped || !mm_set_is_empty(&f->own[MM_WPFS].armed))
			(*turns)[(*nr)++] = (struct turn){.f = f};
	}
	return 0;
}

uint64_t protect_last_epoch(const struct track *t)
{
	const struct tmm *tm;
	uint64_t last = t->last_epoch;

	DL_FOREACH (t->tmms, tm)
		last = tm->mm.epoch > last ? tm->mm.epoch : last;
	return last;
}

int protect_mm(struct track *t, struct tmm *tm, const struct protect_selection *sel,
	       struct wpfs_protect_reply *reply)
{
	const uint64_t epoch = tm->mm.epoch;
	struct turn *turns = NULL;
	bool turned = false; /* turn_end may have taken from what is dirty */
	size_t nr = 0;
	int r;

	tm->turning = true;
	r = tm->state == TMM_LIVE ? tmm_harvest(t, tm) : 0;
	tm->turning = false;
	/* What it had mapped when it ended is of the epoch that closes now. */
	if (tm->state == TMM_DETACHED)
		mm_forget_vmas(&tm->mm);
	if (r == 0)
		r = protect_collect(tm, sel, &turns, &nr);
	for (size_t i = 0; r == 0 && i < nr; i++)
		r = turn_begin(t, tm, sel, &turns[i]);
	if (r == 0 && nr) {
		r = persist_mm(t, tm);
		if (r == 0)
			r = protect_mark_all(t, tm, sel, turns, nr);
		if (r == 0 && tm->state == TMM_LIVE)
			r = protect_recheck(t, tm, sel, turns, nr);
		turned = r == 0;
		for (size_t i = 0; r == 0 && i < nr; i++)
			r = turn_end(t, sel, &turns[i]);
		if (r == 0) {
			if (!reply->epoch)
				reply->epoch = protect_last_epoch(t) + 1;
			tm->mm.epoch = reply->epoch;
			r = protect_commit(t, tm, turns, nr);
		}
	}
	if (r < 0)
		protect_written_stays(turns, nr);
	if (r < 0 && turned)
		protect_stay(t, tm, epoch, turns, nr);
	for (size_t i = 0; r == 0 && i < nr; i++)
		reply->pages +=
			mm_set_count_range(&turns[i].f->own[MM_WPFS].armed, sel->pgoff, sel->nr);
	if (r == 0 && nr) {
		tm->epoch_turned = true;
		reply->mms++;
		reply->files += nr;
	}
	turns_free(turns, nr);
	return r;
}

/* Epochs that begin: they may begin aside, and are opened in the database when they can be. */
static int protect_store_open(struct track *t, struct tmm *tm, const struct persist_epoch *epochs,
			      size_t nr)
{
	int r = t->db_error ?: persist_mm_epochs_lazy(t, tm, epochs, nr);

	if (!aside_is_for(r))
		return r;
	tm->epoch_unsaved = true;
	return persist_mm_lazy(t, tm);
}

int protect_open_epoch(struct track *t, struct tmm *tm, uint64_t file)
{
	struct persist_epoch epoch = {.file = file,
				      .number = tm->mm.epoch ?: (protect_last_epoch(t) ?: 1),
				      .written = MM_WRITTEN_UNKNOWN};
	struct mm_file *f = mm_file_find(&tm->mm, file);
	const bool had = tm->mm.epoch;
	int r;

	if (f)
		written_turn(t, f, true);
	tm->mm.epoch = epoch.number;
	r = t->db_error ?: persist_mm_epochs_lazy(t, tm, &epoch, 1);
	/*
	 * An unprotect has closed the epoch that the mm is in, or may have: what it ended with is
	 * kept, so this is another one.
	 */
	if (r == -EEXIST || (had && aside_is_for(r)))
		tm->mm.epoch = epoch.number = protect_last_epoch(t) + 1;
	return r == -EEXIST || aside_is_for(r) ? protect_store_open(t, tm, &epoch, 1) : r;
}

int protect_store_born(struct track *t, struct tmm *tm)
{
	_cleanup_free_ struct persist_epoch *epochs =
		calloc(HASH_COUNT(tm->mm.files) + 1, sizeof(*epochs));
	struct mm_file *f, *next;
	size_t nr = 0;
	int r;

	if (!epochs)
		return -ENOMEM;
	HASH_ITER (hh, tm->mm.files, f, next) {
		if (f->unopened && !tm->mm.epoch)
			tm->mm.epoch = protect_last_epoch(t) ?: 1;
		f->unopened = false;
	}
	HASH_ITER (hh, tm->mm.files, f, next) {
		if (tm->mm.epoch && !mm_set_is_empty(&f->own[MM_WPFS].armed))
			epochs[nr++] = (struct persist_epoch){f->id, tm->mm.epoch,
							      &f->own[MM_WPFS].dirty, f->written};
	}
	r = protect_store_open(t, tm, epochs, nr);
	if (r != -EEXIST)
		return r;
	/* As in protect_open_epoch. */
	tm->mm.epoch = protect_last_epoch(t) + 1;
	for (size_t i = 0; i < nr; i++)
		epochs[i].number = tm->mm.epoch;
	return protect_store_open(t, tm, epochs, nr);
}
