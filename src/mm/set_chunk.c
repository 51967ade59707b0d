/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Chunks of a set as they are stored. A chunk is one container of a CRoaring bitmap, serialised as
 * a bitmap of its own with key 0:
 *
 *	without runs   u32 12346; u32 1; u16 key; u16 pages - 1; u32 16, where the pages begin; then
 *	               up to 4096 pages: u16 each, ascending; more: 8192 bytes of bits
 *	with runs      u32 12347; u8 1; u16 key; u16 pages - 1; u16 runs; then u16 first, u16 nr - 1
 *
 * all little-endian; the shorter of the two is chosen.
 *
 * Reading: CRoaring's own deserialize_safe keeps to the length of the buffer but believes counts,
 * order and run ends, which then are used as indices: everything is checked here first. Writing is
 * done here as well, for two defects of CRoaring 0.2.66: after removing a range a container of bits
 * can hold 4096 pages or less, and is then serialised as what nobody can read; and
 * remove_run_compression, needed for equal bytes, writes past its array if a run ends at 65535.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <roaring/roaring.h>

#include "mm/set.h"

enum {
	COOKIE_PLAIN = 12346,
	COOKIE_RUNS = 12347,
	PLAIN_KEY_AT = 8,
	PLAIN_HEAD = 16,
	RUNS_KEY_AT = 5,
	RUNS_HEAD = 11,
	ARRAY_MAX = 4096, /* pages; more are bits */
	BITS_BYTES = 8192,
};

_Static_assert(PLAIN_HEAD + BITS_BYTES <= MM_CHUNK_BYTES, "room for any chunk");
_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "CRoaring reads native order");

static uint16_t get16(const unsigned char *p)
{
	return p[0] | p[1] << 8;
}

static uint32_t get32(const unsigned char *p)
{
	return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static void put16(char *p, uint32_t value)
{
	p[0] = (char)value;
	p[1] = (char)(value >> 8);
}

static void put32(char *p, uint32_t value)
{
	put16(p, value);
	put16(p + 2, value >> 16);
}

static size_t put_plain(char *bytes, const struct mm_set *set, uint64_t base, uint32_t pages)
{
	uint32_t used = 0;
	uint64_t first, nr;
	struct mm_runs runs;

	put32(bytes, COOKIE_PLAIN);
	put32(bytes + 4, 1);
	put16(bytes + PLAIN_KEY_AT, 0);
	put16(bytes + 10, pages - 1);
	put32(bytes + 12, PLAIN_HEAD);
	bytes += PLAIN_HEAD;
	if (pages > ARRAY_MAX)
		memset(bytes, 0, BITS_BYTES);
	mm_runs_begin(&runs, set, base, MM_CHUNK_PAGES);
	while (mm_runs_next(&runs, &first, &nr)) {
		for (uint64_t i = first - base; i < first - base + nr; i++) {
			if (pages > ARRAY_MAX)
				bytes[i / 8] |= (char)(1 << i % 8);
			else
				put16(bytes + 2 * (size_t)used++, i);
		}
	}
	return PLAIN_HEAD + (pages > ARRAY_MAX ? (size_t)BITS_BYTES : 2 * (size_t)pages);
}

static size_t put_runs(char *bytes, const struct mm_set *set, uint64_t base, uint32_t pages,
		       uint32_t nr_runs)
{
	char *p = bytes + RUNS_HEAD;
	uint64_t first, nr;
	struct mm_runs runs;

	put32(bytes, COOKIE_RUNS);
	bytes[4] = 1;
	put16(bytes + RUNS_KEY_AT, 0);
	put16(bytes + 7, pages - 1);
	put16(bytes + 9, nr_runs);
	mm_runs_begin(&runs, set, base, MM_CHUNK_PAGES);
	for (; mm_runs_next(&runs, &first, &nr); p += 4) {
		put16(p, first - base);
		put16(p + 2, nr - 1);
	}
	return p - bytes;
}

void mm_set_get_chunk(const struct mm_set *set, uint32_t index, struct mm_chunk *chunk)
{
	uint64_t base = (uint64_t)index << MM_CHUNK_SHIFT, first, nr;
	uint32_t pages = 0, nr_runs = 0, plain;
	struct mm_runs runs;

	mm_runs_begin(&runs, set, base, MM_CHUNK_PAGES);
	while (mm_runs_next(&runs, &first, &nr)) {
		pages += nr;
		nr_runs++;
	}
	chunk->len = 0;
	chunk->kind = pages == 0 ? MM_CHUNK_EMPTY : MM_CHUNK_FULL;
	if (pages == 0 || pages == MM_CHUNK_PAGES)
		return;
	plain = PLAIN_HEAD + (pages > ARRAY_MAX ? (uint32_t)BITS_BYTES : 2 * pages);
	chunk->kind = MM_CHUNK_BITS;
	if (RUNS_HEAD + 4 * nr_runs < plain)
		chunk->len = put_runs(chunk->bytes, set, base, pages, nr_runs);
	else
		chunk->len = put_plain(chunk->bytes, set, base, pages);
}

static bool array_is_valid(const unsigned char *p, size_t nr)
{
	for (size_t i = 1; i < nr; i++) {
		if (get16(p + 2 * i) <= get16(p + 2 * (i - 1)))
			return false;
	}
	return true;
}

static bool bits_are_valid(const unsigned char *p, size_t nr)
{
	size_t found = 0;

	for (size_t i = 0; i < BITS_BYTES; i++)
		found += __builtin_popcount(p[i]);
	return found == nr;
}

/* Ascending with gaps between them, inside the chunk, `nr` pages in all. */
static bool runs_are_valid(const unsigned char *p, size_t runs, size_t nr)
{
	uint32_t free_from = 0; /* the lowest page the next run may begin with */
	size_t found = 0;

	for (size_t i = 0; i < runs; i++) {
		uint32_t first = get16(p + 4 * i);
		uint32_t last = first + get16(p + 4 * i + 2);

		if (first < free_from || last >= MM_CHUNK_PAGES)
			return false;
		found += last - first + 1;
		free_from = last + 2;
	}
	return found == nr;
}

static bool chunk_is_valid(const unsigned char *p, size_t len)
{
	size_t nr;

	if (len >= PLAIN_HEAD && get32(p) == COOKIE_PLAIN) {
		nr = get16(p + 10) + 1u;
		if (get32(p + 4) != 1 || get16(p + PLAIN_KEY_AT) != 0 ||
		    get32(p + 12) != PLAIN_HEAD)
			return false;
		if (nr > ARRAY_MAX)
			return nr < MM_CHUNK_PAGES && len == PLAIN_HEAD + BITS_BYTES &&
			       bits_are_valid(p + PLAIN_HEAD, nr);
		return len == PLAIN_HEAD + 2 * nr && array_is_valid(p + PLAIN_HEAD, nr);
	}
	if (len < RUNS_HEAD || get32(p) != COOKIE_RUNS)
		return false;
	nr = get16(p + 7) + 1u;
	return p[4] == 1 && get16(p + RUNS_KEY_AT) == 0 && nr < MM_CHUNK_PAGES &&
	       len == RUNS_HEAD + 4 * (size_t)get16(p + 9) &&
	       runs_are_valid(p + RUNS_HEAD, get16(p + 9), nr);
}

static int add_bits(struct mm_set *set, uint32_t index, const void *bytes, size_t len)
{
	_cleanup_set_ struct mm_set part = {NULL};
	char copy[MM_CHUNK_BYTES];

	if (len > sizeof(copy) || !chunk_is_valid(bytes, len))
		return -EBADMSG;
	memcpy(copy, bytes, len);
	put16(copy + (get32(bytes) == COOKIE_PLAIN ? PLAIN_KEY_AT : RUNS_KEY_AT), index);
	part.bits = roaring_bitmap_portable_deserialize_safe(copy, len);
	if (!part.bits)
		return -ENOMEM;
	if (mm_set_is_empty(set)) {
		mm_set_move(set, &part);
		return 0;
	}
	return mm_set_or(set, &part);
}

int mm_set_add_chunk(struct mm_set *set, uint32_t index, enum mm_chunk_kind kind, const void *bytes,
		     size_t len)
{
	if (index >= MM_SET_MAX >> MM_CHUNK_SHIFT)
		return -EBADMSG;
	if (kind == MM_CHUNK_BITS)
		return add_bits(set, index, bytes, len);
	if (len != 0)
		return -EBADMSG;
	if (kind == MM_CHUNK_EMPTY)
		return 0;
	return mm_set_add_range(set, (uint64_t)index << MM_CHUNK_SHIFT, MM_CHUNK_PAGES);
}

bool mm_set_next_chunk(const struct mm_set *set, uint32_t *index)
{
	roaring_uint32_iterator_t iter;

	if (!set->bits || *index >= MM_SET_MAX >> MM_CHUNK_SHIFT)
		return false;
	roaring_init_iterator(set->bits, &iter);
	if (*index > 0)
		roaring_move_uint32_iterator_equalorlarger(&iter, *index << MM_CHUNK_SHIFT);
	if (!iter.has_value)
		return false;
	*index = iter.current_value >> MM_CHUNK_SHIFT;
	return true;
}
