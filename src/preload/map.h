/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The hooks of the memory calls, when they may concern wpfs. Arguments are those of the system
 * calls, results the kernel's: an address or 0, or -errno. errno stays as it is.
 */
#ifndef WPFS_PRELOAD_MAP_H
#define WPFS_PRELOAD_MAP_H

#include <sys/uio.h>

#include "preload/mapping.h"

/*
 * Is it a regular file, and which? Fills dev, ino and mnt. What the kernel remembers is enough, and
 * asks nobody: a daemon that hangs, or that is gone (then fstat(2) fails, but the descriptor still
 * maps).
 */
bool map_identify(int fd, struct mapping *r);

/* MAP_SHARED of a file. `require`: -ECONNREFUSED or -EPERM where a mapping of a wpfs file could not
 * be tracked; without it WPFS_REQUIRE decides. */
long map_shared(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off,
		bool require);

/* Any other mapping with MAP_FIXED: it may replace a wpfs mapping. */
long map_over(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off);

long map_unmap(uint64_t addr, uint64_t len);
long map_remap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t new_addr);

long map_file_pages(uint64_t addr, uint64_t len, int prot, uint64_t pgoff, int flags);

long map_protect(uint64_t addr, uint64_t len, int prot);

/* madvise(MADV_REMOVE), process_madvise(MADV_REMOVE), msync(MS_SYNC). */
long map_remove(uint64_t addr, uint64_t len);
long map_remove_all(int pidfd, const struct iovec *vec, size_t nr, unsigned flags);
long map_msync(uint64_t addr, uint64_t len, int flags);

#endif
