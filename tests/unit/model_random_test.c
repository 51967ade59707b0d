/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The model against a simulated kernel under random mappings, moves, stores and epochs. After each
 * harvest: no page that was stored to in its epoch is clean, and no page is dirty to which nothing
 * happened.
 *
 * A failure prints its seed; WPFS_TEST_SEED=N runs only that one, WPFS_TEST_SEEDS=N that many.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "model_sim.h"

#define SEEDS 400
#define STEPS 400
#define LAST  24 /* steps shown of one that failed */

static uint64_t from_env(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 10) : otherwise;
}

/* What one run was about: a test whose worlds do nothing proves nothing. */
struct tally {
	uint64_t armed, stored, dirty, clean;
};

static void count(const struct sim *s, struct tally *tally)
{
	for (int file = 0; file < SIM_FILES; file++) {
		const struct mm_file *f = mm_file_find(&s->mm, (uint64_t)file);

		for (int page = 0; f && page < SIM_PAGES; page++) {
			bool dirty = mm_set_contains(&f->own[MM_WPFS].dirty, (uint64_t)page);

			tally->armed += s->ref[file][page].armed;
			tally->stored += s->ref[file][page].stored;
			tally->dirty += dirty;
			tally->clean += s->ref[file][page].armed && !dirty;
		}
	}
}

static void run(uint64_t seed, struct tally *tally)
{
	const char *done[STEPS];
	struct sim s;

	sim_init(&s, seed);
	for (int step = 0; step < STEPS; step++) {
		done[step] = sim_step(&s);
		if (!s.failure[0])
			continue;
		for (int i = step > LAST ? step - LAST : 0; i <= step; i++)
			print_message("%d: %s\n", i, done[i]);
		fail_msg("WPFS_TEST_SEED=%llu step %d: %s", (unsigned long long)seed, step,
			 s.failure);
	}
	sim_harvest(&s);
	if (s.failure[0])
		fail_msg("WPFS_TEST_SEED=%llu at the end: %s", (unsigned long long)seed, s.failure);
	count(&s, tally);
	sim_free(&s);
}

static void test_never_a_lie_and_no_false_alarm(void **state)
{
	uint64_t first = from_env("WPFS_TEST_SEED", 1);
	uint64_t seeds = getenv("WPFS_TEST_SEED") ? 1 : from_env("WPFS_TEST_SEEDS", SEEDS);
	struct tally tally = {0};

	for (uint64_t seed = first; seed < first + seeds; seed++)
		run(seed, &tally);
	print_message("%llu seeds from %llu on: pages armed %llu, stored to %llu, dirty %llu, "
		      "clean %llu\n",
		      (unsigned long long)seeds, (unsigned long long)first,
		      (unsigned long long)tally.armed, (unsigned long long)tally.stored,
		      (unsigned long long)tally.dirty, (unsigned long long)tally.clean);
	if (seeds < 100)
		return;
	assert_true(tally.stored > seeds);
	assert_true(tally.clean > seeds);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_never_a_lie_and_no_false_alarm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
