/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * STORE on disk: wpfs.db, data/, spill/, lock. A directory of mode 0700 that holds nothing else,
 * made when it is missing.
 */
#ifndef WPFS_WPFS_STOREDIR_H
#define WPFS_WPFS_STOREDIR_H

#include <limits.h>
#include <stdbool.h>

#include "wpfs/lockfile.h"

struct storedir {
	char path[PATH_MAX]; /* absolute, no symbolic links; of when it was opened */
	int dir_fd;	     /* what is in it is reached by this, not by its path */
	int data_fd;	     /* STORE/data */
	int spill_fd;	     /* STORE/spill: pages of a capped mount that are out of memory */
	int lock_fd;
};

#define STOREDIR_INIT                                                                              \
	{                                                                                          \
		.dir_fd = -1, .data_fd = -1, .spill_fd = -1, .lock_fd = -1                         \
	}

/*
 * Opens and locks it. Refused, before anything is changed: a directory with files in it that is no
 * store, a store inside `mountpoint`, one in use. 0 or -errno, logged.
 */
int storedir_open(const char *path, const char *mountpoint, struct storedir *store);

/* Are there contents of files: has the store been mounted before? */
bool storedir_has_contents(const struct storedir *store);

void storedir_close(struct storedir *store);

#endif
