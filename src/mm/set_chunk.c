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
#include "mm/set_words.h"

#define BITS_BYTES (MM_CHUNK_WORDS * 8)

_Static_assert(SET_PLAIN_HEAD + BITS_BYTES <= MM_CHUNK_BYTES, "room for any chunk");
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

/* The lowest page at or after `page` that is in the chunk (or, `in` false, is not); 65536: none. */
static uint32_t words_next(const uint64_t *words, uint32_t page, bool in)
{
	uint32_t i = page / 64;
	uint64_t flip = in ? 0 : ~(uint64_t)0;
	uint64_t word = i < MM_CHUNK_WORDS ? (words[i] ^ flip) & ~(uint64_t)0 << page % 64 : 0;

	while (word == 0) {
		if (++i >= MM_CHUNK_WORDS)
			return MM_CHUNK_PAGES;
		word = words[i] ^ flip;
	}
	return i * 64 + (uint32_t)__builtin_ctzll(word);
}

static size_t put_plain(char *bytes, const uint64_t *words, uint32_t pages)
{
	put32(bytes, SET_COOKIE_PLAIN);
	put32(bytes + 4, 1);
	put16(bytes + SET_PLAIN_KEY_AT, 0);
	put16(bytes + 10, pages - 1);
	put32(bytes + 12, SET_PLAIN_HEAD);
	bytes += SET_PLAIN_HEAD;
	if (pages > SET_ARRAY_MAX) {
		memcpy(bytes, words, BITS_BYTES);
		return SET_PLAIN_HEAD + BITS_BYTES;
	}
	for (uint32_t page = words_next(words, 0, true); page < MM_CHUNK_PAGES;
	     page = words_next(words, page + 1, true), bytes += 2)
		put16(bytes, page);
	return SET_PLAIN_HEAD + 2 * (size_t)pages;
}

static size_t put_runs(char *bytes, const uint64_t *words, uint32_t pages, uint32_t nr_runs)
{
	char *p = bytes + SET_RUNS_HEAD;
	uint32_t first = words_next(words, 0, true);

	put32(bytes, SET_COOKIE_RUNS);
	bytes[4] = 1;
	put16(bytes + SET_RUNS_KEY_AT, 0);
	put16(bytes + 7, pages - 1);
	put16(bytes + SET_RUNS_COUNT_AT, nr_runs);
	for (; first < MM_CHUNK_PAGES; p += 4) {
		uint32_t end = words_next(words, first, false);

		put16(p, first);
		put16(p + 2, end - first - 1);
		first = words_next(words, end, true);
	}
	return p - bytes;
}

static void chunk_of_words(struct mm_chunk *chunk, const uint64_t *words)
{
	uint32_t pages = 0, nr_runs = 0, plain;
	uint64_t before = 0;

	for (uint32_t i = 0; i < MM_CHUNK_WORDS; i++) {
		if (!words[i]) {
			before = 0;
			continue;
		}
		pages += (uint32_t)__builtin_popcountll(words[i]);
		/* a run begins where a page is in the chunk and the one before it is not */
		nr_runs += (uint32_t)__builtin_popcountll(words[i] & ~(words[i] << 1 | before));
		before = words[i] >> 63;
	}
	chunk->len = 0;
	chunk->kind = pages == 0 ? MM_CHUNK_EMPTY : MM_CHUNK_FULL;
	if (pages == 0 || pages == MM_CHUNK_PAGES)
		return;
	plain = SET_PLAIN_HEAD + (pages > SET_ARRAY_MAX ? (uint32_t)BITS_BYTES : 2 * pages);
	chunk->kind = MM_CHUNK_BITS;
	if (SET_RUNS_HEAD + 4 * nr_runs < plain)
		chunk->len = (uint32_t)put_runs(chunk->bytes, words, pages, nr_runs);
	else
		chunk->len = (uint32_t)put_plain(chunk->bytes, words, pages);
}

void mm_set_get_chunk(const struct mm_set *set, uint32_t index, struct mm_chunk *chunk)
{
	uint64_t words[MM_CHUNK_WORDS];
	uint32_t pages = set_words(set, index, words);

	if (pages > 0 && pages < MM_CHUNK_PAGES) {
		chunk_of_words(chunk, words);
		return;
	}
	chunk->kind = pages ? MM_CHUNK_FULL : MM_CHUNK_EMPTY;
	chunk->len = 0;
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

	if (len >= SET_PLAIN_HEAD && get32(p) == SET_COOKIE_PLAIN) {
		nr = get16(p + 10) + 1u;
		if (get32(p + 4) != 1 || get16(p + SET_PLAIN_KEY_AT) != 0 ||
		    get32(p + 12) != SET_PLAIN_HEAD)
			return false;
		if (nr > SET_ARRAY_MAX)
			return nr < MM_CHUNK_PAGES && len == SET_PLAIN_HEAD + BITS_BYTES &&
			       bits_are_valid(p + SET_PLAIN_HEAD, nr);
		return len == SET_PLAIN_HEAD + 2 * nr && array_is_valid(p + SET_PLAIN_HEAD, nr);
	}
	if (len < SET_RUNS_HEAD || get32(p) != SET_COOKIE_RUNS)
		return false;
	nr = get16(p + 7) + 1u;
	return p[4] == 1 && get16(p + SET_RUNS_KEY_AT) == 0 && nr < MM_CHUNK_PAGES &&
	       len == SET_RUNS_HEAD + 4 * (size_t)get16(p + 9) &&
	       runs_are_valid(p + SET_RUNS_HEAD, get16(p + 9), nr);
}

/* A valid chunk, of which the key is set. */
static int add_bits(struct mm_set *set, uint32_t index, char *bytes, size_t len)
{
	_cleanup_set_ struct mm_set part = {NULL};

	put16(bytes + (get32((const unsigned char *)bytes) == SET_COOKIE_PLAIN ? SET_PLAIN_KEY_AT
									       : SET_RUNS_KEY_AT),
	      index);
	part.bits = roaring_bitmap_portable_deserialize_safe(bytes, len);
	if (!part.bits)
		return -ENOMEM;
	if (mm_set_is_empty(set)) {
		mm_set_move(set, &part);
		return 0;
	}
	return mm_set_or(set, &part);
}

int set_add_words(struct mm_set *set, uint32_t index, const uint64_t *words)
{
	struct mm_chunk chunk;

	chunk_of_words(&chunk, words);
	if (chunk.kind == MM_CHUNK_BITS)
		return add_bits(set, index, chunk.bytes, chunk.len);
	return mm_set_add_chunk(set, index, chunk.kind, NULL, 0);
}

int mm_set_add_chunk(struct mm_set *set, uint32_t index, enum mm_chunk_kind kind, const void *bytes,
		     size_t len)
{
	if (index >= MM_SET_MAX >> MM_CHUNK_SHIFT)
		return -EBADMSG;
	if (kind == MM_CHUNK_BITS) {
		char copy[MM_CHUNK_BYTES];

		if (len > sizeof(copy) || !chunk_is_valid(bytes, len))
			return -EBADMSG;
		memcpy(copy, bytes, len);
		return add_bits(set, index, copy, len);
	}
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
