/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rules of a harvest (mm/observe.c) about whose a registration is. */
#include "observe_view.h"

/* The same registered by the program, pages 0..4 marked by it. */
static void setup_program(struct mm *mm)
{
	struct view view = {0};
	struct mm_vma *v;

	mm_init(mm);
	mm->own_uffds = true;
	v = view_add(&view, 100, 10, F1, 0);
	v->async = false;
	view_unmark(v, 5, 5);
	observe(mm, &view);
	assert_int_equal(mm->vmas[0].owner, MM_PROGRAM);
	assert_armed(mm, F1, MM_PROGRAM, 5);
}

/* ---- harvest: whose is a registration ---- */

static void test_unknown_registration_has_an_owner(void **state)
{
	struct view view = {0};
	struct mm mm;

	mm_init(&mm);
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 200, 10, F1, 0)->async = false;
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_WPFS);
	assert_int_equal(mm.vmas[1].owner, MM_PROGRAM);
	mm.own_uffds = true;
	view_add(&view, 300, 10, F2, 0);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_PROGRAM);
	mm_free(&mm);
}

static void test_program_marks_arm_and_dirty_follows_them(void **state)
{
	struct view view = {0};
	struct mm_vma *v;
	struct mm mm;

	setup_program(&mm);
	v = view_add(&view, 100, 10, F1, 0);
	v->async = false;
	view_unmark(v, 0, 2);
	view_unmark(v, 8, 2);
	observe(&mm, &view);
	assert_armed(&mm, F1, MM_PROGRAM, 8);
	assert_true(dirty(&mm, F1, MM_PROGRAM, 0) && dirty(&mm, F1, MM_PROGRAM, 1));
	assert_int_equal(mm_set_count(&mm_file_find(&mm, F1)->own[MM_PROGRAM].dirty), 2);
	v = view_add(&view, 100, 10, F1, 0); /* protected again */
	v->async = false;
	observe(&mm, &view);
	assert_int_equal(mm_set_count(&mm_file_find(&mm, F1)->own[MM_PROGRAM].dirty), 0);
	assert_armed(&mm, F1, MM_WPFS, 0);
	mm_free(&mm);
}

static void test_program_dirty_with_two_mappings(void **state)
{
	struct view view = {0};
	struct mm_vma *v;
	struct mm mm;

	setup_program(&mm);
	v = view_add(&view, 100, 10, F1, 0);
	v->async = false;
	view_unmark(v, 0, 1);
	view_add(&view, 200, 10, F1, 0)->async = false;
	observe(&mm, &view);
	assert_true(dirty(&mm, F1, MM_PROGRAM, 0));
	assert_int_equal(mm_set_count(&mm_file_find(&mm, F1)->own[MM_PROGRAM].dirty), 1);
	mm_free(&mm);
}

static void test_program_mapping_makes_wpfs_armed_dirty(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_program(&mm);
	arm(&mm, F1, MM_WPFS, 2, 4);
	view_add(&view, 100, 10, F1, 0)->async = false;
	observe(&mm, &view);
	assert_dirty(&mm, F1, 2, 4);
	mm_free(&mm);
}

static void test_program_gone_is_disarmed(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_program(&mm);
	view_add(&view, 100, 3, F1, 0)->async = false;
	observe(&mm, &view);
	assert_armed(&mm, F1, MM_PROGRAM, 3);
	assert_int_equal(mm.conservative, 0);
	mm_free(&mm);
}

static void test_program_moved_stays_armed(void **state)
{
	struct view view = {0};
	struct mm_vma *v;
	struct mm mm;

	setup_program(&mm);
	v = view_add(&view, 300, 10, F1, 0);
	v->async = false;
	view_unmark(v, 0, 10);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_PROGRAM);
	assert_int_equal(mm_set_count(&mm_file_find(&mm, F1)->own[MM_PROGRAM].dirty), 5);
	mm_free(&mm);
}

/* A mapping of wpfs that grew does not become the program's because one of those is gone. */
static void test_gone_program_piece_leaves_others_alone(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	mm.own_uffds = true;
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 200, 5, F1, 10)->async = false;
	observe(&mm, &view);
	assert_int_equal(mm.vmas[1].owner, MM_PROGRAM);
	view_add(&view, 100, 15, F1, 0);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_WPFS);
	assert_dirty(&mm, F1, 0, 0);
	assert_armed(&mm, F1, MM_PROGRAM, 0);
	mm_free(&mm);
}

/* Mappings of both owners that share pages 5..9 move; `async` is the program's uffd. */
static void move_both(struct mm *mm, bool async)
{
	struct view view = {0};

	setup_one(mm);
	mm->own_uffds = true;
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 200, 10, F1, 5)->async = async;
	observe(mm, &view);
	assert_int_equal(mm->vmas[1].owner, MM_PROGRAM);
	view_add(&view, 300, 10, F1, 5)->async = async;
	view_add(&view, 400, 10, F1, 0);
	observe(mm, &view);
	assert_int_equal(mm->vmas[0].owner, MM_PROGRAM);
}

static void test_moved_pieces_of_both_owners(void **state)
{
	struct mm mm;

	move_both(&mm, false);
	assert_int_equal(mm.vmas[1].owner, MM_WPFS);
	assert_dirty(&mm, F1, 5, 5); /* those that the program's mapping shows */
	mm_free(&mm);
}

static void test_moved_pieces_that_look_alike_are_not_believed(void **state)
{
	struct mm mm;

	move_both(&mm, true);
	assert_int_equal(mm.vmas[1].owner, MM_PROGRAM);
	assert_dirty(&mm, F1, 0, 10);
	mm_free(&mm);
}

/* The program moves a mapping of its own onto one of wpfs's that shows the same pages. */
static void test_program_moved_over_wpfs(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	mm.own_uffds = true;
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 200, 10, F1, 0);
	observe(&mm, &view);
	view_add(&view, 100, 10, F1, 0);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_PROGRAM);
	mm_free(&mm);
}

/* ---- what the program had marked in an earlier run ---- */

/* Pages 0..9, and nothing of them mapped yet. */
static void setup_carried(struct mm *mm)
{
	mm_init(mm);
	arm(mm, F1, MM_PROGRAM, 0, 10);
}

static uint64_t carried(const struct mm *mm)
{
	_cleanup_set_ struct mm_set set = {NULL};

	assert_int_equal(mm_carried(mm, mm_file_find(mm, F1), 0, 20, &set), 0);
	return mm_set_count(&set);
}

static void test_carried_is_dirty_where_it_was_stored_to(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_carried(&mm);
	view_unmark(view_add(&view, 100, 10, F1, 0), 4, 1);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_WPFS);
	assert_true(dirty(&mm, F1, MM_PROGRAM, 4));
	assert_int_equal(carried(&mm), 9);
	assert_true(mm_set_is_empty(&mm.vmas[0].marked)); /* none of these is wpfs's */
	view_add(&view, 100, 10, F1, 0);
	observe(&mm, &view);
	assert_int_equal(carried(&mm), 9);
	assert_int_equal(mm.conservative, 0);
	assert_int_equal(mm_unmap(&mm, AT(100), AT(105), ZAP_UNMAP), 0);
	assert_int_equal(carried(&mm), 9);
	mm_free(&mm);
}

static void test_carried_is_dirty_where_nobody_watched(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_carried(&mm);
	view_add(&view, 100, 10, F1, 0);
	view_unregister(view_add(&view, 200, 3, F1, 1));
	observe(&mm, &view);
	assert_int_equal(carried(&mm), 7);
	assert_int_equal(mm.conservative, 3);
	view_add(&view, 102, 8, F1, 2); /* unmapped unseen: page 0 */
	observe(&mm, &view);
	assert_int_equal(carried(&mm), 6);
	assert_int_equal(mm_doubt(&mm, mm_file_find(&mm, F1), 8, 10), 0);
	assert_int_equal(carried(&mm), 4);
	assert_int_equal(mm_doubt_armed(&mm, mm_file_find(&mm, F1), 0, 10), 0);
	assert_int_equal(carried(&mm), 4);
	mm_free(&mm);
}

/* From then on they are marks of this run, and what is stored elsewhere is not asked about. */
static void test_registered_is_not_carried(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_carried(&mm);
	mm.own_uffds = true;
	view_add(&view, 100, 6, F1, 0)->async = false;
	view_unregister(view_add(&view, 200, 10, F1, 0));
	observe(&mm, &view);
	assert_int_equal(carried(&mm), 0);
	assert_false(dirty(&mm, F1, MM_PROGRAM, 5));
	assert_true(dirty(&mm, F1, MM_PROGRAM, 6));
	mm_free(&mm);
}

static void test_carried_written_and_doubted(void **state)
{
	struct mm_set set = {0};
	struct mm_file *f;
	struct mm mm;

	setup_carried(&mm);
	f = mm_file_find(&mm, F1);
	assert_int_equal(mm_set_add_range(&set, 8, 5), 0);
	assert_int_equal(mm_carried_written(&mm, f, &set), 0);
	assert_int_equal(mm_set_count(&f->own[MM_PROGRAM].dirty), 2);
	assert_int_equal(mm.conservative, 0);
	assert_int_equal(mm_doubt_carried(&mm, f, 0, 3), 0);
	assert_int_equal(mm.conservative, 3);
	assert_int_equal(carried(&mm), 5);
	mm_set_free(&set);
	mm_free(&mm);
}

static void test_marks_that_are_not_believed(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_program(&mm);
	mm.own_doubted = true;
	view_add(&view, 100, 10, F1, 0)->async = false;
	observe(&mm, &view);
	assert_armed(&mm, F1, MM_PROGRAM, 5);
	assert_int_equal(mm_set_count(&mm_file_find(&mm, F1)->own[MM_PROGRAM].dirty), 5);
	mm_free(&mm);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unknown_registration_has_an_owner),
		cmocka_unit_test(test_program_marks_arm_and_dirty_follows_them),
		cmocka_unit_test(test_program_dirty_with_two_mappings),
		cmocka_unit_test(test_program_mapping_makes_wpfs_armed_dirty),
		cmocka_unit_test(test_program_gone_is_disarmed),
		cmocka_unit_test(test_program_moved_stays_armed),
		cmocka_unit_test(test_gone_program_piece_leaves_others_alone),
		cmocka_unit_test(test_moved_pieces_of_both_owners),
		cmocka_unit_test(test_moved_pieces_that_look_alike_are_not_believed),
		cmocka_unit_test(test_program_moved_over_wpfs),
		cmocka_unit_test(test_carried_is_dirty_where_it_was_stored_to),
		cmocka_unit_test(test_carried_is_dirty_where_nobody_watched),
		cmocka_unit_test(test_registered_is_not_carried),
		cmocka_unit_test(test_carried_written_and_doubted),
		cmocka_unit_test(test_marks_that_are_not_believed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
