/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The shim's own, libc-free end of ipc/wire.h. Callers hold the shim's lock, or know of calls.h. */
#ifndef WPFS_PRELOAD_CLIENT_H
#define WPFS_PRELOAD_CLIENT_H

#include "preload/shim.h"

#define CLIENT_FDS	  2   /* descriptors per packet at most, either way */
#define CLIENT_TIMEOUT_S  10  /* arming and harvesting take milliseconds per GiB */
#define CLIENT_PATIENCE_S 600 /* what the disk may take */

struct client_call {
	enum wpfs_op op;
	const void *body;
	size_t body_len;
	const int *send_fds;
	size_t nr_send_fds;
	bool patient; /* the answer comes after a disk's */

	/* filled in */
	int status;
	void *reply;	     /* in: where its body goes when status >= 0; may be NULL */
	size_t reply_len;    /* in: its exact length */
	int fds[CLIENT_FDS]; /* received, the caller's; -1 where there is none */
};

/*
 * Connects to the daemon of the mount with this id: a socket with a high number, close-on-exec,
 * whose peer is root. The descriptor or -errno.
 */
int client_connect(const char *id);

/* The same in two steps. A descriptor or -errno; 0 or -errno, -ETIMEDOUT: not in so many seconds,
 * and may be tried again. */
int client_socket(void);
int client_join(int sock, const char *id, unsigned seconds);

/*
 * Sends the request and waits for its reply. 0 or -errno: -ETIMEDOUT = it hangs; -EPIPE = it is
 * gone; -EPROTO = it talks nonsense; -EPROTONOSUPPORT = it is of another version; -EMFILE = no
 * numbers are free for the descriptors that came.
 * On an error fds are all -1; after all but -EMFILE close the socket.
 */
int client_call(int sock, uint32_t seq, struct client_call *call);

/* Does a thread wait for such an answer? Who asks of the same daemon may have to wait along. No
 * lock. */
bool client_is_patient(void);

/* In a fork child: none does. */
void client_forked(void);

/* Sends the request, of an op that has no reply. 0 or -errno, as above. */
int client_tell(int sock, uint32_t seq, const struct client_call *call);

/* Is `sock` still the socket it was (a program may close any number and open it anew)? */
bool client_sock_ours(const struct mount *mount, int sock);

/* The same of mount->keep. */
bool client_keep_ours(const struct mount *mount, int keep);

/* -1 is no descriptor. */
static inline void client_close_if(int fd)
{
	if (fd >= 0)
		raw(close, fd);
}

/* Moves a descriptor to a high number, out of the way of programs. Takes fd over. */
int client_move_high(int fd);

#endif
