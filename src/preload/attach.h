/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Becoming a client of a mount's daemon, and staying one. All under the shim's lock. */
#ifndef WPFS_PRELOAD_ATTACH_H
#define WPFS_PRELOAD_ATTACH_H

#include "preload/shim.h"

/* 1 to WPFS_ID_MAX - 1 of [0-9a-f-]: safe as part of a path. */
bool mount_id_valid(const char *id);

/* The slot of the mount with this (valid) id, a new one at its first time; -ENOSPC. */
int mount_find(const char *id);

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

/* Has this program ever been attached to a mount? Without the lock. */
bool mount_any(void);

/*
 * One request of an attached mount; connects again once if the daemon was started again meanwhile.
 * `status` gets the server's; `reply` (may be NULL) its body when status >= 0. *fd (may be NULL)
 * gets a descriptor that came with it, or -1. 0 or -errno: nobody answered; the mount is then not
 * connected or, after a time-out, untracked.
 */
int mount_call(struct mount *mount, enum wpfs_op op, const void *body, size_t body_len,
	       const int *send_fd, int *status, void *reply, size_t reply_len, int *fd);

/* The same of an op that has no reply. Whether it arrived the next request tells. */
void mount_tell(struct mount *mount, enum wpfs_op op, const void *body, size_t body_len);

/*
 * The daemon says that the witness is dead: makes another one, so that what is armed from now on is
 * seen again. What was armed before is dirty already; on a capped mount it is not.
 */
void mount_renew(struct mount *mount);

#endif
