/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the daemon could not be told of: struct wpfs_untold of ipc/wire.h, one for each mount. No
 * system call, no lock: for any thread, a vfork child, and a program whose filter forbids the rest.
 * Counted before the program can use the mapping.
 */
#ifndef WPFS_PRELOAD_UNTOLD_H
#define WPFS_PRELOAD_UNTOLD_H

#include "preload/shim.h"

/*
 * A mapping of the file with this st_ino, or with WPFS_UNTOLD_DROPPED that contents of it go.
 * Nothing if this mm never was attached to the mount.
 */
void untold_count(struct mount *mount, uint64_t ino);

/* A mapping of who knows which file of which mount. */
void untold_count_unknown(void);

/* Contents of who knows which file go. */
void untold_count_unknown_drop(void);

/* In a fork child: it starts from nothing. */
void untold_reset(struct mount *mount);

#endif
