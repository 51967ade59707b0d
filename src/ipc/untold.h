/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What both ends of a struct wpfs_untold know of it. No system call, no lock. */
#ifndef WPFS_IPC_UNTOLD_H
#define WPFS_IPC_UNTOLD_H

#include <stdbool.h>

#include "ipc/wire.h"

/*
 * Which mappings were counted since `seen` is known if the slots that were read are theirs. `count`
 * was read before the slots, `again` after them. The slot of one more is written before it is
 * counted: so there must have been room for it. All without DROPPED and CHILDREN.
 */
static inline bool untold_is_whole(uint64_t count, uint64_t again, uint64_t seen)
{
	return seen <= count && count <= again && again - seen < WPFS_UNTOLD_FILES;
}

/* Another child; any thread, and the witness. */
static inline void untold_count_child(struct wpfs_untold *untold)
{
	uint64_t n = __atomic_load_n(&untold->count, __ATOMIC_RELAXED), more;

	do {
		more = (n & ~WPFS_UNTOLD_CHILDREN) |
		       ((n + WPFS_UNTOLD_CHILD) & WPFS_UNTOLD_CHILDREN);
	} while (!__atomic_compare_exchange_n(&untold->count, &n, more, false, __ATOMIC_RELEASE,
					      __ATOMIC_RELAXED));
}

#endif
