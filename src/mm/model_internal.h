/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by model.c and observe.c. */
#ifndef WPFS_MM_MODEL_INTERNAL_H
#define WPFS_MM_MODEL_INTERNAL_H

#include "mm/model.h"

/* What becomes of what `owner` armed in [pgoff, pgoff + nr) of the file. 0 or -ENOMEM. */
int mm_zap(struct mm *mm, struct mm_file *file, enum mm_owner owner, uint64_t pgoff, uint64_t nr,
	   enum zap_reason why);

/* Adds what of [pgoff, pgoff + nr) the program has armed and none of these mappings shows that it
 * has registered: to an empty *set. 0 or -ENOMEM. */
int mm_carried_beside(const struct mm_vma *vmas, size_t nr_vmas, const struct mm_file *file,
		      uint64_t pgoff, uint64_t nr, struct mm_set *set);

/* Adds the armed pages that a mapping shows unmarked to *set. */
int mm_vma_shown(const struct mm_vma *vma, const struct mm_set *armed, struct mm_set *set);

#endif
