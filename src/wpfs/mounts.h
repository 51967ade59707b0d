/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is mounted where, from /proc/self/mountinfo: asks no file system, so none can hang us. */
#ifndef WPFS_WPFS_MOUNTS_H
#define WPFS_WPFS_MOUNTS_H

#include <sys/types.h>

struct mounts_entry {
	dev_t dev; /* st_dev of its files */
	char fstype[64];
};

/* The topmost mount at exactly `path` (absolute, no symbolic links). -ENOENT: none is there. */
int mounts_find(const char *path, struct mounts_entry *entry);

#endif
