/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by the files that keep the tree in the store. */
#ifndef WPFS_FS_STORE_PRIV_H
#define WPFS_FS_STORE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <uthash.h>

#include "fs/priv.h"
#include "fs/snap.h"
#include "fs/store.h"
#include "fs/store_data.h"

/* A touched file: the size that its contents had which are durable in the store. */
struct store_size {
	UT_hash_handle hh;
	uint64_t ino, size; /* file id, bytes */
	uint64_t time;	    /* it was set, or the entry made: no two are the same */
	bool set;	    /* else it is not known yet */
	bool cut; /* contents went since, so there may be others in the data file, below the size */
};

/* A data file that was written and is not durable yet, or could not be made so. */
struct store_unsynced {
	UT_hash_handle hh;
	uint64_t ino;	/* file id */
	uint64_t times; /* it was written */
	bool made;	/* its name is not durable either */
};

/* A file whose contents could not be written when it was tried last. */
struct store_failed {
	UT_hash_handle hh;
	uint64_t ino; /* file id */
	int error;    /* -errno */
};

/* A file that is gone, and has a data file still. */
struct store_leftover {
	UT_hash_handle hh;
	uint64_t ino; /* file id */
};

/* A large file that is in use: what its data file has. */
struct store_known {
	UT_hash_handle hh;
	uint64_t ino;		   /* file id */
	struct store_image *image; /* the file's shard of `data` */
};

/*
 * Locks, outermost first: commit, a shard of data, lock. No request that changes names waits for
 * `commit`; names_lock is taken inside of it.
 */
struct fs_store {
	struct fs *fs; /* constant, like the next three */
	struct db *db;
	int data_fd;
	int lower_fd; /* the lower's root in a mount of its own: what is read there is no access */

	fs_progress_fn progress; /* of the final flush; or NULL. Constant while one runs, as ctx */
	void *progress_ctx;

	_Atomic int error; /* of the last attempt to store something; 0: it was stored */

	pthread_mutex_t commit; /* one picture on its way to the database at a time */
	/*
	 * The rows are not known to be those of this lower, and of a data file that equals its file
	 * nobody knows whether it is durable. Changed with `commit` held.
	 */
	_Atomic bool whole;

	pthread_mutex_t data[FS_SHARDS]; /* each file's data file has one writer */

	pthread_mutex_t lock; /* innermost; all below */
	uint64_t asked, done; /* who waits for a commit: tickets given out, and served */
	struct store_size *sizes;
	uint64_t size_time; /* counts what happens to them */
	struct store_unsynced *unsynced;
	struct store_failed *failed;
	struct store_known *known;
	struct store_leftover *leftovers;
	int failed_said; /* the -errno that was logged last; 0: no file fails */
};

/* Is this error, logged by the caller if so, not the one that the last attempt gave too? */
static inline bool store_is_news(struct fs_store *store, int error)
{
	return atomic_exchange(&store->error, error) != error;
}

/* ---- store_delta.c ---- */

/*
 * A picture of what `changes` says has changed, as it is now; the caller keeps names from changing.
 * 0 or -errno; to be freed in either case.
 */
int snap_take_changes(struct snap *snap, struct fs_store *store, const struct fs_changes *changes);

/* ---- store_sync.c ---- */

/*
 * Stores what is noted of names and attributes, or everything when the rows are not known to be
 * right: with `commit` held. 0 or -errno.
 */
int store_commit(struct fs_store *store);

/*
 * Removes data files that had to stay when their files went; `final`: nobody can ask for them any
 * more. What cannot be removed stays a leftover.
 */
void store_remove_leftovers(struct fs_store *store, bool final);

/*
 * Makes the data file of `ino` equal to what the lower file behind `fd` has now, with the lock of
 * the file's shard of `data` held; what was written is not durable before *written is dealt with.
 * `again`: it is likely to be done again soon. `final`: no hooks. Gives the size it has, or -errno.
 */
int64_t store_write_contents(struct fs_store *store, uint64_t ino, int fd, bool again, bool final,
			     struct store_data_written *written);

/*
 * The lower file, for reading. On a capped mount the one struct file that there is, if there is
 * one: while it has another no page of it can leave memory. The caller closes it. -errno.
 */
int store_open_lower(struct fs *fs, uint64_t ino, const struct fs_handle *handle);

/* ---- store_notes.c ---- */

/*
 * The size that the durable contents have; false: none noted. *time: when it was, as far as it was;
 * it differs whenever another one was meanwhile. Setting: with the lock of the file's shard of
 * `data` held.
 */
bool store_size_get(struct fs_store *store, uint64_t ino, uint64_t *size, uint64_t *time);
void store_size_set(struct fs_store *store, uint64_t ino, uint64_t size);
void store_size_forget(struct fs_store *store, uint64_t ino);

/*
 * Contents of the file go, or all of it is going to be looked at, which begins after this: what
 * goes from then on is noted, what went before no more if `again`. (A flush does not know yet
 * whether what it will write becomes durable.) To ask for a size: false also if it was cut, or
 * perhaps was.
 */
void store_size_cut(struct fs_store *store, uint64_t ino);
void store_size_begin(struct fs_store *store, uint64_t ino, bool again);
bool store_size_uncut(struct fs_store *store, uint64_t ino, uint64_t *size);

/*
 * What is known to be written and not durable: noted, asked, and struck out when it is and was not
 * written again (`times`), with the lock of the file's shard of `data` held. No difference to its
 * contents does not mean that a data file is durable: a flush may be about to see to it, or have
 * failed.
 */
int store_unsynced_add(struct fs_store *store, uint64_t ino, bool made);
bool store_unsynced_get(struct fs_store *store, uint64_t ino, struct store_unsynced *entry);
void store_unsynced_done(struct fs_store *store, uint64_t ino, uint64_t times);
void store_unsynced_forget(struct fs_store *store, uint64_t ino);

/* A sync of all of them failed, whoever wrote them: each is doubted (store_data_doubt). */
void store_unsynced_doubt(struct fs_store *store);

/*
 * Contents that could not be written, which is logged when it is news, and that were, or need not
 * be any more. How many files are waiting now, and why one of them is (0: none).
 */
void store_failed(struct fs_store *store, uint64_t ino, int error);
void store_succeeded(struct fs_store *store, uint64_t ino);
size_t store_failing(struct fs_store *store, int *error);

/* Data files that are to be removed later: one more; all that were noted so far, to be freed. */
/* May contents of a removed file, in the store only, be asked for by who knew it with a name? */
bool store_may_be_asked_for(struct fs_store *store, uint64_t ino);

void store_leftover_add(struct fs_store *store, uint64_t ino);
struct store_leftover *store_leftovers_take(struct fs_store *store);
bool store_has_leftovers(struct fs_store *store);

/*
 * What is known of a data file, with the lock of the file's shard of `data` held, which the image
 * is used under; NULL: nothing, or no memory. It is forgotten when that is not certain any more (an
 * error), when the data file is removed, and when nobody has the file in use.
 */
struct store_image *store_known_get(struct fs_store *store, uint64_t ino, bool make);
void store_known_forget(struct fs_store *store, uint64_t ino);
void store_known_forget_all(struct fs_store *store); /* with no such lock held */

/* Forgets everything, at the end. */
void store_notes_free(struct fs_store *store);

/* ---- store_flush.c ---- */

/* Stores the whole tree and all contents: with `commit` held. 0 or -errno. */
int store_flush_whole(struct fs_store *store, bool final);

#endif
