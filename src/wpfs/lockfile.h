/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lock held for the life of a daemon: a file with flock(2), which the kernel lets go however the
 * daemon ends. Its text, for people and for who waits: pid and mountpoint of the holder.
 */
#ifndef WPFS_WPFS_LOCKFILE_H
#define WPFS_WPFS_LOCKFILE_H

#include <limits.h>
#include <sys/types.h>

struct lockfile_holder {
	pid_t pid; /* 0 = unknown */
	char mountpoint[PATH_MAX];
};

/*
 * Takes the lock `name` in the directory `dirfd`, writes this process and `mountpoint` into it and
 * gives its descriptor; closing that lets go. When another process has it: if its mount is gone it
 * is just finishing, and is waited for (half a minute at most), and so is what is left of one that
 * was killed (three seconds); else -EBUSY, with *holder filled in.
 */
int lockfile_take(int dirfd, const char *name, const char *mountpoint,
		  struct lockfile_holder *holder);

#endif
