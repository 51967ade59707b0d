/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A table of rows of eight words. A page has one row, and in it any word: a part of its name and of
 * the sum of it and of what was read. So one page's word is taken for another's, or one content for
 * another, in one of 2^52 cases, also where all pages have the same contents. A disk gives another
 * sector unnoticed more often.
 *
 * A row that is full loses one of its pages: that will be written, for nothing perhaps.
 *
 * Not chosen: to have the kernel tell of the first store to a page. It does so only of one that is
 * write-protected, and to be asked for that costs more than the write that it spares.
 */
#include "spill/sums.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "base/units.h"

#define ROW	  8 /* words: a line of the processor's cache */
#define NAME_BITS 12
#define SUM_BITS  (64 - NAME_BITS)

struct spill_sums {
	_Atomic uint64_t *words; /* 0: nothing */
	uint64_t nr_rows;	 /* a power of two */
};

int spill_sums_new(uint64_t pages, struct spill_sums **out)
{
	struct spill_sums *sums = calloc(1, sizeof(*sums));

	if (!sums)
		return -ENOMEM;
	sums->nr_rows = 1;
	while (sums->nr_rows * ROW < pages)
		sums->nr_rows *= 2;
	/* What is never touched takes no memory. */
	sums->words = mmap(NULL, sums->nr_rows * ROW * sizeof(*sums->words), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (sums->words == MAP_FAILED) {
		free(sums);
		return -ENOMEM;
	}
	*out = sums;
	return 0;
}

void spill_sums_free(struct spill_sums *sums)
{
	if (!sums)
		return;
	munmap(sums->words, sums->nr_rows * ROW * sizeof(*sums->words));
	free(sums);
}

static uint64_t name_of(uint64_t file, uint64_t page)
{
	const uint64_t both[2] = {file, page};

	return XXH3_64bits(both, sizeof(both));
}

static _Atomic uint64_t *row_of(const struct spill_sums *sums, uint64_t name)
{
	return &sums->words[(name & (sums->nr_rows - 1)) * ROW];
}

static uint64_t word_of(uint64_t name, const void *contents)
{
	/* Of the page and of what is in it: many pages have the same contents. */
	const uint64_t sum = XXH3_64bits_withSeed(contents, WPFS_PAGE_SIZE, name);

	return name >> SUM_BITS << SUM_BITS | sum >> NAME_BITS;
}

static uint64_t word_get(const _Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_relaxed);
}

static void word_set(_Atomic uint64_t *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_relaxed);
}

/*
 * Takes the word of a page out of its row, and with it those of others that share this part of the
 * name. One that is free then, or the one to give way.
 */
static _Atomic uint64_t *row_clear(_Atomic uint64_t *row, uint64_t name)
{
	_Atomic uint64_t *free_word = NULL;

	for (int i = 0; i < ROW; i++) {
		const uint64_t word = word_get(&row[i]);

		if (word && word >> SUM_BITS == name >> SUM_BITS)
			word_set(&row[i], 0);
		if (!word_get(&row[i]))
			free_word = &row[i];
	}
	return free_word ? free_word : &row[(name >> SUM_BITS) % ROW];
}

void spill_sums_note(struct spill_sums *sums, uint64_t file, uint64_t page, const void *contents)
{
	const uint64_t name = name_of(file, page);

	word_set(row_clear(row_of(sums, name), name), word_of(name, contents));
}

bool spill_sums_take(struct spill_sums *sums, uint64_t file, uint64_t page, const void *contents)
{
	const uint64_t name = name_of(file, page);
	_Atomic uint64_t *row = row_of(sums, name);
	uint64_t is = 0; /* looked for only if there is something to compare it with */
	bool same = false;

	for (int i = 0; i < ROW; i++) {
		const uint64_t word = word_get(&row[i]);

		if (!word || word >> SUM_BITS != name >> SUM_BITS)
			continue;
		is = is ? is : word_of(name, contents);
		same |= word == is;
	}
	if (is)
		row_clear(row, name);
	return same;
}
