/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libwpfs's answers about pages, without a daemon: what it asks, and what it makes of runs that
 * come in several answers, of an answer that breaks off and is asked for again, and of nonsense.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "lib/handle.h"

#define P ((uint64_t)WPFS_PAGE)

/* What the next lib_ask gives: answers one after the other. */
struct answer {
	int status;
	bool broken; /* comes in part, and then the question is asked again */
	size_t nr;
	struct wpfs_rec_run run[4];
};

static const struct answer *answers;
static struct wpfs_self asked[8];
static size_t nr_asked;

int lib_fail(int err, const char *what, const char *fmt, ...)
{
	return err;
}

int lib_fail_errno(int err, const char *what)
{
	return err;
}

int lib_file(struct wpfs *handle, const char *what, int fd, uint64_t *ino)
{
	*ino = 77;
	return fd == 9 ? -EXDEV : 0;
}

int lib_ask(struct wpfs *handle, const char *what, enum wpfs_op op, const struct wpfs_self *self,
	    void *reply, ipc_record_fn fn, void *arg)
{
	const struct answer *a = answers++;

	assert_int_equal(op, WPFS_OP_SELF_RUNS);
	asked[nr_asked++] = *self;
	for (int tries = 0; tries < (a->broken ? 2 : 1); tries++) {
		size_t nr = a->broken && tries == 0 ? a->nr - 1 : a->nr;

		fn(arg, 0, NULL);
		for (size_t i = 0; i < nr; i++) {
			int err = fn(arg, WPFS_REC_RUN, &a->run[i]);

			if (err)
				return err;
		}
	}
	return a->status;
}

static void ask(const struct answer *given, struct wpfs_runs *runs, uint64_t offset, uint64_t len,
		int result)
{
	answers = given;
	nr_asked = 0;
	assert_int_equal(wpfs_clean(NULL, 3, offset, len, runs), result);
}

static void assert_run(const struct wpfs_runs *runs, size_t i, uint64_t first, uint64_t pages)
{
	assert_true(i < runs->nr);
	assert_int_equal(runs->run[i].offset, first * P);
	assert_int_equal(runs->run[i].len, pages * P);
}

static void test_one_answer(void **state)
{
	const struct answer given[] = {{.nr = 2, .run = {{1, 2, 0}, {5, 1, 0}}}};
	struct wpfs_runs runs;

	ask(given, &runs, P, 9 * P, 0);
	assert_int_equal(runs.nr, 2);
	assert_run(&runs, 0, 1, 2);
	assert_run(&runs, 1, 5, 1);
	assert_int_equal(nr_asked, 1);
	assert_true(asked[0].file == 77 && asked[0].offset == P && asked[0].len == 9 * P);
	assert_int_equal(asked[0].runs, WPFS_SELF_CLEAN);
	wpfs_runs_free(&runs);
	assert_true(runs.nr == 0 && runs.run == NULL);
	wpfs_runs_free(&runs);
}

/* A run that goes on in the next answer is one; the second question begins where the first ended.
 */
static void test_answers_that_are_cut(void **state)
{
	const struct answer given[] = {
		{.status = 1, .nr = 2, .run = {{0, 1, 0}, {4, 4, 0}}},
		{.status = 1, .nr = 2, .run = {{8, 2, 0}, {20, 1, 0}}},
		{.nr = 1, .run = {{30, 1, 0}}},
	};
	struct wpfs_runs runs;

	ask(given, &runs, 0, 40 * P, 0);
	assert_int_equal(nr_asked, 3);
	assert_true(asked[1].offset == 8 * P && asked[1].len == 32 * P);
	assert_true(asked[2].offset == 21 * P && asked[2].len == 19 * P);
	assert_int_equal(runs.nr, 4);
	assert_run(&runs, 1, 4, 6);
	assert_run(&runs, 3, 30, 1);
	wpfs_runs_free(&runs);

	ask(given, &runs, 0, 0, 0);
	assert_true(asked[1].offset == 8 * P && asked[1].len == 0);
	wpfs_runs_free(&runs);
	ask(given, &runs, 0, 8 * P, 0); /* to its end: nothing is left to ask */
	assert_int_equal(nr_asked, 1);
	wpfs_runs_free(&runs);
}

/* What came before it broke off is not in the result twice, nor is a run lengthened twice. */
static void test_asked_again(void **state)
{
	const struct answer given[] = {
		{.status = 1, .broken = true, .nr = 3, .run = {{0, 1, 0}, {4, 1, 0}, {6, 1, 0}}},
		{.broken = true, .nr = 2, .run = {{7, 1, 0}, {9, 1, 0}}},
	};
	struct wpfs_runs runs;

	ask(given, &runs, 0, 0, 0);
	assert_int_equal(runs.nr, 4);
	assert_run(&runs, 0, 0, 1);
	assert_run(&runs, 1, 4, 1);
	assert_run(&runs, 2, 6, 2);
	assert_run(&runs, 3, 9, 1);
	wpfs_runs_free(&runs);
}

static void test_nonsense(void **state)
{
	const struct answer overlap[] = {{.nr = 2, .run = {{4, 4, 0}, {7, 1, 0}}}};
	const struct answer none[] = {{.nr = 1, .run = {{4, 0, 0}}}};
	const struct answer failed[] = {{.status = 1, .nr = 1, .run = {{4, 1, 0}}},
					{.status = -EIO}};
	const struct answer no_end[] = {{.status = 1, .nr = 0}};
	struct wpfs_runs runs;

	ask(overlap, &runs, 0, 0, -EPROTO);
	assert_true(runs.nr == 0 && runs.run == NULL);
	ask(none, &runs, 0, 0, -EPROTO);
	ask(failed, &runs, 0, 0, -EIO);
	assert_true(runs.nr == 0 && runs.run == NULL);
	ask(no_end, &runs, 0, 0, 0);
	assert_int_equal(nr_asked, 1);
}

static void test_arguments(void **state)
{
	struct wpfs_runs runs = {5, NULL};

	assert_int_equal(wpfs_dirty(NULL, 3, 1, 0, 0, 0, &runs), -EINVAL);
	assert_int_equal(runs.nr, 0);
	assert_int_equal(wpfs_dirty(NULL, 3, 0, P / 2, 0, 0, &runs), -EINVAL);
	assert_int_equal(wpfs_dirty(NULL, 9, 0, 0, 0, 0, &runs), -EXDEV);
	assert_int_equal(wpfs_protect(NULL, -1, P, 0, NULL), -EINVAL);
	assert_int_equal(wpfs_unprotect(NULL, -1, 0, P), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_answer),  cmocka_unit_test(test_answers_that_are_cut),
		cmocka_unit_test(test_asked_again), cmocka_unit_test(test_nonsense),
		cmocka_unit_test(test_arguments),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
