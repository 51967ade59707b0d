/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the track room asks of a capped mount: on the track thread, lock not held. */
#ifndef WPFS_TRACK_CAPPED_TRACK_H
#define WPFS_TRACK_CAPPED_TRACK_H

#include "track/capped_internal.h"

/* Brings the first of its pages that are in the store back, at most `nr`. 0 or -errno. */
int capped_load_some(struct capped *c, uint64_t ino, uint64_t nr, uint64_t *loaded);

/* Brings the whole file back, whether it fits or not. 0 or -errno. */
int capped_load_file(struct capped *c, uint64_t ino, uint64_t *loaded);

/*
 * The file's entry, and capped_file_prepare. It stays until the next sweep at least. `lower_ino`
 * is its inode number in the lower. 0 or -errno.
 */
int capped_file_open(struct capped *c, const struct fs_handle *handle, uint64_t ino, uint64_t pages,
		     struct capped_file **file, uint64_t *lower_ino);

/* A descriptor of its struct file, the caller's; -errno. */
int capped_file_dup(struct capped *c, uint64_t ino);

/*
 * `fd` (duplicated) is its struct file from now on, unless another mm's witness had it already.
 * Before the faults of the mm that had it are served. Waits for who is at its pages.
 */
void capped_file_take(struct capped *c, uint64_t ino, int fd);

/* Have the mappings of this file to be registered for missing faults too? */
bool capped_is_missing(struct capped *c, uint64_t ino);

/*
 * What a new daemon does about pages that the last one left in the lower file and in the store,
 * before any fault is served: what capped_lower_has wins, and zeros are given back.
 */
void capped_lower_wins(struct capped *c);

/* All who had the mount mapped are served, or have their pages: nothing more can be left twice. */
void capped_settled(struct capped *c);

/*
 * Is a spilled page in the lower file so that it wins over the store? Anything but zeros does: it
 * is the same or the newer. Zeros are never stored, and programs whose faults are held make none of
 * a page before its bit is cleared, but for one that the killed daemon was putting there: so they
 * came there when a hole was touched by somebody whose faults nobody held. Lock held.
 */
bool capped_lower_has(const struct capped_file *f, uint64_t page);

/*
 * Punches pages of the lower file and forgets their stored copies: MADV_REMOVE. Waits for who is at
 * them, and does nothing if it is not wanted after that. 0 or -errno.
 */
int capped_remove(struct capped *c, uint64_t ino, uint64_t first, uint64_t nr,
		  bool (*is_wanted)(const void *ctx), const void *ctx);

/*
 * Who maps what, for capped_sweep; with the lock held. look is called once, when it is known which
 * files nobody uses: a program that closes one while it maps it has said before that it will.
 */
struct capped_mapped {
	uint64_t now; /* capped_now before it was looked at what orphans map; 0: it was not */
	void (*look)(void *ctx);
	bool (*is_mapped)(void *ctx, uint64_t ino);
	void *ctx;
};

/* Lets go of files that nobody uses. Gives how many are left that only a mapping keeps. */
size_t capped_sweep(struct capped *c, const struct capped_mapped *mapped);
/* How many are there that only a mapping can keep? */
size_t capped_nr_idle(struct capped *c);

struct capped_counts capped_counts(struct capped *c);
/*
 * While it is set (fn not NULL) fn is called for each batch of a capped_load with `loaded` or a
 * capped_evict, perhaps with the lock held: it may call nothing of this room.
 */
void capped_set_progress(struct capped *c, void (*fn)(void *ctx), void *ctx);
/* Pages of the file that are spilled. */
uint64_t capped_nr_spilled(struct capped *c, uint64_t ino);
struct spill_stats *capped_io_stats(struct capped *c);
bool capped_is_uring(struct capped *c);
/* How many faults wait for a store that fails. */
uint64_t capped_failing(struct capped *c);
/* Readable when something is to be evicted; the reader reads it. */
int capped_evict_fd(const struct capped *c);
uint64_t capped_lower_dev(const struct capped *c);

/* Redeems a ticket: a descriptor the caller closes, or -errno (-ESTALE: no such ticket). */
int capped_redeem(struct capped *c, const struct wpfs_ticket *ticket, uint64_t *ino);

#endif
