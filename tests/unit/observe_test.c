/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The rules of a harvest (mm/observe.c) one by one; model_test.c has those of the single steps,
 * model_random_test.c mixes them all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/units.h"
#include "mm/model.h"

#define F1	 11 /* file ids */
#define F2	 12

#define AT(page) ((uint64_t)(page) << WPFS_PAGE_SHIFT)

/* What the kernel shows at the next harvest. */
struct view {
	struct mm_vma *vmas;
	size_t nr;
};

/* Adds a mapping registered with wpfs's uffd, all of it marked. Pages, ascending. */
static struct mm_vma *view_add(struct view *view, uint64_t page, uint64_t nr, uint64_t file,
			       uint64_t pgoff)
{
	struct mm_vma *v;

	view->vmas = reallocarray(view->vmas, view->nr + 1, sizeof(*view->vmas));
	assert_non_null(view->vmas);
	v = &view->vmas[view->nr++];
	*v = (struct mm_vma){.start = AT(page),
			     .end = AT(page + nr),
			     .file = file,
			     .pgoff = pgoff,
			     .registered = true,
			     .async = true};
	assert_int_equal(mm_set_add_range(&v->marked, 0, nr), 0);
	return v;
}

static void view_unmark(struct mm_vma *v, uint64_t first, uint64_t nr)
{
	assert_int_equal(mm_set_remove_range(&v->marked, first, nr), 0);
}

static void view_unregister(struct mm_vma *v)
{
	v->registered = v->async = false;
	mm_set_clear(&v->marked);
}

static void observe(struct mm *mm, struct view *view)
{
	assert_int_equal(mm_observe(mm, view->vmas, view->nr), 0);
	*view = (struct view){0};
	assert_null(mm_check(mm));
}

static void arm(struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t pgoff, uint64_t nr)
{
	struct mm_file *f = mm_file_get(mm, file);

	assert_non_null(f);
	assert_int_equal(mm_set_add_range(&f->own[owner].armed, pgoff, nr), 0);
}

static bool dirty(const struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t pgoff)
{
	return mm_set_contains(&mm_file_find(mm, file)->own[owner].dirty, pgoff);
}

/* The dirty pages of owner wpfs are exactly [pgoff, pgoff + nr). */
static void assert_dirty(const struct mm *mm, uint64_t file, uint64_t pgoff, uint64_t nr)
{
	const struct mm_set *d = &mm_file_find(mm, file)->own[MM_WPFS].dirty;

	assert_int_equal(mm_set_count_range(d, pgoff, nr), nr);
	assert_int_equal(mm_set_count(d), nr);
}

static void assert_armed(const struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t nr)
{
	assert_int_equal(mm_set_count(&mm_file_find(mm, file)->own[owner].armed), nr);
}

/* An mm with pages 0..9 of F1 armed and mapped at page 100, all marked. */
static void setup_one(struct mm *mm)
{
	struct view view = {0};

	mm_init(mm);
	arm(mm, F1, MM_WPFS, 0, 10);
	view_add(&view, 100, 10, F1, 0);
	observe(mm, &view);
	assert_dirty(mm, F1, 0, 0);
}

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
	assert_int_equal(mm_unmap(&mm, AT(100), AT(110)), 0);
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
static void test_moved_piece_never_changes_a_known_owner(void **state)
{
	struct view view = {0};
	struct mm_vma *v;
	struct mm mm;

	setup_one(&mm);
	mm.own_uffds = true;
	view_add(&view, 100, 10, F1, 0);
	v = view_add(&view, 200, 5, F1, 10);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[1].owner, MM_PROGRAM);
	view_add(&view, 100, 15, F1, 0);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_WPFS);
	assert_dirty(&mm, F1, 0, 0);
	assert_armed(&mm, F1, MM_PROGRAM, 0);
	(void)v;
	mm_free(&mm);
}

/* Both moved and both asynchronous: each new mapping goes to the one that it shows most of. */
static void test_moved_pieces_of_both_owners(void **state)
{
	struct view view = {0};
	struct mm mm;

	setup_one(&mm);
	mm.own_uffds = true;
	view_add(&view, 100, 10, F1, 0);
	view_add(&view, 200, 10, F1, 5);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[1].owner, MM_PROGRAM);
	view_add(&view, 300, 10, F1, 5);
	view_add(&view, 400, 10, F1, 0);
	observe(&mm, &view);
	assert_int_equal(mm.vmas[0].owner, MM_PROGRAM);
	assert_int_equal(mm.vmas[1].owner, MM_WPFS);
	assert_dirty(&mm, F1, 5, 5); /* those that the program's mapping shows */
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
		cmocka_unit_test(test_sealed_mapping_is_harmless),
		cmocka_unit_test(test_protected_file_grows_dirty),
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
		cmocka_unit_test(test_unknown_registration_has_an_owner),
		cmocka_unit_test(test_program_marks_arm_and_dirty_follows_them),
		cmocka_unit_test(test_program_dirty_with_two_mappings),
		cmocka_unit_test(test_program_mapping_makes_wpfs_armed_dirty),
		cmocka_unit_test(test_program_gone_is_disarmed),
		cmocka_unit_test(test_program_moved_stays_armed),
		cmocka_unit_test(test_moved_piece_never_changes_a_known_owner),
		cmocka_unit_test(test_moved_pieces_of_both_owners),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
