/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How pages come back. A page is read from the store into a private buffer and put into the lower
 * file with one write of whole pages, never through a mapping, where other threads would see it
 * half filled; a page of zeros by fallocate, which never overwrites.
 *
 * The lock is not held while the store is read: an entry in c->uses keeps everybody else away from
 * the pages, and their spilled bits stay until they are in. Several threads load at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_mm.h"
#include "track/capped_room.h"
#include "track/capped_track.h"
#include "track/capped_test.h"

#define LIMIT_TRIES 8

/* ---- engines ---- */

/* Lock held. */
static struct spill_io *engine_at_hand(struct capped *c)
{
	return c->nr_engines ? c->engines[--c->nr_engines] : NULL;
}

struct spill_io *capped_engine_take(struct capped *c)
{
	struct spill_io *io;

	pthread_mutex_lock(&c->lock);
	while (c->nr_engines == 0 && c->made_engines == CAPPED_ENGINES)
		pthread_cond_wait(&c->engine_cond, &c->lock);
	io = engine_at_hand(c);
	c->made_engines += !io;
	pthread_mutex_unlock(&c->lock);
	if (io || spill_store_engine(c->store, CAPPED_CLUSTER * WPFS_PAGE_SIZE, &io) == 0)
		return io;
	pthread_mutex_lock(&c->lock);
	c->made_engines--;
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* Lock held. */
static void engine_back(struct capped *c, struct spill_io *io)
{
	spill_io_hurry(io, false);
	c->engines[c->nr_engines++] = io;
	pthread_cond_signal(&c->engine_cond);
}

void capped_engine_give(struct capped *c, struct spill_io *io)
{
	pthread_mutex_lock(&c->lock);
	engine_back(c, io);
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

bool capped_drop_comes(const struct capped *c, uint64_t ino)
{
	const struct capped_use *use;

	DL_FOREACH (c->coming, use) {
		if (use->ino == ino)
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

/* ---- what is being put into the lower file ---- */

#define NOTES_AT 1024		      /* in the head of the bits, behind the handle */
#define NOTES	 (4 * CAPPED_ENGINES) /* those that killed daemons left too */

_Static_assert(NOTES_AT >= sizeof(struct fs_handle) &&
		       NOTES_AT + NOTES * sizeof(struct capped_run) <= SPILL_BITS_HEAD,
	       "the handle and the notes have their room in the head");

/*
 * While it is noted its bits are set, and programs have its pages and may make zeros of them. It
 * outlives the daemon, as the bits do.
 */
static struct capped_run *notes(const struct capped_file *f)
{
	return (struct capped_run *)((char *)f->bits.head + NOTES_AT);
}

bool capped_load_is_noted(const struct capped_file *f, uint64_t page)
{
	for (size_t i = 0; f->bits.head && i < NOTES; i++) {
		const struct capped_run *note = &notes(f)[i];

		if (page >= note->first && page - note->first < note->nr)
			return true;
	}
	return false;
}

void capped_load_notes_clear(struct capped_file *f)
{
	if (f->bits.head)
		memset(notes(f), 0, NOTES * sizeof(struct capped_run));
}

/* Lock held, like the next one. */
static void note_begin(const struct capped_file *f, const struct spill_run *run)
{
	struct capped_run *note = notes(f);

	while (note->nr && note < notes(f) + NOTES - 1)
		note++;
	note->first = run->first;
	atomic_signal_fence(memory_order_seq_cst);
	note->nr = run->nr;
}

static void note_end(const struct capped_file *f, const struct spill_run *run)
{
	atomic_signal_fence(memory_order_seq_cst);
	for (size_t i = 0; i < NOTES; i++) {
		if (notes(f)[i].first == run->first)
			notes(f)[i].nr = 0;
	}
}

/* ---- one read ---- */

/*
 * Puts the pages into the lower file, but for the first ones, which are there. The file never grows
 * by this; what lay behind its end is nobody's. Lock held, let go meanwhile. 0 or -errno.
 */
static int put(struct capped *c, const struct capped_load *load, uint64_t there)
{
	struct capped_file *f = load->file;
	const char *buf = (const char *)load->run.buf + (there << WPFS_PAGE_SHIFT);
	uint64_t off = (load->run.first + there) << WPFS_PAGE_SHIFT;
	uint64_t len = (load->run.nr - there) << WPFS_PAGE_SHIFT;
	struct stat st;
	int cut, r = capped_test_fail("lower-write");

	capped_time_wait(c, f);
	if (r == 0 && fstat(f->fd, &st) < 0)
		r = -errno;
	if (r < 0)
		return r;
	if (off + len > (uint64_t)st.st_size)
		len = off < (uint64_t)st.st_size ? (uint64_t)st.st_size - off : 0;
	cut = capped_test_fail("lower-short");
	if (cut < 0)
		len = len / 2 & ~(WPFS_PAGE_SIZE - 1);
	capped_time_begin_at(c, f, CAPPED_MTIME, &st);
	pthread_mutex_unlock(&c->lock);
	r = spill_io_put(load->io, f->fd, buf, len, off) ?: cut;
	capped_test_point("filled");
	pthread_mutex_lock(&c->lock);
	capped_time_end(f, CAPPED_MTIME);
	if (f->changers)
		pthread_cond_broadcast(&c->cond);
	return r;
}

/* A bit for each page of the run that is not to be put there: see capped_lower_has. Lock held. */
static uint64_t look_for_others(struct capped *c, const struct capped_load *load)
{
	uint64_t others = 0;

	_Static_assert(CAPPED_CLUSTER <= 64, "a bit each");
	if (!c->unsettled)
		return 0;
	capped_time_begin(c, load->file, CAPPED_ATIME);
	for (uint64_t i = 0; i < load->run.nr; i++)
		others |= (uint64_t)capped_lower_has(load->file, load->run.first + i) << i;
	capped_time_end(load->file, CAPPED_ATIME);
	return others;
}

/* As put, but for those of others. */
static int put_missing(struct capped *c, const struct capped_load *load, uint64_t there,
		       uint64_t others)
{
	struct capped_load part = *load;
	int r = 0;

	if (!others)
		return put(c, load, there);
	for (; r == 0 && there < load->run.nr; there = part.run.nr + 1) {
		part.run.nr = there;
		while (part.run.nr < load->run.nr && !(others >> part.run.nr & 1))
			part.run.nr++;
		if (part.run.nr > there)
			r = put(c, &part, there);
	}
	return r;
}

/* Pages are in the lower file. Lock held. */
static void load_done(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	/* After, never before: a daemon killed in between leaves both. */
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

	while (there < nr && (c->unsettled ? capped_lower_has(f, first + there)
					   : capped_in_memory(f->fd, first + there, 1) > 0))
		there++;
	if (there)
		load_done(c, f, first, there);
	return there;
}

void capped_load_begin(struct capped *c, struct capped_file *f, struct capped_load *load,
		       uint64_t first, uint64_t nr)
{
	load->file = f;
	load->use = (struct capped_use){
		.ino = f->ino, .first = first, .end = first + nr, .kind = CAPPED_USE_LOAD};
	load->run = (struct spill_run){first, nr, NULL};
	load->fd = capped_spill_fd(c, f, false);
	capped_use_begin(c, &load->use);
	c->loading += nr;
	capped_limit_set(c, false);
}

int capped_load_end(struct capped *c, struct capped_load *load, int r)
{
	struct capped_file *f = load->file;
	uint64_t first = load->run.first, nr = load->run.nr, there = 0, others = 0;
	const bool is_read = r == 0;

	if (is_read)
		capped_test_point("read");
	pthread_mutex_lock(&c->lock);
	if (is_read) {
		others = look_for_others(c, load);
		note_begin(f, &load->run);
		r = put_missing(c, load, 0, others);
	}
	for (int tries = 0; is_read && r == -ENOSPC && c->size && tries < LIMIT_TRIES; tries++) {
		/* Somebody else has taken the room: then there is more for a while. */
		there += load_arrived(c, f, first + there, nr - there);
		capped_limit_set(c, true);
		r = there == nr ? 0 : put_missing(c, load, there, others);
	}
	/* Who waits for these pages is told here, not by another thread that has to be woken. */
	if (r == 0)
		capped_fault_arrived(c, f, first, nr);
	capped_use_end(c, &load->use);
	c->loading -= nr;
	if (r < 0)
		load_arrived(c, f, first + there, nr - there);
	else
		load_done(c, f, first + there, nr - there);
	if (is_read)
		note_end(f, &load->run);
	capped_tidy(c, f);
	capped_limit_set(c, false);
	if (r < 0) {
		c->counts.errors++;
		return r == -ENODATA || r == -ENOENT ? -EIO : r;
	}
	return 0;
}

/* With the read under way there is time to see to it that who waits can be woken quickly. */
static int load_read(struct capped *c, struct capped_load *load, bool hurry)
{
	struct spill_job job;
	int r;

	r = spill_store_begin(load->io, &job, load->fd, false, &load->run, 1);
	if (r == 0 && hurry)
		capped_stay_awake(&c->awake);
	return r < 0 ? r : spill_store_end(load->io, &job, &load->run, 1);
}

int capped_load_run(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	/* Somebody waits for it, and nobody for anything else. */
	bool hurry = c->spins && nr == 1 && !c->aheads && !c->loading;
	struct capped_load load;
	int r;

	capped_load_begin(c, f, &load, first, nr);
	load.io = load.fd < 0 ? NULL : engine_at_hand(c);
	pthread_mutex_unlock(&c->lock);
	if (load.fd >= 0 && !load.io)
		load.io = capped_engine_take(c);
	r = load.fd < 0 ? load.fd : load.io ? capped_test_fail("spill-read") : -ENOMEM;
	capped_test_point("asked");
	if (r == 0) {
		load.run.buf = spill_io_buf(load.io);
		spill_io_hurry(load.io, hurry);
		r = load_read(c, &load, hurry);
	}
	r = capped_load_end(c, &load, r);
	if (load.io)
		engine_back(c, load.io);
	return r;
}

uint64_t capped_free_run(const struct capped *c, const struct capped_file *f, uint64_t first,
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

static int load_range(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr,
		      bool for_drop, uint64_t *loaded)
{
	uint64_t end = nr > UINT64_MAX - first ? UINT64_MAX : first + nr;
	uint64_t page;
	int r = 0;

	while (r == 0 && (page = spill_bits_next(&f->bits, first)) < end) {
		uint64_t run = capped_free_run(c, f, page, end, CAPPED_CLUSTER);

		fs_request_may_wait();
		if (run == 0 || (!for_drop && capped_drop_comes(c, f->ino))) {
			pthread_cond_wait(&c->cond, &c->lock);
			continue;
		}
		r = capped_load_run(c, f, page, run);
		if (r == 0 && loaded) {
			*loaded += run;
			if (c->progress)
				c->progress(c->progress_ctx);
		}
	}
	return r;
}

int capped_load(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr,
		uint64_t *loaded)
{
	return load_range(c, f, first, nr, false, loaded);
}

int capped_load_for_drop(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	return load_range(c, f, first, nr, true, NULL);
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
