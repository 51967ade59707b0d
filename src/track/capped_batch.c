/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A batch of pages under a fence: they are write-protected in every mm, so nobody can change them,
 * and faults there are held until the end. What was unmarked before the fence is remembered per
 * piece of mapping and un-marked after it: a fence must not look like a mark. A daemon that dies in
 * between leaves a record of the batch, and the next one un-marks all of it: too much is dirty,
 * never too little.
 *
 * The pieces are followed while the batch lasts: a fork child joins it, a move moves them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_mm.h"
#include "track/capped_room.h"
#include "track/capped_test.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

#define GIVE_WAY_NS 20000000

#define SCAN_GAP    64 /* pages that are looked at for nothing rather than in two calls */

/* ---- pieces ---- */

static struct capped_piece *piece_add(struct capped_batch *b, const struct capped_piece *piece)
{
	if (b->nr_pieces == b->room) {
		size_t room = b->room ? b->room * 2 : 16;
		struct capped_piece *bigger = reallocarray(b->pieces, room, sizeof(*bigger));

		if (!bigger) {
			log_err("out of memory"); /* a fence would stay for ever */
			abort();
		}
		b->pieces = bigger;
		b->room = room;
	}
	b->pieces[b->nr_pieces] = *piece;
	mm_set_init(&b->pieces[b->nr_pieces].unmarked);
	return &b->pieces[b->nr_pieces++];
}

static void piece_copy(struct capped_batch *b, size_t from, struct capped_mm *mm)
{
	struct capped_piece copy = b->pieces[from];
	struct capped_piece *added;

	copy.mm = mm;
	added = piece_add(b, &copy);
	if (mm_set_copy(&added->unmarked, &b->pieces[from].unmarked) < 0) {
		log_err("out of memory");
		abort();
	}
}

void capped_batch_forked(struct capped *c, struct capped_mm *parent, struct capped_mm *child)
{
	struct capped_batch *b = c->batch;
	size_t nr = b ? b->nr_pieces : 0;

	for (size_t i = 0; i < nr; i++) {
		if (b->pieces[i].mm == parent)
			piece_copy(b, i, child);
	}
}

void capped_batch_moved(struct capped *c, struct capped_mm *mm, uint64_t from, uint64_t to,
			uint64_t len)
{
	struct capped_batch *b = c->batch;
	size_t nr = b ? b->nr_pieces : 0;

	for (size_t i = 0; i < nr; i++) {
		struct capped_piece old = b->pieces[i];
		uint64_t start = old.start > from ? old.start : from;
		uint64_t end = old.end < from + len ? old.end : from + len;

		if (old.mm != mm || start >= end)
			continue;
		if (old.start < start) {
			piece_copy(b, i, mm);
			b->pieces[b->nr_pieces - 1].end = start;
		}
		if (end < old.end) {
			piece_copy(b, i, mm);
			b->pieces[b->nr_pieces - 1].start = end;
			b->pieces[b->nr_pieces - 1].pgoff += (end - old.start) >> WPFS_PAGE_SHIFT;
		}
		b->pieces[i].start = start - from + to;
		b->pieces[i].end = end - from + to;
		b->pieces[i].pgoff += (start - old.start) >> WPFS_PAGE_SHIFT;
	}
}

void capped_batch_gone(struct capped *c, struct capped_mm *mm)
{
	for (size_t i = 0; c->batch && i < c->batch->nr_pieces; i++) {
		if (c->batch->pieces[i].mm == mm)
			c->batch->pieces[i].mm = NULL;
	}
}

/* The part of run i that a piece shows, as addresses. False: nothing of it. */
static bool piece_run(const struct capped_batch *b, const struct capped_piece *p, size_t i,
		      uint64_t *start, uint64_t *end)
{
	uint64_t first = b->runs[i].first, last = first + b->runs[i].nr;
	uint64_t p_last = p->pgoff + ((p->end - p->start) >> WPFS_PAGE_SHIFT);

	if (first < p->pgoff)
		first = p->pgoff;
	if (last > p_last)
		last = p_last;
	if (first >= last)
		return false;
	*start = p->start + ((first - p->pgoff) << WPFS_PAGE_SHIFT);
	*end = p->start + ((last - p->pgoff) << WPFS_PAGE_SHIFT);
	return true;
}

/* The first run that ends behind a page. */
static size_t run_find(const struct capped_batch *b, uint64_t page)
{
	size_t low = 0, high = b->nr_runs;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (b->runs[mid].first + b->runs[mid].nr <= page)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

bool capped_batch_has(const struct capped *c, const struct capped_file *f, uint64_t first,
		      uint64_t end)
{
	const struct capped_batch *b = c->batch;
	size_t i;

	if (!b || b->file != f)
		return false;
	i = run_find(b, first);
	return i < b->nr_runs && b->runs[i].first < end;
}

/*
 * Calls `scan` for the pages of the batch that a piece shows, and adds what it finds to *found, by
 * offset in the file. Pages between runs may be looked at too, and are found too.
 */
static int piece_scan(const struct capped_batch *b, const struct capped_piece *p,
		      int (*scan)(int pagemap, uint64_t start, uint64_t end, struct mm_set *set),
		      struct mm_set *found)
{
	int r = 0;

	for (size_t i = run_find(b, p->pgoff); r == 0 && i < b->nr_runs; i++) {
		_cleanup_set_ struct mm_set set = {0}, moved = {0};
		uint64_t start, end, next_start, next_end;

		if (!piece_run(b, p, i, &start, &end))
			break;
		while (i + 1 < b->nr_runs && piece_run(b, p, i + 1, &next_start, &next_end) &&
		       next_start - end <= SCAN_GAP << WPFS_PAGE_SHIFT) {
			end = next_end;
			i++;
		}
		r = scan(p->mm->pagemap_fd, start, end, &set);
		if (r == 0 && !mm_set_is_empty(&set)) {
			uint64_t by = p->pgoff + ((start - p->start) >> WPFS_PAGE_SHIFT);

			r = mm_set_shift(&moved, &set, (int64_t)by);
			if (r == 0)
				r = mm_set_or(found, &moved);
		}
	}
	return r;
}

int capped_batch_mapped(const struct capped_batch *b, struct mm_set *mapped)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < b->nr_pieces; i++) {
		if (b->pieces[i].mm && b->pieces[i].mm->pagemap_fd >= 0)
			r = piece_scan(b, &b->pieces[i], pagemap_present, mapped);
		else if (b->pieces[i].mm)
			r = -EBUSY; /* a child of this moment */
	}
	return r;
}

/* ---- record ---- */

static int record_write(struct capped *c, const struct capped_batch *b)
{
	const uint64_t head[2] = {b->file->ino, b->nr_runs};
	_cleanup_close_ int fd =
		openat(c->bits_fd, "evicting", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : capped_test_fail("record");

	_Static_assert(offsetof(struct capped_record, runs) == sizeof(head), "one after the other");
	if (r == 0)
		r = fdio_pwrite_full(fd, head, sizeof(head), 0);
	if (r == 0)
		r = fdio_pwrite_full(fd, b->runs, b->nr_runs * sizeof(b->runs[0]), sizeof(head));
	return r;
}

const struct capped_record *capped_record_left(const struct capped *c)
{
	return &c->left;
}

void capped_record_clear(struct capped *c)
{
	unlinkat(c->bits_fd, "evicting", 0);
	c->left.nr = 0;
}

/* ---- the fence ---- */

/* The first piece that is not fenced yet; -1: none. Lock held. */
static ssize_t fence_next(const struct capped_batch *b)
{
	for (size_t i = 0; i < b->nr_pieces; i++) {
		if (b->pieces[i].mm && !b->pieces[i].fenced)
			return (ssize_t)i;
	}
	return -1;
}

static int scan_marked(int pagemap, uint64_t start, uint64_t end, struct mm_set *set)
{
	return pagemap_marked(pagemap, start, end, false, set);
}

/* What of a piece is unmarked now, before the fence: by offset in the file. */
static int fence_look(const struct capped_batch *b, struct capped_piece *p)
{
	_cleanup_set_ struct mm_set marked = {0};
	int r = piece_scan(b, p, scan_marked, &marked);

	mm_set_clear(&p->unmarked);
	for (size_t i = run_find(b, p->pgoff); r == 0 && i < b->nr_runs; i++)
		r = mm_set_add_range(&p->unmarked, b->runs[i].first, b->runs[i].nr);
	return r == 0 ? mm_set_andnot(&p->unmarked, &marked) : r;
}

/*
 * Lock held; nothing of the mm's events is read and not dealt with. What is not done yet in a piece
 * is looked at again when it goes on: the lock was let go of.
 */
static int fence_piece(const struct capped_batch *b, struct capped_piece *p)
{
	uint64_t start, end;
	size_t i;
	int r;

	if (p->mm->pagemap_fd < 0)
		return -EBUSY; /* a child of this moment */
	if (p->at < run_find(b, p->pgoff))
		p->at = run_find(b, p->pgoff); /* not begun, or the later part of one that moved */
	if (p->at == run_find(b, p->pgoff)) {
		r = fence_look(b, p);
	} else {
		/* Begun before: what is fenced already must not be taken for marked. */
		_cleanup_set_ struct mm_set before = {0};

		r = mm_set_copy(&before, &p->unmarked);
		if (r == 0)
			r = fence_look(b, p);
		for (i = run_find(b, p->pgoff); r == 0 && i < p->at; i++) {
			r = mm_set_remove_range(&p->unmarked, b->runs[i].first, b->runs[i].nr);
			if (r == 0)
				r = mm_set_or_range(&p->unmarked, &before, b->runs[i].first,
						    b->runs[i].nr);
		}
	}
	if (r < 0)
		return r;
	for (; p->at < b->nr_runs && piece_run(b, p, p->at, &start, &end); p->at++) {
		r = uffd_writeprotect_once(p->mm->uffd, start, end, true);
		if (r == -EAGAIN)
			return r; /* refused before anything was done */
		/* Any other error may have come half way: what was unmarked is un-marked at the
		 * end. */
		if (r < 0)
			break;
	}
	p->fenced = true;
	return r == -ESRCH ? 0 : r;
}

static int fence(struct capped *c, struct capped_batch *b)
{
	int r = 0;

	for (int naps = 0; r == 0 && naps < CAPPED_TRIES;) {
		ssize_t i;

		pthread_mutex_lock(&c->lock);
		i = fence_next(b);
		if (i >= 0)
			r = fence_piece(b, &b->pieces[i]);
		pthread_mutex_unlock(&c->lock);
		if (i < 0)
			return 0;
		capped_test_point("fencing");
		if (r == -EAGAIN) {
			capped_test_point("again");
			capped_nap();
			naps++;
			r = 0;
		}
	}
	return r ? r : -EAGAIN;
}

/* Takes the fence off the pages of a piece that were unmarked. Lock held. */
static int unfence_piece(struct capped_piece *p)
{
	struct mm_runs runs;
	uint64_t first, nr;
	int r = 0;

	mm_runs_begin(&runs, &p->unmarked, p->pgoff, (p->end - p->start) >> WPFS_PAGE_SHIFT);
	while (r != -EAGAIN && mm_runs_next(&runs, &first, &nr)) {
		uint64_t at = p->start + ((first - p->pgoff) << WPFS_PAGE_SHIFT);

		/* Unmapped meanwhile, or the mm is gone: nothing is left there to un-mark. */
		r = uffd_writeprotect_once(p->mm->uffd, at, at + (nr << WPFS_PAGE_SHIFT), false);
	}
	return r == -EAGAIN ? r : 0;
}

static ssize_t unfence_next(const struct capped_batch *b)
{
	for (size_t i = 0; i < b->nr_pieces; i++) {
		/* One whose fence was given up half way has runs of it too. */
		if (b->pieces[i].mm && (b->pieces[i].fenced || b->pieces[i].at) &&
		    !b->pieces[i].unfenced)
			return (ssize_t)i;
	}
	return -1;
}

/* Never gives up: an event that nobody reads would be our own failure. */
void capped_batch_end(struct capped *c, struct capped_batch *b)
{
	for (;;) {
		bool done;
		ssize_t i;

		pthread_mutex_lock(&c->lock);
		i = unfence_next(b);
		if (i < 0)
			break;
		done = unfence_piece(&b->pieces[i]) == 0;
		b->pieces[i].unfenced = done;
		pthread_mutex_unlock(&c->lock);
		capped_test_point("unfencing");
		if (!done)
			capped_nap();
	}
	c->batch = NULL;
	c->counts.fences++;
	c->counts.fence_ns += now_ns() - b->since_ns;
	capped_tidy(c, b->file);
	/* Those who wait are on the list of faults that are tried again; threads that wait at the
	 * fence without a message read yet find the page as it is. */
	capped_retry(c);
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
	capped_test_point("unfenced");
	capped_record_clear(c);
	for (size_t i = 0; i < b->nr_pieces; i++)
		mm_set_free(&b->pieces[i].unmarked);
	mm_set_free(&b->used);
	free(b->pieces);
}

/* ---- a batch ---- */

static uint64_t batch_first(const struct capped_batch *b)
{
	return b->runs[0].first;
}

static uint64_t batch_end(const struct capped_batch *b)
{
	return b->runs[b->nr_runs - 1].first + b->runs[b->nr_runs - 1].nr;
}

/* Is all of a mapping that shows pages of the batch in pieces, as it is now? */
static bool batch_covers(const struct capped_batch *b, const struct capped_mm *mm,
			 const struct maps_vma *vma)
{
	uint64_t from = vma->pgoff > batch_first(b) ? vma->pgoff : batch_first(b);
	uint64_t to = vma->pgoff + ((vma->end - vma->start) >> WPFS_PAGE_SHIFT);

	if (to > batch_end(b))
		to = batch_end(b);
	while (from < to) {
		uint64_t at = vma->start + ((from - vma->pgoff) << WPFS_PAGE_SHIFT);
		const struct capped_piece *p = NULL;

		for (size_t i = 0; i < b->nr_pieces && !p; i++) {
			const struct capped_piece *q = &b->pieces[i];

			if (q->mm == mm && q->start <= at && at < q->end &&
			    q->pgoff + ((at - q->start) >> WPFS_PAGE_SHIFT) == from)
				p = q;
		}
		if (!p)
			return false;
		from = p->pgoff + ((p->end - p->start) >> WPFS_PAGE_SHIFT);
	}
	return true;
}

/*
 * Moves before the batch began were not followed; from then on they are. -EAGAIN: something is not
 * where it was, or its event is still unread.
 */
static int batch_check(struct capped *c, struct capped_batch *b, const struct capped_mapping *maps,
		       size_t nr)
{
	struct maps_list list = {0};
	int r = 0;

	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; r == 0 && i < nr; i++) {
		if (i && maps[i].mm == maps[i - 1].mm)
			continue;
		if (maps_read(maps[i].mm->pid, &c->lower_dev, 1, &list) < 0)
			r = -EAGAIN;
		for (size_t v = 0; r == 0 && v < list.nr; v++) {
			if (list.vmas[v].ino == b->file->lower_ino &&
			    !batch_covers(b, maps[i].mm, &list.vmas[v]))
				r = -EAGAIN;
		}
	}
	pthread_mutex_unlock(&c->lock);
	maps_free(&list);
	return r;
}

/* Is somebody at one of its pages? Lock held. */
static bool batch_in_use(const struct capped *c, const struct capped_batch *b)
{
	for (size_t i = 0; c->uses && i < b->nr_runs; i++) {
		if (capped_used(c, b->file->ino, b->runs[i].first, b->runs[i].first + b->runs[i].nr,
				~0u))
			return true;
	}
	return false;
}

/*
 * Lets drops of the file go before, which batches one after the other would keep away: for a moment
 * only, for one may wait for the room that this batch makes. Lock held.
 */
static void batch_give_way(struct capped *c, uint64_t ino)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += GIVE_WAY_NS;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	while (capped_drop_comes(c, ino) &&
	       pthread_cond_clockwait(&c->cond, &c->lock, CLOCK_MONOTONIC, &until) != ETIMEDOUT)
		continue;
}

/*
 * -EAGAIN: there is a child that may map the file and is in no piece: it came after the look at who
 * does. Later ones join the batch.
 * -ETXTBSY: it was opened by somebody who may map it, and is not tracked.
 */
static int batch_enter(struct capped *c, struct capped_batch *b)
{
	int r;

	pthread_mutex_lock(&c->lock);
	batch_give_way(c, b->file->ino);
	r = 0;
	if (b->file->pinned)
		r = -ETXTBSY;
	else if (capped_mm_orphan_since(c, b->file->looked))
		r = -EAGAIN;
	c->batch = b;
	while (r == 0 && batch_in_use(c, b))
		pthread_cond_wait(&c->cond, &c->lock);
	pthread_mutex_unlock(&c->lock);
	return r;
}

static void batch_map(struct capped_batch *b, const struct capped_mapping *m)
{
	uint64_t from = m->pgoff > batch_first(b) ? m->pgoff : batch_first(b);
	uint64_t to = m->pgoff + ((m->end - m->start) >> WPFS_PAGE_SHIFT);

	if (to > batch_end(b))
		to = batch_end(b);
	if (from < to)
		piece_add(b, &(struct capped_piece){
				     .mm = m->mm,
				     .start = m->start + ((from - m->pgoff) << WPFS_PAGE_SHIFT),
				     .end = m->start + ((to - m->pgoff) << WPFS_PAGE_SHIFT),
				     .pgoff = from,
			     });
}

int capped_batch_begin(struct capped *c, struct capped_batch *b, const struct capped_mapping *maps,
		       size_t nr, char *why, size_t why_size)
{
	int r = record_write(c, b);

	b->since_ns = now_ns();
	if (r < 0) {
		snprintf(why, why_size, "cannot write to the run directory: %s", log_errstr(r));
		return r;
	}
	capped_test_point("recorded");
	for (size_t i = 0; i < nr; i++)
		batch_map(b, &maps[i]);
	r = batch_enter(c, b);
	if (r < 0) {
		snprintf(why, why_size,
			 r == -EAGAIN ? "a process that maps it was forked just now: try again"
				      : CAPPED_WHY_PINNED);
		return r;
	}
	r = batch_check(c, b, maps, nr);
	if (r == 0)
		r = fence(c, b);
	if (r < 0) {
		snprintf(why, why_size, "its mappings change just now (%s): try again",
			 log_errstr(r));
		return -EAGAIN;
	}
	return 0;
}
