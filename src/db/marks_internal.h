/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef WPFS_DB_MARKS_INTERNAL_H
#define WPFS_DB_MARKS_INTERNAL_H

#include <stdint.h>

#include "db/sql.h"

/* Makes the row of a file in an mm that sets and epochs belong to, if there is none. */
int marks_file_need(struct db_tx *tx, uint64_t mm, uint64_t file);

#endif
