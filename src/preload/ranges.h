/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which addresses are mapped to wpfs files, as far as the hooks have seen: it only decides whether
 * the daemon is asked. The daemon itself reads /proc/PID/maps. Addresses and lengths in bytes,
 * multiples of the page size.
 */
#ifndef WPFS_PRELOAD_RANGES_H
#define WPFS_PRELOAD_RANGES_H

#include "preload/shim.h"

struct range {
	uint64_t start, end;
	uint64_t offset; /* in the file, at start */
	uint64_t dev, ino;
	uint32_t mount;	      /* index */
	uint32_t prot, flags; /* of its mmap(2); prot: as mprotect(2) left it */
	uint32_t untold;      /* 1: the daemon does not know of it from us */
	uint32_t own;	      /* 1 + number of the program's uffd that was given it; 0: none */
};

/* Number of ranges; 0 lets every hook go straight to the kernel. */
extern _Atomic uint32_t ranges_count;

static inline bool ranges_any(void)
{
	return atomic_load_explicit(&ranges_count, memory_order_relaxed) != 0;
}

/* Was one ever forgotten, because there was no place for it? */
extern _Atomic bool ranges_lost;

/* Is any of [addr, addr + len) in a range? No lock; may say yes for a moment when it is no more. */
bool ranges_overlap(uint64_t addr, uint64_t len);

/* How many there are that no uffd of the program has; 0 lets its ioctls go straight on. */
extern _Atomic uint32_t ranges_not_own;

/* Is any of [addr, addr + len) in one of those? As ranges_overlap. */
bool ranges_overlap_not_own(uint64_t addr, uint64_t len);

/* The first piece in [from, end), as ranges_next: 1, 0: none, -1: they change too fast. No lock. */
int ranges_peek(uint64_t from, uint64_t end, struct range *piece);

/* The rest is under the shim's lock. */

/* A uffd of the program has what is known in [addr, addr + len), or (0) none. */
void ranges_own(uint64_t addr, uint64_t len, uint32_t own);

/* What `from` has is `to`'s now (0: nobody's), or (from 0) all that anybody has. */
void ranges_hand_over(uint32_t from, uint32_t to);

/* Adds a range, in place of what was known there. A full table forgets it: conservative. */
void ranges_add(const struct range *range);

/* Forgets [addr, addr + len). */
void ranges_cut(uint64_t addr, uint64_t len);

/* What is known in [addr, addr + len) has these rights now. */
void ranges_protect(uint64_t addr, uint64_t len, uint32_t prot);

/*
 * The lowest piece at or above `from` of what is known inside [from, end), clipped to it; false:
 * none.
 */
bool ranges_next(uint64_t from, uint64_t end, struct range *piece);

/* Is all of [addr, end) known? */
bool ranges_whole(uint64_t addr, uint64_t end);

/* Is any mapping of this mount known? `told`: to the daemon as well. */
bool ranges_of_mount(uint32_t mount, bool told);

#endif
