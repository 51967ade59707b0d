/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mount's entry in /run/mount/utab, which makes umount(8) run /sbin/umount.fuse.wpfs. Without
 * one it asks statfs(2) for the type, is told "fuse", and looks for /sbin/umount.fuse only.
 */
#ifndef WPFS_WPFS_UTAB_H
#define WPFS_WPFS_UTAB_H

#include <stdbool.h>

/*
 * Adds the entry by mount(8), which asks no file system for that. True if it did; false when the
 * helper is not installed or mount(8) refuses: the mount works without.
 */
bool utab_add(const char *source, const char *mountpoint);

/* Removes it, for whoever unmounts without umount(8). */
void utab_remove(const char *mountpoint);

#endif
