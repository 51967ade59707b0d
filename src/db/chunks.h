/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sets of pages as rows, 65536 pages to a row. A set is found by its table and three numbers:
 *
 *	MARKS       mm, owner, region: pages of the address space from region * 2^32 on
 *	ARMED       mm, owner, file
 *	DIRTY       mm, owner, file
 *	EPOCH       mm, file, number of a closed epoch
 */
#ifndef WPFS_DB_CHUNKS_H
#define WPFS_DB_CHUNKS_H

#include <stdint.h>

#include "db/sql.h"
#include "mm/model.h"

enum chunk_table { CHUNKS_MARKS, CHUNKS_ARMED, CHUNKS_DIRTY, CHUNKS_EPOCH };

struct chunk_key {
	enum chunk_table table;
	uint64_t k1, k2, k3;
};

/* Owners in the database are those of the wire, enum wpfs_owner. */
static inline uint64_t chunk_owner(enum mm_owner owner)
{
	return owner == MM_WPFS ? 1 : 2;
}

/* Makes the stored set equal to *set; rows that are equal already are not written. */
int chunks_put(struct db_tx *tx, const struct chunk_key *key, const struct mm_set *set);

/* The same for the chunks first .. last of the set only. */
int chunks_put_part(struct db_tx *tx, const struct chunk_key *key, const struct mm_set *set,
		    uint64_t first, uint64_t last);

/* Adds the stored set to *set. -EBADMSG: a row is not valid. */
int chunks_get(struct db_tx *tx, const struct chunk_key *key, struct mm_set *set);

/* The same of one chunk; nothing if it is not stored. */
int chunks_get_one(struct db_tx *tx, const struct chunk_key *key, uint32_t index,
		   struct mm_set *set);

/* Adds the pages [page, page + nr) of the address space that are marked to *set, relative to
 * `page`. */
int chunks_get_marks(struct db_tx *tx, uint64_t mm, enum mm_owner owner, uint64_t page, uint64_t nr,
		     struct mm_set *set);

#endif
