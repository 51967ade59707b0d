/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sets of pages against a plain array of bytes, chunks against what they must refuse. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "mm/set.h"

#define PAGES (5 * MM_CHUNK_PAGES) /* of the reference */
#define SEEDS 40
#define STEPS 60

static uint64_t rng_state;

static uint32_t rng(uint32_t below)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return (rng_state >> 16) % below;
}

/* A set and what it should be. */
struct pair {
	struct mm_set set;
	unsigned char *ref; /* PAGES bytes of 0 or 1 */
};

static void pair_make(struct pair *p)
{
	mm_set_init(&p->set);
	p->ref = calloc(1, PAGES);
	assert_non_null(p->ref);
}

static void pair_free(struct pair *p)
{
	mm_set_free(&p->set);
	free(p->ref);
}

/* Every page through runs: they must be maximal, ascending and exactly the reference. */
static void pair_check(const struct pair *p, uint64_t from, uint64_t nr)
{
	uint64_t first, len, at = from, end = from + nr > PAGES ? PAGES : from + nr, count = 0;
	struct mm_runs runs;

	mm_runs_begin(&runs, &p->set, from, nr);
	while (mm_runs_next(&runs, &first, &len)) {
		assert_true(first >= at && len > 0 && first + len <= end);
		assert_true(first == from || !p->ref[first - 1] || first == at);
		assert_null(memchr(p->ref + at, 1, first - at));
		assert_null(memchr(p->ref + first, 0, len));
		assert_true(first + len == end || !p->ref[first + len]);
		at = first + len;
		count += len;
	}
	assert_null(memchr(p->ref + at, 1, end - at));
	assert_int_equal(mm_set_count_range(&p->set, from, nr), count);
	assert_false(mm_runs_next(&runs, &first, &len));
}

/* A range as they come: pages, chunk borders, whole chunks, short and long. */
static void random_range(uint64_t *first, uint64_t *nr)
{
	*first = rng(3) ? rng(PAGES) : (uint64_t)rng(5) << MM_CHUNK_SHIFT;
	switch (rng(5)) {
	case 0:
		*nr = 1 + rng(4);
		break;
	case 1:
		*nr = rng(300);
		break;
	case 2:
		*nr = (1 + (uint64_t)rng(3)) << MM_CHUNK_SHIFT;
		break;
	default:
		*nr = rng(PAGES);
	}
	if (*nr > PAGES - *first)
		*nr = PAGES - *first;
}

static void step_scatter(struct pair *p)
{
	uint64_t base = rng(PAGES - MM_CHUNK_PAGES);
	uint32_t n = rng(2) ? rng(200) : rng(20000);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t page = base + rng(MM_CHUNK_PAGES);

		assert_int_equal(mm_set_add_range(&p->set, page, 1), 0);
		p->ref[page] = 1;
	}
}

static void step_range(struct pair *p)
{
	uint64_t first, nr;

	random_range(&first, &nr);
	if (rng(2)) {
		assert_int_equal(mm_set_add_range(&p->set, first, nr), 0);
		memset(p->ref + first, 1, nr);
	} else {
		assert_int_equal(mm_set_remove_range(&p->set, first, nr), 0);
		memset(p->ref + first, 0, nr);
	}
}

static void step_algebra(struct pair *p, const struct pair *q)
{
	uint64_t first = 0, nr = PAGES;
	uint32_t op = rng(7);

	if (op >= 3)
		random_range(&first, &nr);
	for (uint64_t i = first; op != 6 && i < first + nr; i++) {
		if (op % 3 == 0)
			p->ref[i] |= q->ref[i];
		else if (op % 3 == 1)
			p->ref[i] &= q->ref[i];
		else
			p->ref[i] &= !q->ref[i];
	}
	if (op == 0)
		assert_int_equal(mm_set_or(&p->set, &q->set), 0);
	else if (op == 1)
		assert_int_equal(mm_set_and(&p->set, &q->set), 0);
	else if (op == 2)
		assert_int_equal(mm_set_andnot(&p->set, &q->set), 0);
	else if (op == 3)
		assert_int_equal(mm_set_or_range(&p->set, &q->set, first, nr), 0);
	else if (op == 4)
		assert_int_equal(mm_set_and_range(&p->set, &q->set, first, nr), 0);
	else if (op == 5)
		assert_int_equal(mm_set_andnot_range(&p->set, &q->set, first, nr), 0);
	else {
		memset(p->ref, 0, first);
		memset(p->ref + first + nr, 0, PAGES - first - nr);
		assert_int_equal(mm_set_keep_range(&p->set, first, nr), 0);
	}
}

static void step_shift(struct pair *p)
{
	int64_t by = rng(2) ? (int64_t)rng(2 * PAGES) - (int64_t)PAGES : (int64_t)rng(64) - 32;
	unsigned char *moved = calloc(1, PAGES);
	struct mm_set to;

	assert_non_null(moved);
	mm_set_init(&to);
	assert_int_equal(mm_set_shift(&to, &p->set, by), 0);
	for (int64_t i = 0; i < (int64_t)PAGES; i++) {
		if (i + by >= 0 && i + by < (int64_t)PAGES)
			moved[i + by] = p->ref[i];
	}
	free(p->ref);
	p->ref = moved;
	assert_int_equal(mm_set_remove_range(&to, PAGES, MM_SET_MAX), 0);
	mm_set_move(&p->set, &to);
	assert_true(mm_set_is_empty(&to));
}

/* Built from its runs, cut anywhere, into a set that has some of them already. */
static void check_builder(const struct pair *p)
{
	struct mm_set built = {NULL};
	struct mm_builder b;
	uint64_t first, nr;

	random_range(&first, &nr);
	assert_int_equal(mm_set_or_range(&built, &p->set, first, nr), 0);
	mm_builder_begin(&b);
	for (uint64_t i = 0; i < PAGES; i += nr) {
		const unsigned char *end = memchr(p->ref + i, !p->ref[i], PAGES - i);

		nr = end ? (uint64_t)(end - p->ref) - i : PAGES - i;
		if (nr > 1 && rng(4) == 0)
			nr = 1 + rng((uint32_t)nr);
		if (p->ref[i])
			mm_builder_add(&b, i, nr);
		if (p->ref[i] && rng(64) == 0)
			mm_builder_add(&b, i + rng((uint32_t)nr), 1);
	}
	assert_int_equal(mm_builder_end(&b, &built), 0);
	assert_true(mm_set_is_equal(&built, &p->set));
	mm_set_free(&built);
}

/* Out through chunks and in again; the bytes do not depend on how the set came about. */
static void check_chunks(const struct pair *p)
{
	struct mm_set back, slow;
	static struct mm_chunk chunk, again;
	uint32_t index = 0;

	mm_set_init(&back);
	mm_set_init(&slow);
	for (uint64_t i = 0; i < PAGES; i++) {
		if (p->ref[i])
			assert_int_equal(mm_set_add_range(&slow, i, 1), 0);
	}
	for (; mm_set_next_chunk(&p->set, &index); index++) {
		mm_set_get_chunk(&p->set, index, &chunk);
		assert_int_not_equal(chunk.kind, MM_CHUNK_EMPTY);
		mm_set_get_chunk(&slow, index, &again);
		assert_int_equal(chunk.kind, again.kind);
		assert_int_equal(chunk.len, again.len);
		assert_memory_equal(chunk.bytes, again.bytes, chunk.len);
		assert_int_equal(mm_set_add_chunk(&back, index, chunk.kind, chunk.bytes, chunk.len),
				 0);
	}
	assert_true(mm_set_is_equal(&back, &p->set));
	assert_true(mm_set_is_equal(&slow, &p->set));
	mm_set_free(&back);
	mm_set_free(&slow);
}

static void check_relations(const struct pair *p, const struct pair *q)
{
	bool equal = memcmp(p->ref, q->ref, PAGES) == 0, subset = true;
	uint64_t page = rng(PAGES), count = 0;

	for (uint64_t i = 0; i < PAGES; i++) {
		subset &= p->ref[i] <= q->ref[i];
		count += p->ref[i];
	}
	assert_int_equal(mm_set_count(&p->set), count);
	assert_int_equal(mm_set_is_equal(&p->set, &q->set), equal);
	assert_int_equal(mm_set_is_subset(&p->set, &q->set), subset);
	assert_int_equal(mm_set_contains(&p->set, page), p->ref[page]);
	assert_int_equal(mm_set_is_empty(&p->set), !memchr(p->ref, 1, PAGES));
}

static void test_random(void **state)
{
	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct pair p[2];

		rng_state = seed * 0x9E3779B97F4A7C15u;
		pair_make(&p[0]);
		pair_make(&p[1]);
		for (int step = 0; step < STEPS; step++) {
			int i = rng(2);
			uint64_t first, nr;

			switch (rng(6)) {
			case 0:
				step_scatter(&p[i]);
				break;
			case 1:
				step_algebra(&p[i], &p[!i]);
				break;
			case 2:
				step_shift(&p[i]);
				break;
			default:
				step_range(&p[i]);
			}
			pair_check(&p[i], 0, MM_SET_MAX);
			random_range(&first, &nr);
			pair_check(&p[i], first, nr);
			check_relations(&p[i], &p[!i]);
			check_builder(&p[i]);
		}
		check_chunks(&p[0]);
		check_chunks(&p[1]);
		assert_int_equal(mm_set_copy(&p[0].set, &p[1].set), 0);
		assert_true(mm_set_is_equal(&p[0].set, &p[1].set));
		pair_free(&p[0]);
		pair_free(&p[1]);
	}
}

/* The upper end of the numbers, and ranges that reach over it. */
static void test_top(void **state)
{
	static struct mm_builder b;
	struct mm_set set = {NULL}, moved = {NULL};
	uint64_t first, nr;
	uint32_t index = 65535;
	struct mm_runs runs;

	assert_int_equal(mm_set_add_range(&set, MM_SET_MAX - 2, UINT64_MAX), 0);
	assert_int_equal(mm_set_count(&set), 2);
	assert_true(mm_set_contains(&set, MM_SET_MAX - 1));
	assert_false(mm_set_contains(&set, MM_SET_MAX));
	assert_int_equal(mm_set_count_range(&set, MM_SET_MAX - 1, 100), 1);
	assert_int_equal(mm_set_count_range(&set, MM_SET_MAX, 100), 0);
	assert_true(mm_set_next_chunk(&set, &index));
	index++;
	assert_false(mm_set_next_chunk(&set, &index));
	assert_int_equal(mm_set_shift(&moved, &set, 1), 0);
	assert_int_equal(mm_set_count(&moved), 1);
	assert_int_equal(mm_set_shift(&moved, &set, -(int64_t)(MM_SET_MAX - 2)), 0);
	assert_true(mm_set_contains(&moved, 0) && mm_set_contains(&moved, 1));
	assert_int_equal(mm_set_shift(&moved, &set, INT64_MIN), 0);
	assert_true(mm_set_is_empty(&moved));
	assert_int_equal(mm_set_shift(&moved, &set, INT64_MAX), 0);
	assert_true(mm_set_is_empty(&moved));
	assert_int_equal(mm_set_add_range(&set, MM_SET_MAX, 1), 0);
	assert_int_equal(mm_set_count(&set), 2);

	assert_int_equal(mm_set_add_range(&set, 0, MM_SET_MAX), 0);
	mm_runs_begin(&runs, &set, 0, MM_SET_MAX);
	assert_true(mm_runs_next(&runs, &first, &nr));
	assert_int_equal(first, 0);
	assert_int_equal(nr, MM_SET_MAX);
	assert_false(mm_runs_next(&runs, &first, &nr));
	mm_runs_begin(&runs, &set, 70000, 200000);
	assert_true(mm_runs_next(&runs, &first, &nr));
	assert_int_equal(first, 70000);
	assert_int_equal(nr, 200000);
	assert_int_equal(mm_set_shift(&moved, &set, -70001), 0);
	assert_int_equal(mm_set_count(&moved), MM_SET_MAX - 70001);
	assert_int_equal(mm_set_shift(&moved, &set, 70001), 0);
	assert_int_equal(mm_set_count_range(&moved, 70001, MM_SET_MAX), MM_SET_MAX - 70001);
	assert_false(mm_set_contains(&moved, 70000));
	assert_int_equal(mm_set_remove_range(&set, 0, UINT64_MAX), 0);
	assert_true(mm_set_is_empty(&set));

	mm_builder_begin(&b);
	mm_builder_add(&b, MM_SET_MAX - 3, 1);
	mm_builder_add(&b, MM_SET_MAX - 1, UINT64_MAX);
	mm_builder_add(&b, MM_SET_MAX, 1);
	assert_int_equal(mm_builder_end(&b, &set), 0);
	assert_int_equal(mm_set_count(&set), 2);
	mm_set_free(&set);
	mm_set_free(&moved);
}

/* What is stored today must be readable for ever: these bytes are fixed. */
static void test_golden(void **state)
{
	static const unsigned char runs[] = {
		0x3b, 0x30, 0, 0,	      /* cookie 12347, one container */
		1,    0,    0, 0x64, 0x01,    /* it has runs; key 0; 357 pages */
		2,    0,    5, 0,    0x63, 0, /* two: 100 pages from 5 */
		0xff, 0xfe, 0, 1,	      /* 257 pages from 65279 */
	};
	static const unsigned char plain[] = {
		0x3a, 0x30, 0, 0, 1,	0,    0, 0, /* cookie 12346, one container */
		0,    0,    2, 0, 16,	0,    0, 0, /* key 0, 3 pages, from byte 16 */
		1,    0,    4, 0, 0xff, 0xff,	    /* pages 1, 4, 65535 */
	};
	struct mm_set set = {NULL};
	static struct mm_chunk chunk;

	assert_int_equal(mm_set_add_range(&set, 7 * MM_CHUNK_PAGES + 5, 100), 0);
	assert_int_equal(mm_set_add_range(&set, 7 * MM_CHUNK_PAGES + 65279, 257), 0);
	mm_set_get_chunk(&set, 7, &chunk);
	assert_int_equal(chunk.kind, MM_CHUNK_BITS);
	assert_int_equal(chunk.len, sizeof(runs));
	assert_memory_equal(chunk.bytes, runs, sizeof(runs));

	mm_set_clear(&set);
	assert_int_equal(mm_set_add_chunk(&set, 2, MM_CHUNK_BITS, plain, sizeof(plain)), 0);
	assert_int_equal(mm_set_count(&set), 3);
	assert_true(mm_set_contains(&set, 2 * MM_CHUNK_PAGES + 1));
	assert_true(mm_set_contains(&set, 2 * MM_CHUNK_PAGES + 65535));
	mm_set_get_chunk(&set, 2, &chunk);
	assert_int_equal(chunk.len, sizeof(plain));
	assert_memory_equal(chunk.bytes, plain, sizeof(plain));
	mm_set_free(&set);
}

/* CRoaring 0.2.66 keeps a container of bits here although it has only 4096 pages left. */
static void test_border(void **state)
{
	struct mm_set set = {NULL}, back = {NULL};
	static struct mm_chunk chunk;

	for (uint32_t i = 0; i < 8192; i++)
		assert_int_equal(mm_set_add_range(&set, 8 * i, 1), 0);
	assert_int_equal(mm_set_remove_range(&set, 0, 8 * 4096), 0);
	assert_int_equal(mm_set_count(&set), 4096);
	mm_set_get_chunk(&set, 0, &chunk);
	assert_int_equal(mm_set_add_chunk(&back, 0, chunk.kind, chunk.bytes, chunk.len), 0);
	assert_true(mm_set_is_equal(&set, &back));
	mm_set_free(&set);
	mm_set_free(&back);
}

/* Offers a chunk; it is taken exactly if it holds what a chunk of bits can hold. */
static bool offer(const unsigned char *bytes, size_t len)
{
	static struct mm_chunk chunk;
	struct mm_set set = {NULL};
	unsigned char *copy = malloc(len ? len : 1); /* exact size: ASan sees a read behind it */
	uint64_t first, nr, pages = 0;
	struct mm_runs runs;
	int r;

	assert_non_null(copy);
	memcpy(copy, bytes, len);
	r = mm_set_add_chunk(&set, 9, MM_CHUNK_BITS, copy, len);
	assert_true(r == 0 || r == -EBADMSG);
	if (r == 0) {
		mm_runs_begin(&runs, &set, 0, MM_SET_MAX);
		while (mm_runs_next(&runs, &first, &nr)) {
			assert_true(first >> MM_CHUNK_SHIFT == 9);
			pages += nr;
		}
		assert_true(pages > 0 && pages < MM_CHUNK_PAGES);
		assert_int_equal(mm_set_count(&set), pages);
		mm_set_get_chunk(&set, 9, &chunk);
		assert_int_equal(chunk.kind, MM_CHUNK_BITS);
	} else {
		assert_true(mm_set_is_empty(&set));
	}
	mm_set_free(&set);
	free(copy);
	return r == 0;
}

/* Every cut and every changed byte of chunks of all three kinds of container. */
static void test_corrupt(void **state)
{
	static struct mm_chunk chunk;

	for (int kind = 0; kind < 3; kind++) {
		struct mm_set set = {NULL};
		size_t refused = 0;

		rng_state = 77;
		for (int i = 0; i < (kind == 2 ? 20000 : 50); i++)
			assert_int_equal(
				mm_set_add_range(&set, rng(65000), kind == 1 ? 1 + rng(400) : 1),
				0);
		mm_set_get_chunk(&set, 0, &chunk);
		assert_int_equal(chunk.kind, MM_CHUNK_BITS);
		assert_true(offer((unsigned char *)chunk.bytes, chunk.len));
		for (size_t len = 0; len < chunk.len; len++)
			assert_false(offer((unsigned char *)chunk.bytes, len));
		for (size_t at = 0; at < chunk.len; at++) {
			char was = chunk.bytes[at];

			chunk.bytes[at] = (char)(was ^ (1u << rng(8)));
			refused += !offer((unsigned char *)chunk.bytes, chunk.len);
			chunk.bytes[at] = (char)rng(256);
			offer((unsigned char *)chunk.bytes, chunk.len);
			chunk.bytes[at] = was;
		}
		assert_true(refused > 8);
		mm_set_free(&set);
	}
}

static void test_refused(void **state)
{
	static const unsigned char unsorted[] = {0x3a, 0x30, 0,	 0, 1, 0, 0, 0, 0, 0,
						 1,    0,    16, 0, 0, 0, 9, 0, 9, 0};
	static const unsigned char key_3[] = {0x3a, 0x30, 0, 0,	 1, 0, 0, 0, 3,
					      0,    0,	  0, 16, 0, 0, 0, 9, 0};
	static const unsigned char past_end[] = {0x3b, 0x30, 0, 0,    1,    0, 0, 1,
						 0,    1,    0, 0xff, 0xff, 1, 0};
	static const unsigned char full[] = {0x3b, 0x30, 0, 0, 1, 0,	0,   0xff,
					     0xff, 1,	 0, 0, 0, 0xff, 0xff};
	static const unsigned char overlap[] = {0x3b, 0x30, 0, 0, 1, 0, 0, 19, 0, 2,
						0,    0,    0, 9, 0, 5, 0, 9,  0};
	static const unsigned char adjacent[] = {0x3b, 0x30, 0, 0, 1, 0,  0, 19, 0, 2,
						 0,    0,    0, 9, 0, 10, 0, 9,	 0};
	static const unsigned char miscounted[] = {0x3b, 0x30, 0, 0, 1, 0, 0, 19,
						   0,	 1,    0, 0, 0, 9, 0};
	struct mm_set set = {NULL};

	assert_false(offer(overlap, sizeof(overlap)));
	assert_false(offer(adjacent, sizeof(adjacent)));
	assert_false(offer(miscounted, sizeof(miscounted)));
	assert_false(offer(unsorted, sizeof(unsorted)));
	assert_false(offer(key_3, sizeof(key_3)));
	assert_false(offer(past_end, sizeof(past_end)));
	assert_false(offer(full, sizeof(full)));
	assert_int_equal(mm_set_add_chunk(&set, 0, MM_CHUNK_FULL, "x", 1), -EBADMSG);
	assert_int_equal(mm_set_add_chunk(&set, 65536, MM_CHUNK_FULL, NULL, 0), -EBADMSG);
	assert_int_equal(mm_set_add_chunk(&set, 65535, MM_CHUNK_FULL, NULL, 0), 0);
	assert_int_equal(mm_set_count(&set), MM_CHUNK_PAGES);
	mm_set_free(&set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),	cmocka_unit_test(test_top),
		cmocka_unit_test(test_border),	cmocka_unit_test(test_golden),
		cmocka_unit_test(test_corrupt), cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
