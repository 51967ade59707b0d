/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The end of wpctl and of the umount helper: find the mount's daemon, ask it, read the answer.
 * One thread per client. Not for the shim.
 */
#ifndef WPFS_IPC_CLIENT_H
#define WPFS_IPC_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include "ipc/packet.h"
#include "ipc/record.h"

struct ipc_client;

/* Is `id` what a mount's id looks like: 1 to WPFS_ID_MAX - 1 of [0-9a-f-], no path of any kind? */
bool ipc_id_valid(const char *id);

/*
 * Asks the mount that the open file `fd` is on. 0 or -errno: -ENOTTY = not a wpfs mount (or what
 * says it is one answers nonsense), -ENOTCONN = its daemon is gone.
 */
int ipc_mount_info(int fd, struct wpfs_mount_info *info);

/*
 * Connects to the daemon of mount `id` and says HELLO as a CTL client. `timeout_ms` bounds every
 * single wait for a packet from it, 0 = for ever. 0 or -errno: -EINVAL = no id; -ENOENT,
 * -ECONNREFUSED = no daemon; -EPERM = the peer is not root's; -ETIMEDOUT; -EPROTO = of another
 * version.
 */
int ipc_client_connect(const char *id, unsigned timeout_ms, struct ipc_client **client);

/* The same at any path; `any_uid` waives the check of the peer, for tests. */
int ipc_client_connect_path(const char *path, bool any_uid, unsigned timeout_ms,
			    struct ipc_client **client);

void ipc_client_close(struct ipc_client *client);

static inline void ipc_client_closep(struct ipc_client **client)
{
	ipc_client_close(*client);
}

/*
 * One request and its answer. `body` has the size ipc_op_body_size(op) says; `reply` (NULL = not
 * wanted) gets ipc_op_reply_size(op) bytes when the result is not negative; `fn` (may be NULL) is
 * called for each record. Gives the server's status (>= 0), or -errno: what the server said
 * (ipc_client_error then has its words), or -ETIMEDOUT, -EPIPE, -EPROTO, after which the client
 * can only be closed; or what fn gave, likewise.
 */
int ipc_client_call(struct ipc_client *client, enum wpfs_op op, const void *body, void *reply,
		    ipc_record_fn fn, void *arg);

/*
 * The two halves of ipc_client_call, for who waits for something else meanwhile: the request goes;
 * when ipc_client_fd is readable the answer has begun to come, and is read to its end. Results as
 * of ipc_client_call.
 */
int ipc_client_ask(struct ipc_client *client, enum wpfs_op op, const void *body);
int ipc_client_answer(struct ipc_client *client, enum wpfs_op op, void *reply, ipc_record_fn fn,
		      void *arg);
int ipc_client_fd(const struct ipc_client *client);

/* The line for people that came with the last call's negative status; "" if none. */
const char *ipc_client_error(const struct ipc_client *client);

#endif
