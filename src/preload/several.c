/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Since Linux 6.17 one mremap(2) can move several mappings, but none that a userfaultfd has: it
 * moves those before, and gives EFAULT. A program that has no userfaultfd must not see that, so
 * what it has left is moved one by one, as the kernel would have. Where the program has some, they
 * may be in the way without wpfs too.
 */
#include "preload/several.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>

#include "base/compat.h"

/* Tried on some pages: version numbers tell little of what a distribution's kernel does. */
static bool try_two(void)
{
	const uint64_t page = SHIM_PAGE_SIZE;
	long at = raw(mmap, NULL, 4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), ret;

	if (raw_failed(at))
		return false;
	ret = raw(mprotect, at, page, PROT_READ); /* so it is a mapping of its own */
	if (!ret)
		ret = raw(mremap, at, 2 * page, 2 * page, MREMAP_MAYMOVE | MREMAP_FIXED,
			  at + 2 * (long)page);
	raw(munmap, at, 4 * page);
	return !raw_failed(ret);
}

static bool kernel_moves_several(void)
{
	static int known; /* guarded by the shim's lock; 0: not tried yet, 1, -1: no */

	if (known == 0)
		known = try_two() ? 1 : -1;
	return known == 1;
}

/* The lowest mapping that ends above `at`. */
static bool next_mapping(int maps, uint64_t at, uint64_t *start, uint64_t *end)
{
	struct procmap_query q = {
		.size = sizeof(q),
		.query_flags = COMPAT_PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
		.query_addr = at,
	};

	if (raw(ioctl, maps, PROCMAP_QUERY, &q) != 0)
		return false;
	*start = q.vma_start;
	*end = q.vma_end;
	return true;
}

long several_move(uint64_t old, uint64_t len, int flags, uint64_t new_addr)
{
	uint64_t at = old, end = old + len, start, stop;
	long ret = -EFAULT;
	int maps;

	/* With DONTUNMAP one cannot tell which have been moved. */
	if (atomic_load(&shim_own_uffds) || (flags & MREMAP_DONTUNMAP) || !kernel_moves_several())
		return -EFAULT;
	maps = (int)raw(openat, AT_FDCWD, "/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
	if (maps < 0)
		return -EFAULT;
	while (at < end && next_mapping(maps, at, &start, &stop) && start < end) {
		start = start > at ? start : at;
		at = stop < end ? stop : end;
		ret = raw(mremap, start, at - start, at - start, flags, new_addr + (start - old));
		if (raw_failed(ret))
			break;
	}
	raw(close, maps);
	return raw_failed(ret) ? ret : (long)new_addr;
}
