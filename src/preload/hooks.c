/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The functions that stand in front of libc's: errno, and the way past everything for a call that
 * does not concern wpfs. They are system calls themselves, as libc's are; close and msync stay
 * cancellation points at their start.
 */
#undef _FILE_OFFSET_BITS /* or <sys/mman.h> would give mmap the name mmap64 */

#include <errno.h>
#include <linux/mman.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/compat.h"
#include "preload/attach.h"
#include "preload/core.h"
#include "preload/fds.h"
#include "preload/filter.h"
#include "preload/map.h"
#include "preload/ranges.h"
#include "preload/uffd.h"
#include "preload/untold.h"

#define EXPORT __attribute__((visibility("default")))

#ifndef MAP_TYPE
#define MAP_TYPE 0x0f
#endif

/* For a libwpfs in the same program: it must not be a second shim. */
EXPORT const struct core *wpfs_preload_core(void)
{
	return &core;
}

static long result(long ret)
{
	if (unlikely(raw_failed(ret))) {
		errno = (int)-ret;
		return -1;
	}
	return ret;
}

/* What the hooks watch is there, and may be asked about. */
static bool watched(void)
{
	return unlikely(ranges_any()) && !filtered();
}

static void *map(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	int type = flags & MAP_TYPE;
	bool shared =
		(type == MAP_SHARED || type == MAP_SHARED_VALIDATE) && !(flags & MAP_ANONYMOUS);
	long ret;

	if (filtered()) {
		/* As map_any does. */
		if (shared)
			untold_count_unknown();
		ret = raw(mmap, addr, len, prot, flags, fd, off);
		if (shared)
			untold_count_unknown();
	} else if (shared) {
		ret = map_shared((uint64_t)addr, len, prot, flags, fd, (uint64_t)off, false);
	} else if (unlikely((flags & MAP_FIXED) && ranges_any())) {
		ret = map_over((uint64_t)addr, len, prot, flags, fd, (uint64_t)off);
	} else {
		ret = raw(mmap, addr, len, prot, flags, fd, off);
	}
	return (void *)result(ret);
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return map(addr, len, prot, flags, fd, off);
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
	return map(addr, len, prot, flags, fd, off);
}

EXPORT int munmap(void *addr, size_t len)
{
	if (!watched())
		return (int)result(raw(munmap, addr, len));
	return (int)result(map_unmap((uint64_t)addr, len));
}

EXPORT void *mremap(void *old, size_t old_len, size_t new_len, int flags, ...)
{
	void *new_addr = NULL;
	bool grows;
	va_list ap;
	long ret;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(ap, flags);
		new_addr = va_arg(ap, void *);
		va_end(ap);
	}
	/* What may have grown, and nobody is told of; before and after as in map_any. */
	grows = (filtered() || unlikely(ranges_lost)) && (new_len > old_len || !old_len);
	if (grows)
		untold_count_unknown();
	ret = watched() ? map_remap((uint64_t)old, old_len, new_len, flags, (uint64_t)new_addr)
			: raw(mremap, old, old_len, new_len, flags, new_addr);
	if (grows)
		untold_count_unknown();
	return (void *)result(ret);
}

EXPORT int remap_file_pages(void *addr, size_t len, int prot, size_t pgoff, int flags)
{
	if (likely(!ranges_any()))
		return (int)result(raw(remap_file_pages, addr, len, prot, pgoff, flags));
	return (int)result(map_file_pages((uint64_t)addr, len, prot, pgoff, flags));
}

EXPORT int mprotect(void *addr, size_t len, int prot)
{
	return (int)result(watched() ? map_protect((uint64_t)addr, len, prot)
				     : raw(mprotect, addr, len, prot));
}

EXPORT int madvise(void *addr, size_t len, int advice)
{
	/* Also of what was mapped past us: a mount that is known may be asked. */
	if (advice == MADV_REMOVE && unlikely(ranges_any() || mount_any()))
		return (int)result(map_remove((uint64_t)addr, len));
	return (int)result(raw(madvise, addr, len, advice));
}

EXPORT ssize_t process_madvise(int pidfd, const struct iovec *vec, size_t nr, int advice,
			       unsigned flags)
{
	/* A process may do that to itself alone (Linux 6.15). */
	if (advice == MADV_REMOVE && unlikely(ranges_any() || mount_any()))
		return result(map_remove_all(pidfd, vec, nr, flags));
	return result(raw(process_madvise, pidfd, vec, nr, advice, flags));
}

EXPORT int msync(void *addr, size_t len, int flags)
{
	pthread_testcancel();
	if ((flags & MS_SYNC) && watched())
		return (int)result(map_msync((uint64_t)addr, len, flags));
	return (int)result(raw(msync, addr, len, flags));
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if ((uint32_t)request == (uint32_t)UFFDIO_REGISTER)
		atomic_store_explicit(&shim_own_uffds, true, memory_order_relaxed);
	if (watched()) {
		/* The kernel's requests have 32 bits; programs pass them as int, sign-extended. */
		if ((uint32_t)request == (uint32_t)UFFDIO_REGISTER)
			return (int)result(uffd_register(fd, arg));
		if ((uint32_t)request == (uint32_t)UFFDIO_UNREGISTER)
			return (int)result(uffd_unregister(fd, arg));
	}
	/* Under a filter, too: they count what they cannot tell. */
	if (unlikely(ranges_any()) && (uint32_t)request == (uint32_t)PAGEMAP_SCAN)
		return (int)result(uffd_pagemap_scan(fd, arg));
	if (unlikely(ranges_not_own) && uffd_may_mark((uint32_t)request))
		return (int)result(uffd_mark(fd, (uint32_t)request, arg));
	return (int)result(raw(ioctl, fd, request, arg));
}

EXPORT int close(int fd)
{
	pthread_testcancel();
	return (int)result(unlikely(fds_any()) && !filtered() ? fds_close(fd) : raw(close, fd));
}

EXPORT int dup2(int old, int fd)
{
	return (int)result(fds_dup3(old, fd, 0, true));
}

EXPORT int dup3(int old, int fd, int flags)
{
	return (int)result(fds_dup3(old, fd, flags, false));
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	long ret = unlikely(fds_any()) && !filtered()
			   ? fds_close_range(first, last, (unsigned)flags)
			   : raw(close_range, first, last, flags);

	return (int)result(ret);
}

EXPORT void closefrom(int first)
{
	unsigned from = first < 0 ? 0 : (unsigned)first;
	long max;

	if (fds_close_range(from, ~0U, 0) == 0)
		return;
	/* Where close_range(2) is forbidden: one by one, as far as numbers may go. */
	max = sysconf(_SC_OPEN_MAX);
	for (long fd = from; fd < max; fd++)
		fds_close((int)fd);
}

EXPORT int prctl(int option, ...)
{
	long args[5] = {option};
	va_list ap;

	va_start(ap, option);
	for (int i = 1; i < 5; i++)
		args[i] = va_arg(ap, long);
	va_end(ap);
	return (int)result(filter_prctl(args));
}

EXPORT long syscall(long nr, ...)
{
	long args[6];
	va_list ap;

	va_start(ap, nr);
	for (int i = 0; i < 6; i++)
		args[i] = va_arg(ap, long);
	va_end(ap);
	if (nr == SYS_ioctl && (uint32_t)args[1] == (uint32_t)UFFDIO_REGISTER)
		atomic_store_explicit(&shim_own_uffds, true, memory_order_relaxed);
	return result(filter_syscall(nr, args));
}

/*
 * Under `wpctl run` the mount is known: attach before the program can install a seccomp filter that
 * would forbid it, or drop what it takes. If that fails nothing is said: most processes of a tree
 * never map a file of the mount, and the first mapping tries again, but not a daemon that hangs.
 */
__attribute__((constructor)) static void shim_start(void)
{
	struct shim_guard guard;
	struct mount *mount;
	int index, err;

	if (!shim_lock(&guard))
		return;
	shim.hooks = true;
	index = shim.mount_id[0] ? mount_find(shim.mount_id) : -1;
	if (index >= 0) {
		mount = &shim.mounts[index];
		mount->said = true;
		err = mount_ready(mount);
		if (err && err != -ETIMEDOUT)
			mount->state = MOUNT_KNOWN;
		mount->said = false;
	}
	shim_unlock(&guard);
}
