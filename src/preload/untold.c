/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Not all who count can have the shim's lock. A slot is one writer's: whoever finds another at it,
 * or does not know the file, goes once around the ring instead of writing a slot, and the daemon
 * then finds all of it overwritten. So it does for ever if a vfork child was killed at a slot.
 */
#include "preload/untold.h"

static void count_drops(struct wpfs_untold *untold)
{
	__atomic_fetch_or(&untold->count, WPFS_UNTOLD_DROPPED, __ATOMIC_RELEASE);
}

static void go_around(struct wpfs_untold *untold)
{
	__atomic_fetch_add(&untold->count, WPFS_UNTOLD_FILES + 1, __ATOMIC_RELEASE);
}

/* The slot first; again, if somebody who went around took the number meanwhile. */
static void count_file(struct wpfs_untold *untold, uint64_t ino)
{
	uint64_t n = __atomic_load_n(&untold->count, __ATOMIC_RELAXED);

	do {
		__atomic_store_n(&untold->file[(n & WPFS_UNTOLD_COUNT) % WPFS_UNTOLD_FILES], ino,
				 __ATOMIC_RELAXED);
	} while (!__atomic_compare_exchange_n(&untold->count, &n, n + 1, false, __ATOMIC_RELEASE,
					      __ATOMIC_RELAXED));
}

void untold_count(struct mount *mount, uint64_t ino)
{
	if (!atomic_load(&mount->was_attached))
		return;
	if (ino & WPFS_UNTOLD_DROPPED)
		count_drops(&mount->untold);
	if (atomic_fetch_add(&mount->untold_writers, 1) == 0)
		count_file(&mount->untold, ino);
	else
		go_around(&mount->untold);
	atomic_fetch_sub(&mount->untold_writers, 1);
}

void untold_count_unknown(void)
{
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		if (atomic_load(&shim.mounts[i].was_attached))
			go_around(&shim.mounts[i].untold);
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
	atomic_store(&mount->untold_writers,
		     0); /* another thread of the parent may have been at it */
	__atomic_store_n(&mount->untold.count, 0, __ATOMIC_RELEASE);
}
