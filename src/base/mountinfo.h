/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The mounts of this mount namespace, from /proc/self/mountinfo (proc(5)): asks no file system. */
#ifndef WPFS_BASE_MOUNTINFO_H
#define WPFS_BASE_MOUNTINFO_H

#include <limits.h>
#include <stddef.h>
#include <sys/types.h>

struct mountinfo {
	int id, parent;
	dev_t dev;
	char mountpoint[PATH_MAX];
	char fstype[64];
};

struct mountinfo_list {
	struct mountinfo *mounts; /* in the order they were made */
	size_t nr;
};

/* Reads the table; to be freed in either case. 0 or -errno. */
int mountinfo_read(struct mountinfo_list *list);
void mountinfo_free(struct mountinfo_list *list);

/* Parses one line of the table. 0 or -EINVAL. */
int mountinfo_parse(const char *line, struct mountinfo *mount);

/* The mount that a path lookup finds at `mountpoint`: the last one made there; or NULL. */
const struct mountinfo *mountinfo_at(const struct mountinfo_list *list, const char *mountpoint);

/* The same for one path (absolute, no symbolic links), without a list. -ENOENT: none is there. */
int mountinfo_find(const char *mountpoint, struct mountinfo *mount);

/* A mount on top of something inside `mount`, or NULL. */
const struct mountinfo *mountinfo_below(const struct mountinfo_list *list,
					const struct mountinfo *mount);

/* How many mounts there are of device `dev`. */
size_t mountinfo_count(const struct mountinfo_list *list, dev_t dev);

#endif
