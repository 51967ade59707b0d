/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One file of one mm in a report: what its sets and mappings come to. Pure but for the emitting. */
#ifndef WPFS_DB_REPORT_FILE_H
#define WPFS_DB_REPORT_FILE_H

#include "db/report.h"
#include "mm/model.h"

/* One owner's pages of the file, as page offsets. */
struct report_owned {
	struct mm_set armed;
	struct mm_set dirty;  /* armed, and written or dropped or not proven clean */
	struct mm_set marked; /* with a mark in some mapping, or parked */
	struct mm_set parked; /* armed and covered by no mapping */
};

struct report_file {
	uint64_t id;
	char path[WPFS_PATH_MAX];
	bool mapped;
	enum wpfs_written written; /* NONE unless wpfs has something armed */
	struct report_owned own[MM_NR_OWNERS];
};

/*
 * Works out a file (zeroed before; report_file_free in any case) from the model, of the pages
 * [first, first + nr) only. path is left to the caller. 0 or -ENOMEM.
 */
int report_file_fill(struct report_file *rf, const struct mm *mm, const struct mm_file *f,
		     uint64_t first, uint64_t nr);
void report_file_free(struct report_file *rf);

/* What an enum mm_written, perhaps out of the database, is on the wire. */
enum wpfs_written report_written_of(int written);

/* How many pages one of the sets has over all owners: `set` picks it. -ENOMEM. */
enum report_set { REPORT_ARMED, REPORT_DIRTY, REPORT_MARKED };
int64_t report_file_count(const struct report_file *rf, enum report_set set);

/* The MAPs and RUNs of the file; `kind` is MARKS or DIRTY. 0, what emit gave, or -ENOMEM. */
int report_file_emit(const struct report_file *rf, const struct mm *mm, enum wpfs_report_kind kind,
		     uint64_t first, uint64_t nr, db_report_emit emit, void *ctx);

/* One MAP that is not mapped, with runs: for a set that is not that of today's mappings. */
int report_parked_emit(const struct report_file *rf, enum mm_owner owner, const struct mm_set *runs,
		       const struct wpfs_rec_map *counts, db_report_emit emit, void *ctx);

/* The UNION of a file and the runs of `dirty`; of rf: id, path and written. */
int report_union_emit(const struct report_file *rf, const struct mm_set *armed,
		      const struct mm_set *dirty, db_report_emit emit, void *ctx);

#endif
