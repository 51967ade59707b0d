/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The directory to mount on, before it is mounted on. */
#ifndef WPFS_WPFS_MOUNTPOINT_H
#define WPFS_WPFS_MOUNTPOINT_H

#include <limits.h>
#include <stdbool.h>

/*
 * Gives the absolute path without symbolic links, also when a dead mount stands there. `path` has
 * PATH_MAX bytes. 0 or -errno, logged.
 */
int mountpoint_resolve(const char *given, char *path);

/*
 * An empty directory with nothing mounted on it, or the dead mount of a wpfs that was killed
 * (*dead). 0 or -errno, logged.
 */
int mountpoint_check(const char *path, bool *dead);

#endif
