/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "spill/io.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"

#define IO_DEPTH 64

struct spill_io {
	enum spill_path path;
	pthread_mutex_t lock; /* ring and counts; nothing else is taken under it */
	struct io_uring ring; /* valid if path is URING */
	struct spill_io_counts counts;
};

int (*spill_io_test_fail)(bool write, uint64_t off);

int spill_io_new(enum spill_path want, struct spill_io **out)
{
	struct spill_io *io = calloc(1, sizeof(*io));
	int r = -EPERM;

	if (!io)
		return -ENOMEM;
	if (want == SPILL_PATH_URING)
		r = io_uring_queue_init(IO_DEPTH, &io->ring, 0);
	if (r < 0 && r != -ENOSYS && r != -EPERM) {
		free(io);
		return r;
	}
	io->path = r < 0 ? SPILL_PATH_SYNC : SPILL_PATH_URING;
	pthread_mutex_init(&io->lock, NULL);
	*out = io;
	return 0;
}

void spill_io_free(struct spill_io *io)
{
	if (!io)
		return;
	if (io->path == SPILL_PATH_URING)
		io_uring_queue_exit(&io->ring);
	pthread_mutex_destroy(&io->lock);
	free(io);
}

enum spill_path spill_io_path(const struct spill_io *io)
{
	return io->path;
}

struct spill_io_counts spill_io_counts(struct spill_io *io)
{
	struct spill_io_counts counts;

	pthread_mutex_lock(&io->lock);
	counts = io->counts;
	pthread_mutex_unlock(&io->lock);
	return counts;
}

/* What a transfer of n bytes means for a piece of which *seg is left. 0: go on or done. */
static int seg_advance(struct spill_seg *seg, bool write, ssize_t n)
{
	if (n < 0)
		return (int)n;
	if (n == 0)
		return write ? -ENOSPC : -ENODATA;
	seg->buf = (char *)seg->buf + n;
	seg->off += (uint64_t)n;
	seg->len -= (uint32_t)n;
	return 0;
}

static int sync_run(struct spill_io *io, int fd, bool write, struct spill_seg *segs, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		while (segs[i].len) {
			ssize_t n = write ? pwrite(fd, segs[i].buf, segs[i].len, (off_t)segs[i].off)
					  : pread(fd, segs[i].buf, segs[i].len, (off_t)segs[i].off);
			int r;

			if (n < 0 && errno == EINTR)
				continue;
			r = seg_advance(&segs[i], write, n < 0 ? -errno : n);
			if (r < 0)
				return r;
		}
		io->counts.sync++;
	}
	return 0;
}

static void uring_queue(struct spill_io *io, int fd, bool write, struct spill_seg *seg)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

	/* Never NULL: no more are in flight than the ring has room for. */
	if (write)
		io_uring_prep_write(sqe, fd, seg->buf, seg->len, seg->off);
	else
		io_uring_prep_read(sqe, fd, seg->buf, seg->len, seg->off);
	io_uring_sqe_set_data(sqe, seg);
}

/*
 * Keeps up to IO_DEPTH pieces in flight. After an error nothing new is queued, but everything in
 * flight is waited for: its buffers are the caller's.
 */
static int uring_run(struct spill_io *io, int fd, bool write, struct spill_seg *segs, size_t nr)
{
	size_t next = 0, in_flight = 0;
	int result = 0;

	while (in_flight || (next < nr && result == 0)) {
		struct io_uring_cqe *cqe;
		struct spill_seg *seg;
		int r;

		while (next < nr && in_flight < IO_DEPTH && result == 0) {
			uring_queue(io, fd, write, &segs[next++]);
			in_flight++;
		}
		r = io_uring_submit_and_wait(&io->ring, 1);
		if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
			abort(); /* the kernel may still write into buffers: nobody may go on */
		while (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
			seg = io_uring_cqe_get_data(cqe);
			r = cqe->res == -EINTR || cqe->res == -EAGAIN
				    ? 0
				    : seg_advance(seg, write, cqe->res);
			io_uring_cqe_seen(&io->ring, cqe);
			if (r < 0 && result == 0)
				result = r;
			if (seg->len && result == 0) {
				uring_queue(io, fd, write, seg); /* the rest of a short one */
				continue;
			}
			in_flight--;
			io->counts.uring++;
		}
	}
	return result;
}

static int io_run(struct spill_io *io, int fd, bool write, const struct spill_seg *segs, size_t nr)
{
	_cleanup_free_ struct spill_seg *left = calloc(nr + 1, sizeof(*left));
	int r = 0;

	if (!left)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++) {
		left[i] = segs[i];
		if (spill_io_test_fail)
			r = spill_io_test_fail(write, segs[i].off);
		if (r < 0)
			return r;
	}
	pthread_mutex_lock(&io->lock);
	r = io->path == SPILL_PATH_URING ? uring_run(io, fd, write, left, nr)
					 : sync_run(io, fd, write, left, nr);
	pthread_mutex_unlock(&io->lock);
	return r;
}

int spill_io_read(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr)
{
	return io_run(io, fd, false, segs, nr);
}

int spill_io_write(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr)
{
	return io_run(io, fd, true, segs, nr);
}
