/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/hooks.h"

#include <time.h>

#include "track/capped.h"
#include "track/track.h"

#define REMOVED_TRIES 10 /* naps of 2 ms, until the kernel has forgotten a file */

static void on_drop_begin(void *ctx, struct fs_drop *drop)
{
	track_drop_begin(((const struct hooks *)ctx)->track, drop);
}

static void on_drop_end(void *ctx, struct fs_drop *drop)
{
	track_drop_end(((const struct hooks *)ctx)->track, drop);
}

static void on_settle(void *ctx)
{
	track_settle(((const struct hooks *)ctx)->track);
}

static void on_contents_begin(void *ctx, uint64_t ino)
{
	track_contents_begin(((const struct hooks *)ctx)->track, ino);
}

static void on_contents_durable(void *ctx, uint64_t ino)
{
	track_contents_durable(((const struct hooks *)ctx)->track, ino);
}

static int on_sync_file(void *ctx, uint64_t ino)
{
	return track_sync_file(((const struct hooks *)ctx)->track, ino);
}

static enum capped_io capped_io_of(enum fs_io io)
{
	return io == FS_IO_DROP ? CAPPED_DROP : io == FS_IO_WRITE ? CAPPED_WRITE : CAPPED_READ;
}

/* What was removed must not keep its room. */
static void let_go_of_removed(const struct hooks *h)
{
	for (int tries = 0; tries < REMOVED_TRIES && h->track && capped_has_removed(h->capped);
	     tries++) {
		fs_request_may_wait();
		if (tries)
			nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
		track_settle(h->track);
	}
}

static int on_io_begin(void *ctx, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io)
{
	const struct hooks *h = ctx;

	if (io == FS_IO_WRITE && capped_is_short(h->capped, len))
		let_go_of_removed(h);
	return capped_io_begin(h->capped, ino, off, len, capped_io_of(io));
}

static void on_io_end(void *ctx, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io, bool done)
{
	const struct hooks *h = ctx;

	capped_io_end(h->capped, ino, off, len, capped_io_of(io), done);
}

static bool on_would_wait(void *ctx, uint64_t ino, uint64_t off, uint64_t len)
{
	return capped_would_wait(((const struct hooks *)ctx)->capped, ino, off, len);
}

static void on_space(void *ctx, struct statvfs *st)
{
	const struct hooks *h = ctx;

	let_go_of_removed(h);
	if (fs_statvfs(h->fs, st) == 0)
		capped_space(h->capped, st);
}

static int on_opened(void *ctx, uint64_t ino, pid_t opener, bool must)
{
	return capped_opened(((const struct hooks *)ctx)->capped, ino, opener, must);
}

static void on_released(void *ctx, uint64_t ino)
{
	capped_released(((const struct hooks *)ctx)->capped, ino);
}

static int64_t on_seek(void *ctx, uint64_t ino, int fd, uint64_t off, int whence)
{
	return capped_seek(((const struct hooks *)ctx)->capped, ino, fd, off, whence);
}

static int on_set_times(void *ctx, uint64_t ino, int fd, const struct timespec times[2])
{
	return capped_set_times(((const struct hooks *)ctx)->capped, ino, fd, times);
}

static int on_stat(void *ctx, uint64_t ino, int fd, const char *name, struct stat *st)
{
	return capped_stat(((const struct hooks *)ctx)->capped, ino, fd, name, st);
}

static int on_still(void *ctx, uint64_t ino, int (*fn)(void *arg), void *arg)
{
	return capped_still(((const struct hooks *)ctx)->capped, ino, fn, arg);
}

static int on_ticket(void *ctx, uint64_t ino, int accmode, struct wpfs_ticket *ticket)
{
	return capped_ticket(((const struct hooks *)ctx)->capped, ino, accmode, ticket);
}

static int on_read_through(void *ctx, uint64_t ino, int lower_fd, void *buf, size_t len,
			   uint64_t off)
{
	return capped_read_through(((const struct hooks *)ctx)->capped, ino, lower_fd, buf, len,
				   off);
}

static uint64_t on_next_through(void *ctx, uint64_t ino, uint64_t off)
{
	return capped_next_spilled(((const struct hooks *)ctx)->capped, ino, off);
}

const struct fs_hooks *hooks_make(struct hooks *h, struct fs *fs, struct track *track,
				  struct capped *capped)
{
	*h = (struct hooks){.fs = fs, .track = track, .capped = capped};
	h->table.ctx = h->table.io_ctx = h;
	if (track) {
		h->table.drop_begin = on_drop_begin;
		h->table.drop_end = on_drop_end;
		h->table.settle = on_settle;
		h->table.sync_file = on_sync_file;
		h->table.contents_begin = on_contents_begin;
		h->table.contents_durable = on_contents_durable;
	}
	if (capped) {
		h->table.opened = on_opened;
		h->table.released = on_released;
		h->table.io_begin = on_io_begin;
		h->table.io_end = on_io_end;
		h->table.would_wait = on_would_wait;
		h->table.seek = on_seek;
		h->table.set_times = on_set_times;
		h->table.stat = on_stat;
		h->table.still = on_still;
		h->table.ticket = on_ticket;
		h->table.read_through = on_read_through;
		h->table.next_through = on_next_through;
		h->table.space = on_space;
	}
	return &h->table;
}
