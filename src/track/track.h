/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tracked address spaces: who is attached, what of the mount they map, which of their pages are
 * armed and marked. One thread (the track thread) owns all of it and the socket; the functions
 * below may be called from any thread except where said, and wait for that thread.
 */
#ifndef WPFS_TRACK_TRACK_H
#define WPFS_TRACK_TRACK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "ipc/wire.h"

struct capped;
struct db;
struct fs;
struct fs_drop;
struct track;

enum track_uffd_policy { TRACK_UFFD_WRITERS, TRACK_UFFD_ALL, TRACK_UFFD_GID, TRACK_UFFD_ROOT };

struct track_config {
	struct db *db;	      /* borrowed until track_stop */
	struct fs *fs;	      /* borrowed until track_stop */
	int listen_fd;	      /* listening SOCK_SEQPACKET socket; taken over */
	const char *id;	      /* mount id; these five strings are copied */
	const char *lower_id; /* names this lower tmpfs: differs for every one ever mounted */
	const char *store;    /* path of the store or "none" */
	const char *mountpoint;
	const char *aside; /* path, in memory: a database while db cannot be written */
	uint64_t dev;	   /* st_dev of the mount, as fstat(2) in a client gives it */
	enum wpfs_kind kind;
	enum track_uffd_policy uffd_policy;
	gid_t uffd_gid;
	unsigned harvest_s;    /* seconds between harvests of live mms, 0 = only when asked */
	struct capped *capped; /* capped mounts, else NULL; borrowed until track_stop */
};

/* Loads what the database knows, takes back living clients, starts serving. 0 or -errno. */
int track_start(const struct track_config *config, struct track **track);

/* Returns when the thread has come round to answering. */
void track_ping(struct track *track);

/* The mount answers from now on. 0 or -errno. */
int track_serving(struct track *track);

/* Returns when every mm that has ended is harvested, committed and let go. */
void track_settle(struct track *track);

/*
 * Contents are about to go: when this returns, armed pages there are dirty and that is committed,
 * so that no daemon after this one takes them for what they were. What is armed until
 * track_drop_end, which is no call to the track thread, is dirty as well.
 */
void track_drop_begin(struct track *track, struct fs_drop *drop);
void track_drop_end(struct track *track, struct fs_drop *drop);

/*
 * Contents of `ino` are about to be read for the store, and later are durable there as they were
 * read: what was armed before the reading began has its contents in the store.
 */
void track_contents_begin(struct track *track, uint64_t ino);
void track_contents_durable(struct track *track, uint64_t ino);

/* Harvests every mm that maps `ino` and commits: the marks half of fsync. 0 or -errno. */
int track_sync_file(struct track *track, uint64_t ino);

/*
 * Last harvests, commit, then everything is closed and freed. -errno: the database does not have
 * all of it, the next daemon on this lower tmpfs will; no contents may be flushed now.
 */
int track_stop(struct track *track);

#endif
