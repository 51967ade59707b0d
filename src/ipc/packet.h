/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One packet of ipc/wire.h, sent or received, with its descriptors; and the one place where what a
 * packet says about itself is checked. Both ends of the daemon's socket use it (the shim, which may
 * use no libc, has its own). No state; any thread may call, one at a time per descriptor.
 */
#ifndef WPFS_IPC_PACKET_H
#define WPFS_IPC_PACKET_H

#include <stddef.h>
#include <sys/types.h>

#include "ipc/wire.h"

#define IPC_FDS_MAX 4 /* descriptors that one packet may carry */

/* Descriptors received with a packet; the receiver owns them. Start with IPC_FDS_INIT. */
struct ipc_fds {
	size_t nr;
	int fd[IPC_FDS_MAX]; /* -1 where there is none (any more) */
};

#define IPC_FDS_INIT                                                                               \
	(struct ipc_fds)                                                                           \
	{                                                                                          \
		.nr = 0, .fd = { -1, -1, -1, -1 }                                                  \
	}

/* Closes what is still in there. For use as a cleanup: _cleanup_(ipc_fds_closep). */
void ipc_fds_closep(struct ipc_fds *fds);

/*
 * Sends one packet: op, seq and status are taken from *hdr, len and version are filled in. The
 * descriptors stay the caller's. Never raises SIGPIPE. 0 or -errno: -EAGAIN on a non-blocking
 * socket (or after SO_SNDTIMEO), -EPIPE when the peer is gone, -EMSGSIZE over WPFS_WIRE_MAX,
 * -EINVAL over IPC_FDS_MAX. A packet goes whole or not at all.
 */
int ipc_send(int fd, const struct wpfs_hdr *hdr, const void *body, size_t len, const int *fds,
	     size_t nr_fds);

/*
 * Receives one packet into buf (aligned to 8, `size` bytes). Gives its length, 0 when the peer has
 * closed, or -errno: -EAGAIN; -EPROTO when it was longer than size or carried more descriptors than
 * IPC_FDS_MAX or than this process may open. On anything but a length no descriptor is kept. All
 * are close-on-exec. fds NULL: none is wanted, any is -EPROTO.
 */
ssize_t ipc_recv(int fd, void *buf, size_t size, struct ipc_fds *fds);

/* Bytes of the one body a request of this op has (0 = none), or -EPROTO: no such request. */
ssize_t ipc_op_body_size(unsigned op);

/* Bytes of the body of its reply when status is not negative, or -EPROTO. */
ssize_t ipc_op_reply_size(unsigned op);

/* Descriptors that a request of this op may carry at most. */
size_t ipc_op_max_fds(unsigned op);

/*
 * Checks a received request of `len` bytes: header, version, exact length, number of descriptors,
 * strings with their NUL. What the values mean is the server's business. 0 or -EPROTO.
 */
int ipc_check_request(const void *packet, size_t len, const struct ipc_fds *fds);

/* The same for a reply to (op, seq), its descriptors not counted. 0 or -EPROTO. */
int ipc_check_reply(const void *packet, size_t len, unsigned op, unsigned seq);

/* The body of a checked packet; NULL when it has none. */
static inline const void *ipc_body(const void *packet, size_t len)
{
	return len > sizeof(struct wpfs_hdr) ? (const char *)packet + sizeof(struct wpfs_hdr)
					     : NULL;
}

#endif
