/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which resident page goes next: S3-FIFO (a small queue in front of a main one, and a memory of
 * what left the small one), fed by two kinds of reference: touches that the daemon itself sees
 * (FUSE requests, faults), and probes. A probe unmaps a page from page tables and keeps it in
 * memory; if it is mapped again when its turn comes, it was used since. Pure: no I/O, no locks.
 *
 * A page is looked at twice: the first turn says PROBE (unmap it and put it back), a later one asks
 * whether it was used since, which counts up to three times in the main queue. Pages that are used
 * once, as a scan does, leave by way of the small
 * queue and never push out what the main queue holds.
 *
 * One byte per page of a file that was ever resident, four to six per queued page.
 */
#ifndef WPFS_SPILL_POLICY_H
#define WPFS_SPILL_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define POLICY_MAX_FILES ((uint32_t)1 << 17)
#define POLICY_MAX_PAGES ((uint64_t)1 << 28)

struct policy;

/* `capacity`: pages that may be resident. 0 or -ENOMEM. */
int policy_new(uint64_t capacity, struct policy **policy);
void policy_free(struct policy *policy);

/* A name for a file and, later, what was given as its owner. 0, -ENOMEM, -ENFILE. */
int policy_file_add(struct policy *policy, void *owner, uint32_t *slot);
void *policy_file_owner(const struct policy *policy, uint32_t slot);
/* Its pages are forgotten. */
void policy_file_remove(struct policy *policy, uint32_t slot);

/*
 * A page is resident now; if that was known it counts as a touch. What cannot be kept (out of
 * memory, beyond POLICY_MAX_PAGES) is left out: it is not chosen, that is all.
 */
void policy_insert(struct policy *policy, uint32_t slot, uint64_t page);
/* The same, and no touch: it may have been known before. */
void policy_learn(struct policy *policy, uint32_t slot, uint64_t page);
/* A use that the daemon saw. */
void policy_touch(struct policy *policy, uint32_t slot, uint64_t page);
/* It is gone, and not because it was chosen: truncated, punched. */
void policy_drop(struct policy *policy, uint32_t slot, uint64_t first, uint64_t nr);

/* A page whose turn has come. It is in no queue until policy_put. */
struct policy_page {
	uint64_t page;
	uint32_t slot;
	uint16_t tick; /* of its probe */
	uint8_t gen;
	bool probed;  /* unmapped at `tick`; else it has to be now */
	bool touched; /* it has uses to its credit: seen by the daemon, or found by probes */
	bool main;
};

/*
 * The next one, if there is any. `now` is a clock of the caller's; what was probed less than
 * `min_age` ticks ago comes only when there is nothing else: it is to be put back with POLICY_WAIT.
 */
bool policy_pop(struct policy *policy, uint16_t now, uint16_t min_age, struct policy_page *page);

enum policy_verdict {
	POLICY_PROBED,	/* not evicted: unmapped from now on */
	POLICY_USED,	/* it was used since its probe; unmapped again */
	POLICY_SPARED,	/* it was not, but was before: `touched`; one use less to its credit */
	POLICY_WAIT,	/* not now: as it was */
	POLICY_EVICTED, /* it left */
	POLICY_GONE,	/* it is not resident any more, or is not to be chosen again */
};

/* `now` is the tick of the new probe, for PROBED, USED and SPARED. */
void policy_put(struct policy *policy, const struct policy_page *page, enum policy_verdict verdict,
		uint16_t now);

/* Pages known as resident. */
uint64_t policy_count(const struct policy *policy);

#endif
