/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rules of mm/model.h for single steps; observe_test.c has those of a harvest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/units.h"
#include "mm/model.h"
#include "mm/model_internal.h"

#define F1	 11 /* file ids */
#define F2	 12

#define AT(page) ((uint64_t)(page) << WPFS_PAGE_SHIFT)

static struct mm_vma vma(uint64_t page, uint64_t nr, uint64_t file, uint64_t pgoff)
{
	return (struct mm_vma){
		.start = AT(page), .end = AT(page + nr), .file = file, .pgoff = pgoff};
}

static void arm(struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t pgoff, uint64_t nr)
{
	struct mm_file *f = mm_file_get(mm, file);

	assert_non_null(f);
	assert_int_equal(mm_set_add_range(&f->own[owner].armed, pgoff, nr), 0);
}

/* A mapping that wpfs registered, all of it marked. */
static void map(struct mm *mm, uint64_t page, uint64_t nr, uint64_t file, uint64_t pgoff)
{
	struct mm_vma v = vma(page, nr, file, pgoff);

	v.registered = v.async = true;
	assert_int_equal(mm_set_add_range(&v.marked, 0, nr), 0);
	assert_int_equal(mm_map(mm, &v), 0);
	assert_null(mm_check(mm));
}

static const struct mm_set *set_of(const struct mm *mm, enum mm_owner owner, bool armed)
{
	const struct mm_owned *own = &mm_file_find(mm, F1)->own[owner];

	return armed ? &own->armed : &own->dirty;
}

/* The dirty pages of F1 are exactly [pgoff, pgoff + nr). */
static void assert_dirty(const struct mm *mm, enum mm_owner owner, uint64_t pgoff, uint64_t nr)
{
	assert_int_equal(mm_set_count_range(set_of(mm, owner, false), pgoff, nr), nr);
	assert_int_equal(mm_set_count(set_of(mm, owner, false)), nr);
}

static void assert_vma(const struct mm *mm, size_t i, uint64_t page, uint64_t nr, uint64_t pgoff,
		       uint64_t marked)
{
	assert_true(i < mm->nr_vmas);
	assert_int_equal(mm->vmas[i].start, AT(page));
	assert_int_equal(mm->vmas[i].end, AT(page + nr));
	assert_int_equal(mm->vmas[i].pgoff, pgoff);
	assert_int_equal(mm_set_count(&mm->vmas[i].marked), marked);
}

/* Pages 0..9 of F1 armed for both owners and mapped at page 100. */
static void setup(struct mm *mm)
{
	mm_init(mm);
	arm(mm, F1, MM_WPFS, 0, 10);
	arm(mm, F1, MM_PROGRAM, 0, 10);
	map(mm, 100, 10, F1, 0);
}

static void test_new_mm_is_empty(void **state)
{
	struct mm mm;

	mm_init(&mm);
	assert_true(mm_is_empty(&mm));
	assert_null(mm_check(&mm));
	assert_null(mm_file_find(&mm, F1));
	assert_non_null(mm_file_get(&mm, F1));
	assert_ptr_equal(mm_file_get(&mm, F1), mm_file_find(&mm, F1));
	assert_true(mm_is_empty(&mm)); /* a file without armed pages is nothing to remember */
	arm(&mm, F1, MM_PROGRAM, 3, 1);
	assert_false(mm_is_empty(&mm));
	map(&mm, 100, 1, F1, 0);
	map(&mm, 200, 1, F2, 0);
	map(&mm, 300, 1, F1, 1);
	mm_file_remove(&mm, mm_file_find(&mm, F1)); /* with its mappings */
	assert_true(mm_is_empty(&mm));
	assert_int_equal(mm.nr_vmas, 1);
	assert_int_equal(mm.vmas[0].start, AT(200));
	assert_null(mm_check(&mm));
	mm_free(&mm);
	mm_free(&mm);
}

/* ---- mappings come and go ---- */

static void test_map_keeps_order(void **state)
{
	struct mm mm;

	mm_init(&mm);
	map(&mm, 300, 1, F1, 0);
	map(&mm, 100, 1, F1, 1);
	map(&mm, 200, 1, F2, 2);
	assert_vma(&mm, 0, 100, 1, 1, 1);
	assert_vma(&mm, 1, 200, 1, 2, 1);
	assert_vma(&mm, 2, 300, 1, 0, 1);
	assert_non_null(mm_file_find(&mm, F2));
	mm_free(&mm);
}

static void test_map_over_a_mapping_replaced_it_unseen(void **state)
{
	struct mm mm;

	setup(&mm);
	map(&mm, 103, 4, F2, 0);
	assert_int_equal(mm.nr_vmas, 3);
	assert_vma(&mm, 0, 100, 3, 0, 3);
	assert_vma(&mm, 1, 103, 4, 0, 4);
	assert_vma(&mm, 2, 107, 3, 7, 3);
	assert_dirty(&mm, MM_WPFS, 3, 4);
	assert_dirty(&mm, MM_PROGRAM, 3, 4); /* carried, and watched there */
	assert_int_equal(mm.conservative, 8);
	mm_free(&mm);
}

/* Armed pages in a mapping that nobody watches: nothing would tell of a store. */
static void test_map_unregistered_makes_armed_dirty(void **state)
{
	struct mm_vma v = vma(200, 4, F1, 8);
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_map(&mm, &v), 0);
	assert_dirty(&mm, MM_WPFS, 8, 2);
	assert_dirty(&mm, MM_PROGRAM, 8, 2);
	assert_int_equal(mm.conservative, 4);
	mm_free(&mm);
}

static void test_map_sealed_is_harmless(void **state)
{
	struct mm_vma v = vma(200, 4, F1, 8);
	struct mm mm;

	setup(&mm);
	v.sealed = true;
	assert_int_equal(mm_map(&mm, &v), 0);
	assert_dirty(&mm, MM_WPFS, 0, 0);
	mm_free(&mm);
}

static void test_unmap_announced_loses_nothing(void **state)
{
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_unmap(&mm, AT(0), AT(1000), ZAP_UNMAP), 0);
	assert_int_equal(mm.nr_vmas, 0);
	assert_dirty(&mm, MM_WPFS, 0, 0);
	assert_int_equal(mm_set_count(set_of(&mm, MM_WPFS, true)), 10);
	assert_int_equal(mm.conservative, 0);
	mm_free(&mm);
}

static void test_unmap_cuts_at_its_borders(void **state)
{
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_set_remove_range(&mm.vmas[0].marked, 8, 1), 0);
	assert_int_equal(mm_unmap(&mm, AT(103), AT(105), ZAP_UNMAP), 0);
	assert_null(mm_check(&mm));
	assert_int_equal(mm.nr_vmas, 2);
	assert_vma(&mm, 0, 100, 3, 0, 3);
	assert_vma(&mm, 1, 105, 5, 5, 4);
	assert_false(mm_set_contains(&mm.vmas[1].marked, 3)); /* page 8 of the file */
	mm_free(&mm);
}

static void test_unmap_of_several_and_of_none(void **state)
{
	struct mm mm;

	mm_init(&mm);
	map(&mm, 100, 10, F1, 0);
	map(&mm, 110, 10, F2, 0);
	map(&mm, 130, 10, F1, 30);
	assert_int_equal(mm_unmap(&mm, AT(120), AT(130), ZAP_UNMAP), 0);
	assert_int_equal(mm.nr_vmas, 3);
	assert_int_equal(mm_unmap(&mm, AT(109), AT(131), ZAP_UNMAP), 0);
	assert_null(mm_check(&mm));
	assert_int_equal(mm.nr_vmas, 2);
	assert_vma(&mm, 0, 100, 9, 0, 9);
	assert_vma(&mm, 1, 131, 9, 31, 9);
	mm_free(&mm);
}

static void test_vanish_makes_armed_dirty(void **state)
{
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_unmap(&mm, AT(108), AT(120), ZAP_UNSEEN), 0);
	assert_dirty(&mm, MM_WPFS, 8, 2);
	assert_dirty(&mm, MM_PROGRAM, 8, 2);
	assert_int_equal(mm.conservative, 4);
	assert_vma(&mm, 0, 100, 8, 0, 8);
	mm_free(&mm);
}

/* Its pages were armed through another mapping after it was made. */
static void test_vanish_of_an_unregistered_mapping(void **state)
{
	struct mm_vma v = vma(200, 10, F1, 0);
	struct mm mm;

	mm_init(&mm);
	assert_int_equal(mm_map(&mm, &v), 0);
	arm(&mm, F1, MM_WPFS, 0, 10);
	assert_int_equal(mm_unmap(&mm, AT(202), AT(204), ZAP_UNSEEN), 0);
	assert_dirty(&mm, MM_WPFS, 2, 2);
	mm.vmas[0].sealed = true;
	assert_int_equal(mm_unmap(&mm, AT(200), AT(202), ZAP_UNSEEN), 0);
	assert_dirty(&mm, MM_WPFS, 2, 2);
	mm_free(&mm);
}

/* As in the kernel: what the program had protected is gone with the mapping. */
static void test_unmapped_program_range_is_disarmed(void **state)
{
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_set_registered(&mm, AT(100), AT(110), true, MM_PROGRAM, false), 0);
	assert_int_equal(mm_unmap(&mm, AT(100), AT(102), ZAP_UNMAP), 0);
	assert_int_equal(mm_unmap(&mm, AT(108), AT(110), ZAP_UNSEEN), 0);
	assert_int_equal(mm_set_count(set_of(&mm, MM_PROGRAM, true)), 6);
	assert_int_equal(mm_set_count_range(set_of(&mm, MM_PROGRAM, true), 2, 6), 6);
	assert_int_equal(mm_set_count(set_of(&mm, MM_WPFS, true)), 10);
	assert_dirty(&mm, MM_WPFS, 0, 0);
	mm_free(&mm);
}

static void test_forget_vmas_keeps_the_files(void **state)
{
	struct mm mm;

	setup(&mm);
	mm_forget_vmas(&mm);
	assert_int_equal(mm.nr_vmas, 0);
	assert_false(mm_is_empty(&mm));
	assert_dirty(&mm, MM_WPFS, 0, 0);
	mm_free(&mm);
}

static void test_set_registered_splits_and_clears_marks(void **state)
{
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_set_registered(&mm, AT(104), AT(106), false, MM_WPFS, false), 0);
	assert_null(mm_check(&mm));
	assert_int_equal(mm.nr_vmas, 3);
	assert_vma(&mm, 0, 100, 4, 0, 4);
	assert_vma(&mm, 1, 104, 2, 4, 0);
	assert_vma(&mm, 2, 106, 4, 6, 4);
	assert_false(mm.vmas[1].registered);
	assert_int_equal(mm_set_registered(&mm, AT(105), AT(107), true, MM_PROGRAM, true), 0);
	assert_int_equal(mm.nr_vmas, 5);
	assert_vma(&mm, 3, 106, 1, 6, 1);
	assert_true(mm.vmas[3].registered && mm.vmas[3].async);
	assert_int_equal(mm.vmas[3].owner, MM_PROGRAM);
	assert_int_equal(mm.vmas[4].owner, MM_WPFS);
	assert_null(mm_check(&mm));
	mm_free(&mm);
}

/* ---- pages ---- */

static void test_plan_arm_fresh_is_all_but_dirty(void **state)
{
	struct mm_set set = {0};
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_drop(&mm, F1, 2, 3), 0);
	assert_int_equal(mm_plan_arm(&mm, F1, true, 1, 20, &set), 0);
	assert_int_equal(mm_set_count(&set), 17);
	assert_true(mm_set_contains(&set, 1) && mm_set_contains(&set, 20));
	assert_int_equal(mm_set_count_range(&set, 2, 3), 0);
	mm_set_free(&set);
	assert_int_equal(mm_plan_arm(&mm, F2, true, 5, 5, &set), 0);
	assert_int_equal(mm_set_count_range(&set, 5, 5), 5);
	mm_set_free(&set);
	mm_free(&mm);
}

static void test_plan_arm_again_is_armed_and_not_dirty(void **state)
{
	struct mm_set set = {0};
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_doubt(&mm, mm_file_find(&mm, F1), 2, 3), 0);
	assert_int_equal(mm_plan_arm(&mm, F1, false, 1, 20, &set), 0);
	assert_int_equal(mm_set_count(&set), 6);
	assert_int_equal(mm_set_count_range(&set, 2, 3), 0);
	mm_set_free(&set);
	assert_int_equal(mm_plan_arm(&mm, F2, false, 0, 20, &set), 0);
	assert_true(mm_set_is_empty(&set));
	mm_free(&mm);
}

static void test_drop_is_dirty_for_both_owners(void **state)
{
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_drop(&mm, F1, 8, 10), 0);
	assert_dirty(&mm, MM_WPFS, 8, 2);
	assert_dirty(&mm, MM_PROGRAM, 8, 2);
	assert_int_equal(mm.conservative, 0); /* it is known to have changed */
	assert_int_equal(mm_set_count(set_of(&mm, MM_WPFS, true)), 10);
	mm_free(&mm);
}

static void test_zap_only_unmapping_clears(void **state)
{
	static const struct {
		enum zap_reason why;
		uint64_t dirty, own_armed, own_dirty, conservative;
	} rows[] = {
		{ZAP_DROP, 4, 10, 4, 0},
		{ZAP_UNMAP, 0, 6, 0, 0},
		{ZAP_UNSEEN, 4, 6, 0, 8},
		{ZAP_LOST, 4, 10, 4, 8},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct mm mm;

		setup(&mm);
		for (int o = 0; o < MM_NR_OWNERS; o++)
			assert_int_equal(mm_zap(&mm, mm_file_find(&mm, F1), (enum mm_owner)o, 2, 4,
						rows[i].why),
					 0);
		/* What wpfs armed stays armed, whatever happens: parked at worst. */
		assert_int_equal(mm_set_count(set_of(&mm, MM_WPFS, true)), 10);
		assert_dirty(&mm, MM_WPFS, 2, rows[i].dirty);
		assert_int_equal(mm_set_count(set_of(&mm, MM_PROGRAM, true)), rows[i].own_armed);
		assert_dirty(&mm, MM_PROGRAM, 2, rows[i].own_dirty);
		assert_int_equal(mm.conservative, rows[i].conservative);
		mm_free(&mm);
	}
}

static void test_doubt_is_counted_once(void **state)
{
	struct mm mm;

	setup(&mm);
	assert_int_equal(mm_doubt(&mm, mm_file_find(&mm, F1), 5, 2), 0);
	assert_int_equal(mm_doubt(&mm, mm_file_find(&mm, F1), 4, 4), 0);
	assert_dirty(&mm, MM_WPFS, 4, 4);
	assert_dirty(&mm, MM_PROGRAM, 4, 4);
	assert_int_equal(mm.conservative, 8);
	assert_int_equal(mm_doubt_armed(&mm, mm_file_find(&mm, F1), 3, 2), 0);
	assert_dirty(&mm, MM_WPFS, 3, 5);
	assert_dirty(&mm, MM_PROGRAM, 4, 4);
	assert_int_equal(mm.conservative, 9);
	mm_free(&mm);
}

static void test_lost_makes_all_armed_dirty(void **state)
{
	struct mm mm;

	setup(&mm);
	arm(&mm, F2, MM_WPFS, MM_PGOFF_MAX - 3, 3);
	assert_int_equal(mm_lost(&mm), 0);
	assert_dirty(&mm, MM_WPFS, 0, 10);
	assert_dirty(&mm, MM_PROGRAM, 0, 10);
	assert_int_equal(mm_set_count(&mm_file_find(&mm, F2)->own[MM_WPFS].dirty), 3);
	assert_int_equal(mm.conservative, 23);
	mm_free(&mm);
}

/* ---- mm_check ---- */

/* Breaks an mm, sees that it is noticed, and mends it. */
static void test_check_sees_what_is_broken(void **state)
{
	struct mm_vma saved;
	struct mm mm;

	setup(&mm);
	map(&mm, 110, 10, F2, 0);
	assert_null(mm_check(&mm));
	saved = mm.vmas[0];
	mm.vmas[0].end = mm.vmas[0].start;
	assert_non_null(mm_check(&mm));
	mm.vmas[0].end = saved.end + 1;
	assert_non_null(mm_check(&mm));
	mm.vmas[0].end = saved.end + WPFS_PAGE_SIZE;
	assert_non_null(mm_check(&mm));
	mm.vmas[0].end = saved.end - WPFS_PAGE_SIZE; /* the last mark is outside */
	assert_non_null(mm_check(&mm));
	mm.vmas[0] = mm.vmas[1];
	mm.vmas[1] = saved;
	assert_non_null(mm_check(&mm));
	mm.vmas[1] = mm.vmas[0];
	mm.vmas[0] = saved;
	assert_null(mm_check(&mm));
	mm.vmas[0].registered = false;
	assert_non_null(mm_check(&mm));
	mm.vmas[0].registered = true;
	assert_int_equal(mm_set_add_range(&mm_file_find(&mm, F1)->own[MM_PROGRAM].dirty, 10, 1), 0);
	assert_non_null(mm_check(&mm));
	mm_free(&mm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_new_mm_is_empty),
		cmocka_unit_test(test_map_keeps_order),
		cmocka_unit_test(test_map_over_a_mapping_replaced_it_unseen),
		cmocka_unit_test(test_map_unregistered_makes_armed_dirty),
		cmocka_unit_test(test_map_sealed_is_harmless),
		cmocka_unit_test(test_unmap_announced_loses_nothing),
		cmocka_unit_test(test_unmap_cuts_at_its_borders),
		cmocka_unit_test(test_unmap_of_several_and_of_none),
		cmocka_unit_test(test_vanish_makes_armed_dirty),
		cmocka_unit_test(test_vanish_of_an_unregistered_mapping),
		cmocka_unit_test(test_unmapped_program_range_is_disarmed),
		cmocka_unit_test(test_forget_vmas_keeps_the_files),
		cmocka_unit_test(test_set_registered_splits_and_clears_marks),
		cmocka_unit_test(test_plan_arm_fresh_is_all_but_dirty),
		cmocka_unit_test(test_plan_arm_again_is_armed_and_not_dirty),
		cmocka_unit_test(test_drop_is_dirty_for_both_owners),
		cmocka_unit_test(test_zap_only_unmapping_clears),
		cmocka_unit_test(test_doubt_is_counted_once),
		cmocka_unit_test(test_lost_makes_all_armed_dirty),
		cmocka_unit_test(test_check_sees_what_is_broken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
