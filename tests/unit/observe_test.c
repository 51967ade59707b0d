/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rules of a harvest (mm/observe.c) one by one: marks, and what went from its address.
 * observe_owner_test.c has those about owners, model_test.c those of single steps;
 * model_random_test.c mixes them all.
 */
#include "observe_view.h"

/* ---- harvest: marks against armed pages ---- */

static void test_unmarked_armed_page_is_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_unmark(view_add(&view, 100, 10, F1, 0), 3, 2);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 3, 2);
	assert_int_equal(mm.conservative, 0);
	mm_free(&mm);
}

static void test_never_armed_page_is_not_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_unmark(view_add(&view, 100, 20, F1, 0), 10, 10);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 0);
	assert_armed(&mm, F1, MM_WPFS, 10);
	mm_free(&mm);
}

static void test_dirty_is_sticky(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_unmark(view_add(&view, 100, 10, F1, 0), 7, 1);
	observe(&mm, &view);
	view_add(&view, 100, 10, F1, 0); /* marked again, by whomever */
	observe(&mm, &view);
	assert_dirty(&mm, F1, 7, 1);
	assert_int_equal(mm_unmap(&mm, AT(100), AT(110), ZAP_UNMAP), 0);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 7, 1);
	mm_free(&mm);
}

static void test_marked_in_every_mapping_or_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	arm(&mm, F1, MM_WPFS, 0, 10);
	view_unmark(view_add(&view, 100, 10, F1, 0), 0, 1);
	view_unmark(view_add(&view, 200, 10, F1, 5), 1, 1);
	observe(&mm, &view);
	assert_true(dirty(&mm, F1, MM_WPFS, 0));
	assert_true(dirty(&mm, F1, MM_WPFS, 6));
	assert_int_equal(mm_set_count(&mm_file_find(&mm, F1)->own[MM_WPFS].dirty), 2);
	mm_free(&mm);
}

static void test_files_are_apart(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	arm(&mm, F1, MM_WPFS, 0, 10);
	arm(&mm, F2, MM_WPFS, 0, 10);
	view_add(&view, 100, 10, F1, 0);
	view_unmark(view_add(&view, 110, 10, F2, 0), 0, 10);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 0);
	assert_dirty(&mm, F2, 0, 10);
	mm_free(&mm);
}

static void test_unregistered_mapping_makes_armed_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_add(&view, 100, 10, F1, 0);
	view_unregister(view_add(&view, 200, 4, F1, 8));
	observe(&mm, &view);
	assert_dirty(&mm, F1, 8, 2);
	assert_int_equal(mm.conservative, 2);
	mm_free(&mm);
}

/* Under --protect: made without a word, so armed now and dirty; not again once it is unprotected.
 */
static void test_news_are_armed_and_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	mm.protect_new = true;
	view_add(&view, 100, 10, F1, 0);
	view_unregister(view_add(&view, 200, 4, F2, 8));
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 0);
	assert_dirty(&mm, F2, 8, 4);
	assert_true(mm_file_find(&mm, F2)->unopened);
	assert_false(mm_file_find(&mm, F1)->unopened);

	mm_set_clear(&mm_file_find(&mm, F2)->own[MM_WPFS].armed);
	mm_set_clear(&mm_file_find(&mm, F2)->own[MM_WPFS].dirty);
	mm_file_find(&mm, F2)->protect = false;
	view_add(&view, 100, 10, F1, 0);
	view_unregister(view_add(&view, 200, 4, F2, 8));
	observe(&mm, &view);
	assert_true(mm_set_is_empty(&mm_file_find(&mm, F2)->own[MM_WPFS].armed));
	mm_free(&mm);
}

/* Its pages were armed through another mapping after the last harvest; then it went. */
static void test_unregistered_mapping_counts_when_gone(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	view_unregister(view_add(&view, 200, 4, F1, 8));
	observe(&mm, &view);
	arm(&mm, F1, MM_WPFS, 0, 10);
	view_add(&view, 100, 10, F1, 0);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 8, 2);
	mm_free(&mm);
}

static void test_unregistered_mapping_may_turn_out_sealed(void **state)
{
	struct view view = {0};
	struct mm_vma *v;
	struct mm mm;

	mm_init(&mm);
	view_unregister(view_add(&view, 200, 10, F1, 0));
	observe(&mm, &view);
	arm(&mm, F1, MM_WPFS, 0, 10);
	v = view_add(&view, 202, 3, F1, 2);
	view_unregister(v);
	v->sealed = true;
	v = view_add(&view, 207, 3, F1, 7);
	view_unregister(v);
	v->sealed = true;
	observe(&mm, &view);
	assert_int_equal(mm.conservative, 4);
	assert_true(dirty(&mm, F1, MM_WPFS, 1) && dirty(&mm, F1, MM_WPFS, 6));
	assert_false(dirty(&mm, F1, MM_WPFS, 2) || dirty(&mm, F1, MM_WPFS, 9));
	mm_free(&mm);
}

static void test_sealed_mapping_is_harmless(void **state)
{
	struct view view = {0};
	struct mm_vma *v;
	struct mm mm;

	setup_one(&mm);
	mm_file_find(&mm, F1)->protect = true;
	view_add(&view, 100, 10, F1, 0);
	v = view_add(&view, 200, 20, F1, 0);
	view_unregister(v);
	v->sealed = true;
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 0);
	assert_armed(&mm, F1, MM_WPFS, 10);
	mm_free(&mm);
}

static void test_protected_file_grows_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	mm_file_find(&mm, F1)->protect = true;
	/* marks on pages that were never armed prove nothing: who set them, and when? */
	view_add(&view, 100, 16, F1, 0);
	observe(&mm, &view);
	assert_armed(&mm, F1, MM_WPFS, 16);
	assert_dirty(&mm, F1, 10, 6);
	assert_int_equal(mm.conservative, 6);
	mm_free(&mm);
}

/* It is protected again because of a mapping that came later; what was mapped before is left so. */
static void test_unprotected_mapping_stays_so(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	view_unregister(view_add(&view, 100, 10, F1, 0));
	observe(&mm, &view);
	mm_file_find(&mm, F1)->protect = true;
	arm(&mm, F1, MM_WPFS, 8, 8);
	view_unregister(view_add(&view, 100, 10, F1, 0));
	view_add(&view, 200, 8, F1, 8);
	observe(&mm, &view);
	assert_armed(&mm, F1, MM_WPFS, 8);
	assert_dirty(&mm, F1, 8, 2);
	/* What it grows by was not there to be unprotected. */
	view_unregister(view_add(&view, 100, 10, F1, 0));
	view_add(&view, 200, 9, F1, 8);
	observe(&mm, &view);
	assert_armed(&mm, F1, MM_WPFS, 9);
	mm_free(&mm);
}

/* ---- harvest: what went from its address ---- */

static void test_gone_unseen_is_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_add(&view, 100, 4, F1, 0);
	view_add(&view, 107, 3, F1, 7);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 4, 3);
	assert_int_equal(mm.conservative, 3);
	mm_free(&mm);
}

static void test_other_file_or_offset_there_is_not_the_same(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	arm(&mm, F1, MM_WPFS, 0, 30);
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 110, 10, F1, 20);
	observe(&mm, &view);
	view_add(&view, 100, 10, F2, 0);
	view_add(&view, 110, 10, F1, 10);
	observe(&mm, &view);
	assert_true(mm_set_count_range(&mm_file_find(&mm, F1)->own[MM_WPFS].dirty, 0, 10) == 10);
	assert_true(mm_set_count_range(&mm_file_find(&mm, F1)->own[MM_WPFS].dirty, 20, 10) == 10);
	assert_int_equal(mm.conservative, 20);
	mm_free(&mm);
}

static void test_replaced_by_unregistered_is_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_unregister(view_add(&view, 100, 10, F1, 0));
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 10);
	mm_free(&mm);
}

/* wpfs's own uffd is asynchronous: a synchronous one at the place is a new mapping's. */
static void test_replaced_by_sync_registration_is_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	mm.own_uffds = true;
	view_add(&view, 100, 10, F1, 0)->async = false;
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 10);
	assert_int_equal(mm.vmas[0].owner, MM_PROGRAM);
	mm_free(&mm);
}

static void test_sync_registration_elsewhere_is_no_move(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	mm.own_uffds = true;
	view_add(&view, 300, 10, F1, 0)->async = false;
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 10);
	assert_int_equal(mm.vmas[0].owner, MM_PROGRAM);
	mm_free(&mm);
}

static void test_moved_keeps_its_marks(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_unmark(view_add(&view, 300, 10, F1, 0), 2, 1);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 2, 1);
	assert_int_equal(mm.conservative, 0);
	assert_int_equal(mm.vmas[0].owner, MM_WPFS);
	mm_free(&mm);
}

static void test_moved_in_parts(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	view_add(&view, 102, 3, F1, 2); /* stays */
	view_add(&view, 200, 2, F1, 0); /* moved */
	view_add(&view, 300, 4, F1, 6); /* moved; page 5 is gone */
	observe(&mm, &view);
	assert_dirty(&mm, F1, 5, 1);
	assert_int_equal(mm.conservative, 1);
	mm_free(&mm);
}

static void test_moved_and_grown(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	arm(&mm, F1, MM_WPFS, 10, 5);
	view_unmark(view_add(&view, 300, 20, F1, 0), 10, 10);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 10, 5);
	mm_free(&mm);
}

/* Two mappings of the same pages, one left: it can stand for one of them only. */
static void test_one_new_piece_accounts_for_one_old(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	arm(&mm, F1, MM_WPFS, 0, 20);
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 200, 10, F1, 5);
	observe(&mm, &view);
	view_add(&view, 300, 10, F1, 5);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 10);
	mm_free(&mm);
}

static void test_moved_one_over_the_other(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	arm(&mm, F1, MM_WPFS, 0, 20);
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 200, 10, F1, 10);
	observe(&mm, &view);
	view_add(&view, 100, 10, F1, 10);
	observe(&mm, &view);
	assert_dirty(&mm, F1, 0, 10);
	assert_int_equal(mm.conservative, 10);
	mm_free(&mm);
}

static void test_page_offsets_up_to_the_limit(void **state)
{
	const uint64_t last = MM_PGOFF_MAX - 10;
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	arm(&mm, F1, MM_WPFS, last, 10);
	view_unmark(view_add(&view, 100, 10, F1, last), 9, 1);
	observe(&mm, &view);
	assert_dirty(&mm, F1, MM_PGOFF_MAX - 1, 1);
	assert_int_equal(mm_drop(&mm, F1, last, UINT64_MAX - 5), 0);
	assert_dirty(&mm, F1, last, 10);
	assert_int_equal(mm_drop(&mm, F1, MM_PGOFF_MAX, 1), 0);
	assert_int_equal(mm_drop(&mm, F2, 0, 1), 0); /* unknown file */
	mm_free(&mm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unmarked_armed_page_is_dirty),
		cmocka_unit_test(test_never_armed_page_is_not_dirty),
		cmocka_unit_test(test_dirty_is_sticky),
		cmocka_unit_test(test_marked_in_every_mapping_or_dirty),
		cmocka_unit_test(test_files_are_apart),
		cmocka_unit_test(test_unregistered_mapping_makes_armed_dirty),
		cmocka_unit_test(test_news_are_armed_and_dirty),
		cmocka_unit_test(test_unregistered_mapping_counts_when_gone),
		cmocka_unit_test(test_unregistered_mapping_may_turn_out_sealed),
		cmocka_unit_test(test_sealed_mapping_is_harmless),
		cmocka_unit_test(test_protected_file_grows_dirty),
		cmocka_unit_test(test_unprotected_mapping_stays_so),
		cmocka_unit_test(test_gone_unseen_is_dirty),
		cmocka_unit_test(test_other_file_or_offset_there_is_not_the_same),
		cmocka_unit_test(test_replaced_by_unregistered_is_dirty),
		cmocka_unit_test(test_replaced_by_sync_registration_is_dirty),
		cmocka_unit_test(test_sync_registration_elsewhere_is_no_move),
		cmocka_unit_test(test_moved_keeps_its_marks),
		cmocka_unit_test(test_moved_in_parts),
		cmocka_unit_test(test_moved_and_grown),
		cmocka_unit_test(test_one_new_piece_accounts_for_one_old),
		cmocka_unit_test(test_moved_one_over_the_other),
		cmocka_unit_test(test_page_offsets_up_to_the_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
