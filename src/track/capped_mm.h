/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Address spaces whose faults are served, and the threads that serve them. */
#ifndef WPFS_TRACK_CAPPED_MM_H
#define WPFS_TRACK_CAPPED_MM_H

#include "track/capped_internal.h"

/* ---- capped_threads.c ---- */

/* 0 or -errno; capped_threads_stop follows either way. */
int capped_threads_start(struct capped *c);
void capped_threads_stop(struct capped *c);

/* All with the lock held. A new mm's messages wake the threads. 0 or -errno. */
int capped_mm_watch(struct capped *c, struct capped_mm *mm);
/* Has the calling thread to read its messages? */
bool capped_mm_is_mine(const struct capped_mm *mm);
/* Around a wait, if it is the calling thread's: another may have it meanwhile, and keep it. */
void capped_mm_lend(struct capped *c, struct capped_mm *mm);
void capped_mm_reclaim(struct capped *c, struct capped_mm *mm);

/* ---- capped_awake.c ---- */

/* Nobody is kept awake if it cannot be done; capped_awake_stop follows either way. */
void capped_awake_start(struct capped_awake *a);
void capped_awake_stop(struct capped_awake *a);

/* The calling thread is going to wake somebody soon. Any thread, no lock. */
void capped_stay_awake(struct capped_awake *a);

/* ---- capped_fault.c ---- */

/*
 * Reads one message and serves it, if the mm is the calling thread's. One at a time: what one does
 * can concern the next. False: there is none. Lock not held.
 */
bool capped_fault_read(struct capped *c, uint64_t id);

/* Looks once at what waits and is due. Lock not held. */
void capped_fault_retry(struct capped *c);

/* Pages are in the lower file: whoever waits for one of them is woken. Lock held. */
void capped_fault_arrived(struct capped *c, const struct capped_file *f, uint64_t first,
			  uint64_t nr);

/* ---- capped_mm.c ---- */

/*
 * Serves the faults of the mm of process `pid`; `uffd` is duplicated, `task` is one of the mm's
 * that has not ended (the first thread of the process may have). 0 or -errno.
 */
int capped_mm_add(struct capped *c, pid_t pid, pid_t task, int uffd, struct capped_mm **mm);
void capped_mm_remove(struct capped *c, struct capped_mm *mm);

/* The mm is that of process `pid` now; `task` as above. */
void capped_mm_moved(struct capped *c, struct capped_mm *mm, pid_t pid, pid_t task);

/*
 * capped_mm_remove when nobody has it any more; until then its faults are served, and it counts as
 * an orphan.
 */
void capped_mm_leave(struct capped *c, struct capped_mm *mm);

/*
 * Finds the fork child `pid`, of which `is_of` says that this uffd is its, and gives a duplicate of
 * the uffd: capped_mm_add for the child follows and replaces what was inherited. -ENOENT: none.
 */
int capped_mm_find_child(struct capped *c, pid_t pid, bool (*is_of)(void *ctx, int uffd),
			 void *ctx);

/*
 * Orphans are fork children that have not come to us, and mms that were left: what they map is not
 * in any list. It is seen in /proc: an orphan that was one before capped_now (lock not held) gave
 * this number can be found there. capped_mm_orphan: the number of the youngest that is alive; 0:
 * there is none. Lock held.
 */
uint64_t capped_now(struct capped *c);
uint64_t capped_mm_orphan(struct capped *c);
/* Is there one that became so since `now`, and was not looked for therefore? Lock held. */
bool capped_mm_orphan_since(struct capped *c, uint64_t now);
/* Is there any? Lock not held. */
bool capped_has_orphans(struct capped *c);

/*
 * Are there fork children of this mm, or of theirs, that have not come to us, were born so long ago
 * and live? Or have some of them (*lost) ended: that is said until they are noted. Lock not held.
 */
bool capped_mm_strays(struct capped *c, const struct capped_mm *mm, uint64_t age_ms,
		      unsigned *lost);
void capped_mm_strays_noted(struct capped *c, struct capped_mm *mm, unsigned lost);

/*
 * The witness of an mm that came is reached through `chan` (taken over; -1: there is none) and has
 * these many uffds of its fork children: it is given those of all that have not come, and each from
 * its birth, as far as it has room. Lock not held.
 */
void capped_mm_set_keeper(struct capped *c, struct capped_mm *mm, int chan, unsigned kept);
/* How many has it? Lock not held. */
unsigned capped_mm_kept(struct capped *c, const struct capped_mm *mm);
/* So many less. Lock not held. */
void capped_mm_unkeep(struct capped *c, struct capped_mm *mm, unsigned nr);

/*
 * A fork child of an earlier daemon's time that has not come, of `parent` (NULL: that has ended):
 * its faults are served. `uffd` is duplicated; `maps` are its parent's. Lock not held. 0 or -errno.
 */
int capped_mm_adopt(struct capped *c, const struct capped_mm *parent, int uffd,
		    const struct maps_list *maps);

/* A fork child of an mm is born; takes its `uffd` over. Lock held. */
void capped_mm_forked(struct capped *c, struct capped_mm *parent, int uffd);

/* Track thread, lock not held: in that look none of them was seen to map the file. */
void capped_looked(struct capped *c, struct capped_file *f, uint64_t now);

/* Lock held. */
struct capped_mm *capped_mm_find(struct capped *c, uint64_t id);

/* Scans, then write-protects [start, end) with no fault served in between. 0 or -errno. */
int capped_protect(struct capped *c, struct capped_mm *mm, uint64_t start, uint64_t end,
		   struct mm_set *written);

#endif
