/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/lockfile.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/mountinfo.h"

#define FINISH_WAIT_S 30
#define KILLED_WAIT_S 3

static void holder_read(int fd, struct lockfile_holder *holder)
{
	char text[PATH_MAX + 32];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	int at = 0;

	*holder = (struct lockfile_holder){.pid = 0};
	text[n > 0 ? n : 0] = '\0';
	if (sscanf(text, "%d %n", &holder->pid, &at) == 1 && at) {
		snprintf(holder->mountpoint, sizeof(holder->mountpoint), "%s", text + at);
		holder->mountpoint[strcspn(holder->mountpoint, "\n")] = '\0';
	}
}

static bool holder_is_mounted(const struct lockfile_holder *holder)
{
	struct mountinfo entry;

	return mountinfo_find(holder->mountpoint, &entry) == 0 &&
	       strcmp(entry.fstype, "fuse.wpfs") == 0;
}

/*
 * Killed, it leaves its mount, and a process that it had just begun has its lock for a moment more.
 * One in another pid namespace looks the same.
 */
static bool holder_is_gone(const struct lockfile_holder *holder)
{
	_cleanup_close_ int pidfd = pidfd_open(holder->pid, 0);
	struct pollfd ended = {.fd = pidfd, .events = POLLIN};

	return pidfd < 0 ? errno == ESRCH : poll(&ended, 1, 0) == 1;
}

/* Whether the file behind `fd` still has this name: the last holder may have removed it. */
static bool is_current(int dirfd, const char *name, int fd)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && fstatat(dirfd, name, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
	       a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

/* Waits for the lock of a holder that is finishing. flock(2) has no time limit, so it is polled. */
static int lock_wait(int fd, struct lockfile_holder *holder)
{
	const struct timespec pause = {.tv_nsec = 10000000};
	const time_t begin = time(NULL);

	while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		holder_read(fd, holder);
		if (time(NULL) >= begin + FINISH_WAIT_S)
			return -EBUSY;
		if (holder->pid && holder_is_mounted(holder) &&
		    (!holder_is_gone(holder) || time(NULL) >= begin + KILLED_WAIT_S))
			return -EBUSY;
		nanosleep(&pause, NULL);
	}
	return 0;
}

int lockfile_take(int dirfd, const char *name, const char *mountpoint,
		  struct lockfile_holder *holder)
{
	for (;;) {
		_cleanup_close_ int fd =
			openat(dirfd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		int r;

		if (fd < 0)
			return -errno;
		r = lock_wait(fd, holder);
		if (r)
			return r;
		if (!is_current(dirfd, name, fd))
			continue;
		if (ftruncate(fd, 0) < 0 || dprintf(fd, "%d %s\n", getpid(), mountpoint) < 0)
			return -errno;
		return steal_fd(&fd);
	}
}
