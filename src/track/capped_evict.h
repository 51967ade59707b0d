/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How pages of a capped mount leave. */
#ifndef WPFS_TRACK_CAPPED_EVICT_H
#define WPFS_TRACK_CAPPED_EVICT_H

#include "track/capped_internal.h"

/* ---- capped_batch.c: the fence. Track thread; lock held where it is said ---- */

struct capped_mapping {
	struct capped_mm *mm;
	int pidfd; /* of a task of the mm, borrowed */
	uint64_t start, end, pgoff;
};

/* Is a page in the batch? Lock held. */
bool capped_batch_has(const struct capped *c, const struct capped_file *f, uint64_t first,
		      uint64_t end);

/*
 * Begins a batch: waits for who is at its pages, and write-protects them in every mapping. 0 or
 * -errno (-ETXTBSY: it is pinned) with `why`; capped_batch_end follows either way.
 */
int capped_batch_begin(struct capped *c, struct capped_batch *b, const struct capped_mapping *maps,
		       size_t nr, char *why, size_t why_size);

/* Un-fences at today's addresses and has everybody try again who waits there. */
void capped_batch_end(struct capped *c, struct capped_batch *b);

/* Adds the pages that are mapped somewhere, by offset in the file. Lock held. 0 or -errno. */
int capped_batch_mapped(const struct capped_batch *b, struct mm_set *mapped);

/* Fork and mremap events of an mm, as they concern the batch. Lock held. */
void capped_batch_forked(struct capped *c, struct capped_mm *parent, struct capped_mm *child);
void capped_batch_moved(struct capped *c, struct capped_mm *mm, uint64_t from, uint64_t to,
			uint64_t len);
void capped_batch_gone(struct capped *c, struct capped_mm *mm);

/* ---- capped_save.c: save and punch; track thread, lock not held ---- */

/*
 * Has the pages of a batch that stand under the fence and the lease go, but for those in `used`.
 * Counts those that did. 0 or -errno: what went by then is in the store, everything else as it was.
 */
int capped_save(struct capped *c, struct capped_batch *b, uint64_t *pages);

/* ---- capped_evict.c ---- */

/*
 * Evicts all resident pages of a file whose every mapping is in `maps`, registered for missing
 * faults. Counts pages that left. 0 or -errno with a reason in `why` (-ETXTBSY: it was pinned
 * meanwhile): what was evicted by then stays so, everything else is as it was.
 */
int capped_evict(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		 size_t nr, uint64_t *pages, char *why, size_t why_size);

/*
 * The same of some runs, at most CAPPED_BATCH. `settle`: they may have been mapped
 * until now, so direct I/O into them is waited for; else those that are mapped now stay, and are
 * added to `used` by offset in the file.
 */
int capped_evict_runs(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		      size_t nr, const struct capped_run *runs, size_t nr_runs, bool settle,
		      struct mm_set *used, uint64_t *pages, char *why, size_t why_size);

/* ---- capped_unmap.c: out of the page tables, and still in memory; no lock ---- */

/* False: it would cost more than it tells. */
bool capped_can_unmap(void);

/* Unmaps ranges of a process, if they are there, with its marks kept. */
void capped_unmap(int pidfd, const struct iovec *iov, size_t nr);

/*
 * Unmaps pages [0, pages) of a file in the background, in its order, in all its mappings, which are
 * borrowed until capped_unmap_end. NULL: it cannot be done, or there are none.
 */
struct capped_unmapper;
struct capped_unmapper *capped_unmap_begin(const struct capped_mapping *maps, size_t nr,
					   uint64_t pages);
/* Waits until `settle_ms` have gone by since what is before page `end` was unmapped: then. */
uint64_t capped_unmap_wait(struct capped_unmapper *u, uint64_t end, unsigned settle_ms);
/* Stops it. May be NULL. */
void capped_unmap_end(struct capped_unmapper *u);

/* ---- capped_turn.c: whose turn it is ---- */

/* Pages of one file, in the order of the file. */
struct capped_turn {
	struct capped_file *file;
	struct policy_page pages[CAPPED_TURN];
	size_t nr;
};

/* Takes up to `max` pages whose turn has come, all of one file. nr 0: there are none. */
void capped_turn_take(struct capped *c, struct capped_turn *turn);

/* Nothing can be done about them now: they have another turn. */
void capped_turn_back(struct capped *c, struct capped_turn *turn);

/* Unmaps the new ones, keeps the used ones and evicts the rest. `pages` counts those. */
int capped_turn_run(struct capped *c, struct capped_turn *turn, const struct capped_mapping *maps,
		    size_t nr, uint64_t *pages, char *why, size_t why_size);

/*
 * Looks for files of which nothing is known: at some names of the lower tree, the next ones in the
 * next turn, until it knows of as many pages more. False: all was looked at, and nothing found.
 * Track thread.
 */
bool capped_find(struct capped *c, uint64_t want);
void capped_find_free(struct capped *c);

/* What a killed daemon was evicting; nr 0: nothing. Track thread. */
const struct capped_record *capped_record_left(const struct capped *c);

/* It is dealt with. */
void capped_record_clear(struct capped *c);

#endif
