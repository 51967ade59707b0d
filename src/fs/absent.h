/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of a restored tree whose contents are still in the store: a mount restores names, sizes and
 * attributes, and contents come at a file's first open, or in the background. Native mounts only.
 *
 * The table is a mapped file in the private run directory: a daemon that takes the lower over knows
 * which files of it are empty only because nobody has asked for them.
 */
#ifndef WPFS_FS_ABSENT_H
#define WPFS_FS_ABSENT_H

#include <stdbool.h>
#include <stdint.h>

#include "fs/fs.h"

struct fs_absent;

/* An empty table. Both descriptors are borrowed until fs_absent_free. 0 or -errno. */
int fs_absent_new(int private_fd, int data_fd, int lower_fd, struct fs_absent **absent);

/*
 * Notes a file while the tree is restored, whether it has stored contents or not: for struct
 * fs_store_elsewhere. 1 or -errno.
 */
int fs_absent_take(void *absent, uint64_t ino, const struct fs_handle *handle, int data_fd,
		   uint64_t size);

/* The tree is restored: from now on the table outlives the daemon. 0 or -errno. */
int fs_absent_complete(struct fs_absent *absent);

/* The table that another daemon left; without one nothing is absent. 0 or -errno. */
int fs_absent_adopt(struct fs_absent *absent);

/* Brings contents in the background, as far as there is room. 0 or -errno. */
int fs_absent_prefetch(struct fs_absent *absent);

/* Ends the background work and frees; NULL is nothing. What is absent then is in the store only. */
void fs_absent_free(struct fs_absent *absent);

/* Any thread. */

/*
 * Brings the contents of a file into the lower, or waits for who does. 0, also if they are there or
 * it never was absent, or -errno: -ENOSPC: the lower is full; -EIO: the store cannot be read.
 */
int fs_absent_bring(struct fs_absent *absent, uint64_t ino);

/*
 * Keeps a file absent while its attributes change, since bringing its contents moves its times and
 * puts them back. False: it is not absent, and there is nothing to release.
 */
bool fs_absent_hold(struct fs_absent *absent, uint64_t ino);
void fs_absent_release(struct fs_absent *absent, uint64_t ino);

/* The same for one that was cut to nothing meanwhile: it is not absent any more. */
void fs_absent_release_empty(struct fs_absent *absent, uint64_t ino);

/*
 * fstat(2), with the times and blocks that the file will have when contents that are still in the
 * store are there. Not `exactly`: its blocks may be too many, and no disk is waited for. 0 or
 * -errno.
 */
int fs_absent_stat(struct fs_absent *absent, uint64_t ino, int fd, bool exactly, struct stat *st);

/*
 * getxattr(2) of security.capability, which is away while contents come; `size` is at least
 * XATTR_CAPS_SZ. -errno.
 */
ssize_t fs_absent_caps(struct fs_absent *absent, uint64_t ino, int fd, char *value, size_t size);

/* Is it not all there? */
bool fs_absent_is(struct fs_absent *absent, uint64_t ino);

/* How many files are not. */
uint64_t fs_absent_count(struct fs_absent *absent);

#endif
