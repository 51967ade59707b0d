/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How pages come back. A page is read from the store into a private buffer and put into the lower
 * file with one write of whole pages, never through a mapping, where other threads would see it
 * half filled; a page of zeros by fallocate, which never overwrites.
 *
 * The lock is not held while the store is read: an entry in c->uses keeps everybody else away from
 * the pages, and their spilled bits stay until they are in. Several threads load at once.
 *
 * Who faults on pages one after the other gets the next ones before asking, more each time. What is
 * read ahead goes to the lower file only: no page table changes, so no mark is made or lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"
#include "track/capped_test.h"

#define LIMIT_TRIES 8
#define WINDOW_MIN  16u
#define WINDOW_MAX  2048u	   /* pages that are asked for ahead of a reader */
#define AHEAD_CHUNK CAPPED_CLUSTER /* of them, read at once */
#define ZERO_MAX    64u		   /* pages of zeros made at once */

/* ---- engines ---- */

struct spill_io *capped_engine_take(struct capped *c)
{
	struct spill_io *io = NULL;

	pthread_mutex_lock(&c->lock);
	while (c->nr_engines == 0 && c->made_engines == CAPPED_ENGINES)
		pthread_cond_wait(&c->engine_cond, &c->lock);
	if (c->nr_engines)
		io = c->engines[--c->nr_engines];
	else
		c->made_engines++;
	pthread_mutex_unlock(&c->lock);
	if (io || spill_store_engine(c->store, CAPPED_CLUSTER * WPFS_PAGE_SIZE, &io) == 0)
		return io;
	pthread_mutex_lock(&c->lock);
	c->made_engines--;
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

void capped_engine_give(struct capped *c, struct spill_io *io)
{
	spill_io_hurry(io, false);
	pthread_mutex_lock(&c->lock);
	c->engines[c->nr_engines++] = io;
	pthread_cond_signal(&c->engine_cond);
	pthread_mutex_unlock(&c->lock);
}

/* ---- uses ---- */

bool capped_used(const struct capped *c, uint64_t ino, uint64_t first, uint64_t end, unsigned kinds)
{
	const struct capped_use *use;

	DL_FOREACH (c->uses, use) {
		if (use->ino == ino && (kinds >> use->kind & 1) && use->first < end &&
		    first < use->end)
			return true;
	}
	return false;
}

void capped_use_begin(struct capped *c, struct capped_use *use)
{
	DL_APPEND(c->uses, use);
}

void capped_use_end(struct capped *c, struct capped_use *use)
{
	DL_DELETE(c->uses, use);
	pthread_cond_broadcast(&c->cond);
	capped_retry(c);
}

/* ---- one read ---- */

/* Reads pages and puts them into the lower file. */
static int fill(struct capped *c, struct capped_file *f, struct spill_io *io, int spill_fd,
		uint64_t first, uint64_t nr)
{
	const struct spill_run run = {first, nr, spill_io_buf(io)};
	uint64_t off = first << WPFS_PAGE_SHIFT, len = nr << WPFS_PAGE_SHIFT;
	struct stat st;
	int cut, r = capped_test_fail("spill-read");

	capped_test_point("asked");
	if (r == 0)
		r = spill_store_read(io, spill_fd, &run, 1);
	if (r == 0 && fstat(f->fd, &st) < 0)
		r = -errno;
	if (r == 0)
		r = capped_test_fail("lower-write");
	if (r < 0)
		return r;
	capped_test_point("read");
	/* The file never grows by this; what lay behind its end is nobody's. */
	if (off + len > (uint64_t)st.st_size)
		len = off < (uint64_t)st.st_size ? (uint64_t)st.st_size - off : 0;
	cut = capped_test_fail("lower-short");
	if (cut < 0)
		len = len / 2 & ~(WPFS_PAGE_SIZE - 1);
	pthread_mutex_lock(&c->lock);
	capped_time_begin(c, f, CAPPED_MTIME);
	pthread_mutex_unlock(&c->lock);
	r = spill_io_put(io, f->fd, run.buf, len, off) ?: cut;
	capped_test_point("filled");
	pthread_mutex_lock(&c->lock);
	capped_time_end(f, CAPPED_MTIME);
	pthread_mutex_unlock(&c->lock);
	return r;
}

/* Pages are in the lower file. Lock held. */
static void load_done(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	/* After, never before: a daemon killed in between leaves both, and the lower file wins. */
	capped_forget(c, f, first, nr);
	c->counts.refaults += nr;
	for (uint64_t page = first; capped_is_chosen(f) && page < first + nr; page++)
		policy_insert(c->policy, f->slot, page);
	capped_added(c, nr);
}

/*
 * The pages of a load that failed which are there all the same, whole: where the room ended in the
 * middle. Programs may have stored to them since, so they are never filled again. Lock held.
 */
static uint64_t load_arrived(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	uint64_t there = 0;

	while (there < nr && capped_in_memory(f->fd, first + there, 1) > 0)
		there++;
	if (there)
		load_done(c, f, first, there);
	return there;
}

/* Loads pages that are all spilled and that nobody is at. Lock held, let go meanwhile. */
static int load_run(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	struct capped_use use = {
		.ino = f->ino, .first = first, .end = first + nr, .kind = CAPPED_USE_LOAD};
	int fd = capped_spill_fd(c, f, false), r = fd < 0 ? fd : 0;
	/* Somebody waits for it, and nobody for anything else. */
	bool hurry = c->spins && nr == 1 && !c->aheads && !c->loading;
	struct spill_io *io;
	uint64_t there = 0;

	capped_use_begin(c, &use);
	c->loading += nr;
	capped_limit_set(c, false);
	pthread_mutex_unlock(&c->lock);
	io = r < 0 ? NULL : capped_engine_take(c);
	if (r == 0 && !io)
		r = -ENOMEM;
	if (io)
		spill_io_hurry(io, hurry);
	if (r == 0)
		r = fill(c, f, io, fd, first, nr);
	for (int tries = 0; r == -ENOSPC && tries < LIMIT_TRIES; tries++) {
		/* Somebody else has taken the room: then there is more for a while. */
		pthread_mutex_lock(&c->lock);
		there += load_arrived(c, f, first + there, nr - there);
		tries = c->size ? tries : LIMIT_TRIES;
		capped_limit_set(c, true);
		pthread_mutex_unlock(&c->lock);
		if (there == nr)
			r = 0;
		else if (tries < LIMIT_TRIES)
			r = fill(c, f, io, fd, first + there, nr - there);
	}
	if (io)
		capped_engine_give(c, io);
	pthread_mutex_lock(&c->lock);
	capped_use_end(c, &use);
	c->loading -= nr;
	if (r < 0)
		load_arrived(c, f, first + there, nr - there);
	else
		load_done(c, f, first + there, nr - there);
	capped_tidy(c, f);
	capped_limit_set(c, false);
	if (r < 0) {
		c->counts.errors++;
		return r == -ENODATA || r == -ENOENT ? -EIO : r;
	}
	return 0;
}

/* The run of spilled pages at `first` that nobody is at, at most `max` and before `end`. */
static uint64_t free_run(const struct capped *c, const struct capped_file *f, uint64_t first,
			 uint64_t end, uint64_t max)
{
	uint64_t nr = 0;

	while (nr < max && first + nr < end && spill_bits_test(&f->bits, first + nr))
		nr++;
	/* Nearly always nobody is; then this is all. */
	if (!capped_used(c, f->ino, first, first + nr, ~0u) &&
	    !capped_batch_has(c, f, first, first + nr))
		return nr;
	for (uint64_t n = 0; n < nr; n++) {
		if (capped_used(c, f->ino, first + n, first + n + 1,
				1 << CAPPED_USE_LOAD | 1 << CAPPED_USE_DROP) ||
		    capped_batch_has(c, f, first + n, first + n + 1))
			return n;
	}
	return nr;
}

int capped_load(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr,
		uint64_t *loaded)
{
	uint64_t end = nr > UINT64_MAX - first ? UINT64_MAX : first + nr;
	uint64_t page;
	int r = 0;

	while (r == 0 && (page = spill_bits_next(&f->bits, first)) < end) {
		uint64_t run = free_run(c, f, page, end, CAPPED_CLUSTER);

		fs_request_may_wait();
		if (run == 0) {
			pthread_cond_wait(&c->cond, &c->lock);
			continue;
		}
		r = load_run(c, f, page, run);
		if (r == 0 && loaded) {
			*loaded += run;
			if (c->progress)
				c->progress(c->progress_ctx);
		}
	}
	return r;
}

int capped_load_some(struct capped *c, uint64_t ino, uint64_t nr, uint64_t *loaded)
{
	struct capped_file *f;
	uint64_t first;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	first = f ? spill_bits_next(&f->bits, 0) : UINT64_MAX;
	if (first != UINT64_MAX)
		r = capped_load(c, f, first, nr, loaded);
	pthread_mutex_unlock(&c->lock);
	return r;
}

int capped_load_file(struct capped *c, uint64_t ino, uint64_t *loaded)
{
	struct capped_use use = {.ino = ino, .kind = CAPPED_USE_ACCESS};
	struct capped_file *f;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	/* So that it is not let go of; empty, so that it keeps nobody away. */
	capped_use_begin(c, &use);
	capped_is_full(c); /* it comes in all the same */
	if (f)
		r = capped_load(c, f, 0, UINT64_MAX, loaded);
	capped_use_end(c, &use);
	pthread_mutex_unlock(&c->lock);
	return r;
}

/* ---- reading ahead ---- */

/* Whose next page is this? A new one if nobody's. */
static struct capped_stream *stream_find(const struct capped *c, struct capped_file *f,
					 uint64_t page)
{
	const uint64_t most = c->config.resident >> (WPFS_PAGE_SHIFT + 4);
	struct capped_stream *oldest = &f->streams[0];

	f->stream_clock++;
	for (size_t i = 0; i < CAPPED_STREAMS; i++) {
		struct capped_stream *s = &f->streams[i];

		/* What was read ahead makes no faults: the next one is where that ends. */
		if (s->next && page >= s->next &&
		    page <= (s->ahead > s->next ? s->ahead : s->next)) {
			s->used = f->stream_clock;
			s->window = s->window ? s->window * 2 : WINDOW_MIN;
			if (s->window > WINDOW_MAX)
				s->window = WINDOW_MAX;
			if (s->window > most)
				s->window = (uint32_t)most;
			s->next = page + 1;
			return s;
		}
		if (f->stream_clock - s->used > f->stream_clock - oldest->used)
			oldest = s;
	}
	*oldest = (struct capped_stream){.next = page + 1, .used = f->stream_clock};
	return oldest;
}

static void ahead_add(struct capped *c, const struct capped_file *f, uint64_t first, uint64_t end)
{
	struct capped_ahead *a;

	/* `first` may be behind the end. */
	for (; first < end; first += AHEAD_CHUNK) {
		a = calloc(1, sizeof(*a));
		if (!a)
			return; /* then it will be asked for */
		*a = (struct capped_ahead){
			.ino = f->ino,
			.first = first,
			.nr = end - first < AHEAD_CHUNK ? end - first : AHEAD_CHUNK,
		};
		DL_APPEND(c->aheads, a);
	}
	capped_retry(c);
}

void capped_ahead_forget(struct capped *c, uint64_t ino)
{
	struct capped_ahead *a, *next;

	DL_FOREACH_SAFE(c->aheads, a, next)
	{
		if (a->ino == ino) {
			DL_DELETE(c->aheads, a);
			free(a);
		}
	}
}

void capped_ahead_one(struct capped *c)
{
	struct capped_ahead *a = c->aheads;
	struct capped_file *f;
	uint64_t page, end, run;

	if (!a)
		return;
	DL_DELETE(c->aheads, a);
	f = capped_file_find(c, a->ino);
	page = a->first;
	end = a->first + a->nr;
	free(a);
	/* Unasked it never takes the last room. */
	while (f && (page = spill_bits_next(&f->bits, page)) < end &&
	       capped_resident(c) < c->config.resident) {
		run = free_run(c, f, page, end, AHEAD_CHUNK);
		if (run == 0)
			break;
		if (load_run(c, f, page, run) < 0)
			break; /* who needs it will ask, and be told */
		c->counts.ahead += run;
		page += run;
		/* The lock was let go of. */
		f = capped_file_find(c, f->ino);
	}
}

int capped_load_fault(struct capped *c, struct capped_file *f, uint64_t page)
{
	struct capped_stream *s = stream_find(c, f, page);
	uint64_t want = s->window < AHEAD_CHUNK ? s->window + 1 : AHEAD_CHUNK;
	uint64_t run = free_run(c, f, page, UINT64_MAX, want), ahead = page + s->window;

	if (run == 0)
		return -EAGAIN;
	/*
	 * One page is left out: the fault there tells that the reader is half way through, and the
	 * disk goes on meanwhile.
	 */
	if (s->window > AHEAD_CHUNK && ahead > s->ahead) {
		uint64_t first = page + run, out = page + s->window / 2;

		if (s->ahead > first)
			first = out = s->ahead;
		ahead_add(c, f, first, out);
		/* In a narrow window that page comes with the run itself. */
		ahead_add(c, f, out + 1 > first ? out + 1 : first, ahead);
		s->ahead = ahead;
	} else if (s->ahead < page + run) {
		s->ahead = page + run;
	}
	c->counts.ahead += run - 1;
	return load_run(c, f, page, run);
}

/*
 * Pages of zeros up to the next one that is something else. Behind the end of the file there is
 * nothing: the fault will be SIGBUS, as on tmpfs.
 */
int capped_zero_fault(struct capped *c, struct capped_file *f, uint64_t page)
{
	struct capped_stream *s = stream_find(c, f, page);
	uint64_t nr = s->window ? (s->window < ZERO_MAX ? s->window : ZERO_MAX) : 1, end;
	off_t off = (off_t)(page << WPFS_PAGE_SHIFT);
	struct stat st;

	/* What room there is in the lower tmpfs then is that of pages which are being loaded. */
	if (capped_is_exhausted(c))
		return -ENOSPC;
	if (fstat(f->fd, &st) < 0)
		return -errno;
	end = ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	if (page >= end)
		nr = 1;
	else if (nr > end - page)
		nr = end - page;
	if (nr > 1 && spill_bits_next(&f->bits, page) < page + nr)
		nr = spill_bits_next(&f->bits, page) - page;
	while (nr > 1 && capped_in_memory(f->fd, page, nr))
		nr /= 2;
	if (nr > 1 && (capped_batch_has(c, f, page, page + nr) ||
		       capped_used(c, f->ino, page, page + nr, ~0u)))
		nr = 1;
	/* A call that cannot have all of it may have had a part: that is given back by the kernel.
	 */
	if (fallocate(f->fd, FALLOC_FL_KEEP_SIZE, off, (off_t)(nr << WPFS_PAGE_SHIFT)) < 0) {
		if (errno != ENOSPC || nr == 1)
			return -errno;
		nr = 1;
		if (fallocate(f->fd, FALLOC_FL_KEEP_SIZE, off, (off_t)WPFS_PAGE_SIZE) < 0)
			return -errno;
	}
	if (s->ahead < page + nr)
		s->ahead = page + nr;
	for (uint64_t i = page; capped_is_chosen(f) && i < page + nr; i++)
		policy_insert(c->policy, f->slot, i);
	capped_added(c, nr);
	return 0;
}
