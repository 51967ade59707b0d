/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whole reads and writes, and small files. Interrupted calls are continued. */
#ifndef WPFS_BASE_FDIO_H
#define WPFS_BASE_FDIO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Reads exactly `len` bytes at `off`; 0, -errno, or -ENODATA when the file ends before. */
int fdio_pread_full(int fd, void *buf, size_t len, off_t off);

/* The same, but what lies behind the end of the file (or of no file, fd -1) is zeros. 0 or -errno.
 */
int fdio_pread_zeros(int fd, void *buf, size_t len, uint64_t off);

/* Writes exactly `len` bytes at `off`; 0 or -errno (-ENOSPC when nothing more is taken). */
int fdio_pwrite_full(int fd, const void *buf, size_t len, off_t off);

/*
 * The same at `off` even if O_APPEND is set: programs hold struct files of the daemon's, and set
 * what they like (RWF_NOAPPEND, pwritev2(2)). -EOPNOTSUPP before Linux 6.9.
 */
int fdio_put_full(int fd, const void *buf, size_t len, off_t off);

/*
 * Reads a whole (pseudo) file relative to dirfd into a malloc'd, NUL-terminated buffer; `len`
 * (may be NULL) gets its length without the NUL. The caller frees. 0 or -errno.
 */
int fdio_read_file(int dirfd, const char *path, char **text, size_t *len);

#endif
