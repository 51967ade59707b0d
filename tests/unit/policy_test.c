/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which page goes: the rules one by one, and a simulator that measures hit rates. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "spill/policy.h"

static int owner;

static struct policy *make(uint64_t capacity, uint32_t *slot)
{
	struct policy *p = NULL;

	assert_int_equal(policy_new(capacity, &p), 0);
	assert_int_equal(policy_file_add(p, &owner, slot), 0);
	return p;
}

static struct policy_page pop(struct policy *p)
{
	struct policy_page page;

	assert_true(policy_pop(p, 0, 0, &page));
	return page;
}

/* The first turn probes, the second asks; unused pages leave in the order they came. */
static void test_order(void **state)
{
	uint32_t slot;
	struct policy *p = make(100, &slot);
	struct policy_page page;

	(void)state;
	for (uint64_t i = 0; i < 10; i++)
		policy_insert(p, slot, i);
	assert_int_equal(policy_count(p), 10);
	for (uint64_t left = 0, turns = 0; left < 10; turns++) {
		page = pop(p);
		if (page.probed)
			assert_int_equal(page.page, left++);
		policy_put(p, &page, page.probed ? POLICY_EVICTED : POLICY_PROBED, 1);
		assert_true(turns < 20);
	}
	assert_false(policy_pop(p, 9, 0, &page));
	policy_free(p);
}

/* What comes back soon after it left is kept apart from what comes for the first time. */
static void test_ghost(void **state)
{
	uint32_t slot;
	struct policy *p = make(100, &slot);
	struct policy_page page;

	(void)state;
	policy_insert(p, slot, 7);
	page = pop(p);
	assert_false(page.probed || page.main);
	policy_put(p, &page, POLICY_EVICTED, 0);
	assert_int_equal(policy_count(p), 0);
	policy_insert(p, slot, 7);
	page = pop(p);
	assert_true(page.main);
	policy_put(p, &page, POLICY_GONE, 0);
	policy_insert(p, slot, 7);
	assert_false(pop(p).main);
	policy_free(p);
}

/* What was dropped has no turn, and what came anew has one and not two. */
static void test_drop(void **state)
{
	uint32_t slot;
	struct policy *p = make(100, &slot);
	struct policy_page page;

	(void)state;
	for (uint64_t i = 0; i < 10000; i++)
		policy_insert(p, slot, i);
	policy_drop(p, slot, 1, UINT64_MAX);
	assert_int_equal(policy_count(p), 1);
	assert_int_equal(pop(p).page, 0);
	assert_false(policy_pop(p, 0, 0, &page));
	for (int turn = 0; turn < 100000; turn++) {
		policy_insert(p, slot, 5);
		policy_drop(p, slot, 5, 1);
	}
	policy_insert(p, slot, 5);
	assert_int_equal(policy_count(p), 1);
	/* Dropped and come anew while its turn lasts. */
	page = pop(p);
	policy_drop(p, slot, 5, 1);
	policy_insert(p, slot, 5);
	policy_put(p, &page, POLICY_PROBED, 0);
	assert_int_equal(policy_count(p), 1);
	policy_file_remove(p, slot);
	assert_int_equal(policy_count(p), 0);
	assert_false(policy_pop(p, 0, 0, &page));
	policy_free(p);
}

/* Nothing is asked about sooner than min_age after its probe, as long as there is another. */
static void test_age(void **state)
{
	uint32_t slot;
	struct policy *p = make(100, &slot);
	struct policy_page page;

	(void)state;
	for (uint64_t i = 0; i < 50; i++)
		policy_insert(p, slot, i);
	for (uint64_t i = 0; i < 50; i++) {
		assert_true(policy_pop(p, 65530, 10, &page));
		assert_false(page.probed);
		policy_put(p, &page, POLICY_PROBED, 65530);
	}
	assert_true(policy_pop(p, 65535, 10, &page));
	assert_true(page.probed && page.tick == 65530);
	policy_put(p, &page, POLICY_WAIT, 0);
	assert_true(policy_pop(p, (uint16_t)(65530 + 10), 10, &page));
	assert_true(page.probed);
	policy_free(p);
}

/* ---- simulator: what a program does, and a cache that asks the policy ---- */

struct sim {
	uint64_t pages, room, resident, hits, accesses;
	uint8_t *in, *mapped;
	uint64_t *list; /* random choice: the resident pages */
	struct policy *policy;
	uint32_t slot;
	uint64_t rng;
	uint32_t *rank; /* zipf: page of a rank */
	double *cdf;
};

static uint64_t next_random(uint64_t *s)
{
	uint64_t z = (*s += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static void sim_init(struct sim *s, uint64_t pages, uint64_t room, bool random)
{
	double sum = 0;

	*s = (struct sim){.pages = pages, .room = room, .rng = 42};
	s->in = calloc(1, pages);
	s->mapped = calloc(1, pages);
	s->list = calloc(room, sizeof(*s->list));
	s->rank = calloc(pages, sizeof(*s->rank));
	s->cdf = calloc(pages, sizeof(*s->cdf));
	if (!random)
		s->policy = make(room, &s->slot);
	for (uint64_t i = 0; i < pages; i++) {
		uint64_t j = next_random(&s->rng) % (i + 1);

		sum += 1 / pow((double)(i + 1), 0.99);
		s->cdf[i] = sum;
		s->rank[i] = s->rank[j];
		s->rank[j] = (uint32_t)i;
	}
}

static void sim_free(struct sim *s)
{
	free(s->in);
	free(s->mapped);
	free(s->list);
	free(s->rank);
	free(s->cdf);
	policy_free(s->policy);
}

static uint64_t sim_zipf(struct sim *s)
{
	double at = (double)(next_random(&s->rng) >> 11) / 9007199254740992.0;
	uint64_t low = 0, high = s->pages - 1;

	at *= s->cdf[s->pages - 1];
	while (low < high) {
		uint64_t mid = (low + high) / 2;

		if (s->cdf[mid] < at)
			low = mid + 1;
		else
			high = mid;
	}
	return s->rank[low];
}

static void sim_evict(struct sim *s)
{
	struct policy_page page;
	uint64_t i;

	if (!s->policy) {
		i = next_random(&s->rng) % s->resident;
		s->in[s->list[i]] = 0;
		s->list[i] = s->list[--s->resident];
		return;
	}
	for (;;) {
		assert_true(policy_pop(s->policy, 0, 0, &page));
		if (page.probed && !page.touched && !s->mapped[page.page])
			break;
		policy_put(s->policy, &page,
			   !page.probed		  ? POLICY_PROBED
			   : s->mapped[page.page] ? POLICY_USED
						  : POLICY_SPARED,
			   0);
		s->mapped[page.page] = 0;
	}
	s->in[page.page] = 0;
	s->resident--;
	policy_put(s->policy, &page, POLICY_EVICTED, 0);
}

static void sim_access(struct sim *s, uint64_t page, bool count)
{
	s->accesses += count;
	s->hits += count && s->in[page];
	s->mapped[page] = 1;
	if (s->in[page])
		return;
	if (s->resident == s->room)
		sim_evict(s);
	s->in[page] = 1;
	if (s->policy)
		policy_insert(s->policy, s->slot, page);
	else
		s->list[s->resident] = page;
	s->resident++;
}

/* Percent of the zipf accesses that hit; with `scan`, one page of a cyclic scan after each two. */
static double sim_run(uint64_t pages, uint64_t room, bool random, bool scan)
{
	struct sim s;
	uint64_t at = 0;
	double rate;

	sim_init(&s, pages, room, random);
	for (uint64_t i = 0; i < pages * 30; i++) {
		sim_access(&s, sim_zipf(&s), i > pages * 10);
		if (scan && i % 2)
			sim_access(&s, at++ % pages, false);
	}
	rate = 100.0 * (double)s.hits / (double)s.accesses;
	sim_free(&s);
	return rate;
}

static void test_hit_rate(void **state)
{
	double ours, chance;

	(void)state;
	for (unsigned part = 4; part <= 32; part *= 2) {
		ours = sim_run(1 << 14, (1 << 14) / part, false, false);
		chance = sim_run(1 << 14, (1 << 14) / part, true, false);
		print_message("zipf 0.99, 1/%u resident: %.1f %%, at random %.1f %%\n", part, ours,
			      chance);
		assert_true(ours >= chance + (part < 16 ? 20 / part : 10));
		/* 85.9 is what could be had at all; uses that are not counted give 81.6. */
		assert_true(part != 4 || ours >= 82.5);
		ours = sim_run(1 << 14, (1 << 14) / part, false, true);
		chance = sim_run(1 << 14, (1 << 14) / part, true, true);
		print_message("  with a cyclic scan: %.1f %%, at random %.1f %%\n", ours, chance);
		assert_true(ours >= chance + 10);
	}
}

/* ---- the rings against a plain model ---- */

#define RING_FILES 3u
#define RING_PAGES 5000u
#define RING_STEPS 400000u

/* A queue as an array; what was dropped stays in it and is passed over. */
struct plain_entry {
	uint32_t file, page, stay;
	uint16_t tick;
};

struct plain {
	struct plain_entry *of;
	size_t head, nr;
};

static uint32_t stays[RING_FILES][RING_PAGES]; /* 0: not there; else which stay it is */

static struct plain_entry plain_next(struct plain *q)
{
	while (q->head < q->nr &&
	       q->of[q->head].stay != stays[q->of[q->head].file][q->of[q->head].page])
		q->head++;
	assert_true(q->head < q->nr);
	return q->of[q->head++];
}

/*
 * Pages of several files come, are probed at various ticks, leave, and are dropped by the thousand:
 * each comes in its turn, with its file and its tick.
 */
static void test_rings(void **state)
{
	struct plain queues[2] = {{0}}; /* fresh, aged */
	struct policy *p = NULL;
	uint32_t slots[RING_FILES], stay = 0;
	uint64_t count = 0;

	(void)state;
	srandom(5);
	assert_int_equal(policy_new(1 << 20, &p), 0);
	for (size_t i = 0; i < RING_FILES; i++)
		assert_int_equal(policy_file_add(p, &owner, &slots[i]), 0);
	for (size_t i = 0; i < 2; i++)
		queues[i].of = calloc(RING_STEPS + 1, sizeof(*queues[i].of));
	for (uint32_t step = 0; step < RING_STEPS; step++) {
		/* Mostly neighbours of a file, and several steps to a tick; but not always. */
		uint32_t any = (uint32_t)random();
		uint32_t file = any % 8 ? step / 500 % RING_FILES : any / 8 % RING_FILES;
		uint32_t page = any % 4 ? step % RING_PAGES : any / 64 % RING_PAGES;
		uint16_t tick = (uint16_t)(step / (1 + step / 1000 % 50));
		struct policy_page got;
		struct plain_entry want;

		if (random() % 5000 == 0) {
			policy_drop(p, slots[file], page, 3000);
			for (uint32_t i = page; i < page + 3000 && i < RING_PAGES; i++) {
				count -= stays[file][i] != 0;
				stays[file][i] = 0;
			}
		} else if (random() % 3) {
			if (stays[file][page])
				continue; /* that would be a touch */
			stays[file][page] = ++stay;
			queues[0].of[queues[0].nr++] = (struct plain_entry){file, page, stay, 0};
			policy_insert(p, slots[file], page);
			count++;
		} else if (count) {
			assert_true(policy_pop(p, tick, 0, &got));
			want = plain_next(&queues[got.probed]);
			assert_int_equal(got.page, want.page);
			assert_int_equal(got.slot, slots[want.file]);
			if (got.probed) {
				assert_int_equal(got.tick, want.tick);
				policy_put(p, &got, POLICY_GONE, tick);
				stays[want.file][want.page] = 0;
				count--;
			} else {
				want.tick = tick;
				queues[1].of[queues[1].nr++] = want;
				policy_put(p, &got, POLICY_PROBED, tick);
			}
		}
		assert_int_equal(policy_count(p), count);
	}
	assert_true(queues[1].head > RING_STEPS / 20);
	for (size_t i = 0; i < 2; i++)
		free(queues[i].of);
	policy_free(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order), cmocka_unit_test(test_ghost),
		cmocka_unit_test(test_drop),  cmocka_unit_test(test_age),
		cmocka_unit_test(test_rings), cmocka_unit_test(test_hit_rate),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
