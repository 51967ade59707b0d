/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who faults on pages one after the other gets the next ones before asking, more each time. What is
 * read ahead goes to the lower file only: no page table changes, so no mark is made or lost.
 *
 * One thread reads ahead: the next pieces are on their way from the disk while it puts one into the
 * lower file. Several threads that do the one and then the other keep each other waiting for the
 * file, which takes one write at a time, and the disk waits with them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <utlist.h>

#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_room.h"
#include "track/capped_test.h"

#define WINDOW_MIN  16u
#define WINDOW_MAX  2048u	   /* pages that are asked for ahead of a reader */
#define AHEAD_CHUNK CAPPED_CLUSTER /* of them, read at once */
#define AHEAD_PARTS 5		   /* chunks: on their way, but for one */
#define ZERO_MAX    64u		   /* pages of zeros made at once */

/* ---- streams ---- */

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

/* ---- what is asked for ---- */

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

/* Takes the next pages off the list, as far as nobody is at them. False: there are none. */
static bool ahead_next(struct capped *c, struct capped_file **f, uint64_t *first, uint64_t *nr)
{
	struct capped_ahead *a;

	while ((a = c->aheads)) {
		uint64_t end = a->first + a->nr, page = end;

		*f = capped_file_find(c, a->ino);
		if (*f)
			page = spill_bits_next(&(*f)->bits, a->first);
		*nr = 0;
		/* Unasked it never takes the last room. */
		if (page < end && capped_resident(c) < c->config.resident &&
		    !capped_drop_comes(c, a->ino))
			*nr = capped_free_run(c, *f, page, end, AHEAD_CHUNK);
		*first = page;
		a->first = page + *nr;
		a->nr = end - a->first;
		if (*nr)
			return true;
		DL_DELETE(c->aheads, a);
		free(a);
	}
	return false;
}

/* ---- reading ahead ---- */

struct part {
	struct capped_load load; /* its engine is the part's */
	struct spill_job job;
	int result; /* < 0: not under way */
};

/* Lock held, let go meanwhile. */
static void part_begin(struct capped *c, struct part *p, struct capped_file *f, uint64_t first,
		       uint64_t nr)
{
	capped_load_begin(c, f, &p->load, first, nr);
	pthread_mutex_unlock(&c->lock);
	p->load.run.buf = spill_io_buf(p->load.io);
	p->result = p->load.fd < 0 ? p->load.fd : capped_test_fail("spill-read");
	capped_test_point("asked");
	if (p->result == 0)
		p->result =
			spill_store_begin(p->load.io, &p->job, p->load.fd, false, &p->load.run, 1);
	pthread_mutex_lock(&c->lock);
}

/* Waits for what it reads. Lock held, let go meanwhile. */
static void part_wait(struct capped *c, struct part *p)
{
	pthread_mutex_unlock(&c->lock);
	if (p->result == 0)
		p->result = spill_store_end(p->load.io, &p->job, &p->load.run, 1);
	pthread_mutex_lock(&c->lock);
}

/* Puts it into the lower file. Lock held, let go meanwhile. */
static void part_end(struct capped *c, struct part *p)
{
	pthread_mutex_unlock(&c->lock);
	/* Who needs what cannot be had will ask, and be told. */
	if (capped_load_end(c, &p->load, p->result) == 0)
		c->counts.ahead += p->load.run.nr;
}

/*
 * What has come is not put into the file before another one is on its way: a disk may say of all
 * that it was asked for that it is there at once, and has nothing to do then.
 */
static void run_parts(struct capped *c, struct part *parts, size_t nr_parts)
{
	const size_t most = nr_parts > 1 ? nr_parts - 1 : 1;
	size_t begun = 0, ended = 0;
	struct capped_file *f;
	uint64_t first, nr;

	for (;;) {
		while (begun - ended < most && ahead_next(c, &f, &first, &nr))
			part_begin(c, &parts[begun++ % nr_parts], f, first, nr);
		if (begun == ended)
			return;
		part_wait(c, &parts[ended % nr_parts]);
		if (begun - ended < nr_parts && ahead_next(c, &f, &first, &nr))
			part_begin(c, &parts[begun++ % nr_parts], f, first, nr);
		part_end(c, &parts[ended++ % nr_parts]);
	}
}

bool capped_ahead_run(struct capped *c)
{
	struct part parts[AHEAD_PARTS];
	size_t nr = 0;
	bool any;

	pthread_mutex_unlock(&c->lock);
	while (nr < AHEAD_PARTS && (parts[nr].load.io = capped_engine_take(c)))
		nr++;
	pthread_mutex_lock(&c->lock);
	/* Without memory for one they wait for the next look. */
	any = nr > 0;
	if (any)
		run_parts(c, parts, nr);
	pthread_mutex_unlock(&c->lock);
	while (nr)
		capped_engine_give(c, parts[--nr].load.io);
	pthread_mutex_lock(&c->lock);
	return any;
}

/* ---- faults ---- */

int capped_load_fault(struct capped *c, struct capped_file *f, uint64_t page)
{
	struct capped_stream *s = stream_find(c, f, page);
	uint64_t want = s->window < AHEAD_CHUNK ? s->window + 1 : AHEAD_CHUNK;
	uint64_t run = capped_free_run(c, f, page, UINT64_MAX, want), ahead = page + s->window;

	if (run == 0 || capped_drop_comes(c, f->ino))
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
	return capped_load_run(c, f, page, run);
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
