/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Walking the runs of a set. CRoaring has no such thing in public: pages are read in batches and
 * put together, and chunks that are full are stepped over whole, so that the cost is that of the
 * pages in partly filled chunks.
 */
#include <roaring/roaring.h>

#include "mm/set.h"

_Static_assert(sizeof(roaring_uint32_iterator_t) <= sizeof(((struct mm_runs *)0)->iter),
	       "room for CRoaring's iterator");

static roaring_uint32_iterator_t *runs_iter(struct mm_runs *runs)
{
	return (roaring_uint32_iterator_t *)(void *)runs->iter;
}

/* Goes on at the first page at or after `page`. */
static void runs_seek(struct mm_runs *runs, uint64_t page)
{
	runs->at = runs->filled = 0;
	if (page >= runs->end)
		runs->end = 0;
	else
		roaring_move_uint32_iterator_equalorlarger(runs_iter(runs), page);
}

void mm_runs_begin(struct mm_runs *runs, const struct mm_set *set, uint64_t first, uint64_t nr)
{
	runs->set = set;
	runs->at = runs->filled = 0;
	runs->end = 0;
	if (!set->bits || nr == 0 || first >= MM_SET_MAX)
		return;
	runs->end = nr > MM_SET_MAX - first ? MM_SET_MAX : first + nr;
	roaring_init_iterator(set->bits, runs_iter(runs));
	if (first > 0)
		runs_seek(runs, first);
}

/* The next page that was not taken yet; false: none. */
static bool runs_peek(struct mm_runs *runs, uint64_t *page)
{
	if (runs->end == 0)
		return false;
	if (runs->at == runs->filled) {
		runs->at = 0;
		runs->filled =
			roaring_read_uint32_iterator(runs_iter(runs), runs->pages, MM_RUNS_BATCH);
	}
	if (runs->filled == 0 || runs->pages[runs->at] >= runs->end)
		return false;
	*page = runs->pages[runs->at];
	return true;
}

/* Takes `page`, which was peeked, and if it begins a full chunk all of that. Gives how many. */
static uint64_t runs_take(struct mm_runs *runs, uint64_t page)
{
	uint64_t nr = MM_CHUNK_PAGES;

	if ((page & (MM_CHUNK_PAGES - 1)) != 0 ||
	    mm_set_count_range(runs->set, page, MM_CHUNK_PAGES) != MM_CHUNK_PAGES) {
		runs->at++;
		return 1;
	}
	if (nr > runs->end - page)
		nr = runs->end - page;
	runs_seek(runs, page + MM_CHUNK_PAGES);
	return nr;
}

bool mm_runs_next(struct mm_runs *runs, uint64_t *first, uint64_t *nr)
{
	uint64_t page;

	if (!runs_peek(runs, first))
		return false;
	*nr = runs_take(runs, *first);
	while (runs_peek(runs, &page) && page == *first + *nr)
		*nr += runs_take(runs, page);
	return true;
}
