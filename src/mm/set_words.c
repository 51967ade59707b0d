/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sets 64 pages at a time. Half of the pages of 64 GiB marked at random are four million runs:
 * whatever goes through them page by page or run by run costs more than the kernel's scan. CRoaring
 * shows its bits in public in one way only, as it serialises them, so a chunk is cut out and
 * serialised to get its words, and built from its stored form to put them back. That is some
 * microseconds a chunk.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <roaring/roaring.h>

#include "mm/set.h"
#include "mm/set_words.h"

#define WORD_BITS 64

/* ---- bits of a chunk ---- */

static void words_add_range(uint64_t *words, uint32_t first, uint32_t nr)
{
	uint32_t last = first + nr - 1;
	uint64_t head = ~(uint64_t)0 << first % WORD_BITS;
	uint64_t tail = ~(uint64_t)0 >> (WORD_BITS - 1 - last % WORD_BITS);

	if (first / WORD_BITS == last / WORD_BITS) {
		words[first / WORD_BITS] |= head & tail;
		return;
	}
	words[first / WORD_BITS] |= head;
	for (uint32_t i = first / WORD_BITS + 1; i < last / WORD_BITS; i++)
		words[i] = ~(uint64_t)0;
	words[last / WORD_BITS] |= tail;
}

static void words_of_pages(const roaring_bitmap_t *bits, uint64_t base, uint64_t *words)
{
	roaring_uint32_iterator_t iter;
	uint32_t pages[256], nr;

	roaring_init_iterator(bits, &iter);
	while ((nr = roaring_read_uint32_iterator(&iter, pages, 256)) > 0) {
		for (uint32_t i = 0; i < nr; i++)
			words_add_range(words, (uint32_t)(pages[i] - base), 1);
	}
}

/* From a serialised container of runs; its format is in set_chunk.c. */
static void words_of_runs(const char *bytes, uint64_t *words)
{
	uint16_t nr, run[2];

	memcpy(&nr, bytes + SET_RUNS_COUNT_AT, sizeof(nr));
	for (uint32_t i = 0; i < nr; i++) {
		memcpy(run, bytes + SET_RUNS_HEAD + 4 * (size_t)i, sizeof(run));
		words_add_range(words, run[0], run[1] + 1u);
	}
}

uint32_t set_words(const struct mm_set *set, uint32_t index, uint64_t *words)
{
	uint64_t base = (uint64_t)index << MM_CHUNK_SHIFT;
	_Alignas(8) char bytes[MM_CHUNK_BYTES];
	roaring_bitmap_t *chunk, *cut;
	uint32_t cookie, pages;
	size_t len;

	memset(words, 0, MM_CHUNK_WORDS * sizeof(*words));
	if (!set->bits)
		return 0;
	chunk = roaring_bitmap_from_range(base, base + MM_CHUNK_PAGES, 1);
	cut = chunk ? roaring_bitmap_and(set->bits, chunk) : NULL;
	if (chunk)
		roaring_bitmap_free(chunk);
	/* As where CRoaring itself has no memory for a container. */
	if (!cut)
		abort();
	pages = (uint32_t)roaring_bitmap_get_cardinality(cut);
	len = roaring_bitmap_portable_size_in_bytes(cut);
	if (pages == MM_CHUNK_PAGES) {
		memset(words, 0xff, MM_CHUNK_WORDS * sizeof(*words));
	} else if (pages &&
		   roaring_bitmap_maximum(cut) - roaring_bitmap_minimum(cut) == pages - 1) {
		words_add_range(words, roaring_bitmap_minimum(cut) - (uint32_t)base, pages);
	} else if (pages <= SET_ARRAY_MAX || len > sizeof(bytes)) {
		words_of_pages(cut, base, words);
	} else {
		roaring_bitmap_portable_serialize(cut, bytes);
		memcpy(&cookie, bytes, sizeof(cookie));
		if ((cookie & 0xffff) == SET_COOKIE_RUNS)
			words_of_runs(bytes, words);
		else if (len == SET_PLAIN_HEAD + MM_CHUNK_WORDS * sizeof(*words))
			memcpy(words, bytes + SET_PLAIN_HEAD, MM_CHUNK_WORDS * sizeof(*words));
		else
			words_of_pages(cut, base, words);
	}
	roaring_bitmap_free(cut);
	return pages;
}

/* ---- building ---- */

void mm_builder_begin(struct mm_builder *b)
{
	mm_set_init(&b->set);
	b->first = b->nr = 0;
	b->index = 0;
	b->used = false;
	b->err = 0;
}

/* The words of the chunk at hand become pages of the set. */
static void builder_flush(struct mm_builder *b)
{
	int r;

	if (!b->used)
		return;
	b->used = false;
	r = set_add_words(&b->set, b->index, b->words);
	if (r < 0)
		b->err = r;
}

/* The words of this chunk, flushing those of another. */
static uint64_t *builder_chunk(struct mm_builder *b, uint32_t index)
{
	if (b->used && b->index == index)
		return b->words;
	builder_flush(b);
	memset(b->words, 0, sizeof(b->words));
	b->used = true;
	b->index = index;
	return b->words;
}

/* A maximal run that is not the last one. */
static void builder_add_run(struct mm_builder *b, uint64_t first, uint64_t nr)
{
	while (nr > 0) {
		uint64_t at = first & (MM_CHUNK_PAGES - 1), here = MM_CHUNK_PAGES - at;

		if (at == 0 && nr >= MM_CHUNK_PAGES) {
			here = nr & ~(MM_CHUNK_PAGES - 1);
			builder_flush(b);
			if (mm_set_add_range(&b->set, first, here) < 0)
				b->err = -ENOMEM;
		} else {
			here = here < nr ? here : nr;
			words_add_range(builder_chunk(b, (uint32_t)(first >> MM_CHUNK_SHIFT)),
					(uint32_t)at, (uint32_t)here);
		}
		first += here;
		nr -= here;
	}
}

void mm_builder_add(struct mm_builder *b, uint64_t first, uint64_t nr)
{
	uint64_t end = b->first + b->nr;

	if (nr == 0 || first >= MM_SET_MAX)
		return;
	if (nr > MM_SET_MAX - first)
		nr = MM_SET_MAX - first;
	if (first < b->first) {
		if (mm_set_add_range(&b->set, first, nr) < 0)
			b->err = -ENOMEM;
		return;
	}
	if (b->nr && first <= end) {
		b->nr = first + nr > end ? first + nr - b->first : b->nr;
		return;
	}
	builder_add_run(b, b->first, b->nr);
	b->first = first;
	b->nr = nr;
}

/* 64 pages from `first` on, as bits; ascending. */
static void builder_add_word(struct mm_builder *b, uint64_t first, uint64_t word)
{
	uint32_t bit = first % WORD_BITS, at = (first & (MM_CHUNK_PAGES - 1)) / WORD_BITS;
	uint32_t index = (uint32_t)(first >> MM_CHUNK_SHIFT);

	builder_add_run(b, b->first, b->nr);
	b->nr = 0;
	builder_chunk(b, index)[at] |= word << bit;
	if (bit == 0 || word >> (WORD_BITS - bit) == 0)
		return;
	if (++at == MM_CHUNK_WORDS) {
		at = 0;
		index++;
	}
	builder_chunk(b, index)[at] |= word >> (WORD_BITS - bit);
}

int mm_builder_end(struct mm_builder *b, struct mm_set *set)
{
	int r;

	if (b->used)
		builder_add_run(b, b->first, b->nr);
	else if (mm_set_add_range(&b->set, b->first, b->nr) < 0)
		b->err = -ENOMEM;
	builder_flush(b);
	r = b->err;
	if (r == 0 && mm_set_is_empty(set))
		mm_set_move(set, &b->set);
	else if (r == 0)
		r = mm_set_or(set, &b->set);
	mm_set_free(&b->set);
	return r;
}

/* ---- shifting ---- */

/* The pages of a word from `page` on that are still pages after the shift. */
static uint64_t shift_clip(uint64_t word, uint64_t page, int64_t by)
{
	int64_t to = (int64_t)page + by;

	if (to <= -WORD_BITS || to >= (int64_t)MM_SET_MAX)
		return 0;
	if (to < 0)
		word &= ~(uint64_t)0 << -to;
	if (to > (int64_t)MM_SET_MAX - WORD_BITS)
		word &= ~(uint64_t)0 >> (to - ((int64_t)MM_SET_MAX - WORD_BITS));
	return word;
}

static void shift_chunk(struct mm_builder *b, uint64_t base, const uint64_t *words, int64_t by)
{
	for (uint32_t i = 0; i < MM_CHUNK_WORDS; i++) {
		uint64_t page = base + i * WORD_BITS;
		uint64_t word = words[i] ? shift_clip(words[i], page, by) : 0;
		int64_t to = (int64_t)page + by;

		if (word && to < 0)
			builder_add_word(b, 0, word >> -to);
		else if (word)
			builder_add_word(b, (uint64_t)to, word);
	}
}

static void shift_full_chunk(struct mm_builder *b, uint64_t base, int64_t by)
{
	int64_t first = (int64_t)base + by, end = first + (int64_t)MM_CHUNK_PAGES;

	if (first < 0)
		first = 0;
	if (end > first)
		mm_builder_add(b, (uint64_t)first, (uint64_t)(end - first));
}

/* Most sets are one run: what is marked of a mapping of which nothing was written. */
static bool set_is_run(const struct mm_set *set, uint64_t *first, uint64_t *nr)
{
	uint64_t last;

	if (!set->bits)
		return false;
	*first = roaring_bitmap_minimum(set->bits);
	last = roaring_bitmap_maximum(set->bits);
	*nr = last - *first + 1;
	return roaring_bitmap_get_cardinality(set->bits) == *nr;
}

static int shift_run(struct mm_set *to, uint64_t first, uint64_t nr, int64_t by)
{
	_cleanup_set_ struct mm_set moved = {NULL};
	int64_t start = (int64_t)first + by, end = start + (int64_t)nr;
	int r = 0;

	if (start < 0)
		start = 0;
	if (end > start)
		r = mm_set_add_range(&moved, (uint64_t)start, (uint64_t)(end - start));
	if (r == 0)
		mm_set_move(to, &moved);
	return r;
}

int mm_set_shift(struct mm_set *to, const struct mm_set *from, int64_t by)
{
	_cleanup_set_ struct mm_set moved = {NULL};
	uint64_t first, nr;
	struct mm_builder b;
	uint32_t index = 0;
	int r;

	if (by == 0)
		return mm_set_copy(to, from);
	if (by >= (int64_t)MM_SET_MAX || by <= -(int64_t)MM_SET_MAX) {
		mm_set_free(to);
		return 0;
	}
	if (set_is_run(from, &first, &nr))
		return shift_run(to, first, nr, by);
	mm_builder_begin(&b);
	for (; mm_set_next_chunk(from, &index); index++) {
		uint64_t words[MM_CHUNK_WORDS], base = (uint64_t)index << MM_CHUNK_SHIFT;

		if (set_words(from, index, words) == MM_CHUNK_PAGES)
			shift_full_chunk(&b, base, by);
		else
			shift_chunk(&b, base, words, by);
	}
	r = mm_builder_end(&b, &moved);
	if (r == 0)
		mm_set_move(to, &moved);
	return r;
}
