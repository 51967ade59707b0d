/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading and writing many pieces of a file at once: io_uring, or pread and pwrite where the kernel
 * refuses io_uring (ENOSYS, EPERM: no support, a seccomp filter, kernel.io_uring_disabled).
 */
#ifndef WPFS_SPILL_IO_H
#define WPFS_SPILL_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPILL_IO_DEPTH 64 /* pieces in flight of one engine at most */

struct spill_io;

enum spill_path { SPILL_PATH_URING, SPILL_PATH_SYNC };

/* One piece. For a descriptor with O_DIRECT all three are multiples of the page size. */
struct spill_seg {
	void *buf;
	uint64_t off; /* bytes */
	uint32_t len; /* bytes */
};

/* Of all engines that share it: for status and for tests. Read and reset as you like. */
struct spill_stats {
	_Atomic uint64_t uring, sync; /* pieces done so far by each of the two ways */
	_Atomic uint64_t fixed;	      /* of those by io_uring, from and to registered buffers */
	_Atomic uint64_t depth, depth_max; /* pieces in flight: now, and most ever */
};

/*
 * An engine with a buffer of its own, page-aligned and `buf_size` long (0: none), which is
 * registered with the ring where the kernel allows it: pieces in it are not pinned one by one.
 * `want`: SYNC never tries io_uring. 0 or -errno; refused is no error. Free with spill_io_free.
 * `stats` is borrowed as long.
 */
int spill_io_new(enum spill_path want, size_t buf_size, struct spill_stats *stats,
		 struct spill_io **io);
void spill_io_free(struct spill_io *io);

void *spill_io_buf(const struct spill_io *io);

/* Which one runs. Constant after spill_io_new. */
enum spill_path spill_io_path(const struct spill_io *io);

/*
 * Somebody waits for what is read next: the thread looks for the end of it a while before it
 * sleeps, since to be woken takes half as long as a disk does. For a thread that has a processor to
 * itself. False again: no more.
 */
void spill_io_hurry(struct spill_io *io, bool hurry);

/*
 * Reads or writes all pieces and waits. Any thread, but one at a time per engine. 0, or the
 * -errno of the first piece that failed, and then nothing is known about the others. A read that
 * meets the end of the file is -ENODATA, a write that the device takes nothing of is -ENOSPC.
 */
int spill_io_read(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr);
int spill_io_write(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr);

/* Pieces under way. The engine's, and where it was begun, from begin to end. */
struct spill_job {
	struct spill_piece *pieces;
	int fd;
	bool write;
	bool direct; /* the store's: `fd` had O_DIRECT when it began */
	size_t nr, next, in_flight;
	int result;
	struct spill_job *prev, *next_job;
};

/*
 * The same in two steps: what is begun goes on while the thread does something else, until
 * spill_io_end waits for it; where there is no io_uring it is done at once. Several may be under
 * way; their buffers and `fd` stay as long. 0 or -errno: not begun, and not to be ended.
 */
int spill_io_begin(struct spill_io *io, struct spill_job *job, int fd, bool write,
		   const struct spill_seg *segs, size_t nr);
int spill_io_end(struct spill_io *io, struct spill_job *job);

/*
 * For tests: asked before each piece; not 0: that -errno is its result and nothing is done. NULL
 * outside of tests. Set before the first call.
 */
extern int (*spill_io_test_fail)(bool write, uint64_t off);

/*
 * Writes whole pages into a file of tmpfs: nobody ever sees one of them without its contents, be
 * `buf` (the engine's buffer, as a rule) in memory or not. 0 or -errno: the first ones may be
 * there.
 */
int spill_io_put(struct spill_io *io, int fd, const void *buf, size_t len, uint64_t off);

#endif
