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
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"

/* Pages of which [off, off + len) covers only a part. */
static int load_edges(struct capped *c, struct capped_file *f, uint64_t off, uint64_t len)
{
	int r = 0;

	if (off & (WPFS_PAGE_SIZE - 1))
		r = capped_load(c, f, off >> WPFS_PAGE_SHIFT, 1, NULL);
	if (r == 0 && len && ((off + len) & (WPFS_PAGE_SIZE - 1)))
		r = capped_load(c, f, (off + len) >> WPFS_PAGE_SHIFT, 1, NULL);
	return r;
}

static int load_range(struct capped *c, struct capped_file *f, uint64_t off, uint64_t len)
{
	uint64_t first = off >> WPFS_PAGE_SHIFT;
	uint64_t end = len ? (off + len + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT : UINT64_MAX;

	return capped_load(c, f, first, end - first, NULL);
}

int capped_io_begin(struct capped *c, uint64_t ino, uint64_t off, uint64_t len, enum capped_io io)
{
	unsigned shard = ino % CAPPED_SHARDS;
	struct capped_file *f;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	while (c->drops[shard] || (c->batch && c->batch->file->ino % CAPPED_SHARDS == shard))
		pthread_cond_wait(&c->cond, &c->lock);
	f = capped_file_find(c, ino);
	if (f)
		r = io == CAPPED_DROP ? load_edges(c, f, off, len) : load_range(c, f, off, len);
	if (r < 0)
		log_err("cannot bring pages of file %" PRIu64 " back from the store: %s", ino,
			log_errstr(r));
	if (r == 0 && io == CAPPED_DROP)
		c->drops[shard] = true;
	else if (r == 0)
		c->accesses[shard]++;
	pthread_mutex_unlock(&c->lock);
	return r;
}

void capped_io_end(struct capped *c, uint64_t ino, uint64_t off, uint64_t len, enum capped_io io,
		   bool done)
{
	uint64_t first = (off + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	uint64_t end = len ? (off + len) >> WPFS_PAGE_SHIFT : UINT64_MAX;
	unsigned shard = ino % CAPPED_SHARDS;
	struct capped_file *f;

	pthread_mutex_lock(&c->lock);
	if (io == CAPPED_ACCESS) {
		c->accesses[shard]--;
	} else {
		f = capped_file_find(c, ino);
		if (f && done && first < end)
			capped_forget(c, f, first, end - first);
		c->drops[shard] = false;
	}
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

int capped_read_through(struct capped *c, uint64_t ino, int lower_fd, void *buf, size_t len,
			uint64_t off)
{
	uint64_t end = (off + len + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	struct capped_file *f;
	int r;

	pthread_mutex_lock(&c->lock);
	capped_wait_drop(c, ino);
	r = fdio_pread_zeros(lower_fd, buf, len, off);
	f = capped_file_find(c, ino);
	for (uint64_t page = f ? spill_bits_next(&f->bits, off >> WPFS_PAGE_SHIFT) : UINT64_MAX;
	     r == 0 && page < end; page = spill_bits_next(&f->bits, page + 1)) {
		const struct spill_run run = {page, 1, c->buf};
		uint64_t at = (page << WPFS_PAGE_SHIFT) - off;

		/* In the midst of an eviction both may be there, and are the same. */
		r = spill_store_read(c->store, ino, &run, 1);
		if (r == 0)
			memcpy((char *)buf + at, c->buf,
			       len - at < WPFS_PAGE_SIZE ? len - at : WPFS_PAGE_SIZE);
	}
	pthread_mutex_unlock(&c->lock);
	return r;
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
