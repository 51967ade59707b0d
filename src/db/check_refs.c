/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Rows of marks that refer to what is not there. What belongs to no mm can be asked for by nobody
 * and goes; what lacks only the row that holds it together gets it back.
 */
#include <stdio.h>

#include "db/check_internal.h"

/* All tables that have rows of an mm and a file. */
#define EACH_USE(column)                                                                           \
	"SELECT " column " FROM vma UNION SELECT " column " FROM mm_file UNION SELECT " column     \
	" FROM armed_chunk UNION SELECT " column " FROM dirty_chunk UNION SELECT " column          \
	" FROM epoch UNION SELECT " column " FROM epoch_chunk"

static int delete_all_of(struct db_check *check, bool mm, int64_t id)
{
	static const char *const of_mm[] = {
		"DELETE FROM vma WHERE mm = ?1",	 "DELETE FROM mark_chunk WHERE mm = ?1",
		"DELETE FROM mm_file WHERE mm = ?1",	 "DELETE FROM armed_chunk WHERE mm = ?1",
		"DELETE FROM dirty_chunk WHERE mm = ?1", "DELETE FROM epoch WHERE mm = ?1",
		"DELETE FROM epoch_chunk WHERE mm = ?1", NULL};
	static const char *const of_file[] = {"DELETE FROM vma WHERE file = ?1",
					      "DELETE FROM mm_file WHERE file = ?1",
					      "DELETE FROM armed_chunk WHERE file = ?1",
					      "DELETE FROM dirty_chunk WHERE file = ?1",
					      "DELETE FROM epoch WHERE file = ?1",
					      "DELETE FROM epoch_chunk WHERE file = ?1",
					      "DELETE FROM file WHERE id = ?1",
					      NULL};
	int r = 0;

	for (const char *const *text = mm ? of_mm : of_file; r == 0 && *text; text++)
		r = sql_exec(&check->tx, *text, "i", id);
	return r;
}

static int check_mms(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_rows_get(
		check, &rows,
		"SELECT mm FROM (" EACH_USE("mm") " UNION SELECT mm FROM mark_chunk)"
						  " WHERE mm NOT IN (SELECT id FROM mm)");

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		r = check_found(check, "no-mm", "there is no such address space",
				"remove its marks", "mm %lld", (long long)rows.rows[i].v[0]);
		if (r == 0)
			r = delete_all_of(check, true, rows.rows[i].v[0]);
	}
	return r;
}

/* Files that are in the tree and lost only the row that marks refer to. */
static int check_file_rows(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_rows_get(
		check, &rows,
		"SELECT file FROM (" EACH_USE(
			"file") ") WHERE file NOT IN"
				" (SELECT id FROM file) AND file IN (SELECT id FROM inode)");

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		int64_t id = rows.rows[i].v[0];

		r = check_found(check, "no-file-row", "marks refer to it, and its row is missing",
				"make the row again", "file %lld", (long long)id);
		if (r == 0)
			r = sql_exec(&check->tx, "INSERT INTO file VALUES (?1, x'', '')", "i", id);
		/* A mount finds it by its path, as the handle is of a tmpfs that is gone. */
		if (r == 0)
			r = sql_exec(&check->tx,
				     "UPDATE file SET path = (SELECT path FROM file_v"
				     " WHERE file = ?1) WHERE id = ?1",
				     "i", id);
	}
	return r;
}

/*
 * Files that are gone. After a crash they may have been made since the last commit: the next mount
 * finds that out, and whether to keep their marks.
 */
static int check_files(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_rows_get(check, &rows,
			       "SELECT file, 0 FROM (" EACH_USE(
				       "file") ") WHERE file NOT IN"
					       " (SELECT id FROM file) UNION SELECT id, 1 FROM file"
					       " WHERE id NOT IN (SELECT id FROM inode)");

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		if (rows.rows[i].v[1] && !check->clean)
			continue;
		r = check_found(check, "file-gone", "marks of a file that is gone",
				"remove these marks", "file %lld", (long long)rows.rows[i].v[0]);
		if (r == 0)
			r = delete_all_of(check, false, rows.rows[i].v[0]);
	}
	return r;
}

static int check_mm_files(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_rows_get(
		check, &rows,
		"SELECT mm, file FROM (SELECT mm, file FROM armed_chunk UNION"
		" SELECT mm, file FROM dirty_chunk UNION SELECT mm, file FROM epoch"
		" UNION SELECT mm, file FROM epoch_chunk) AS u WHERE NOT EXISTS"
		" (SELECT 1 FROM mm_file AS m WHERE m.mm = u.mm AND m.file = u.file)");

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		const int64_t *v = rows.rows[i].v;

		r = check_found(check, "no-file-row", "the row that its sets belong to is missing",
				"make the row again", "mm %lld, file %lld", (long long)v[0],
				(long long)v[1]);
		if (r == 0)
			r = sql_exec(&check->tx,
				     "INSERT INTO mm_file (mm, file, protect) VALUES (?1, ?2, 0)",
				     "ii", v[0], v[1]);
	}
	return r;
}

/* A set of an epoch of which nothing else is known: nobody can tell when it ended. */
static int check_epochs(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_rows_get(check, &rows,
			       "SELECT DISTINCT mm, file, number FROM epoch_chunk AS c"
			       " WHERE NOT EXISTS (SELECT 1 FROM epoch AS e WHERE e.mm = c.mm"
			       " AND e.file = c.file AND e.number = c.number)");

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		const int64_t *v = rows.rows[i].v;

		r = check_found(check, "no-epoch", "the row of this epoch is missing",
				"make the row again, closed now", "mm %lld, file %lld, epoch %lld",
				(long long)v[0], (long long)v[1], (long long)v[2]);
		if (r == 0)
			r = sql_exec(&check->tx,
				     "INSERT INTO epoch (mm, file, number, opened_ns, closed_ns)"
				     " VALUES (?1, ?2, ?3, 0, unixepoch() * 1000000000)",
				     "iii", v[0], v[1], v[2]);
	}
	return r;
}

int check_refs(struct db_check *check)
{
	int r = check_mms(check);

	if (r == 0)
		r = check_file_rows(check);
	if (r == 0)
		r = check_files(check);
	if (r == 0)
		r = check_mm_files(check);
	return r ? r : check_epochs(check);
}
