/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How pages leave memory: a batch of a file at a time, under a fence.
 *
 *   record -> fence -> settle -> lease -> save -> spilled bits -> punch -> un-fence -> record away
 *
 * The fence write-protects the batch in every mm, so nobody can change it; faults there are left
 * alone until the end. What was unmarked before the fence is remembered per piece of mapping and
 * un-marked after it: a fence must not look like a mark. A daemon that dies in between leaves the
 * record, and the next one un-marks the whole batch: too much is dirty, never too little.
 *
 * The settle time lets direct I/O that was under way into a page of the batch end: such I/O writes
 * into the page itself, past every protection. The lease shows that nobody else has the file open.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

#define LEASE_TRIES 2000 /* naps: as long as a flush may read the file */

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

bool capped_batch_fences(struct capped *c, const struct capped_mm *mm, uint64_t addr)
{
	for (size_t i = 0; c->batch && i < c->batch->nr_pieces; i++) {
		const struct capped_piece *p = &c->batch->pieces[i];

		if (p->mm == mm && p->start <= addr && addr < p->end)
			return true;
	}
	return false;
}

/* ---- record ---- */

static int record_write(struct capped *c, const struct capped_batch *b)
{
	const struct capped_record record = {b->file->ino, b->first, b->nr};
	_cleanup_close_ int fd =
		openat(c->bits_fd, "evicting", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	return fd < 0 ? -errno : fdio_pwrite_full(fd, &record, sizeof(record), 0);
}

struct capped_record capped_record_left(const struct capped *c)
{
	return c->left;
}

void capped_record_clear(struct capped *c)
{
	unlinkat(c->bits_fd, "evicting", 0);
	c->left = (struct capped_record){0};
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

/* Lock held; nothing of the mm's events is read and not dealt with. */
static int fence_piece(struct capped_piece *p)
{
	_cleanup_set_ struct mm_set marked = {0};
	uint64_t nr = (p->end - p->start) >> WPFS_PAGE_SHIFT;
	int r;

	if (p->mm->pagemap_fd < 0)
		return -EBUSY; /* a child of this moment */
	r = pagemap_marked(p->mm->pagemap_fd, p->start, p->end, false, &marked);
	mm_set_clear(&p->unmarked);
	if (r == 0)
		r = mm_set_add_range(&p->unmarked, 0, nr);
	if (r == 0)
		r = mm_set_andnot(&p->unmarked, &marked);
	if (r == 0)
		r = mm_set_shift(&p->unmarked, &p->unmarked, (int64_t)p->pgoff);
	if (r < 0)
		return r;
	r = uffd_writeprotect_once(p->mm->uffd, p->start, p->end, true);
	if (r == -EAGAIN)
		return r; /* refused before anything was done */
	/* Any other error may have come half way: what was unmarked is un-marked at the end. */
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
			r = fence_piece(&b->pieces[i]);
		pthread_mutex_unlock(&c->lock);
		if (i < 0)
			return 0;
		if (r == -EAGAIN) {
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
		if (b->pieces[i].mm && b->pieces[i].fenced && !b->pieces[i].unfenced)
			return (ssize_t)i;
	}
	return -1;
}

/*
 * Un-fences at today's addresses, ends the batch and has everybody try again who waits there. Never
 * gives up: an event that nobody reads would be our own failure.
 */
static void unfence(struct capped *c, struct capped_batch *b)
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
		if (!done)
			capped_nap();
	}
	c->batch = NULL;
	capped_tidy(c, b->file);
	for (size_t i = 0; i < b->nr_pieces; i++) {
		if (b->pieces[i].mm)
			uffd_wake(b->pieces[i].mm->uffd, b->pieces[i].start, b->pieces[i].end);
	}
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

/* ---- save and punch ---- */

/* What of a batch is to be stored: runs of pages in `buf`. */
struct save {
	char *buf; /* CAPPED_BATCH pages: page i of the batch at i*4096 */
	struct spill_run runs[CAPPED_BATCH];
	size_t nr;
	uint64_t resident; /* pages */
};

static void save_page(struct save *s, const struct capped_batch *b, uint64_t page)
{
	char *at = s->buf + ((page - b->first) << WPFS_PAGE_SHIFT);
	struct spill_run *last = s->nr ? &s->runs[s->nr - 1] : NULL;

	s->resident++;
	if (spill_is_zero(at, WPFS_PAGE_SIZE))
		return;
	if (last && last->first + last->nr == page)
		last->nr++;
	else
		s->runs[s->nr++] = (struct spill_run){page, 1, at};
}

/* Reads what is resident of the batch. 0 or -errno. */
static int save_read(struct save *s, const struct capped_batch *b)
{
	const int fd = b->file->fd;
	off_t end = (off_t)((b->first + b->nr) << WPFS_PAGE_SHIFT);
	off_t at = lseek(fd, (off_t)(b->first << WPFS_PAGE_SHIFT), SEEK_DATA);

	s->nr = s->resident = 0;
	while (at >= 0 && at < end) {
		off_t hole = lseek(fd, at, SEEK_HOLE);
		uint64_t page = (uint64_t)at >> WPFS_PAGE_SHIFT, last;
		char *to = s->buf + ((page - b->first) << WPFS_PAGE_SHIFT);
		ssize_t n;

		if (hole < 0)
			return -errno;
		if (hole > end)
			hole = end;
		last = ((uint64_t)hole + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
		memset(s->buf + ((last - 1 - b->first) << WPFS_PAGE_SHIFT), 0, WPFS_PAGE_SIZE);
		n = pread(fd, to, (size_t)(hole - at), at);
		if (n != hole - at)
			return n < 0 ? -errno : -EIO;
		for (; page < last; page++)
			save_page(s, b, page);
		at = lseek(fd, hole, SEEK_DATA);
	}
	return at < 0 && errno != ENXIO ? -errno : 0;
}

/* A page that did not go although it was punched may be zeros now. */
static int put_back(struct capped *c, const struct capped_batch *b, const struct save *s,
		    uint64_t page, off_t size)
{
	off_t off = (off_t)(page << WPFS_PAGE_SHIFT);
	size_t len =
		(size_t)(size - off < (off_t)WPFS_PAGE_SIZE ? size - off : (off_t)WPFS_PAGE_SIZE);
	int r = fdio_pwrite_full(b->file->fd, s->buf + ((page - b->first) << WPFS_PAGE_SHIFT), len,
				 off);

	if (r == 0)
		capped_forget(c, b->file, page, 1);
	return r;
}

/* Punches the batch and counts what is gone. Lock held. */
static int punch(struct capped *c, const struct capped_batch *b, const struct save *s, off_t size,
		 uint64_t *pages)
{
	off_t from = (off_t)(b->first << WPFS_PAGE_SHIFT), at;
	uint64_t stay = 0;
	int r = 0;

	if (fallocate(b->file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from,
		      (off_t)(b->nr << WPFS_PAGE_SHIFT)) < 0)
		r = -errno;
	at = lseek(b->file->fd, from, SEEK_DATA);
	while (at >= 0 && at < size && (uint64_t)at >> WPFS_PAGE_SHIFT < b->first + b->nr) {
		int err = put_back(c, b, s, (uint64_t)at >> WPFS_PAGE_SHIFT, size);

		r = r < 0 ? r : err;
		stay++;
		at = lseek(b->file->fd, at + (off_t)WPFS_PAGE_SIZE, SEEK_DATA);
	}
	*pages += s->resident - stay;
	c->counts.evictions += s->resident - stay;
	return r;
}

static int save_and_punch(struct capped *c, struct capped_batch *b, struct save *s, uint64_t *pages)
{
	struct stat st;
	int r = save_read(s, b);

	if (r == 0 && fstat(b->file->fd, &st) < 0)
		r = -errno;
	if (r == 0)
		r = spill_store_write(c->store, b->file->ino, s->runs, s->nr);
	if (r < 0) {
		/* A full store must not stay so for pages that are not in it. */
		spill_store_discard(c->store, b->file->ino, s->runs, s->nr);
		return r;
	}
	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < s->nr; i++) {
		for (uint64_t p = 0; p < s->runs[i].nr; p++)
			spill_bits_set(&b->file->bits, s->runs[i].first + p);
		c->counts.spilled += s->runs[i].nr;
	}
	r = punch(c, b, s, st.st_size, pages);
	pthread_mutex_unlock(&c->lock);
	futimens(b->file->fd, (struct timespec[2]){st.st_atim, st.st_mtim});
	return r;
}

/* ---- a batch ---- */

/* Is all of a mapping that shows pages of the batch in pieces, as it is now? */
static bool batch_covers(const struct capped_batch *b, const struct capped_mm *mm,
			 const struct maps_vma *vma)
{
	uint64_t from = vma->pgoff > b->first ? vma->pgoff : b->first;
	uint64_t to = vma->pgoff + ((vma->end - vma->start) >> WPFS_PAGE_SHIFT);

	if (to > b->first + b->nr)
		to = b->first + b->nr;
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

/* -EBUSY: there is a child that may map the file and is in no piece. Later ones join the batch. */
static int batch_begin(struct capped *c, struct capped_batch *b)
{
	int r;

	pthread_mutex_lock(&c->lock);
	r = capped_mm_orphans(c) ? -EBUSY : 0;
	c->batch = b;
	while (r == 0 && (c->accesses[b->file->ino % CAPPED_SHARDS] ||
			  c->drops[b->file->ino % CAPPED_SHARDS]))
		pthread_cond_wait(&c->cond, &c->lock);
	pthread_mutex_unlock(&c->lock);
	return r;
}

static void batch_map(struct capped_batch *b, const struct capped_mapping *m)
{
	uint64_t from = m->pgoff > b->first ? m->pgoff : b->first;
	uint64_t to = m->pgoff + ((m->end - m->start) >> WPFS_PAGE_SHIFT);

	if (to > b->first + b->nr)
		to = b->first + b->nr;
	if (from < to)
		piece_add(b, &(struct capped_piece){
				     .mm = m->mm,
				     .start = m->start + ((from - m->pgoff) << WPFS_PAGE_SHIFT),
				     .end = m->start + ((to - m->pgoff) << WPFS_PAGE_SHIFT),
				     .pgoff = from,
			     });
}

static int take_lease(int fd)
{
	for (int tries = 0; fcntl(fd, F_SETLEASE, F_WRLCK) < 0; tries++) {
		if (errno != EAGAIN && errno != EBUSY)
			return -errno;
		if (tries == LEASE_TRIES)
			return -EBUSY;
		capped_nap();
	}
	return 0;
}

static int batch_run(struct capped *c, struct capped_batch *b, const struct capped_mapping *maps,
		     size_t nr, struct save *s, uint64_t *pages, char *why, size_t why_size)
{
	const struct timespec settle = {.tv_sec = c->config.settle_ms / 1000,
					.tv_nsec = c->config.settle_ms % 1000 * 1000000L};
	const bool mapped = b->nr_pieces; /* forks add to them once the batch has begun */
	int r = batch_begin(c, b);

	if (r < 0) {
		snprintf(why, why_size, "a process that maps it was forked just now: try again");
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
	if (mapped)
		nanosleep(&settle, NULL);
	r = take_lease(b->file->fd);
	if (r < 0) {
		snprintf(why, why_size,
			 "somebody has it open or mapped for reading only, or since before the "
			 "daemon was started again");
		return r;
	}
	r = save_and_punch(c, b, s, pages);
	fcntl(b->file->fd, F_SETLEASE, F_UNLCK);
	if (r < 0)
		snprintf(why, why_size, "its pages cannot be moved to the store: %s",
			 log_errstr(r));
	return r;
}

static int evict_batch(struct capped *c, struct capped_batch *b, const struct capped_mapping *maps,
		       size_t nr, struct save *s, uint64_t *pages, char *why, size_t why_size)
{
	int r = record_write(c, b);

	if (r < 0) {
		snprintf(why, why_size, "cannot write to the run directory: %s", log_errstr(r));
		return r;
	}
	for (size_t i = 0; i < nr; i++)
		batch_map(b, &maps[i]);
	r = batch_run(c, b, maps, nr, s, pages, why, why_size);
	unfence(c, b);
	capped_record_clear(c);
	for (size_t i = 0; i < b->nr_pieces; i++)
		mm_set_free(&b->pieces[i].unmarked);
	free(b->pieces);
	return r;
}

static void free_save(struct save **s)
{
	if (*s)
		munmap((*s)->buf, CAPPED_BATCH * WPFS_PAGE_SIZE);
	free(*s);
}

static struct save *save_new(void)
{
	struct save *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->buf = mmap(NULL, CAPPED_BATCH * WPFS_PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s->buf == MAP_FAILED) {
		free(s);
		return NULL;
	}
	return s;
}

int capped_evict(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		 size_t nr, uint64_t *pages, char *why, size_t why_size)
{
	__attribute__((cleanup(free_save))) struct save *s = save_new();
	uint64_t end = f->bits.pages;
	struct stat st;
	int r = 0;

	snprintf(why, why_size, "out of memory");
	if (!s)
		return -ENOMEM;
	if (fstat(f->fd, &st) == 0 &&
	    ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT < end)
		end = ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	for (uint64_t at = 0; r == 0 && at < end;) {
		off_t data = lseek(f->fd, (off_t)(at << WPFS_PAGE_SHIFT), SEEK_DATA);
		struct capped_batch b = {.file = f};

		if (data < 0)
			break;
		b.first = (uint64_t)data >> WPFS_PAGE_SHIFT;
		if (b.first >= end)
			break;
		b.nr = end - b.first < CAPPED_BATCH ? end - b.first : CAPPED_BATCH;
		r = evict_batch(c, &b, maps, nr, s, pages, why, why_size);
		at = b.first + b.nr;
	}
	return r;
}
