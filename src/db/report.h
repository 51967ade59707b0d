/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What `wpctl ps`, `marks` and `dirty` show, out of the database: by the daemon after a harvest,
 * and by wpctl on a store that is not mounted. Reads one snapshot, in the calling thread.
 */
#ifndef WPFS_DB_REPORT_H
#define WPFS_DB_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "db/db.h"
#include "ipc/wire.h"

struct db_report_query {
	enum wpfs_report_kind kind;
	bool all_uids;
	bool lower_lost;      /* contents are those of the store only: what is unsettled is dirty */
	uint32_t uid;	      /* unless all_uids: only mms of this user */
	const char *name;     /* with its instances name/2, name/PID; NULL: any */
	uint64_t file;	      /* file id; 0: see path */
	const char *path;     /* inside the mount, with leading '/'; NULL: any file */
	uint64_t offset, len; /* bytes in the file, only these; len 0: no limit */
	uint64_t epoch;	      /* 0: the open one; else the dirty pages that this one ended with.
			       * Numbers ascend over all mms: one that has no epoch of that number
			       * was in the one before it at the time */
};

/*
 * Takes one record: `body` is a struct wpfs_rec_<type> of `len` bytes (path and text not cut).
 * Not 0 ends the report.
 */
typedef int (*db_report_emit)(void *ctx, uint32_t type, const void *body, size_t len);

/*
 * PS: a MM per mm and NOTEs. MARKS, DIRTY: for each mm that has anything armed or mapped a MM,
 * then per file its mappings as MAPs, each with its RUNs, then NOTEs.
 *
 * A MAP stands for one mapping and one owner; with start = end = 0 for the pages of a file that no
 * mapping covers (parked). In DIRTY the runs of all MAPs of a file hold every dirty page once:
 * pages mapped twice are listed in the first mapping, so a MAP's `dirty` may be more than its runs.
 * In MARKS each mapping lists its own marks. The counts in MM are file pages, each counted once;
 * `marked` are those with a mark in some mapping or parked. DIRTY of one file and of no name ends
 * with a UNION: what is dirty in any of the mms shown, if there are any.
 *
 * 0, what emit gave, -errno of db.h, -EBADMSG for a corrupt set, or -ENOENT with `why` (a line,
 * DB_WHY_SIZE bytes, may be NULL): no such name, file or epoch. Nothing to show is not an error: a
 * NOTE says why.
 */
int db_report(struct db *db, const struct db_report_query *query, db_report_emit emit, void *ctx,
	      char *why);

/* How many mms are live and how many detached. */
int db_count_mms(struct db *db, uint64_t *live, uint64_t *detached);

#endif
