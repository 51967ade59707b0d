/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Most of this runs under the shim's lock, but not all can have it: so the slot is written first,
 * and again if somebody else took the number meanwhile. Whoever does not know the file goes once
 * around the ring instead of writing a slot: the daemon then finds all of it overwritten.
 */
#include "preload/untold.h"

static void count_drops(struct wpfs_untold *untold)
{
	__atomic_fetch_or(&untold->count, WPFS_UNTOLD_DROPPED, __ATOMIC_RELEASE);
}

void untold_count(struct mount *mount, uint64_t ino)
{
	struct wpfs_untold *untold = &mount->untold;
	uint64_t n;

	if (!atomic_load(&mount->was_attached))
		return;
	if (ino & WPFS_UNTOLD_DROPPED)
		count_drops(untold);
	n = __atomic_load_n(&untold->count, __ATOMIC_RELAXED);
	do {
		__atomic_store_n(&untold->file[(n & ~WPFS_UNTOLD_DROPPED) % WPFS_UNTOLD_FILES], ino,
				 __ATOMIC_RELAXED);
	} while (!__atomic_compare_exchange_n(&untold->count, &n, n + 1, false, __ATOMIC_RELEASE,
					      __ATOMIC_RELAXED));
}

void untold_count_unknown(void)
{
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		if (atomic_load(&shim.mounts[i].was_attached))
			__atomic_fetch_add(&shim.mounts[i].untold.count, WPFS_UNTOLD_FILES + 1,
					   __ATOMIC_RELEASE);
	}
}

void untold_count_unknown_drop(void)
{
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		if (atomic_load(&shim.mounts[i].was_attached))
			count_drops(&shim.mounts[i].untold);
	}
	untold_count_unknown();
}

void untold_reset(struct mount *mount)
{
	__atomic_store_n(&mount->untold.count, 0, __ATOMIC_RELEASE);
}
