/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sets of pages: page indices 0 .. 2^32-1, of a file or of a mapping. Pure, no I/O, no locks.
 *
 * A set is a CRoaring bitmap, or NULL while it is empty: a zeroed struct is an empty set, a set
 * may be moved with memcpy or memmove, and long ranges cost a few bytes per 65536 pages.
 *
 * Ranges are given as first page and number of pages; what lies at or above MM_SET_MAX is cut off.
 * Functions that return int give 0 or -ENOMEM, and on -ENOMEM the set is as it was. CRoaring tells
 * us about a failed allocation of a bitmap only; when malloc fails for one of its containers the
 * process ends as by a kill, which it has to survive anyway.
 */
#ifndef WPFS_MM_SET_H
#define WPFS_MM_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MM_SET_MAX ((uint64_t)1 << 32)

struct roaring_bitmap_s;

struct mm_set {
	struct roaring_bitmap_s *bits; /* NULL: empty */
};

/* ---- life ---------------------------------------------------------------------------------- */

void mm_set_init(struct mm_set *set);

/* Releases what it holds and leaves it empty: may be used or freed again. */
void mm_set_free(struct mm_set *set);
void mm_set_clear(struct mm_set *set);

/* For _cleanup_(mm_set_free) on a variable that was zeroed. */
#define _cleanup_set_ __attribute__((cleanup(mm_set_free)))

/* *to becomes a copy of *from; it must be initialised. */
int mm_set_copy(struct mm_set *to, const struct mm_set *from);

/* *to (initialised) is freed and takes over *from, which is left empty. */
void mm_set_move(struct mm_set *to, struct mm_set *from);

/* ---- pages --------------------------------------------------------------------------------- */

int mm_set_add_range(struct mm_set *set, uint64_t first, uint64_t nr);
int mm_set_remove_range(struct mm_set *set, uint64_t first, uint64_t nr);

/* Removes everything outside of the range. */
int mm_set_keep_range(struct mm_set *set, uint64_t first, uint64_t nr);

bool mm_set_contains(const struct mm_set *set, uint64_t page);
bool mm_set_is_empty(const struct mm_set *set);
uint64_t mm_set_count(const struct mm_set *set);
uint64_t mm_set_count_range(const struct mm_set *set, uint64_t first, uint64_t nr);
bool mm_set_is_equal(const struct mm_set *a, const struct mm_set *b);
bool mm_set_is_subset(const struct mm_set *part, const struct mm_set *whole);

/* ---- algebra; `set` and `other` may be the same -----------------------------------------------
 */

int mm_set_or(struct mm_set *set, const struct mm_set *other);
int mm_set_and(struct mm_set *set, const struct mm_set *other);
int mm_set_andnot(struct mm_set *set, const struct mm_set *other);

/* The same within the range; pages of *set outside of it stay as they are. */
int mm_set_or_range(struct mm_set *set, const struct mm_set *other, uint64_t first, uint64_t nr);
int mm_set_and_range(struct mm_set *set, const struct mm_set *other, uint64_t first, uint64_t nr);
int mm_set_andnot_range(struct mm_set *set, const struct mm_set *other, uint64_t first,
			uint64_t nr);

/*
 * *to becomes *from with `by` added to every page; what leaves 0 .. MM_SET_MAX-1 is dropped. *to
 * must be initialised and may be *from itself.
 */
int mm_set_shift(struct mm_set *to, const struct mm_set *from, int64_t by);

/* ---- runs ---------------------------------------------------------------------------------- */

/*
 * Walks the maximal runs of pages of a set within a range, ascending. The set must not change
 * meanwhile. On the stack, no clean-up:
 *
 *	struct mm_runs runs;
 *	uint64_t first, nr;
 *
 *	mm_runs_begin(&runs, set, 0, MM_SET_MAX);
 *	while (mm_runs_next(&runs, &first, &nr))
 *		...
 */
#define MM_RUNS_BATCH 256

struct mm_runs { /* private to set_runs.c */
	const struct mm_set *set;
	uint64_t end;	     /* pages at or above it are not wanted; 0: the walk is over */
	uint32_t at, filled; /* of pages[]: taken, read */
	uint32_t pages[MM_RUNS_BATCH];
	_Alignas(8) char iter[64];
};

void mm_runs_begin(struct mm_runs *runs, const struct mm_set *set, uint64_t first, uint64_t nr);
bool mm_runs_next(struct mm_runs *runs, uint64_t *first, uint64_t *nr);

/* ---- building ------------------------------------------------------------------------------- */

#define MM_CHUNK_SHIFT 16
#define MM_CHUNK_PAGES ((uint64_t)1 << MM_CHUNK_SHIFT) /* chunk i holds pages i*65536 .. +65535 */
#define MM_CHUNK_WORDS (MM_CHUNK_PAGES / 64)

/*
 * Adds many runs, those that ascend at some nanoseconds each. What is out of order or there twice
 * (PAGEMAP_SCAN repeats itself where its last answer was a full one) is taken too, slowly. begin,
 * add as often as wanted, end.
 */
struct mm_builder { /* private to set_words.c */
	struct mm_set set;
	uint64_t first, nr; /* the last run, which may go on */
	uint32_t index;	    /* of the chunk in words[] */
	bool used;	    /* words[] holds pages */
	int err;
	uint64_t words[MM_CHUNK_WORDS];
};

void mm_builder_begin(struct mm_builder *b);
void mm_builder_add(struct mm_builder *b, uint64_t first, uint64_t nr);

/* Adds all of it to *set; always releases what the builder holds. 0 or -ENOMEM. */
int mm_builder_end(struct mm_builder *b, struct mm_set *set);

/* ---- chunks: how a set is stored ------------------------------------------------------------ */

#define MM_CHUNK_BYTES 8256 /* no chunk's bits are longer */

enum mm_chunk_kind { MM_CHUNK_EMPTY, MM_CHUNK_FULL, MM_CHUNK_BITS };

/*
 * What one chunk is. BITS: `bytes` holds the pages, as numbers 0 .. 65535 within the chunk, in
 * CRoaring's portable format (https://github.com/RoaringBitmap/RoaringFormatSpec). Equal pages
 * give equal bytes.
 */
struct mm_chunk {
	enum mm_chunk_kind kind;
	uint32_t len; /* bytes in use; 0 unless BITS */
	_Alignas(8) char bytes[MM_CHUNK_BYTES];
};

void mm_set_get_chunk(const struct mm_set *set, uint32_t index, struct mm_chunk *chunk);

/*
 * Adds the pages of a chunk to the set. -EBADMSG: the bytes are not one whole, valid chunk with at
 * least one page and not all of them (they may come from a corrupt or hostile database).
 */
int mm_set_add_chunk(struct mm_set *set, uint32_t index, enum mm_chunk_kind kind, const void *bytes,
		     size_t len);

/* Moves *index on to the first chunk at or after it that is not empty; false: there is none. */
bool mm_set_next_chunk(const struct mm_set *set, uint32_t *index);

#endif
