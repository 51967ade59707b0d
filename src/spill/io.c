/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "spill/io.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"

#define SPIN_NS	    150000 /* a disk without moving parts has answered by then */
#define SPIN_CREDIT 16
#define SPIN_EVERY  64	/* without credit it is tried every so often */
#define MAX_REFUSED 100 /* by somebody who sets O_APPEND again and again */

struct spill_io {
	enum spill_path path;
	struct io_uring ring; /* valid if path is URING */
	void *buf;
	size_t buf_size;
	bool fixed;  /* buf is registered */
	int pipe[2]; /* for spill_io_put; -1: not made */
	struct spill_job *jobs;
	size_t in_flight; /* pieces of all of them */
	struct spill_stats *stats;
	bool hurry;
	unsigned spin_credit, spin_skipped; /* how often it was of use lately; tries left out */
};

/* What the kernel gives back when it is done. */
struct spill_piece {
	struct spill_seg seg; /* what is left of it */
	struct spill_job *job;
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
	io->pipe[0] = io->pipe[1] = -1;
	io->spin_credit = SPIN_CREDIT;
	/* The thread is not interrupted when a piece is done: it looks, or waits. */
	if (want == SPILL_PATH_URING)
		r = io_uring_queue_init(SPILL_IO_DEPTH, &io->ring, IORING_SETUP_COOP_TASKRUN);
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

static void put_close(struct spill_io *io)
{
	close_fd(&io->pipe[0]);
	close_fd(&io->pipe[1]);
}

void spill_io_free(struct spill_io *io)
{
	if (!io)
		return;
	if (io->path == SPILL_PATH_URING)
		io_uring_queue_exit(&io->ring);
	if (io->buf)
		munmap(io->buf, io->buf_size);
	put_close(io);
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

void spill_io_hurry(struct spill_io *io, bool hurry)
{
	io->hurry = hurry;
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

static int sync_one(struct spill_job *job, struct spill_seg *seg)
{
	while (seg->len) {
		ssize_t n = job->write ? pwrite(job->fd, seg->buf, seg->len, (off_t)seg->off)
				       : pread(job->fd, seg->buf, seg->len, (off_t)seg->off);
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		r = seg_advance(seg, job->write, n < 0 ? -errno : n);
		if (r < 0)
			return r;
	}
	return 0;
}

static void sync_run(struct spill_io *io, struct spill_job *job)
{
	for (; job->next < job->nr && job->result == 0; job->next++) {
		stats_begin(io->stats);
		job->result = sync_one(job, &job->pieces[job->next].seg);
		stats_end(io->stats);
		if (job->result == 0)
			atomic_fetch_add(&io->stats->sync, 1);
	}
}

static void uring_queue(struct spill_io *io, struct spill_piece *piece)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
	const struct spill_seg *seg = &piece->seg;
	bool write = piece->job->write;
	int fd = piece->job->fd;
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
	io_uring_sqe_set_data(sqe, piece);
}

/* Queues what there is room for, the oldest job first. After its first error nothing new. */
static void uring_fill(struct spill_io *io)
{
	struct spill_job *job;

	DL_FOREACH2(io->jobs, job, next_job)
	{
		while (job->next < job->nr && job->result == 0 && io->in_flight < SPILL_IO_DEPTH) {
			stats_begin(io->stats);
			uring_queue(io, &job->pieces[job->next++]);
			job->in_flight++;
			io->in_flight++;
		}
	}
}

static void uring_submit(struct spill_io *io, unsigned wait)
{
	int r = io_uring_submit_and_wait(&io->ring, wait);

	if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
		abort(); /* the kernel may still write into buffers: nobody may go on */
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Looks whether anything is done, for a while. On a disk that takes longer it is rarely tried. */
static bool uring_spin(struct spill_io *io)
{
	uint64_t end;
	bool done = false;

	if (!io->hurry || (!io->spin_credit && ++io->spin_skipped % SPIN_EVERY))
		return false;
	uring_submit(io, 0);
	end = now_ns() + SPIN_NS;
	do {
		done = io_uring_cq_ready(&io->ring) > 0;
		if (!done)
			sched_yield();
	} while (!done && now_ns() < end);
	if (done && io->spin_credit < SPIN_CREDIT)
		io->spin_credit++;
	else if (!done && io->spin_credit)
		io->spin_credit--;
	return done;
}

static void uring_reap(struct spill_io *io)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
		struct spill_piece *piece = io_uring_cqe_get_data(cqe);
		struct spill_job *job = piece->job;
		int r = cqe->res == -EINTR || cqe->res == -EAGAIN
				? 0
				: seg_advance(&piece->seg, job->write, cqe->res);

		io_uring_cqe_seen(&io->ring, cqe);
		if (r < 0 && job->result == 0)
			job->result = r;
		if (piece->seg.len && job->result == 0) {
			uring_queue(io, piece); /* the rest of a short one */
			continue;
		}
		job->in_flight--;
		io->in_flight--;
		stats_end(io->stats);
		atomic_fetch_add(&io->stats->uring, 1);
	}
}

/* As spill_io_begin, but the kernel is not told yet. */
static int job_begin(struct spill_io *io, struct spill_job *job, int fd, bool write,
		     const struct spill_seg *segs, size_t nr)
{
	*job = (struct spill_job){.fd = fd, .write = write, .nr = nr};
	job->pieces = calloc(nr + 1, sizeof(*job->pieces));
	if (!job->pieces)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++) {
		int r = spill_io_test_fail ? spill_io_test_fail(write, segs[i].off) : 0;

		job->pieces[i] = (struct spill_piece){segs[i], job};
		if (r < 0) {
			free(job->pieces);
			return r;
		}
	}
	DL_APPEND2(io->jobs, job, prev, next_job);
	if (io->path == SPILL_PATH_SYNC)
		sync_run(io, job);
	else
		uring_fill(io);
	return 0;
}

int spill_io_begin(struct spill_io *io, struct spill_job *job, int fd, bool write,
		   const struct spill_seg *segs, size_t nr)
{
	int r = job_begin(io, job, fd, write, segs, nr);

	if (r == 0 && io->path == SPILL_PATH_URING)
		uring_submit(io, 0);
	return r;
}

/* What is in flight is waited for after an error too: its buffers are the caller's. */
int spill_io_end(struct spill_io *io, struct spill_job *job)
{
	while (job->in_flight ||
	       (io->path == SPILL_PATH_URING && job->next < job->nr && job->result == 0)) {
		uring_fill(io);
		if (!uring_spin(io))
			uring_submit(io, 1);
		uring_reap(io);
	}
	DL_DELETE2(io->jobs, job, prev, next_job);
	free(job->pieces);
	return job->result;
}

static int io_run(struct spill_io *io, int fd, bool write, const struct spill_seg *segs, size_t nr)
{
	struct spill_job job;
	int r = job_begin(io, &job, fd, write, segs, nr);

	return r < 0 ? r : spill_io_end(io, &job);
}

int spill_io_read(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr)
{
	return io_run(io, fd, false, segs, nr);
}

int spill_io_write(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr)
{
	return io_run(io, fd, true, segs, nr);
}

/*
 * splice(2) refuses O_APPEND, and programs hold struct files of the daemon's: it is taken off.
 * True: it is not there any more, also if another thread was first.
 */
static bool append_off(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && (!(flags & O_APPEND) || fcntl(fd, F_SETFL, flags & ~O_APPEND) == 0);
}

/* What is in the pipe. 0 or -errno: some of it may be left. */
static int put_piped(struct spill_io *io, int fd, size_t len, loff_t *off)
{
	unsigned refused = 0;

	while (len) {
		ssize_t n = splice(io->pipe[0], NULL, fd, off, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EINVAL && refused++ < MAX_REFUSED && append_off(fd))
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		len -= (size_t)n;
	}
	return 0;
}

/*
 * write(2) copies with page faults disabled. Of a page that it cannot copy then, since the source
 * was swapped out or is being moved in memory, tmpfs makes one of zeros that everybody can map, and
 * only then the source is faulted in and copied. A pipe has the source's pages themselves.
 */
static int put_pinned(struct spill_io *io, int fd, const char *buf, size_t len, uint64_t off)
{
	loff_t at = (loff_t)off;
	int r = 0;

	if (io->pipe[0] < 0 && pipe2(io->pipe, O_CLOEXEC) < 0)
		return -errno;
	while (r == 0 && len) {
		const struct iovec iov = {(void *)buf, len};
		ssize_t n = vmsplice(io->pipe[1], &iov, 1, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		r = put_piped(io, fd, (size_t)n, &at);
		buf += n;
		len -= (size_t)n;
	}
	if (r < 0)
		put_close(io);
	return r;
}

int spill_io_put(struct spill_io *io, int fd, const void *buf, size_t len, uint64_t off)
{
	bool fixed = io->fixed && (const char *)buf >= (char *)io->buf &&
		     (const char *)buf + len <= (char *)io->buf + io->buf_size;

	return fixed ? fdio_put_full(fd, buf, len, (off_t)off) : put_pinned(io, fd, buf, len, off);
}
