/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * SQL's way to look into a stored set of pages:
 *
 *	mark_runs(set [, chunk])	-> first, pages
 *
 * a table-valued function with a row per maximal run of pages of a *_chunk row. `set` is its blob
 *(of length 0: all 65536 pages), `chunk` its chunk number (0 if it is left out), which `first`
 *counts from: first = chunk * 65536 + number of the page in the chunk. A set that is NULL gives no
 *row.
 *
 * Whatever is given is checked whole before a row comes out: a blob that is no set, a value that is
 * no blob, a chunk number that is none are SQL errors.
 *
 * Compiled twice: into this program's own library, and as the loadable extension wpfs_sqlite.so for
 * the sqlite3 shell and whoever else uses SQLite. The views of schema/002_views.sql need it.
 */
#ifndef WPFS_DB_MARK_RUNS_H
#define WPFS_DB_MARK_RUNS_H

#include <sqlite3.h>

/* Makes the function known to a connection. SQLITE_OK or an error of SQLite's. */
int mark_runs_register(sqlite3 *sql);

#endif
