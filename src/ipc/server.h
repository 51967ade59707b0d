/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The daemon's end: listening, who has come, replies that a slow client cannot block. */
#ifndef WPFS_IPC_SERVER_H
#define WPFS_IPC_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "ipc/packet.h"

/* Who connected, as the kernel says (in this process's pid and user namespaces). */
struct ipc_peer {
	pid_t pid; /* 0: of a pid namespace that is not visible here */
	uid_t uid;
	gid_t gid;
};

/*
 * A listening socket at `path` (made anew: one that is there is removed; the caller holds the
 * lock that says it is stale), mode 0666, non-blocking, close-on-exec. The descriptor or -errno
 * (-ENAMETOOLONG over 107 bytes).
 */
int ipc_listen(const char *path);

/* The next client, non-blocking and close-on-exec: the descriptor or -errno (-EAGAIN: none). */
int ipc_accept(int listen_fd, struct ipc_peer *peer);

/* Packets that wait for a client to read. Zeroed is empty. One thread. */
struct ipc_outq {
	struct ipc_out *head, *tail;
	size_t bytes; /* of all packets that wait */
};

#define IPC_OUTQ_MAX                                                                               \
	(64u << 20) /* bytes; more than the longest report that is answered at once                \
		     */

/*
 * Sends a packet, or keeps a copy of it (and duplicates of its descriptors) if the socket is full
 * or packets wait already: then poll for POLLOUT and flush. 0 or -errno: -ENOBUFS over
 * IPC_OUTQ_MAX, else as ipc_send; close the client.
 */
int ipc_outq_send(struct ipc_outq *q, int fd, const struct wpfs_hdr *hdr, const void *body,
		  size_t len, const int *fds, size_t nr_fds);

/* Sends what it can. 0 = all sent, -EAGAIN = some wait, else -errno: close the client. */
int ipc_outq_flush(struct ipc_outq *q, int fd);

bool ipc_outq_empty(const struct ipc_outq *q);

/* Drops what waits. */
void ipc_outq_clear(struct ipc_outq *q);

/* The reply to *req with a status >= 0 and its body. */
int ipc_reply(struct ipc_outq *q, int fd, const struct wpfs_hdr *req, int status, const void *body,
	      size_t len, const int *fds, size_t nr_fds);

/* The reply to *req with a negative status and, unless fmt is NULL, a line for people. */
int ipc_reply_error(struct ipc_outq *q, int fd, const struct wpfs_hdr *req, int status,
		    const char *fmt, ...) __attribute__((format(printf, 5, 6)));

#endif
