/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel lets one userfaultfd at a time have a mapping. What the program sees is what it would
 * see on tmpfs: wpfs's own registration makes room before, for every mode; only a registration with
 * write-protection has marks that the daemon wants a copy of the descriptor for.
 */
#include "preload/uffd.h"

#include <errno.h>
#include <linux/mman.h>
#include <linux/random.h>
#include <linux/time_types.h>

#include "base/compat.h"
#include "preload/attach.h"
#include "preload/client.h"
#include "preload/fds.h"
#include "preload/filter.h"
#include "preload/ranges.h"
#include "preload/untold.h"

#define AGAIN_MS 20

/*
 * Tells every mount that has mappings in [addr, addr + len) once; POST: and gives it the uffd.
 * True if one has a reason to try again. *away (unless NULL): the daemon of one is not there now.
 */
static bool tell_mounts_or(enum wpfs_op op, const struct uffdio_range *range, uint64_t mode, int fd,
			   bool again, bool *away)
{
	struct wpfs_uffd_range body = {
		.addr = range->start, .len = range->len, .mode = mode, .fd = fd, .again = again};
	bool with_fd = op == WPFS_OP_UFFD_POST, any = false;
	uint64_t at = range->start, end = range->start + range->len;
	unsigned told = 0;
	struct range piece;

	for (; at < end && ranges_next(at, end, &piece); at = piece.end) {
		struct mount *mount = &shim.mounts[piece.mount];
		int status = 0, err;

		if (told & 1u << piece.mount)
			continue;
		told |= 1u << piece.mount;
		err = mount_call(mount, op, &body, sizeof(body), with_fd ? &fd : NULL, &status,
				 NULL, 0, NULL);
		if (err) {
			if (away && mount->state == MOUNT_ATTACHED && mount_err_passes(mount, err))
				*away = true;
			continue;
		}
		any |= status > 0;
		if (status >= 0 && with_fd)
			fds_add_uffd(fd, piece.mount);
	}
	return any;
}

static bool tell_mounts(enum wpfs_op op, const struct uffdio_range *range, uint64_t mode, int fd,
			bool again)
{
	return tell_mounts_or(op, range, mode, fd, again, NULL);
}

/*
 * The range is taken. By wpfs, for all one knows, and nobody else can make it give way: a daemon
 * that is being started again is waited for, as one that does not answer is, but once.
 */
static long register_again(int fd, void *arg, const struct uffdio_register *reg)
{
	static bool in_vain; /* guarded by the lock */
	const struct __kernel_timespec nap = {.tv_nsec = AGAIN_MS * 1000000};
	bool away = true;
	long ret = -EBUSY;

	for (int ms = 0; ret == -EBUSY && away && ms <= CLIENT_TIMEOUT_S * 1000; ms += AGAIN_MS) {
		if (ms)
			raw(nanosleep, &nap, NULL);
		away = false;
		if (tell_mounts_or(WPFS_OP_UFFD_PRE, &reg->range, reg->mode, fd, true, &away))
			ret = raw(ioctl, fd, UFFDIO_REGISTER, arg);
		else if (in_vain)
			break;
	}
	in_vain = away;
	return ret;
}

static bool concerns_us(const struct uffdio_range *range)
{
	return range->start + range->len > range->start && ranges_overlap(range->start, range->len);
}

/*
 * Is it a userfaultfd of this memory? It may be that of a fork child, or of a process that handed
 * it on, with something else at the same addresses. The kernel takes a range off one that does not
 * have it, but not where nothing is mapped: so a page is mapped where chance has it.
 */
static bool is_of_this_memory(int fd)
{
	uint64_t where = (uint64_t)__builtin_frame_address(0);
	struct uffdio_range page = {.len = SHIM_PAGE_SIZE};
	long at, ret;

	raw(getrandom, &where, sizeof(where), GRND_NONBLOCK);
	where = (where % ((1ull << 46) - (1ull << 32)) + (1ull << 32)) & ~(SHIM_PAGE_SIZE - 1);
	at = raw(mmap, where, SHIM_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (raw_failed(at))
		return true; /* wpfs makes way for nothing, and all it costs is that */
	page.start = (uint64_t)at;
	ret = raw(ioctl, fd, UFFDIO_UNREGISTER, &page);
	raw(munmap, at, SHIM_PAGE_SIZE);
	return ret != -EINVAL && ret != -ENOMEM; /* nothing is mapped there; it is gone */
}

long uffd_register(int fd, void *arg)
{
	struct uffdio_register reg;
	struct shim_guard guard;
	long ret;

	if (!raw_peek(arg, &reg, sizeof(reg)) || !concerns_us(&reg.range) || !shim_lock(&guard))
		return raw(ioctl, fd, UFFDIO_REGISTER, arg);
	if (!is_of_this_memory(fd)) {
		shim_unlock(&guard);
		return raw(ioctl, fd, UFFDIO_REGISTER, arg);
	}
	tell_mounts(WPFS_OP_UFFD_PRE, &reg.range, reg.mode, fd, false);
	ret = raw(ioctl, fd, UFFDIO_REGISTER, arg);
	if (ret == -EBUSY)
		ret = register_again(fd, arg, &reg);
	if (ret != 0)
		tell_mounts(WPFS_OP_UFFD_UNREG, &reg.range, reg.mode, fd, false);
	else if (reg.mode & UFFDIO_REGISTER_MODE_WP)
		tell_mounts(WPFS_OP_UFFD_POST, &reg.range, reg.mode, fd, false);
	if (ret == 0 && fds_hit((unsigned)fd, (unsigned)fd))
		ranges_own(reg.range.start, reg.range.len, (uint32_t)fd + 1);
	shim_unlock(&guard);
	return ret;
}

long uffd_unregister(int fd, void *arg)
{
	struct uffdio_range range;
	struct shim_guard guard;
	long ret;

	if (!raw_peek(arg, &range, sizeof(range)) || !concerns_us(&range) || !shim_lock(&guard))
		return raw(ioctl, fd, UFFDIO_UNREGISTER, arg);
	if (!is_of_this_memory(fd)) {
		shim_unlock(&guard);
		return raw(ioctl, fd, UFFDIO_UNREGISTER, arg);
	}
	ret = raw(ioctl, fd, UFFDIO_UNREGISTER, arg);
	if (ret == -EINVAL) {
		/* It may be wpfs's registration that is in its way (since 6.17), or of a uffd that
		 * the program has closed: without it there would be nothing to refuse. */
		tell_mounts(WPFS_OP_UFFD_PRE, &range, 0, fd, true);
		ret = raw(ioctl, fd, UFFDIO_UNREGISTER, arg);
	}
	if (ret == 0) {
		tell_mounts(WPFS_OP_UFFD_UNREG, &range, 0, fd, false);
		ranges_own(range.start, range.len, 0);
	}
	shim_unlock(&guard);
	return ret;
}

/* What is armed of the files that show in [at, end), as far as no uffd of the program has it. */
static void doubt(uint64_t at, uint64_t end, bool also_own)
{
	struct shim_guard guard;
	struct range piece;

	if (!shim_lock(&guard)) {
		untold_count_unknown();
		return;
	}
	for (; at < end && ranges_next(at, end, &piece); at = piece.end) {
		if (also_own || !piece.own)
			untold_count(&shim.mounts[piece.mount], piece.ino);
	}
	shim_unlock(&guard);
}

/*
 * Counted before the call, for whoever looks while it runs; and after, for an epoch that began
 * meanwhile. Without the lock: COPY may wait for a page that another thread is to bring.
 */
static long doubtful_ioctl(int fd, uint32_t request, void *arg, uint64_t start, uint64_t end,
			   bool also_own)
{
	long ret;

	doubt(start, end, also_own);
	ret = raw(ioctl, fd, request, arg);
	doubt(start, end, also_own);
	return ret;
}

/*
 * Nearly always it is on the caller's stack, and then it can be read as it is; else a filter may
 * not let us. 1, 0: it cannot be read, -1: it may not.
 */
static int peek_fast(const void *from, void *to, size_t len)
{
	uint64_t at = (uint64_t)from, here = (uint64_t)__builtin_frame_address(0);

	if (at % sizeof(uint64_t) || at < here || at - here >= SHIM_PAGE_SIZE / 4)
		return filtered() ? -1 : raw_peek(from, to, len);
	for (size_t i = 0; i < len / sizeof(uint64_t); i++)
		((uint64_t *)to)[i] = ((const uint64_t *)from)[i];
	return true;
}

long uffd_mark(int fd, uint32_t request, void *arg)
{
	struct uffdio_range range;
	uint64_t words[4]; /* of COPY: dst, src, len, mode; of the others: start, len, mode */
	bool copy = request == (uint32_t)UFFDIO_COPY, marks;
	int known = peek_fast(arg, words, copy ? sizeof(words) : 3 * sizeof(*words));

	if (known < 0)
		return doubtful_ioctl(fd, request, arg, 0, 0, false);
	if (!known)
		return raw(ioctl, fd, request, arg);
	range.start = words[0];
	range.len = words[copy ? 2 : 1];
	if (request == (uint32_t)UFFDIO_WRITEPROTECT)
		marks = words[2] & UFFDIO_WRITEPROTECT_MODE_WP;
	else if (copy)
		marks = words[3] & UFFDIO_COPY_MODE_WP;
	else
		marks = words[2] & UFFDIO_CONTINUE_MODE_WP;
	if (!marks || range.start + range.len <= range.start ||
	    !ranges_overlap_not_own(range.start, range.len))
		return raw(ioctl, fd, request, arg);
	return doubtful_ioctl(fd, request, arg, range.start, range.start + range.len, false);
}

long uffd_pagemap_scan(int fd, void *arg)
{
	struct pm_scan_arg scan;
	int known = peek_fast(arg, &scan, sizeof(scan));

	if (known < 0)
		return doubtful_ioctl(fd, (uint32_t)PAGEMAP_SCAN, arg, 0, 0, true);
	if (!known || !(scan.flags & PM_SCAN_WP_MATCHING) || scan.end <= scan.start ||
	    !ranges_overlap(scan.start, scan.end - scan.start))
		return raw(ioctl, fd, PAGEMAP_SCAN, arg);
	return doubtful_ioctl(fd, (uint32_t)PAGEMAP_SCAN, arg, scan.start, scan.end, true);
}
