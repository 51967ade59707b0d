/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reports: which mms and files a query means, and what is said when there are none. */
#include "db/report.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "db/db_internal.h"
#include "db/report_internal.h"
#include "db/tree.h"

static int report_fail(struct report *rp, int error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int report_fail(struct report *rp, int error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (rp->why)
		vsnprintf(rp->why, DB_WHY_SIZE, fmt, ap);
	va_end(ap);
	return error;
}

/*
 * Parameter n means the mm of that name and its instances: name/2 and name/PID. What a fork child
 * wrote is changed for a backup as much as what its parent wrote.
 */
#define NAME_IS(n) "(name = ?" #n " OR substr(name, 1, length(?" #n ") + 1) = ?" #n " || '/')"

static int find_file(struct db_tx *tx, struct report *rp)
{
	const struct db_report_query *q = rp->q;
	int64_t id;
	int r;

	rp->file = q->file;
	if (q->file || !q->path)
		return 0;
	r = db_tx_tree_find(tx, q->path, &rp->file);
	if (r == -ENODATA) {
		r = sql_get_i64(tx, &id, "SELECT max(id) FROM file WHERE path = ?1", "t", q->path);
		if (r == 0)
			rp->file = (uint64_t)id;
	}
	return r == -ENODATA ? report_fail(rp, -ENOENT, "%.200s: no such file", q->path) : r;
}

/* Nothing was shown: why? */
static int report_nothing(struct db_tx *tx, struct report *rp)
{
	const struct db_report_query *q = rp->q;
	/* That others have some is neither said nor denied. */
	const char *yours = q->all_uids ? "" : " of yours";
	const char *others = q->all_uids ? "" : "; only root sees the programs of other users";
	int64_t known;
	int r;

	if (q->name) {
		r = sql_get_i64(tx, &known,
				"SELECT count(*) FROM mm WHERE " NAME_IS(1) " AND (?2 OR uid = ?3)",
				"tii", q->name, (int64_t)q->all_uids, (int64_t)q->uid);
		if (r < 0)
			return r;
		if (known == 0)
			return report_fail(
				rp, -ENOENT,
				"no program%s named '%.80s' has mapped a file of this mount shared "
				"(MAP_PRIVATE mappings and write(2) are not tracked%s)",
				yours, q->name, others);
	}
	if (q->epoch && q->kind == WPFS_REPORT_DIRTY && !rp->epoch_seen)
		return report_fail(rp, -ENOENT, "no epoch %llu is kept",
				   (unsigned long long)q->epoch);
	if (rp->epoch_seen)
		return report_note(rp, "nothing was written in epoch %llu",
				   (unsigned long long)q->epoch);
	if (rp->file)
		return report_note(rp, "no tracked program%s has mapped this file shared%s", yours,
				   others);
	return report_note(
		rp,
		"no program%s that is attached has mapped a file of this mount shared: start "
		"it with `wpctl run`%s",
		yours, others);
}

/*
 * Was any mm that is known in an epoch when the one of that number began? Whose it was may be
 * forgotten.
 */
static int find_epoch(struct db_tx *tx, struct report *rp)
{
	uint64_t last;
	int64_t known;
	int r;

	if (!rp->q->epoch)
		return 0;
	r = db_last_epoch(tx, &last);
	if (r == 0)
		r = sql_get_i64(tx, &known,
				"SELECT EXISTS (SELECT 1 FROM epoch WHERE number <= ?1)", "i",
				(int64_t)rp->q->epoch);
	rp->epoch_seen = r == 0 && known && rp->q->epoch <= last;
	return r;
}

/* A daemon keeps its rows true; without one they may be from before its death. */
static int find_written_known(struct db_tx *tx, struct report *rp)
{
	uint64_t known = 0;
	int r;

	rp->written_known = !rp->unmounted;
	if (!rp->unmounted)
		return 0;
	r = db_tx_meta_get_u64(tx, DB_META_WRITTEN_KNOWN, &known);
	rp->written_known = r == 0 && known == 1;
	return r == -ENODATA ? 0 : r;
}

static int report_job(struct db_tx *tx, void *arg)
{
	struct report *rp = arg;
	const struct db_report_query *q = rp->q;
	int64_t id = 0;
	int r = find_file(tx, rp);

	if (r == 0)
		r = find_epoch(tx, rp);
	if (r == 0)
		r = find_written_known(tx, rp);
	if (r == 0 && q->epoch && q->kind == WPFS_REPORT_DIRTY && !rp->epoch_seen)
		return report_nothing(tx, rp);
	rp->want_union = rp->file && !q->name && q->kind == WPFS_REPORT_DIRTY;
	while (r == 0) {
		r = sql_get_i64(tx, &id,
				"SELECT min(id) FROM mm WHERE id > ?1 AND (?2 OR uid = ?3)"
				" AND (?4 IS NULL OR " NAME_IS(4) ")",
				"iiit", id, (int64_t)q->all_uids, (int64_t)q->uid, q->name);
		if (r == 0)
			r = report_mm(tx, rp, (uint64_t)id);
	}
	if (r != -ENODATA)
		return r;
	if (rp->mms && rp->want_union)
		return report_union_emit(&rp->all, &rp->all_armed, &rp->all_dirty, rp->emit,
					 rp->ctx);
	return rp->mms ? 0 : report_nothing(tx, rp);
}

int db_report(struct db *db, const struct db_report_query *query, db_report_emit emit, void *ctx,
	      char *why)
{
	struct report rp = {
		.q = query,
		.unmounted = !db->writer,
		.nr = MM_SET_MAX,
		.emit = emit,
		.ctx = ctx,
		.why = why,
	};
	int r;

	if (query->len) {
		rp.first = query->offset >> WPFS_PAGE_SHIFT;
		if (query->len <= UINT64_MAX - query->offset)
			rp.nr = ((query->offset + query->len - 1) >> WPFS_PAGE_SHIFT) + 1 -
				rp.first;
	}
	if (why)
		why[0] = '\0';
	r = db_read(db, report_job, &rp);
	mm_set_free(&rp.all_armed);
	mm_set_free(&rp.all_dirty);
	return r;
}

struct counts {
	int64_t live, detached;
};

static int count_job(struct db_tx *tx, void *arg)
{
	struct counts *counts = arg;
	int r = sql_get_i64(tx, &counts->live, "SELECT count(*) FROM mm WHERE state = 1", "");

	if (r == 0)
		r = sql_get_i64(tx, &counts->detached, "SELECT count(*) FROM mm WHERE state = 2",
				"");
	return r;
}

int db_count_mms(struct db *db, uint64_t *live, uint64_t *detached)
{
	struct counts counts;
	int r = db_read(db, count_job, &counts);

	if (r == 0) {
		*live = (uint64_t)counts.live;
		*detached = (uint64_t)counts.detached;
	}
	return r;
}
