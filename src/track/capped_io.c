/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Contents used through the mount, not through a mapping: FUSE requests, the flush, and tickets.
 *
 * An access is counted while it runs, so that no page leaves under it. While a drop runs nothing of
 * the file comes or goes: a fault in between would bring back what is being dropped.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_room.h"
#include "track/capped_track.h"
#include "track/capped_test.h"

#define READING_TRIES 200 /* naps */
#define ROOM_TRIES    1000
#define ROOM_NS	      10000000

/* Pages [first, end) that [off, off + len) touches; len 0: to the end. */
static struct capped_use use_of(uint64_t ino, uint64_t off, uint64_t len, enum capped_io io)
{
	return (struct capped_use){
		.ino = ino,
		.first = off >> WPFS_PAGE_SHIFT,
		.end = len ? (off + len + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT : UINT64_MAX,
		.kind = io == CAPPED_DROP ? CAPPED_USE_DROP : CAPPED_USE_ACCESS,
		.reads = io == CAPPED_READ,
		.writes = io != CAPPED_READ,
	};
}

/* What a drop of [off, off + len) leaves of pages that it covers only in part. */
static int load_edges(struct capped *c, struct capped_file *f, uint64_t off, uint64_t len)
{
	int r = 0;

	if (off & (WPFS_PAGE_SIZE - 1))
		r = capped_load_for_drop(c, f, off >> WPFS_PAGE_SHIFT, 1);
	if (r == 0 && len && ((off + len) & (WPFS_PAGE_SIZE - 1)))
		r = capped_load_for_drop(c, f, (off + len) >> WPFS_PAGE_SHIFT, 1);
	return r;
}

static bool edge_is_spilled(const struct capped_file *f, uint64_t off, uint64_t len)
{
	return ((off & (WPFS_PAGE_SIZE - 1)) &&
		spill_bits_test(&f->bits, off >> WPFS_PAGE_SHIFT)) ||
	       (len && ((off + len) & (WPFS_PAGE_SIZE - 1)) &&
		spill_bits_test(&f->bits, (off + len) >> WPFS_PAGE_SHIFT));
}

/* Is something going on that the use would disturb? */
static bool must_wait(const struct capped *c, const struct capped_file *f,
		      const struct capped_use *use)
{
	if (use->kind == CAPPED_USE_DROP)
		return capped_used(c, use->ino, 0, UINT64_MAX,
				   1 << CAPPED_USE_DROP | 1 << CAPPED_USE_LOAD) ||
		       (c->batch && c->batch->file == f);
	return capped_used(c, use->ino, 0, UINT64_MAX, 1 << CAPPED_USE_DROP) ||
	       (f && capped_batch_has(c, f, use->first, use->end));
}

/* Each step may let go of the lock: they are repeated until none had to. */
static int use_enter(struct capped *c, struct capped_use *use, uint64_t off, uint64_t len)
{
	bool drop = use->kind == CAPPED_USE_DROP;
	int r = 0;

	for (int tries = 0;;) {
		struct capped_file *f = capped_file_find(c, use->ino);

		if (must_wait(c, f, use)) {
			fs_request_may_wait();
			pthread_cond_wait(&c->cond, &c->lock);
			continue;
		}
		if (f && drop && edge_is_spilled(f, off, len))
			r = load_edges(c, f, off, len);
		else if (f && !drop && spill_bits_next(&f->bits, use->first) < use->end)
			r = capped_load(c, f, use->first, use->end - use->first, NULL);
		else
			return 0;
		/* It exists, so it has its room; others have that for a moment. */
		if (r == -ENOSPC && c->size && tries++ < ROOM_TRIES) {
			pthread_mutex_unlock(&c->lock);
			nanosleep(&(struct timespec){.tv_nsec = ROOM_NS}, NULL);
			pthread_mutex_lock(&c->lock);
		} else if (r < 0) {
			return r;
		}
	}
}

/* Reads of the file that begin all the time would keep it away for ever. */
static int drop_enter(struct capped *c, struct capped_use *use, uint64_t off, uint64_t len)
{
	int r;

	DL_APPEND(c->coming, use);
	pthread_mutex_unlock(&c->lock);
	capped_test_point("coming");
	pthread_mutex_lock(&c->lock);
	r = use_enter(c, use, off, len);
	DL_DELETE(c->coming, use);
	if (r < 0)
		capped_retry(c);
	pthread_cond_broadcast(&c->cond);
	return r;
}

/* ---- what reads ---- */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void reading_begin(struct capped *c, struct capped_use *use)
{
	if (!use->reads)
		return;
	use->since_ns = now_ns();
	DL_APPEND2(c->readings, use, reading_prev, reading_next);
}

static void reading_end(struct capped *c, struct capped_use *use)
{
	if (!use->reads)
		return;
	DL_DELETE2(c->readings, use, reading_prev, reading_next);
	if (!c->held_up)
		return;
	/* Something can leave again, and if not, the next oldest may have waited for this. */
	capped_added(c, 0);
	pthread_cond_broadcast(&c->cond);
}

uint64_t capped_reading_since(struct capped *c)
{
	uint64_t since;

	pthread_mutex_lock(&c->lock);
	since = c->readings ? c->readings->since_ns : UINT64_MAX;
	pthread_mutex_unlock(&c->lock);
	return since;
}

int capped_wait_readings(struct capped *c, uint64_t ns)
{
	for (int tries = 0; capped_reading_since(c) <= ns; tries++) {
		if (tries == READING_TRIES)
			return -EBUSY;
		capped_nap();
	}
	return 0;
}

/* ---- before and after ---- */

int capped_io_begin(struct capped *c, uint64_t ino, uint64_t off, uint64_t len, enum capped_io io)
{
	struct capped_use *use = calloc(1, sizeof(*use));
	int r;

	if (!use)
		return -ENOMEM;
	*use = use_of(ino, off, len, io);
	pthread_mutex_lock(&c->lock);
	reading_begin(c, use);
	if (io != CAPPED_DROP)
		capped_wait_room(c, use);
	if (io == CAPPED_WRITE && use->end != UINT64_MAX)
		capped_wait_loads(c, ino, use->first, use->end - use->first);
	r = io == CAPPED_DROP ? drop_enter(c, use, off, len) : use_enter(c, use, off, len);
	if (r == 0) {
		capped_use_begin(c, use);
		capped_times_used(c, capped_file_find(c, ino), use, false);
	} else {
		reading_end(c, use);
	}
	pthread_mutex_unlock(&c->lock);
	if (r == 0 && io == CAPPED_READ)
		capped_test_point("reading");
	if (r == 0)
		return 0;
	free(use);
	log_err("cannot bring pages of file %" PRIu64 " back from the store: %s", ino,
		log_errstr(r));
	return r;
}

bool capped_would_wait(struct capped *c, uint64_t ino, uint64_t off, uint64_t len)
{
	const struct capped_use use = use_of(ino, off, len, CAPPED_READ);
	const struct capped_file *f;
	bool would;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	would = (c->guess >= c->full && !c->stuck) || must_wait(c, f, &use) ||
		(f && spill_bits_next(&f->bits, use.first) < use.end);
	pthread_mutex_unlock(&c->lock);
	return would;
}

/* What was written or read through the mount is in memory now. */
static void know_accessed(struct capped *c, const struct capped_use *use, bool all)
{
	struct capped_file *f = capped_file_find(c, use->ino);
	struct fs_file file;
	bool known = f != NULL;

	if (use->end == UINT64_MAX)
		return;
	/* That tells the policy of all pages it has. */
	if (!f && fs_file_by_ino(c->config.fs, use->ino, &file) == 0)
		capped_file_get(c, &file.handle, use->ino, &f);
	/* SEEK_DATA does not show pages that are allocated and were never written. */
	for (uint64_t page = use->first; known && capped_is_chosen(f) && all && page < use->end;
	     page++)
		policy_insert(c->policy, f->slot, page);
	if (known && !all)
		capped_know(c, f, use->first, use->end - use->first);
	if (f)
		capped_pin_resize(c, f);
	capped_added(c, use->end - use->first);
}

static void drop_done(struct capped *c, struct capped_file *f, uint64_t off, uint64_t len)
{
	uint64_t first = (off + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	uint64_t end = len ? (off + len) >> WPFS_PAGE_SHIFT : UINT64_MAX;

	if (!f || first >= end)
		return;
	capped_forget(c, f, first, end - first);
	capped_pin_resize(c, f);
	if (capped_is_chosen(f))
		policy_drop(c->policy, f->slot, first, end - first);
}

void capped_io_end(struct capped *c, uint64_t ino, uint64_t off, uint64_t len, enum capped_io io,
		   bool done)
{
	const struct capped_use like = use_of(ino, off, len, io);
	struct capped_use *use = NULL, *one;

	if (io == CAPPED_DROP && done)
		capped_test_point("dropped");
	pthread_mutex_lock(&c->lock);
	/* Of several that are alike the youngest: none is taken for younger than it is. */
	DL_FOREACH (c->uses, one) {
		if (one->ino == ino && one->first == like.first && one->end == like.end &&
		    one->kind == like.kind && one->writes == like.writes &&
		    (!use || one->since_ns > use->since_ns))
			use = one;
	}
	if (io != CAPPED_DROP)
		know_accessed(c, &like, io == CAPPED_WRITE && done);
	else if (done)
		drop_done(c, capped_file_find(c, ino), off, len);
	capped_limit_set(c, false);
	capped_use_end(c, use);
	reading_end(c, use);
	capped_times_used(c, capped_file_find(c, ino), use, done);
	pthread_mutex_unlock(&c->lock);
	free(use);
}

/*
 * Copies what is spilled of [off, off + len) over what the lower file gave. The pages are held like
 * those of an access, so that none comes or goes in between; a batch may be under way, and then
 * both have it and are the same.
 */
static int read_spilled(struct capped *c, struct capped_file *f, struct spill_io *io, char *buf,
			size_t len, uint64_t off)
{
	uint64_t end = (off + len + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	uint64_t page = spill_bits_next(&f->bits, off >> WPFS_PAGE_SHIFT);
	int r = 0;

	while (r == 0 && page < end) {
		struct spill_run run = {page, 1, spill_io_buf(io)};
		uint64_t at = (page << WPFS_PAGE_SHIFT) - off, bytes;
		int fd = capped_spill_fd(c, f, false);

		while (run.nr < CAPPED_CLUSTER && page + run.nr < end &&
		       spill_bits_test(&f->bits, page + run.nr))
			run.nr++;
		bytes = run.nr << WPFS_PAGE_SHIFT;
		pthread_mutex_unlock(&c->lock);
		r = fd < 0 ? fd : spill_store_read(io, fd, &run, 1);
		if (r == 0)
			memcpy(buf + at, run.buf, len - at < bytes ? len - at : bytes);
		pthread_mutex_lock(&c->lock);
		page = spill_bits_next(&f->bits, page + run.nr);
	}
	return r;
}

int capped_read_through(struct capped *c, uint64_t ino, int lower_fd, void *buf, size_t len,
			uint64_t off)
{
	struct capped_use use = use_of(ino, off, len, CAPPED_READ);
	struct spill_io *io;
	struct capped_file *f;
	int r;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	while (capped_drop_comes(c, ino) ||
	       capped_used(c, ino, 0, UINT64_MAX, 1 << CAPPED_USE_DROP) ||
	       capped_used(c, ino, use.first, use.end, 1 << CAPPED_USE_LOAD) ||
	       (f && capped_batch_has(c, f, use.first, use.end))) {
		pthread_cond_wait(&c->cond, &c->lock);
		f = capped_file_find(c, ino);
	}
	/* As a load would be: nobody else brings these pages in, or takes them away. */
	use.kind = CAPPED_USE_LOAD;
	use.reads = false;
	capped_use_begin(c, &use);
	pthread_mutex_unlock(&c->lock);
	/* Not before: loads that are waited for need engines too. */
	io = capped_engine_take(c);
	r = io ? fdio_pread_zeros(lower_fd, buf, len, off) : -ENOMEM;
	pthread_mutex_lock(&c->lock);
	if (r == 0 && f)
		r = read_spilled(c, f, io, buf, len, off);
	capped_use_end(c, &use);
	if (f)
		capped_tidy(c, f);
	pthread_mutex_unlock(&c->lock);
	if (io)
		capped_engine_give(c, io);
	return r;
}

/* The first page at or after `page` that is not spilled. */
static uint64_t next_not_spilled(const struct capped_file *f, uint64_t page)
{
	while (spill_bits_test(&f->bits, page))
		page++;
	return page;
}

static off_t seek_hole(const struct capped_file *f, int fd, off_t off)
{
	for (;;) {
		off_t hole = lseek(fd, off, SEEK_HOLE), next;

		if (hole < 0)
			return -errno;
		next = (off_t)(next_not_spilled(f, (uint64_t)hole >> WPFS_PAGE_SHIFT)
			       << WPFS_PAGE_SHIFT);
		if (next <= hole)
			return hole;
		off = lseek(fd, 0, SEEK_END);
		if (next >= off)
			return off;
		off = next;
	}
}

static off_t seek_data(const struct capped_file *f, int fd, off_t off)
{
	off_t data = lseek(fd, off, SEEK_DATA), size = lseek(fd, 0, SEEK_END), spilled;
	uint64_t page;

	if (data < 0 && errno != ENXIO)
		return -errno;
	page = spill_bits_next(&f->bits, (uint64_t)off >> WPFS_PAGE_SHIFT);
	if (page != UINT64_MAX) {
		spilled = (off_t)(page << WPFS_PAGE_SHIFT);
		spilled = spilled > off ? spilled : off;
		if (spilled < size && (data < 0 || spilled < data))
			data = spilled;
	}
	return data < 0 ? -ENXIO : data;
}

int64_t capped_seek(struct capped *c, uint64_t ino, int lower_fd, uint64_t off, int whence)
{
	struct capped_file *f;
	off_t at;

	/* Under the lock a page is in the lower file or has its bit, or is zeros. */
	pthread_mutex_lock(&c->lock);
	while (capped_used(c, ino, 0, UINT64_MAX, 1 << CAPPED_USE_DROP))
		pthread_cond_wait(&c->cond, &c->lock);
	f = capped_file_find(c, ino);
	if (!f || f->bits.count == 0) {
		at = lseek(lower_fd, (off_t)off, whence);
		if (at < 0)
			at = -errno;
	} else {
		at = whence == SEEK_DATA ? seek_data(f, lower_fd, (off_t)off)
					 : seek_hole(f, lower_fd, (off_t)off);
	}
	pthread_mutex_unlock(&c->lock);
	return at;
}

uint64_t capped_next_spilled(struct capped *c, uint64_t ino, uint64_t off)
{
	struct capped_file *f;
	uint64_t page = UINT64_MAX;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	if (f)
		page = spill_bits_next(&f->bits, off >> WPFS_PAGE_SHIFT);
	pthread_mutex_unlock(&c->lock);
	if (page == UINT64_MAX)
		return UINT64_MAX;
	return page << WPFS_PAGE_SHIFT > off ? page << WPFS_PAGE_SHIFT : off;
}

void capped_set_progress(struct capped *c, void (*fn)(void *ctx), void *ctx)
{
	c->progress = fn;
	c->progress_ctx = ctx;
}

uint64_t capped_nr_spilled(struct capped *c, uint64_t ino)
{
	const struct capped_file *f;
	uint64_t nr;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	nr = f ? f->bits.count : 0;
	pthread_mutex_unlock(&c->lock);
	return nr;
}

int capped_spilled(struct capped *c, uint64_t ino, struct mm_set *set)
{
	_cleanup_free_ struct mm_builder *runs = malloc(sizeof(*runs));
	struct capped_file *f;

	if (!runs)
		return -ENOMEM;
	mm_builder_begin(runs);
	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	for (uint64_t page = f ? spill_bits_next(&f->bits, 0) : UINT64_MAX; page != UINT64_MAX;
	     page = spill_bits_next(&f->bits, page + 1))
		mm_builder_add(runs, page, 1);
	pthread_mutex_unlock(&c->lock);
	return mm_builder_end(runs, set);
}

/* ---- tickets ---- */

static int64_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

int capped_ticket(struct capped *c, uint64_t ino, int accmode, struct wpfs_ticket *ticket)
{
	struct capped_ticket *slot = &c->tickets[0];

	if (accmode == O_WRONLY)
		return -EACCES; /* as mmap(2) of it would say */
	if (getrandom(ticket, sizeof(*ticket), 0) != sizeof(*ticket))
		return -EAGAIN;
	pthread_mutex_lock(&c->lock);
	/* The oldest gives way: nobody can keep others from getting theirs for long. */
	for (size_t i = 1; i < CAPPED_TICKETS; i++) {
		if (c->tickets[i].expires < slot->expires)
			slot = &c->tickets[i];
	}
	*slot = (struct capped_ticket){
		.ticket = *ticket,
		.ino = ino,
		.accmode = accmode,
		.expires = now_s() + CAPPED_TICKET_S,
	};
	pthread_mutex_unlock(&c->lock);
	return 0;
}

/* Opens what a ticket is for. Read-write: the one struct file there is. */
static int redeem_open(struct capped *c, uint64_t ino, int accmode)
{
	struct capped_file *f;
	struct fs_file file;
	int fd, r;

	if (accmode == O_RDONLY)
		return fs_file_open(c->config.fs, ino, O_RDONLY);
	r = fs_file_by_ino(c->config.fs, ino, &file);
	if (r == 0)
		r = capped_file_get(c, &file.handle, ino, &f);
	if (r < 0)
		return r;
	fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
	if (fd >= 0 && !f->missing)
		capped_file_unseen(c, f);
	return fd < 0 ? -errno : fd;
}

int capped_redeem(struct capped *c, const struct wpfs_ticket *ticket, uint64_t *ino)
{
	int r = -ESTALE;

	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < CAPPED_TICKETS; i++) {
		struct capped_ticket *slot = &c->tickets[i];
		struct capped_ticket copy = *slot;

		if (copy.expires == 0 || memcmp(&copy.ticket, ticket, sizeof(*ticket)) != 0)
			continue;
		*slot = (struct capped_ticket){0};
		*ino = copy.ino;
		if (copy.expires >= now_s())
			r = redeem_open(c, copy.ino, copy.accmode);
		break;
	}
	pthread_mutex_unlock(&c->lock);
	return r;
}
