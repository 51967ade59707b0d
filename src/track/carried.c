/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Marks that a program with a userfaultfd of its own had when its last run ended.
 *
 * Until the program registers, wpfs's own uffd watches what it carries (mapping.c). From the moment
 * that lets go to the one when the program's has the marks other threads may store unseen. What
 * comes back are marks of pages that nobody was seen to touch meanwhile: the ctime of the file,
 * which a first store to a page moves, must be what it was. What is not in the page table before
 * and after has not been touched then, but by a thread that in that moment reads the page, stores
 * to it and drops it; if it took long, there must have been no page fault either. In a program of
 * one thread, which waits, the ctime alone tells, also of what was there before.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "track/capped_test.h"
#include "track/residency.h"
#include "uffd/pagemap.h"

/* In that time what was touched is not taken out of the page table again for want of memory. */
#define CARRIED_WINDOW_NS 5000000000u

void carried_forget(struct tmm *tm)
{
	while (tm->nr_windows)
		mm_set_free(&tm->windows[--tm->nr_windows].present);
	tm->mm.aside_start = tm->mm.aside_end = 0;
}

static struct own_window *carried_window(struct tmm *tm, uint64_t file)
{
	for (size_t i = 0; i < tm->nr_windows; i++) {
		if (tm->windows[i].file == file)
			return &tm->windows[i];
	}
	return NULL;
}

/* Is what is done to the file from now on of a ctime that is later? The clock may be a coarse one.
 */
static bool carried_clock_moves_on(const struct timespec *ctime)
{
	const struct timespec ms = {.tv_nsec = 1000000};
	struct timespec now;

	for (int i = 0; i < 20; i++) {
		clock_gettime(CLOCK_REALTIME_COARSE, &now);
		if (now.tv_sec > ctime->tv_sec ||
		    (now.tv_sec == ctime->tv_sec && now.tv_nsec > ctime->tv_nsec))
			return true;
		nanosleep(&ms, NULL);
	}
	return false;
}

/*
 * Can somebody have run in the program who did not wait for its REGISTER? Without wpfs's uffd a
 * page that was there may become writable without a store, and then the first one moves no ctime.
 */
static bool carried_is_alone(const struct tmm *tm)
{
	char path[32];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/task", tm->program.pid);
	return !tm->maybe_shared && stat(path, &st) == 0 && st.st_nlink == 3; /* one thread */
}

static int carried_open_file(struct track *t, struct tmm *tm, uint64_t file)
{
	struct track_file *known = files_get(t, file);
	struct own_window *w = &tm->windows[tm->nr_windows];
	int r;

	if (tm->nr_windows == OWN_WINDOWS || !known)
		return 0;
	r = residency_bring_back(t, file);
	*w = (struct own_window){
		.file = file, .since_ns = tmm_now_ns(), .alone = carried_is_alone(tm)};
	if (proc_faults(tm->program.pid, &w->faults) < 0)
		w->faults = UINT64_MAX;
	if (r == 0 && files_ctime(t, known, &w->ctime) == 0 && carried_clock_moves_on(&w->ctime))
		tm->nr_windows++;
	return r;
}

int carried_open(struct track *t, struct tmm *tm, uint64_t start, uint64_t end)
{
	int r = 0;

	carried_forget(tm);
	tm->own_carries = false;
	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];
		const struct mm_file *f = mm_file_find(&tm->mm, vma->file);
		_cleanup_set_ struct mm_set carried = {NULL};

		if (vma->start >= end || vma->end <= start || carried_window(tm, vma->file) || !f)
			continue;
		r = mm_carried(&tm->mm, f, vma->pgoff, mm_vma_pages(vma), &carried);
		if (r == 0 && !mm_set_is_empty(&carried)) {
			tm->own_carries = true;
			r = carried_open_file(t, tm, vma->file);
		}
	}
	return r;
}

void carried_aside(struct tmm *tm, uint64_t start, uint64_t end)
{
	if (tm->nr_windows) {
		tm->mm.aside_start = start;
		tm->mm.aside_end = end;
	}
}

/* Adds to *set which pages of the file [start, end) has in the page table; it shows it from pgoff
 * on.
 */
static int carried_present(const struct tmm *tm, uint64_t start, uint64_t end, uint64_t pgoff,
			   struct mm_set *set)
{
	_cleanup_close_ int pagemap = pagemap_open(tmm_pid(tm));
	_cleanup_set_ struct mm_set present = {NULL};
	int r = pagemap < 0 ? pagemap : pagemap_present(pagemap, start, end, &present);

	if (r == 0)
		r = mm_set_shift(&present, &present, (int64_t)pgoff);
	return r < 0 ? r : mm_set_or(set, &present);
}

int carried_note(struct tmm *tm, const struct mm_vma *vma, uint64_t from, uint64_t to)
{
	struct own_window *w = carried_window(tm, vma->file);

	return w ? carried_present(tm, from, to,
				   vma->pgoff + ((from - vma->start) >> WPFS_PAGE_SHIFT),
				   &w->present)
		 : 0;
}

/*
 * Can it be seen what was touched? Not after a first store, nor where a page may have come into the
 * page table and gone again. A program starts threads when it registers, so a fault alone does not
 * say that.
 */
static bool carried_is_known(struct track *t, const struct tmm *tm, const struct own_window *w,
			     bool alone)
{
	struct track_file *file = files_get(t, w->file);
	struct timespec now;
	uint64_t faults;

	if (!file || files_ctime(t, file, &now) < 0 || now.tv_sec != w->ctime.tv_sec ||
	    now.tv_nsec != w->ctime.tv_nsec)
		return false;
	return alone || tmm_now_ns() - w->since_ns < CARRIED_WINDOW_NS ||
	       (proc_faults(tm->program.pid, &faults) == 0 && faults == w->faults);
}

/*
 * Takes out of *set, which was marked just now, what nobody has stored to since the last look: what
 * neither was in the page table nor is, and in a program of one thread what was there before.
 */
static int carried_untouched(struct track *t, struct tmm *tm, const struct mm_vma *vma,
			     uint64_t from, uint64_t to, struct mm_set *set)
{
	const struct own_window *w = carried_window(tm, vma->file);
	_cleanup_set_ struct mm_set present = {NULL};
	const bool alone = w && w->alone && carried_is_alone(tm);
	int r;

	if (!w || !carried_is_known(t, tm, w, alone))
		return 0;
	r = carried_present(tm, from, to, vma->pgoff + ((from - vma->start) >> WPFS_PAGE_SHIFT),
			    &present);
	if (r == 0)
		r = alone ? mm_set_andnot(&present, &w->present) : mm_set_or(&present, &w->present);
	return r < 0 ? r : mm_set_and(set, &present);
}

/*
 * Marks what is carried in one mapping with the program's uffd. It must not find marks there that
 * lie; nor must one of its own go, which it may have made if it has not waited.
 */
static int carried_rearm_vma(struct request *rq, int uffd, const struct mm_vma *vma, uint64_t from,
			     uint64_t to)
{
	const uint64_t pgoff = vma->pgoff + ((from - vma->start) >> WPFS_PAGE_SHIFT);
	const uint64_t nr = (to - from) >> WPFS_PAGE_SHIFT;
	struct tmm *tm = rq->c->tmm;
	const struct mm_file *f = mm_file_find(&tm->mm, vma->file);
	_cleanup_set_ struct mm_set set = {NULL};
	int r = f ? mm_carried(&tm->mm, f, pgoff, nr, &set) : 0;

	if (r < 0 || mm_set_is_empty(&set))
		return r;
	capped_test_point("rearming");
	r = arm_runs(uffd, from, to, pgoff, &set, true);
	capped_test_point("rearmed");
	if (r == 0)
		r = carried_untouched(rq->t, tm, vma, from, to, &set);
	if (!client_is_hung_up(rq->c)) {
		if (!mm_set_is_empty(&set)) {
			r = capped_test_fail("disarm");
			if (r == 0)
				r = arm_runs(uffd, from, to, pgoff, &set, false);
		}
		tm->mm.own_doubted |= r < 0; /* marks that lie are there still */
		return r;
	}
	if (r == 0 && mm_set_is_empty(&set))
		return 0;
	tm->mm.own_doubted = true;
	tm->mm.conservative += mm_set_count(&set);
	rq->t->conservative += mm_set_count(&set);
	return r;
}

int carried_rearm(struct request *rq, int uffd, uint64_t start, uint64_t end)
{
	struct tmm *tm = rq->c->tmm;
	int r = 0;

	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t from = vma->start > start ? vma->start : start;
		uint64_t to = vma->end < end ? vma->end : end;

		/* Registered before: its marks are in the page tables, and what the program has
		 * un-protected since the last look must not be protected again. */
		if (from < to && !(vma->registered && vma->owner == MM_PROGRAM))
			r = carried_rearm_vma(rq, uffd, vma, from, to);
	}
	carried_forget(tm);
	return r;
}
