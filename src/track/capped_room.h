/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much of a capped mount may be in memory, and what has to be. */
#ifndef WPFS_TRACK_CAPPED_ROOM_H
#define WPFS_TRACK_CAPPED_ROOM_H

#include "track/capped_internal.h"

/* ---- capped_budget.c: how much is in memory ---- */

/* Bytes of page contents in the lower tmpfs. Any thread, no lock. */
uint64_t capped_resident(const struct capped *c);

/* Pages of [first, first + nr) of a lower file that are in memory (or in swap); no lock. */
uint64_t capped_in_memory(int fd, uint64_t first, uint64_t nr);

/*
 * So many pages were added after capped_is_full was asked: has the track thread evict if there is
 * too much. Lock held.
 */
void capped_added(struct capped *c, uint64_t pages);

/* May nothing be added now? Asks for an eviction then. Lock held. */
bool capped_is_full(struct capped *c);

/*
 * Waits, with the lock let go, until something may be added; `use` (may be NULL): for that one,
 * which may be what keeps all others in memory.
 */
void capped_wait_room(struct capped *c, const struct capped_use *use);

/* Pages were used that are in memory, as far as they are: the policy gets to know. Lock held. */
void capped_know(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr);

/*
 * The same of all pages of the file that are in memory, of which some may be known; they are not
 * used by this. Lock held.
 */
void capped_learn(struct capped *c, struct capped_file *f);

/* What programs have stored through mappings of which no fault tells. Lock not held. */
void capped_learn_unseen(struct capped *c);

/*
 * Pages of [0, pages) of a file that programs which map it could add without a word: none if its
 * mappings are registered for missing faults. Lock not held.
 */
uint64_t capped_could_come(struct capped *c, uint64_t ino, uint64_t pages);

/* For the track thread, lock not held: evict down to this; the cap. */
uint64_t capped_low(const struct capped *c);
uint64_t capped_cap(const struct capped *c);
/* The wish for room is being looked at. */
void capped_evict_asked(struct capped *c);
/* Nothing can be evicted, although there is too much: then the cap does not hold. */
void capped_set_stuck(struct capped *c, bool stuck);
/*
 * Is it a read(2) of the mount that has been under way for `ms`? Then the cap holds, and who adds
 * waits for it. Until capped_set_stuck.
 */
bool capped_is_held_up(struct capped *c, uint64_t ms);

/* Faults that wait are looked at again. Lock held. */
void capped_retry(struct capped *c);

#define CAPPED_WHY_PINNED "a program that only reads it or is not tracked has it open or mapped"

/* ---- capped_pin.c: files that somebody maps who is not tracked; lock held ---- */

/* Are its pages to be chosen from? */
static inline bool capped_is_chosen(const struct capped_file *f)
{
	return f->has_slot && !f->pinned;
}

/* It is pinned, if it is not: somebody has it who was not seen to open it. */
void capped_pin(struct capped *c, struct capped_file *f);

/* Ends that if nobody has it any more. True: it is pinned still. */
bool capped_still_pinned(struct capped *c, struct capped_file *f);

/* Why a file has to be in memory, and what of it has to fit: */
enum capped_hold {
	CAPPED_HOLD_ASKED, /* somebody would like it: what there is of it */
	CAPPED_HOLD_WHOLE, /* somebody maps it: holes can be touched too */
	CAPPED_HOLD_MUST,  /* nothing, it has to be */
};

/*
 * None of its pages leaves until capped_unhold. 1; 0: nothing of it is in the store, and nothing is
 * held; -EFBIG. Lock not held, like the next one.
 */
int capped_hold(struct capped *c, uint64_t ino, enum capped_hold how);
/* Nor afterwards, if somebody has it who is not told of its faults. */
void capped_unhold(struct capped *c, uint64_t ino);

/* Its size changed. */
void capped_pin_resize(struct capped *c, struct capped_file *f);

/* The same for the track thread, lock not held; `patient`: waits a moment for the end of it. */
bool capped_wait_unpinned(struct capped *c, struct capped_file *f, bool patient);

/* Bytes. Lock not held. */
uint64_t capped_pinned(struct capped *c);

/* ---- capped_limit.c: size=; lock held ---- */

void capped_limit_begin(struct capped *c);

/* What is in the store changed. `exact`: to the byte, even if there is much room. */
void capped_limit_set(struct capped *c, bool exact);

/* The same, and somebody else may have changed it. */
void capped_limit_look(struct capped *c);

/* Bytes; 0: no limit. Lock not held. */
uint64_t capped_size(struct capped *c);
bool capped_has_limit(struct capped *c);

/* Is there no room for a page more? */
bool capped_is_exhausted(struct capped *c);

/*
 * A write to pages [first, first + nr) must not take the room of those that are coming back: waits,
 * with the lock let go, until none are, if it could.
 */
void capped_wait_loads(struct capped *c, uint64_t ino, uint64_t first, uint64_t nr);

#endif
