/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who reads the requests of a FUSE session, and who answers them. */
#ifndef WPFS_FS_LOOP_H
#define WPFS_FS_LOOP_H

#include <fuse_lowlevel.h>
#include <stdbool.h>

/* Where requests come from: libfuse's functions of a session, or a test's. */
struct fs_loop_calls {
	int fd; /* readable while a request waits to be received */
	int (*receive)(struct fuse_session *session, struct fuse_buf *buf);
	void (*process)(struct fuse_session *session, const struct fuse_buf *buf);
	bool (*alone)(void); /* near_is_alone, or a test's */
};

/*
 * Receives and serves one request, the handshake, after which libfuse knows how large a buffer has
 * to be. 1, 0: the session is over, or -errno.
 */
int fs_loop_first(struct fuse_session *session, const struct fs_loop_calls *calls);

/*
 * Serves requests until one cannot be received: in this thread and in up to `max_threads` - 1
 * others, which it starts and which have this one's credentials. At most `max_readers` of them
 * serve requests of which none is said to take long. Returns when all have ended: 0, or -errno.
 */
int fs_loop_run(struct fuse_session *session, const struct fs_loop_calls *calls,
		unsigned max_threads, unsigned max_readers);

/* How many may serve at once on this machine: one for each processor. */
unsigned fs_loop_processors(void);

#endif
