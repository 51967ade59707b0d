/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by the files of a set: chunks as words, page i of a chunk is bit i % 64 of word i / 64. */
#ifndef WPFS_MM_SET_WORDS_H
#define WPFS_MM_SET_WORDS_H

#include "mm/set.h"

/* One container in CRoaring's portable format: set_chunk.c. */
enum {
	SET_COOKIE_PLAIN = 12346,
	SET_COOKIE_RUNS = 12347,
	SET_PLAIN_KEY_AT = 8,
	SET_PLAIN_HEAD = 16,
	SET_RUNS_KEY_AT = 5,
	SET_RUNS_COUNT_AT = 9,
	SET_RUNS_HEAD = 11,
	SET_ARRAY_MAX = 4096, /* pages; more are bits */
};

/* Fills `words` (MM_CHUNK_WORDS) with a chunk's pages; gives how many they are. */
uint32_t set_words(const struct mm_set *set, uint32_t index, uint64_t *words);

/* Adds them. 0 or -ENOMEM. */
int set_add_words(struct mm_set *set, uint32_t index, const uint64_t *words);

#endif
