/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which pages in memory are as they are in the store, so that they need not be written there again:
 * a sum of 64 bits of what was read, of as many pages as there is room for. What is not known any
 * more is written. Any thread, no lock; of one page one thread at a time.
 */
#ifndef WPFS_SPILL_SUMS_H
#define WPFS_SPILL_SUMS_H

#include <stdbool.h>
#include <stdint.h>

struct spill_sums;

/* `pages` that may be in memory: eight bytes for each that was read. 0 or -ENOMEM. */
int spill_sums_new(uint64_t pages, struct spill_sums **sums);
void spill_sums_free(struct spill_sums *sums);

/* That was read from the place of a page. `file`: a number that no other file in the store had. */
void spill_sums_note(struct spill_sums *sums, uint64_t file, uint64_t page, const void *contents);

/*
 * Is that what was read from its place, with nothing written there since? From now on nothing is
 * known of it: it leaves memory, or is written.
 */
bool spill_sums_take(struct spill_sums *sums, uint64_t file, uint64_t page, const void *contents);

#endif
