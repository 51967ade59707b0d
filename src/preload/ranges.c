/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An unordered array: programs have few mappings of wpfs files, and a look costs a nanosecond each.
 * It is reserved once, big enough for as many mappings as the kernel lets a process have in its
 * default, so it never moves and the look needs no lock; a sequence count tells a reader that it
 * has seen an update half way.
 */
#include "preload/ranges.h"

#include <linux/mman.h>

#define RANGES_MAX 32768 /* half of vm.max_map_count's default, 2 MiB of address space */
#define LOOK_TRIES 100

_Atomic uint32_t ranges_count;
_Atomic uint32_t ranges_not_own;
_Atomic bool ranges_lost;
static _Atomic uint32_t sequence; /* odd: being changed */
static struct range *_Atomic table;

static void change_begin(void)
{
	atomic_fetch_add(&sequence, 1);
}

static void change_end(void)
{
	const struct range *ranges = atomic_load(&table);
	uint32_t not_own = 0;

	for (uint32_t i = 0; i < atomic_load(&ranges_count); i++)
		not_own += !ranges[i].own;
	atomic_store(&ranges_not_own, not_own);
	atomic_fetch_add(&sequence, 1);
}

static bool look(const struct range *ranges, uint32_t nr, uint64_t addr, uint64_t end, bool not_own)
{
	for (uint32_t i = 0; i < nr; i++) {
		if (ranges[i].start < end && addr < ranges[i].end && !(not_own && ranges[i].own))
			return true;
	}
	return false;
}

static bool overlap(uint64_t addr, uint64_t len, bool not_own)
{
	const struct range *ranges = atomic_load(&table);
	uint64_t end = addr + len;

	if (!ranges)
		return false;
	if (end < addr)
		end = UINT64_MAX;
	for (int i = 0; i < LOOK_TRIES; i++) {
		uint32_t before = atomic_load(&sequence);
		bool found = look(ranges, atomic_load(&ranges_count), addr, end, not_own);

		atomic_thread_fence(memory_order_acquire);
		if (!(before & 1) && atomic_load(&sequence) == before)
			return found;
	}
	return true; /* the caller takes the lock and looks again */
}

bool ranges_overlap(uint64_t addr, uint64_t len)
{
	return overlap(addr, len, false);
}

bool ranges_overlap_not_own(uint64_t addr, uint64_t len)
{
	return overlap(addr, len, true);
}

static bool reserve(void)
{
	long mem;

	if (atomic_load(&table))
		return true;
	mem = raw(mmap, NULL, sizeof(struct range) * RANGES_MAX, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (raw_failed(mem))
		return false;
	atomic_store(&table, (struct range *)mem);
	return true;
}

/* Appends without a look at what is there. */
static void append(const struct range *range)
{
	uint32_t nr = atomic_load(&ranges_count);

	if (nr == RANGES_MAX) {
		atomic_store(&ranges_lost, true);
		return;
	}
	atomic_load(&table)[nr] = *range;
	atomic_store(&ranges_count, nr + 1);
}

static void move_start(struct range *range, uint64_t start)
{
	range->offset += start - range->start;
	range->start = start;
}

static void cut(uint64_t addr, uint64_t end)
{
	struct range *ranges = atomic_load(&table);

	for (uint32_t i = 0; i < atomic_load(&ranges_count);) {
		struct range *range = &ranges[i];

		if (range->start >= end || range->end <= addr) {
			i++;
		} else if (range->start < addr) {
			struct range tail = *range;

			range->end = addr;
			if (tail.end > end) {
				move_start(&tail, end);
				append(&tail);
			}
			i++;
		} else if (range->end > end) {
			move_start(range, end);
			i++;
		} else {
			uint32_t last = atomic_load(&ranges_count) - 1;

			*range = ranges[last];
			atomic_store(&ranges_count, last);
		}
	}
}

void ranges_add(const struct range *range)
{
	if (!reserve()) {
		atomic_store(&ranges_lost, true);
		return;
	}
	change_begin();
	cut(range->start, range->end);
	append(range);
	change_end();
}

void ranges_cut(uint64_t addr, uint64_t len)
{
	if (!atomic_load(&table))
		return;
	change_begin();
	cut(addr, addr + len);
	change_end();
}

bool ranges_next(uint64_t from, uint64_t end, struct range *piece)
{
	const struct range *ranges = atomic_load(&table), *best = NULL;
	uint32_t nr = ranges ? atomic_load(&ranges_count) : 0;

	for (uint32_t i = 0; i < nr; i++) {
		if (ranges[i].start < end && ranges[i].end > from &&
		    (!best || ranges[i].start < best->start))
			best = &ranges[i];
	}
	if (!best)
		return false;
	*piece = *best;
	if (piece->start < from)
		move_start(piece, from);
	if (piece->end > end)
		piece->end = end;
	return true;
}

bool ranges_whole(uint64_t addr, uint64_t end)
{
	struct range piece;

	for (; addr < end; addr = piece.end) {
		if (!ranges_next(addr, end, &piece) || piece.start != addr)
			return false;
	}
	return true;
}

int ranges_peek(uint64_t from, uint64_t end, struct range *piece)
{
	for (int i = 0; i < LOOK_TRIES; i++) {
		uint32_t before = atomic_load(&sequence);
		bool found = ranges_next(from, end, piece);

		atomic_thread_fence(memory_order_acquire);
		if (!(before & 1) && atomic_load(&sequence) == before)
			return found;
	}
	return -1;
}

void ranges_protect(uint64_t addr, uint64_t len, uint32_t prot)
{
	uint64_t end = addr + len;
	struct range piece;

	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end) {
		if (piece.prot == prot)
			continue;
		piece.prot = prot;
		ranges_add(&piece);
	}
}

void ranges_own(uint64_t addr, uint64_t len, uint32_t own)
{
	uint64_t end = addr + len;
	struct range piece;

	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end) {
		if (piece.own == own)
			continue;
		piece.own = own;
		ranges_add(&piece);
	}
}

void ranges_hand_over(uint32_t from, uint32_t to)
{
	struct range *ranges = atomic_load(&table);

	if (!ranges)
		return;
	change_begin();
	for (uint32_t i = 0; i < atomic_load(&ranges_count); i++) {
		if (ranges[i].own && (!from || ranges[i].own == from))
			ranges[i].own = to;
	}
	change_end();
}

bool ranges_of_mount(uint32_t mount, bool told)
{
	const struct range *ranges = atomic_load(&table);
	uint32_t nr = ranges ? atomic_load(&ranges_count) : 0;

	for (uint32_t i = 0; i < nr; i++) {
		if (ranges[i].mount == mount && !(told && ranges[i].untold))
			return true;
	}
	return false;
}
