/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Is this file on a wpfs mount, and on which? Asked once for each st_dev. */
#ifndef WPFS_PRELOAD_DISCOVER_H
#define WPFS_PRELOAD_DISCOVER_H

#include "preload/shim.h"

#define DISCOVER_UNKNOWN (-1) /* not asked yet */
#define DISCOVER_OTHER	 (-2) /* not wpfs */

/* Index of the mount, or one of the above. No lock, no libc: for the witness, too. */
int discover_cached(uint64_t dev);

/*
 * Is it known that this is not wpfs? A device number may be given to another file system once its
 * first one is gone; the mount id (STATX_MNT_ID_UNIQUE) never is. No lock.
 */
bool discover_is_other(uint64_t dev, uint64_t mnt);

/* The same, asking when it is not known; `fd` is an open file with that st_dev. Under the lock. */
int discover_fd(int fd, uint64_t dev, uint64_t mnt);

/* Of which discover_fd() says that it is unknown: does the mount table call it wpfs, or cannot say?
 */
bool discover_may_be_wpfs(uint64_t dev, uint64_t mnt);

struct mapping;

/*
 * The same for a mapping that is about to be made and of which discover_fd knew nothing: is its
 * file one of a mount whose daemon died, and that another one serves now? Under the lock.
 */
int discover_dead(const struct mapping *r);

/* Mappings of `dev` belong to this mount too (the lower files of a capped one). Under the lock. */
void discover_add(uint64_t dev, int mount);

/* Has any dev of a wpfs mount been seen in this mm? For the witness, too. */
bool discover_any_wpfs(void);

#endif
