/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Becoming a client of a mount's daemon, and staying one. All under the shim's lock. */
#ifndef WPFS_PRELOAD_ATTACH_H
#define WPFS_PRELOAD_ATTACH_H

#include "preload/mount.h"

/*
 * Attaches, or re-attaches after the daemon was started again. 0, or -errno: the program goes on
 * without being tracked there; why was said on stderr.
 */
int mount_ready(struct mount *mount);

/*
 * Drops the state of the parent in a fork child, and says FORKED if `tracked`: mappings of this
 * mount were inherited. Where that has to wait for the daemon, mount_ready() does it later.
 */
void mount_forked(struct mount *mount, bool tracked);

/*
 * The daemon says that the witness is dead: makes another one, so that what is armed from now on is
 * seen again. What was armed before is dirty already; on a capped mount it is not.
 */
void mount_renew(struct mount *mount);

#endif
