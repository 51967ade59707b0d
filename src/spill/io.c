/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "spill/io.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"

struct spill_io {
	enum spill_path path;
	struct io_uring ring; /* valid if path is URING */
	void *buf;
	size_t buf_size;
	bool fixed; /* buf is registered */
	struct spill_stats *stats;
};

int (*spill_io_test_fail)(bool write, uint64_t off);

/* The memory stays where it is and is ours alone until spill_io_free. */
static int buf_new(struct spill_io *io, size_t size)
{
	struct iovec iov;

	if (size == 0)
		return 0;
	io->buf = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (io->buf == MAP_FAILED) {
		io->buf = NULL;
		return -ENOMEM;
	}
	io->buf_size = size;
	iov = (struct iovec){io->buf, size};
	/* Refused (RLIMIT_MEMLOCK): each piece is pinned by itself, which is slower and no more. */
	io->fixed =
		io->path == SPILL_PATH_URING && io_uring_register_buffers(&io->ring, &iov, 1) == 0;
	return 0;
}

int spill_io_new(enum spill_path want, size_t buf_size, struct spill_stats *stats,
		 struct spill_io **out)
{
	struct spill_io *io = calloc(1, sizeof(*io));
	int r = -EPERM;

	if (!io)
		return -ENOMEM;
	io->stats = stats;
	if (want == SPILL_PATH_URING)
		r = io_uring_queue_init(SPILL_IO_DEPTH, &io->ring, 0);
	io->path = r < 0 ? SPILL_PATH_SYNC : SPILL_PATH_URING;
	if (r < 0 && r != -ENOSYS && r != -EPERM) {
		free(io);
		return r;
	}
	r = buf_new(io, buf_size);
	if (r < 0) {
		spill_io_free(io);
		return r;
	}
	*out = io;
	return 0;
}

void spill_io_free(struct spill_io *io)
{
	if (!io)
		return;
	if (io->path == SPILL_PATH_URING)
		io_uring_queue_exit(&io->ring);
	if (io->buf)
		munmap(io->buf, io->buf_size);
	free(io);
}

void *spill_io_buf(const struct spill_io *io)
{
	return io->buf;
}

enum spill_path spill_io_path(const struct spill_io *io)
{
	return io->path;
}

static void stats_begin(struct spill_stats *stats)
{
	uint64_t depth = atomic_fetch_add(&stats->depth, 1) + 1;
	uint64_t max = atomic_load(&stats->depth_max);

	while (depth > max && !atomic_compare_exchange_weak(&stats->depth_max, &max, depth))
		;
}

static void stats_end(struct spill_stats *stats)
{
	atomic_fetch_sub(&stats->depth, 1);
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
		int r = 0;

		stats_begin(io->stats);
		while (segs[i].len && r == 0) {
			ssize_t n = write ? pwrite(fd, segs[i].buf, segs[i].len, (off_t)segs[i].off)
					  : pread(fd, segs[i].buf, segs[i].len, (off_t)segs[i].off);

			if (n < 0 && errno == EINTR)
				continue;
			r = seg_advance(&segs[i], write, n < 0 ? -errno : n);
		}
		stats_end(io->stats);
		if (r < 0)
			return r;
		atomic_fetch_add(&io->stats->sync, 1);
	}
	return 0;
}

static void uring_queue(struct spill_io *io, int fd, bool write, struct spill_seg *seg)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

	bool fixed = io->fixed && (char *)seg->buf >= (char *)io->buf &&
		     (char *)seg->buf + seg->len <= (char *)io->buf + io->buf_size;

	/* Never NULL: no more are in flight than the ring has room for. */
	if (write && fixed)
		io_uring_prep_write_fixed(sqe, fd, seg->buf, seg->len, seg->off, 0);
	else if (write)
		io_uring_prep_write(sqe, fd, seg->buf, seg->len, seg->off);
	else if (fixed)
		io_uring_prep_read_fixed(sqe, fd, seg->buf, seg->len, seg->off, 0);
	else
		io_uring_prep_read(sqe, fd, seg->buf, seg->len, seg->off);
	if (fixed)
		atomic_fetch_add(&io->stats->fixed, 1);
	io_uring_sqe_set_data(sqe, seg);
}

/*
 * Keeps up to SPILL_IO_DEPTH pieces in flight. After an error nothing new is queued, but everything
 * in flight is waited for: its buffers are the caller's.
 */
static int uring_run(struct spill_io *io, int fd, bool write, struct spill_seg *segs, size_t nr)
{
	size_t next = 0, in_flight = 0;
	int result = 0;

	while (in_flight || (next < nr && result == 0)) {
		struct io_uring_cqe *cqe;
		struct spill_seg *seg;
		int r;

		while (next < nr && in_flight < SPILL_IO_DEPTH && result == 0) {
			stats_begin(io->stats);
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
			stats_end(io->stats);
			atomic_fetch_add(&io->stats->uring, 1);
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
	return io->path == SPILL_PATH_URING ? uring_run(io, fd, write, left, nr)
					    : sync_run(io, fd, write, left, nr);
}

int spill_io_read(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr)
{
	return io_run(io, fd, false, segs, nr);
}

int spill_io_write(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr)
{
	return io_run(io, fd, true, segs, nr);
}
