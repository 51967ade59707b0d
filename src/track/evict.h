/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Eviction on a capped mount, as far as it is about programs: who maps a file, whether all of them
 * can be watched, and when it is time. Track thread.
 */
#ifndef WPFS_TRACK_EVICT_H
#define WPFS_TRACK_EVICT_H

#include "track/capped_room.h"
#include "track/internal.h"

#define EVICT_WHY_SIZE 256

/* Evicts all of a file. Counts pages that left. 0 or -errno with a reason in `why`. */
int evict_file(struct track *t, const struct fs_file *file, uint64_t *pages,
	       char why[EVICT_WHY_SIZE]);

/*
 * Have programs mapped more than may be resident, with `vma` (may be NULL) that is being mapped?
 * Then their mappings are registered for missing faults: who stores to a new page asks from now on.
 */
void evict_pressure(struct track *t, const struct mm_vma *vma);

/*
 * Brings a file back whole and has others leave for that; `loaded` (may be NULL) counts. 0 or
 * -errno: -EFBIG: it does not fit, or others cannot leave.
 */
int evict_load(struct track *t, uint64_t ino, enum capped_hold how, uint64_t *loaded);

/* Watches the capped mount's wish for room; at the end of the thread. */
int evict_start(struct track *t);
void evict_stop(struct track *t);

/* There is too much in memory: evicts for some milliseconds, and says when it goes on. */
void evict_round(struct track *t);

/* Forgets who maps what. */
void evict_forget(struct track *t);

#endif
