/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that closes all descriptors but its own must not lose its daemon, and must see what it
 * would see without the shim: to it the numbers of what is ours (the socket; on a capped mount a
 * userfaultfd; those of calls.h) are not open. When it puts something else on such a number, ours
 * moves out of its way.
 */
#include "preload/fds.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/resource.h>

#include "preload/attach.h"
#include "preload/calls.h"
#include "preload/client.h"
#include "preload/ranges.h"
#include "preload/filter.h"

#define UFFDS_MAX 64 /* more are not watched: the daemon then finds out by looking */

_Atomic uint32_t fds_watched;

static struct {
	_Atomic int fd; /* -1: a free slot */
	uint32_t mount; /* guarded by the lock */
} uffds[UFFDS_MAX];
static _Atomic uint32_t uffds_used; /* slots that were ever used */

void fds_changed(void)
{
	uint32_t nr = calls_nr();

	for (int i = 0; i < SHIM_MOUNTS; i++)
		nr += (atomic_load(&shim.mounts[i].sock) >= 0) +
		      (atomic_load(&shim.mounts[i].keep) >= 0);
	for (uint32_t i = 0; i < atomic_load(&uffds_used); i++)
		nr += atomic_load(&uffds[i].fd) >= 0;
	atomic_store(&fds_watched, nr);
}

static bool is_within(int fd, unsigned first, unsigned last)
{
	return fd >= 0 && (unsigned)fd >= first && (unsigned)fd <= last;
}

bool fds_hit(unsigned first, unsigned last)
{
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		int sock = atomic_load_explicit(&shim.mounts[i].sock, memory_order_relaxed);
		int keep = atomic_load_explicit(&shim.mounts[i].keep, memory_order_relaxed);

		if (is_within(sock, first, last) || is_within(keep, first, last))
			return true;
	}
	for (uint32_t i = 0; i < atomic_load(&uffds_used); i++) {
		int fd = atomic_load_explicit(&uffds[i].fd, memory_order_relaxed);

		if (is_within(fd, first, last))
			return true;
	}
	return calls_lowest(first, last) >= 0;
}

void fds_add_uffd(int fd, uint32_t mount)
{
	uint32_t used = atomic_load(&uffds_used), slot = used;

	for (uint32_t i = 0; i < used; i++) {
		int known = atomic_load(&uffds[i].fd);

		if (known == fd && uffds[i].mount == mount)
			return;
		if (known < 0 && slot == used)
			slot = i;
	}
	if (slot == UFFDS_MAX)
		return;
	uffds[slot].mount = mount;
	atomic_store(&uffds[slot].fd, fd);
	if (slot == used)
		atomic_store(&uffds_used, used + 1);
	fds_changed();
}

void fds_forget_uffds(void)
{
	for (uint32_t i = 0; i < atomic_load(&uffds_used); i++)
		atomic_store(&uffds[i].fd, -1);
	ranges_hand_over(0, 0);
	fds_changed();
}

/* The program is about to close its uffds in [first, last]: the daemon's copies go first. */
static void uffds_close(unsigned first, unsigned last)
{
	for (uint32_t i = 0; i < atomic_load(&uffds_used); i++) {
		int fd = atomic_load(&uffds[i].fd), status;
		struct wpfs_uffd_close body = {.fd = fd, .first = first, .last = last};

		if (fd < 0 || (unsigned)fd < first || (unsigned)fd > last)
			continue;
		if (mount_call(&shim.mounts[uffds[i].mount], WPFS_OP_UFFD_CLOSE, &body,
			       sizeof(body), NULL, &status, NULL, 0, NULL))
			status = 0;
		/* Open under another number too, made by a call that is not watched: that one is
		 * from now on. */
		ranges_hand_over((uint32_t)fd + 1, status > 0 ? (uint32_t)status : 0);
		atomic_store(&uffds[i].fd, status > 0 ? status - 1 : -1);
	}
	fds_changed();
}

/* Where the number of ours that is `fd` is noted, or NULL: it is the program's. */
static _Atomic int *ours_at(unsigned fd)
{
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		struct mount *mount = &shim.mounts[i];

		if (atomic_load(&mount->sock) == (int)fd && client_sock_ours(mount, (int)fd))
			return &mount->sock;
		if (atomic_load(&mount->keep) == (int)fd && client_keep_ours(mount, (int)fd))
			return &mount->keep;
	}
	return NULL;
}

long fds_close(int fd)
{
	struct shim_guard guard;
	long ret = -EBADF;

	if (fd < 0 || !fds_hit((unsigned)fd, (unsigned)fd) || !shim_lock(&guard))
		return raw(close, fd);
	if (!ours_at((unsigned)fd) && calls_lowest((unsigned)fd, (unsigned)fd) < 0) {
		uffds_close((unsigned)fd, (unsigned)fd);
		ret = raw(close, fd);
	}
	shim_unlock(&guard);
	return ret;
}

static long real_dup3(int old, int fd, int flags, bool is_dup2)
{
#ifdef SYS_dup2
	if (is_dup2)
		return raw(dup2, old, fd);
#else
	/* dup3 refuses old == fd, dup2 allows it. */
	if (is_dup2 && old == fd)
		return raw_failed(raw(fcntl, old, F_GETFD)) ? -EBADF : fd;
#endif
	return raw(dup3, old, fd, flags);
}

static bool is_uffd(int fd, uint32_t *mount)
{
	for (uint32_t i = 0; i < atomic_load(&uffds_used); i++) {
		if (atomic_load(&uffds[i].fd) == fd) {
			*mount = uffds[i].mount;
			return true;
		}
	}
	return false;
}

/*
 * Every number is taken. One beyond the soft limit stays open when that is as it was; so it is only
 * lost where the hard one is no higher. Another thread can be given the next number meanwhile.
 */
static long move_beyond(int fd)
{
	struct rlimit limit, more;
	long moved;

	if (raw(prlimit64, 0, RLIMIT_NOFILE, NULL, &limit) || limit.rlim_cur >= limit.rlim_max)
		return -EMFILE;
	more = limit;
	more.rlim_cur++;
	if (raw(prlimit64, 0, RLIMIT_NOFILE, &more, NULL))
		return -EMFILE;
	moved = raw(fcntl, fd, F_DUPFD_CLOEXEC, limit.rlim_cur);
	raw(prlimit64, 0, RLIMIT_NOFILE, &limit, NULL);
	return moved;
}

/* Ours makes way. */
static long move_away(int fd)
{
	long moved = raw(fcntl, fd, F_DUPFD_CLOEXEC, fd + 1);

	if (raw_failed(moved))
		moved = raw(fcntl, fd, F_DUPFD_CLOEXEC, 0);
	return raw_failed(moved) ? move_beyond(fd) : moved;
}

long fds_dup3(int old, int fd, int flags, bool is_dup2)
{
	struct shim_guard guard;
	struct calls_left left;
	_Atomic int *ours;
	uint32_t of_mount;
	long ret;

	if (filtered() || old < 0 || fd < 0 || old == fd ||
	    !(fds_hit((unsigned)fd, (unsigned)fd) || fds_hit((unsigned)old, (unsigned)old)) ||
	    (flags & ~O_CLOEXEC) || raw_failed(raw(fcntl, old, F_GETFD)) || !shim_lock(&guard))
		return real_dup3(old, fd, flags, is_dup2);
	if (!calls_send_away(fd, &left)) {
		shim_leave(&guard);
		ret = real_dup3(old, fd, flags, is_dup2);
		if (raw_failed(ret))
			calls_close_left(fd, &left);
		return ret;
	}
	ours = ours_at((unsigned)fd);
	if (ours) {
		/* Where it is now will be closed by the call; without a copy the next need
		 * connects. */
		long moved = move_away(fd);

		atomic_store(ours, raw_failed(moved) ? -1 : (int)moved);
	}
	uffds_close((unsigned)fd, (unsigned)fd);
	ret = real_dup3(old, fd, flags, is_dup2);
	if (raw_failed(ret))
		calls_close_left(fd, &left);
	if (ret >= 0 && is_uffd(old, &of_mount))
		fds_add_uffd(fd, of_mount);
	fds_changed();
	shim_unlock(&guard);
	return ret;
}

/* Lowest of ours in [first, last], or -1. */
static int lowest_ours(unsigned first, unsigned last)
{
	int lowest = calls_lowest(first, last);

	for (int i = 0; i < SHIM_MOUNTS; i++) {
		const int both[] = {atomic_load(&shim.mounts[i].sock),
				    atomic_load(&shim.mounts[i].keep)};

		for (int k = 0; k < 2; k++) {
			if (is_within(both[k], first, last) && ours_at((unsigned)both[k]) &&
			    (lowest < 0 || both[k] < lowest))
				lowest = both[k];
		}
	}
	return lowest;
}

long fds_close_range(unsigned first, unsigned last, unsigned flags)
{
	struct shim_guard guard;
	long ret = 0;
	int ours;

	/* Ours are close-on-exec already; with UNSHARE the descriptors stay open elsewhere. */
	if (first > last || flags || !fds_hit(first, last) || !shim_lock(&guard))
		return raw(close_range, first, last, flags);
	uffds_close(first, last);
	while (ret == 0 && (ours = lowest_ours(first, last)) >= 0) {
		if ((unsigned)ours > first)
			ret = raw(close_range, first, ours - 1, 0);
		first = (unsigned)ours + 1;
		if (first > last)
			break;
	}
	if (ret == 0 && first <= last)
		ret = raw(close_range, first, last, 0);
	shim_unlock(&guard);
	return ret;
}
