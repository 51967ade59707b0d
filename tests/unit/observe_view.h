/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Views of an mm as the kernel would show them, for the tests of a harvest's bookkeeping. */
#ifndef WPFS_TESTS_OBSERVE_VIEW_H
#define WPFS_TESTS_OBSERVE_VIEW_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
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
static inline struct mm_vma *view_add(struct view *view, uint64_t page, uint64_t nr, uint64_t file,
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

static inline void view_unmark(struct mm_vma *v, uint64_t first, uint64_t nr)
{
	assert_int_equal(mm_set_remove_range(&v->marked, first, nr), 0);
}

static inline void view_unregister(struct mm_vma *v)
{
	v->registered = v->async = false;
	mm_set_clear(&v->marked);
}

static inline void observe(struct mm *mm, struct view *view)
{
	assert_int_equal(mm_observe(mm, view->vmas, view->nr), 0);
	*view = (struct view){0};
	assert_null(mm_check(mm));
}

static inline void arm(struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t pgoff,
		       uint64_t nr)
{
	struct mm_file *f = mm_file_get(mm, file);

	assert_non_null(f);
	assert_int_equal(mm_set_add_range(&f->own[owner].armed, pgoff, nr), 0);
}

static inline bool dirty(const struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t pgoff)
{
	return mm_set_contains(&mm_file_find(mm, file)->own[owner].dirty, pgoff);
}

/* The dirty pages of owner wpfs are exactly [pgoff, pgoff + nr). */
static inline void assert_dirty(const struct mm *mm, uint64_t file, uint64_t pgoff, uint64_t nr)
{
	const struct mm_set *d = &mm_file_find(mm, file)->own[MM_WPFS].dirty;

	assert_int_equal(mm_set_count_range(d, pgoff, nr), nr);
	assert_int_equal(mm_set_count(d), nr);
}

static inline void assert_armed(const struct mm *mm, uint64_t file, enum mm_owner owner,
				uint64_t nr)
{
	assert_int_equal(mm_set_count(&mm_file_find(mm, file)->own[owner].armed), nr);
}

/* An mm with pages 0..9 of F1 armed and mapped at page 100, all marked. */
static inline void setup_one(struct mm *mm)
{
	struct view view = {0};

	mm_init(mm);
	arm(mm, F1, MM_WPFS, 0, 10);
	view_add(&view, 100, 10, F1, 0);
	observe(mm, &view);
	assert_dirty(mm, F1, 0, 0);
}

#endif
