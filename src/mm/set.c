/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sets of pages over CRoaring, with only its public functions and none that came after 0.2.66.
 *
 * Results are run-optimised where long ranges come from, so that "all of a file" is some bytes and
 * stays so. Not chosen: 64-bit bitmaps (a file has at most 2^32 pages), and our own containers (the
 * stored format is CRoaring's, and people read it with other tools).
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <roaring/roaring.h>

#include "mm/set.h"

static uint64_t range_end(uint64_t first, uint64_t nr)
{
	if (first >= MM_SET_MAX)
		return first;
	return nr > MM_SET_MAX - first ? MM_SET_MAX : first + nr;
}

static bool range_is_empty(uint64_t first, uint64_t nr)
{
	return nr == 0 || first >= MM_SET_MAX;
}

static bool range_is_all(uint64_t first, uint64_t nr)
{
	return first == 0 && nr >= MM_SET_MAX;
}

/* Replaces the bitmap; an empty one is not kept. */
static void set_adopt(struct mm_set *set, roaring_bitmap_t *bits)
{
	if (set->bits && set->bits != bits)
		roaring_bitmap_free(set->bits);
	set->bits = bits;
	if (bits && roaring_bitmap_is_empty(bits))
		mm_set_free(set);
}

void mm_set_init(struct mm_set *set)
{
	set->bits = NULL;
}

void mm_set_free(struct mm_set *set)
{
	if (set->bits)
		roaring_bitmap_free(set->bits);
	set->bits = NULL;
}

void mm_set_clear(struct mm_set *set)
{
	mm_set_free(set);
}

int mm_set_copy(struct mm_set *to, const struct mm_set *from)
{
	roaring_bitmap_t *copy;

	if (to == from)
		return 0;
	if (!from->bits) {
		mm_set_free(to);
		return 0;
	}
	copy = roaring_bitmap_copy(from->bits);
	if (!copy)
		return -ENOMEM;
	set_adopt(to, copy);
	return 0;
}

void mm_set_move(struct mm_set *to, struct mm_set *from)
{
	if (to == from)
		return;
	mm_set_free(to);
	to->bits = from->bits;
	from->bits = NULL;
}

int mm_set_add_range(struct mm_set *set, uint64_t first, uint64_t nr)
{
	if (range_is_empty(first, nr))
		return 0;
	if (!set->bits) {
		set->bits = roaring_bitmap_from_range(first, range_end(first, nr), 1);
		return set->bits ? 0 : -ENOMEM;
	}
	roaring_bitmap_add_range(set->bits, first, range_end(first, nr));
	return 0;
}

int mm_set_remove_range(struct mm_set *set, uint64_t first, uint64_t nr)
{
	if (!set->bits || range_is_empty(first, nr))
		return 0;
	roaring_bitmap_remove_range(set->bits, first, range_end(first, nr));
	set_adopt(set, set->bits);
	return 0;
}

int mm_set_keep_range(struct mm_set *set, uint64_t first, uint64_t nr)
{
	uint64_t end;

	if (range_is_empty(first, nr)) {
		mm_set_free(set);
		return 0;
	}
	end = range_end(first, nr);
	mm_set_remove_range(set, 0, first);
	return mm_set_remove_range(set, end, MM_SET_MAX - end);
}

bool mm_set_contains(const struct mm_set *set, uint64_t page)
{
	return set->bits && page < MM_SET_MAX && roaring_bitmap_contains(set->bits, page);
}

bool mm_set_is_empty(const struct mm_set *set)
{
	return !set->bits;
}

uint64_t mm_set_count(const struct mm_set *set)
{
	return set->bits ? roaring_bitmap_get_cardinality(set->bits) : 0;
}

uint64_t mm_set_count_range(const struct mm_set *set, uint64_t first, uint64_t nr)
{
	if (!set->bits || range_is_empty(first, nr))
		return 0;
	return roaring_bitmap_range_cardinality(set->bits, first, range_end(first, nr));
}

bool mm_set_is_equal(const struct mm_set *a, const struct mm_set *b)
{
	if (!a->bits || !b->bits)
		return a->bits == b->bits;
	return roaring_bitmap_equals(a->bits, b->bits);
}

bool mm_set_is_subset(const struct mm_set *part, const struct mm_set *whole)
{
	if (!part->bits)
		return true;
	return whole->bits && roaring_bitmap_is_subset(part->bits, whole->bits);
}

int mm_set_or(struct mm_set *set, const struct mm_set *other)
{
	if (set == other || !other->bits)
		return 0;
	if (!set->bits)
		return mm_set_copy(set, other);
	roaring_bitmap_or_inplace(set->bits, other->bits);
	return 0;
}

int mm_set_and(struct mm_set *set, const struct mm_set *other)
{
	if (set == other || !set->bits)
		return 0;
	if (!other->bits) {
		mm_set_free(set);
		return 0;
	}
	roaring_bitmap_and_inplace(set->bits, other->bits);
	set_adopt(set, set->bits);
	return 0;
}

int mm_set_andnot(struct mm_set *set, const struct mm_set *other)
{
	if (!set->bits || !other->bits)
		return 0;
	if (set == other) {
		mm_set_free(set);
		return 0;
	}
	roaring_bitmap_andnot_inplace(set->bits, other->bits);
	set_adopt(set, set->bits);
	return 0;
}

/* *part (empty) becomes the pages of *set within the range. Costs what the range holds. */
static int set_cut(struct mm_set *part, const struct mm_set *set, uint64_t first, uint64_t nr)
{
	roaring_bitmap_t *range, *cut;

	if (!set->bits || range_is_empty(first, nr))
		return 0;
	range = roaring_bitmap_from_range(first, range_end(first, nr), 1);
	if (!range)
		return -ENOMEM;
	cut = roaring_bitmap_and(set->bits, range);
	roaring_bitmap_free(range);
	if (!cut)
		return -ENOMEM;
	set_adopt(part, cut);
	return 0;
}

int mm_set_or_range(struct mm_set *set, const struct mm_set *other, uint64_t first, uint64_t nr)
{
	_cleanup_set_ struct mm_set part = {NULL};
	int r;

	if (range_is_all(first, nr))
		return mm_set_or(set, other);
	r = set_cut(&part, other, first, nr);
	if (r < 0)
		return r;
	if (!set->bits) {
		mm_set_move(set, &part);
		return 0;
	}
	return mm_set_or(set, &part);
}

int mm_set_and_range(struct mm_set *set, const struct mm_set *other, uint64_t first, uint64_t nr)
{
	_cleanup_set_ struct mm_set away = {NULL};
	int r;

	if (range_is_all(first, nr))
		return mm_set_and(set, other);
	r = set_cut(&away, set, first, nr);
	if (r == 0)
		r = mm_set_andnot(&away, other);
	return r < 0 ? r : mm_set_andnot(set, &away);
}

int mm_set_andnot_range(struct mm_set *set, const struct mm_set *other, uint64_t first, uint64_t nr)
{
	_cleanup_set_ struct mm_set part = {NULL};
	int r;

	if (range_is_all(first, nr))
		return mm_set_andnot(set, other);
	r = set_cut(&part, other, first, nr);
	return r < 0 ? r : mm_set_andnot(set, &part);
}
