/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by model.c and observe.c. */
#ifndef WPFS_MM_MODEL_INTERNAL_H
#define WPFS_MM_MODEL_INTERNAL_H

#include "mm/model.h"

/* What is armed in [pgoff, pgoff + nr) is dirty; *added (may be NULL) grows by the new ones. */
int mm_owned_taint(struct mm_owned *own, uint64_t pgoff, uint64_t nr, uint64_t *added);

/* Nothing in [pgoff, pgoff + nr) is armed any more. */
int mm_owned_disarm(struct mm_owned *own, uint64_t pgoff, uint64_t nr);

#endif
