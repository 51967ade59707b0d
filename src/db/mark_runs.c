/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mark_runs() as an eponymous-only virtual table: it has no CREATE, its arguments are hidden
 * columns. A cursor holds one chunk as a set of pages and walks its runs.
 *
 * With -DSQLITE_CORE the calls go to the SQLite this is linked with, else (the extension) through
 * the table of functions that the loading SQLite hands over.
 */
#include <sqlite3ext.h>

#ifndef SQLITE_CORE
SQLITE_EXTENSION_INIT1
#endif

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "db/mark_runs.h"
#include "mm/set.h"

enum { COLUMN_FIRST, COLUMN_PAGES, COLUMN_SET, COLUMN_CHUNK };

/* What idxNum says was given; sets of bits of the hidden columns. */
enum { GIVEN_SET = 1, GIVEN_CHUNK = 2 };

/* first is an int64 */
#define CHUNK_MAX ((sqlite3_int64)1 << (62 - MM_CHUNK_SHIFT))

struct cursor {
	sqlite3_vtab_cursor base;
	struct mm_set set;
	struct mm_runs runs;
	sqlite3_int64 base_page;
	uint64_t first, pages; /* the present row */
	sqlite3_int64 row;
	bool eof;
};

static int runs_connect(sqlite3 *sql, void *aux, int argc, const char *const *argv,
			sqlite3_vtab **vtab, char **error)
{
	int rc = sqlite3_declare_vtab(
		sql, "CREATE TABLE x(first INTEGER, pages INTEGER, \"set\" HIDDEN, chunk HIDDEN)");

	if (rc != SQLITE_OK)
		return rc;
	/* It only reads its arguments: views may use it whoever wrote the schema. */
	sqlite3_vtab_config(sql, SQLITE_VTAB_INNOCUOUS);
	*vtab = sqlite3_malloc(sizeof(**vtab));
	if (!*vtab)
		return SQLITE_NOMEM;
	**vtab = (sqlite3_vtab){0};
	return SQLITE_OK;
}

static int runs_disconnect(sqlite3_vtab *vtab)
{
	sqlite3_free(vtab);
	return SQLITE_OK;
}

/* The arguments are needed, wherever in the FROM they come from: no other plan is allowed. */
static int runs_best_index(sqlite3_vtab *vtab, sqlite3_index_info *info)
{
	int set = -1, chunk = -1, args = 0;

	for (int i = 0; i < info->nConstraint; i++) {
		const struct sqlite3_index_constraint *c = &info->aConstraint[i];

		if (c->iColumn != COLUMN_SET && c->iColumn != COLUMN_CHUNK)
			continue;
		if (c->op != SQLITE_INDEX_CONSTRAINT_EQ || !c->usable)
			return SQLITE_CONSTRAINT;
		if (c->iColumn == COLUMN_SET)
			set = i;
		else
			chunk = i;
	}
	info->idxNum = 0;
	if (set >= 0) {
		info->idxNum |= GIVEN_SET;
		info->aConstraintUsage[set].argvIndex = ++args;
		info->aConstraintUsage[set].omit = 1;
	}
	if (chunk >= 0) {
		info->idxNum |= GIVEN_CHUNK;
		info->aConstraintUsage[chunk].argvIndex = ++args;
		info->aConstraintUsage[chunk].omit = 1;
	}
	info->estimatedCost = 100;
	info->estimatedRows = 100;
	info->orderByConsumed = info->nOrderBy == 1 && !info->aOrderBy[0].desc &&
				info->aOrderBy[0].iColumn == COLUMN_FIRST;
	return SQLITE_OK;
}

static int runs_open(sqlite3_vtab *vtab, sqlite3_vtab_cursor **cursor)
{
	struct cursor *cur = calloc(1, sizeof(*cur));

	if (!cur)
		return SQLITE_NOMEM;
	*cursor = &cur->base;
	return SQLITE_OK;
}

static int runs_close(sqlite3_vtab_cursor *cursor)
{
	struct cursor *cur = (struct cursor *)cursor;

	mm_set_free(&cur->set);
	free(cur);
	return SQLITE_OK;
}

static int runs_next(sqlite3_vtab_cursor *cursor)
{
	struct cursor *cur = (struct cursor *)cursor;

	cur->row++;
	cur->eof = !mm_runs_next(&cur->runs, &cur->first, &cur->pages);
	return SQLITE_OK;
}

static int runs_fail(struct cursor *cur, char *why)
{
	sqlite3_free(cur->base.pVtab->zErrMsg);
	cur->base.pVtab->zErrMsg = why;
	return why ? SQLITE_ERROR : SQLITE_NOMEM;
}

static int cursor_set(struct cursor *cur, sqlite3_value *value)
{
	int len, r;

	if (sqlite3_value_type(value) == SQLITE_NULL)
		return SQLITE_OK;
	if (sqlite3_value_type(value) != SQLITE_BLOB)
		return runs_fail(cur,
				 sqlite3_mprintf("mark_runs: a set of pages is a blob, such as "
						 "mark_chunk.marked"));
	len = sqlite3_value_bytes(value);
	/* zeroblob() has its bytes made only when they are asked for: not if there are too many */
	if (len == 0)
		r = mm_set_add_chunk(&cur->set, 0, MM_CHUNK_FULL, NULL, 0);
	else if (len > MM_CHUNK_BYTES)
		r = -EBADMSG;
	else if (!sqlite3_value_blob(value))
		r = -ENOMEM;
	else
		r = mm_set_add_chunk(&cur->set, 0, MM_CHUNK_BITS, sqlite3_value_blob(value),
				     (size_t)len);
	if (r == -EBADMSG)
		return runs_fail(cur, sqlite3_mprintf("mark_runs: %d bytes that are no valid set "
						      "of pages",
						      len));
	return r < 0 ? SQLITE_NOMEM : SQLITE_OK;
}

static int cursor_chunk(struct cursor *cur, sqlite3_value *value)
{
	sqlite3_int64 chunk = sqlite3_value_int64(value);

	if (sqlite3_value_type(value) != SQLITE_INTEGER || chunk < 0 || chunk >= CHUNK_MAX)
		return runs_fail(cur, sqlite3_mprintf("mark_runs: a chunk is a number from 0 on"));
	cur->base_page = chunk << MM_CHUNK_SHIFT;
	return SQLITE_OK;
}

static int runs_filter(sqlite3_vtab_cursor *cursor, int given, const char *text, int argc,
		       sqlite3_value **argv)
{
	struct cursor *cur = (struct cursor *)cursor;
	int rc = SQLITE_OK;

	mm_set_clear(&cur->set);
	cur->base_page = 0;
	cur->row = -1;
	cur->eof = true;
	if (!(given & GIVEN_SET))
		return runs_fail(cur, sqlite3_mprintf("mark_runs: no set of pages is given: "
						      "mark_runs(set, chunk)"));
	if (given & GIVEN_CHUNK)
		rc = cursor_chunk(cur, argv[1]);
	if (rc == SQLITE_OK)
		rc = cursor_set(cur, argv[0]);
	if (rc != SQLITE_OK)
		return rc;
	mm_runs_begin(&cur->runs, &cur->set, 0, MM_CHUNK_PAGES);
	return runs_next(cursor);
}

static int runs_eof(sqlite3_vtab_cursor *cursor)
{
	return ((struct cursor *)cursor)->eof;
}

static int runs_column(sqlite3_vtab_cursor *cursor, sqlite3_context *context, int column)
{
	const struct cursor *cur = (struct cursor *)cursor;

	if (column == COLUMN_FIRST)
		sqlite3_result_int64(context, cur->base_page + (sqlite3_int64)cur->first);
	else if (column == COLUMN_PAGES)
		sqlite3_result_int64(context, (sqlite3_int64)cur->pages);
	return SQLITE_OK; /* the arguments are not given back: NULL */
}

static int runs_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *rowid)
{
	*rowid = ((struct cursor *)cursor)->row;
	return SQLITE_OK;
}

/* Without xCreate: it is there by its name alone. */
static const sqlite3_module runs_module = {
	.xConnect = runs_connect,
	.xDisconnect = runs_disconnect,
	.xBestIndex = runs_best_index,
	.xOpen = runs_open,
	.xClose = runs_close,
	.xFilter = runs_filter,
	.xNext = runs_next,
	.xEof = runs_eof,
	.xColumn = runs_column,
	.xRowid = runs_rowid,
};

int mark_runs_register(sqlite3 *sql)
{
	return sqlite3_create_module(sql, "mark_runs", &runs_module, NULL);
}

#ifndef SQLITE_CORE
/* The name that SQLite looks for in wpfs_sqlite.so. */
__attribute__((visibility("default"))) int sqlite3_wpfssqlite_init(sqlite3 *sql, char **error,
								   const sqlite3_api_routines *api);

int sqlite3_wpfssqlite_init(sqlite3 *sql, char **error, const sqlite3_api_routines *api)
{
	SQLITE_EXTENSION_INIT2(api);
	if (sqlite3_libversion_number() < 3031000) {
		*error = sqlite3_mprintf("wpfs_sqlite needs SQLite 3.31 or newer");
		return SQLITE_ERROR;
	}
	return mark_runs_register(sql);
}
#endif
