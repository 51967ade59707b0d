/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sys/resource.h>

#include "preload/attach.h"
#include "preload/ranges.h"
#include "preload/untold.h"

#define PAGES 64
#define BASE  0x7000000000ull

/* One byte per page: 0 = nothing known, else 1 + the mount; and its offset in the file. */
struct model {
	unsigned char mount[PAGES];
	uint64_t offset[PAGES];
};

static void model_check(const struct model *model)
{
	uint64_t at = BASE, end = BASE + PAGES * SHIM_PAGE_SIZE;
	struct range piece;

	for (int i = 0; i < PAGES; i++)
		assert_int_equal(ranges_overlap(BASE + i * SHIM_PAGE_SIZE, SHIM_PAGE_SIZE),
				 model->mount[i] != 0);
	for (int i = 0; i < PAGES;) {
		if (!model->mount[i]) {
			i++;
			continue;
		}
		assert_true(ranges_next(at, end, &piece));
		assert_int_equal(piece.start, BASE + i * SHIM_PAGE_SIZE);
		for (uint64_t a = piece.start; a < piece.end; a += SHIM_PAGE_SIZE, i++) {
			assert_int_equal(model->mount[i], piece.mount + 1);
			assert_int_equal(model->offset[i], piece.offset + (a - piece.start));
		}
		at = piece.end;
	}
	assert_false(ranges_next(at, end, &piece));
}

static void test_against_a_model(void **state)
{
	struct model model = {0};

	srandom(7);
	for (int round = 0; round < 20000; round++) {
		int first = (int)(random() % PAGES), nr = 1 + (int)(random() % (PAGES - first));
		struct range range = {
			.start = BASE + first * SHIM_PAGE_SIZE,
			.end = BASE + (first + nr) * SHIM_PAGE_SIZE,
			.offset = (uint64_t)(random() % 1000) * SHIM_PAGE_SIZE,
			.mount = (uint32_t)(random() % SHIM_MOUNTS),
		};
		bool add = random() % 2;

		if (add)
			ranges_add(&range);
		else
			ranges_cut(range.start, range.end - range.start);
		for (int i = first; i < first + nr; i++) {
			model.mount[i] = add ? (unsigned char)(range.mount + 1) : 0;
			model.offset[i] = range.offset + (i - first) * SHIM_PAGE_SIZE;
		}
		model_check(&model);
	}
	for (uint32_t m = 0; m < SHIM_MOUNTS; m++)
		assert_int_equal(ranges_of_mount(m, false),
				 memchr(model.mount, (int)m + 1, PAGES) != NULL);
	ranges_cut(BASE, PAGES * SHIM_PAGE_SIZE);
	assert_false(ranges_any());
}

static void test_clipped(void **state)
{
	struct range range = {.start = BASE, .end = BASE + 0x10000, .offset = 0x5000}, piece;

	ranges_add(&range);
	assert_true(ranges_next(BASE + 0x2000, BASE + 0x3000, &piece));
	assert_int_equal(piece.start, BASE + 0x2000);
	assert_int_equal(piece.end, BASE + 0x3000);
	assert_int_equal(piece.offset, 0x7000);
	assert_false(ranges_next(BASE + 0x10000, BASE + 0x20000, &piece));
	assert_true(ranges_overlap(BASE + 0xf000, UINT64_MAX)); /* wraps */
	ranges_cut(BASE, 0x10000);
}

/* What becomes part of a path. */
static void test_ids(void **state)
{
	static const char *const bad[] = {"",
					  ".",
					  "..",
					  "../x",
					  "/",
					  "a/b",
					  "A",
					  "g",
					  "a b",
					  "a\n",
					  "0\\",
					  "%",
					  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(mount_id_valid(bad[i]));
	assert_true(mount_id_valid("2b1f6c3e-5f0a-4d53-9c2e-0123456789ab"));
	assert_true(mount_id_valid("4337b81630dae5a54ec4c6bda3b1e704"));
}

/* First: there is no table yet, and no memory for one. */
static void test_no_memory(void **state)
{
	const struct range range = {.start = SHIM_PAGE_SIZE, .end = 2 * SHIM_PAGE_SIZE};
	struct rlimit before, none = {0};

	assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
	none.rlim_max = before.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_AS, &none), 0);
	ranges_add(&range);
	assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
	assert_true(ranges_lost);
	assert_false(ranges_any());
	ranges_lost = false;
	ranges_add(&range);
	assert_false(ranges_lost);
	assert_true(ranges_overlap(range.start, SHIM_PAGE_SIZE));
	ranges_cut(range.start, SHIM_PAGE_SIZE);
}

/* Of two that count at once one has the slot, and the other leaves it as it is. */
static void test_untold(void **state)
{
	struct mount *mount = &shim.mounts[0];
	struct wpfs_untold *untold = &mount->untold;

	untold_count(mount, 7);
	assert_int_equal(untold->count, 0); /* never attached */
	atomic_store(&mount->was_attached, true);
	untold_count(mount, 7);
	untold_count(mount, 8);
	assert_int_equal(untold->count, 2);
	assert_int_equal(untold->file[0], 7);
	assert_int_equal(untold->file[1], 8);
	atomic_store(&mount->untold_writers, 1); /* is at slot 2 */
	untold->file[2] = 9;
	untold_count(mount, 10);
	assert_int_equal(untold->file[2], 9);
	assert_int_equal(untold->count, 2 + WPFS_UNTOLD_FILES + 1);
	untold_reset(mount);
	untold_count(mount, 11 | WPFS_UNTOLD_DROPPED);
	assert_int_equal(untold->count, 1 | WPFS_UNTOLD_DROPPED);
	assert_int_equal(untold->file[0], 11 | WPFS_UNTOLD_DROPPED);
	untold_reset(mount);
	atomic_store(&mount->was_attached, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_memory), cmocka_unit_test(test_against_a_model),
		cmocka_unit_test(test_clipped),	  cmocka_unit_test(test_ids),
		cmocka_unit_test(test_untold),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
