/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * /run/wpfs/<id>/: what of a mount outlives its daemon. Open to all: the socket. In private/
 * (0700):
 *
 *   lock      who serves the mount
 *   lower/    the tmpfs that holds tree and contents
 *   lower_id  its name; differs for every tmpfs ever mounted
 *   ids       its file ids; written when the tree is complete, so that a half restored one is known
 *   absent    files whose contents are still in the store (fs/absent.h)
 *   wpfs.db   the database, when there is no store
 */
#ifndef WPFS_WPFS_RUNDIR_H
#define WPFS_WPFS_RUNDIR_H

#include <stdbool.h>
#include <stddef.h>

#include "fs/ids.h"
#include "wpfs/lockfile.h"

#define RUNDIR_LOWER_ID_SIZE 40

struct rundir {
	char path[128]; /* constant after rundir_open, like all but lower */
	int private_fd;
	int lock_fd;
	int lower_fd; /* root of the lower, O_RDONLY; -1: not mounted by us */
	char lower_id[RUNDIR_LOWER_ID_SIZE];
	bool adopted; /* the lower was there, complete; or it may have been: it is not removed */
	struct fs_ids ids;
};

#define RUNDIR_INIT                                                                                \
	{                                                                                          \
		.private_fd = -1, .lock_fd = -1, .lower_fd = -1                                    \
	}

/* Can this be the name of one? It comes from a database, or from who answers on a mountpoint. */
bool rundir_id_is_valid(const char *id);

/* Makes and locks it. -EBUSY with *holder, as lockfile_take; other errors are logged. */
int rundir_open(const char *id, const char *mountpoint, struct rundir *rd,
		struct lockfile_holder *holder);

/*
 * Adopts the lower of a daemon that was killed, its ids with it, or mounts a new one. `options`
 * are those of tmpfs, `flags` the MS_* of the mount, of which those about access times and sync are
 * the lower's too; they are set on an adopted one too. With a new lower the other files start anew,
 * so call it before opening a database there. 0 or -errno, logged.
 */
int rundir_lower_open(struct rundir *rd, const char *options, unsigned long flags);
#define RUNDIR_LOWER_FLAGS                                                                         \
	(MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME | MS_SYNCHRONOUS)

/* A new lower is complete: rd->ids are saved. 0 or -errno, logged. */
int rundir_lower_complete(struct rundir *rd);

/* "PATH/private/NAME", valid while *rd is, in a buffer of the caller. */
const char *rundir_private_path(const struct rundir *rd, const char *name, char *buf, size_t size);

/* Removes everything, the lower too, and lets the lock go. What fails is logged. */
void rundir_remove(struct rundir *rd);

/* Lets go without removing: a later daemon finds it as after a crash. */
void rundir_close(struct rundir *rd);

#endif
