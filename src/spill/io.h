/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading and writing many pieces of a file at once: io_uring, or pread and pwrite where the kernel
 * refuses io_uring (ENOSYS, EPERM: no support, a seccomp filter, kernel.io_uring_disabled).
 */
#ifndef WPFS_SPILL_IO_H
#define WPFS_SPILL_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spill_io;

enum spill_path { SPILL_PATH_URING, SPILL_PATH_SYNC };

/* One piece. For a descriptor with O_DIRECT all three are multiples of the page size. */
struct spill_seg {
	void *buf;
	uint64_t off; /* bytes */
	uint32_t len; /* bytes */
};

/* `want`: SYNC never tries io_uring. 0 or -errno; refused is no error. Free with spill_io_free. */
int spill_io_new(enum spill_path want, struct spill_io **io);
void spill_io_free(struct spill_io *io);

/* Which one runs. Constant after spill_io_new. */
enum spill_path spill_io_path(const struct spill_io *io);

/*
 * Reads or writes all pieces and waits. Any thread; one call at a time, others wait. 0, or the
 * -errno of the first piece that failed, and then nothing is known about the others. A read that
 * meets the end of the file is -ENODATA, a write that the device takes nothing of is -ENOSPC.
 */
int spill_io_read(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr);
int spill_io_write(struct spill_io *io, int fd, const struct spill_seg *segs, size_t nr);

/* Pieces done so far by each of the two ways: for status and for tests. */
struct spill_io_counts {
	uint64_t uring, sync;
};
struct spill_io_counts spill_io_counts(struct spill_io *io);

/*
 * For tests: asked before each piece; not 0: that -errno is its result and nothing is done. NULL
 * outside of tests. Set before the first call.
 */
extern int (*spill_io_test_fail)(bool write, uint64_t off);

#endif
