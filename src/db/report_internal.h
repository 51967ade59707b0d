/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by the files of a report: report.c, report_mm.c, report_epoch.c. One thread, one snapshot.
 */
#ifndef WPFS_DB_REPORT_INTERNAL_H
#define WPFS_DB_REPORT_INTERNAL_H

#include "db/marks.h"
#include "db/report_file.h"

struct db_tx;

struct report {
	const struct db_report_query *q;
	bool unmounted;	    /* the stored tree is the truth about names */
	uint64_t file;	    /* only this one; 0: any */
	uint64_t first, nr; /* pages of files */
	db_report_emit emit;
	void *ctx;
	char *why;
	unsigned mms;	    /* emitted */
	bool epoch_seen;    /* the epoch asked for exists */
	bool written_known; /* what the rows call not written is not */
	bool want_union;
	struct report_file all; /* the file over all mms; its sets are not used */
	struct mm_set all_armed, all_dirty;
};

/* What a query shows of an mm. */
struct report_view {
	const struct db_mm *row;
	const struct mm *mm;
	struct report_file *files;
	size_t nr;
	struct wpfs_rec_mm rec;
};

/* All of these: 0, -errno, or what emit gave. */

/* ---- report_mm.c: one mm ---- */

/* All there is to tell about the mm with this row. */
int report_mm(struct db_tx *tx, struct report *rp, uint64_t id);

int report_note(struct report *rp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* For want of this a page may be missing in the answer. */
int report_note_gap(struct report *rp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Whether write(2) changed its files. */
int report_view_written(struct report *rp, const struct report_view *view);
/* Counts the mm as shown, and begins it: its record. Its sets go into the union. */
int report_view_begin(struct report *rp, const struct report_view *view);

/* ---- report_epoch.c: a closed epoch ---- */

/* Puts what the epoch asked for ended with in the place of today's sets. */
int report_epoch_turn_back(struct db_tx *tx, struct report *rp, struct report_view *view);
/* What a view that was turned back has to tell; nothing, if there is nothing. */
int report_epoch_emit(struct report *rp, const struct report_view *view);

#endif
