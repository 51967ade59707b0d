/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The mounts of this process and the connection to each one's daemon. Under the shim's lock. */
#ifndef WPFS_PRELOAD_MOUNT_H
#define WPFS_PRELOAD_MOUNT_H

#include "preload/client.h"
#include "preload/shim.h"

/* 1 to WPFS_ID_MAX - 1 of [0-9a-f-]: safe as part of a path. */
bool mount_id_valid(const char *id);

/* The slot of the mount with this (valid) id, a new one at its first time; -ENOSPC. */
int mount_find(const char *id);

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

/* The rest is for attach.c. */

/* Connects, and no more; 0 or -errno. */
int mount_connect(struct mount *mount);
void mount_disconnect(struct mount *mount);

/* One request on the connection that there is: as client_call(), and -EPIPE if there is none. */
int mount_request(struct mount *mount, struct client_call *call);

/* Not a no of the daemon: it is away, or this program is short of something. */
bool mount_err_passes(const struct mount *mount, int err);

/* What was asked failed: final, or tried again at the next need. */
void mount_failed(struct mount *mount, int err);

/*
 * Nothing more is asked, by this mm and its fork children. Closing tells the daemon, should it
 * wake.
 */
void mount_give_up(struct mount *mount, const char *why);

/* Of a capped mount this process keeps the uffd too; see struct mount. Takes *uffd over. */
void mount_keep(struct mount *mount, int *uffd);
void mount_unkeep(struct mount *mount);

#endif
