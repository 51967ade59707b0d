/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Mappings and their marks as rows; see db_model_put and db_mapping_put in marks.h. */
#ifndef WPFS_DB_VMAS_H
#define WPFS_DB_VMAS_H

#include "db/sql.h"
#include "mm/model.h"

/*
 * Makes the stored mappings and marks of an mm equal to the model's as far as they lie in
 * [start, end), or all of them if a mapping, stored or of the model, crosses one of these borders.
 * Rows that are equal already are not written.
 */
int vmas_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr, uint64_t start,
	     uint64_t end);

#endif
