/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Putting marks into the page tables of a mapping. */
#include <errno.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "track/residency.h"
#include "uffd/uffd.h"

int arm_runs(int uffd, uint64_t start, uint64_t end, uint64_t pgoff, const struct mm_set *set,
	     bool on)
{
	struct mm_runs runs;
	uint64_t first, nr;
	int r = 0;

	mm_runs_begin(&runs, set, pgoff, (end - start) >> WPFS_PAGE_SHIFT);
	while (r == 0 && mm_runs_next(&runs, &first, &nr)) {
		uint64_t at = start + ((first - pgoff) << WPFS_PAGE_SHIFT);

		r = uffd_writeprotect(uffd, at, at + (nr << WPFS_PAGE_SHIFT), on);
	}
	return r;
}

int arm_pages(struct track *t, struct tmm *tm, uint64_t file, uint64_t start, uint64_t end,
	      uint64_t pgoff, const struct mm_set *set)
{
	_cleanup_close_ int uffd = tmm_uffd(tm);
	int r;

	if (uffd < 0)
		return uffd;
	r = residency_register(t, uffd, start, end, file);
	return r < 0 ? r : arm_runs(uffd, start, end, pgoff, set, true);
}
