/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening for a check, SQLite's own structures, meta, and what the parts have in common. */
#include "db/check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/check_internal.h"
#include "db/db_internal.h"
#include "db/schema.h"
#include "db/tree.h"

/* ---- rows ---- */

static int rows_add(struct check_rows *rows, sqlite3_stmt *st)
{
	struct check_row *row;

	if (rows->nr == rows->room) {
		size_t room = rows->room ? rows->room * 2 : 64;
		struct check_row *bigger = reallocarray(rows->rows, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		rows->rows = bigger;
		rows->room = room;
	}
	row = &rows->rows[rows->nr];
	*row = (struct check_row){.bytes = NULL};
	for (int i = 0; i < sqlite3_column_count(st) && i < CHECK_COLUMNS; i++) {
		const void *bytes;

		if (sqlite3_column_type(st, i) == SQLITE_INTEGER) {
			row->v[i] = sqlite3_column_int64(st, i);
			continue;
		}
		bytes = sqlite3_column_blob(st, i);
		row->len = (size_t)sqlite3_column_bytes(st, i);
		free(row->bytes);
		row->bytes = calloc(1, row->len + 1);
		if (!row->bytes)
			return -ENOMEM;
		if (row->len)
			memcpy(row->bytes, bytes, row->len);
	}
	rows->nr++;
	return 0;
}

static int rows_read(struct db_check *check, struct check_rows *rows, sqlite3_stmt *st)
{
	int r;

	while ((r = sql_step(&check->tx, st)) > 0) {
		r = rows_add(rows, st);
		if (r < 0) {
			sql_reset(st);
			return r;
		}
	}
	return r;
}

int check_rows_get(struct db_check *check, struct check_rows *rows, const char *text)
{
	sqlite3_stmt *st;
	int r = sql_query(&check->tx, &st, text, "");

	return r ? r : rows_read(check, rows, st);
}

int check_rows_get_for(struct db_check *check, struct check_rows *rows, const char *text,
		       int64_t id)
{
	sqlite3_stmt *st;
	int r = sql_query(&check->tx, &st, text, "i", id);

	return r ? r : rows_read(check, rows, st);
}

void check_rows_free(struct check_rows *rows)
{
	for (size_t i = 0; i < rows->nr; i++)
		free(rows->rows[i].bytes);
	free(rows->rows);
	*rows = (struct check_rows){.rows = NULL};
}

/* ---- findings ---- */

int check_found(struct db_check *check, const char *kind, const char *what, const char *repair,
		const char *where, ...)
{
	struct db_finding finding = {.kind = kind, .what = what, .repair = repair};
	char *text = NULL;
	va_list ap;
	int r;

	va_start(ap, where);
	r = vasprintf(&text, where, ap);
	va_end(ap);
	if (r < 0)
		return -ENOMEM;
	finding.where = text;
	r = check->fn(check->ctx, &finding);
	free(text);
	return r;
}

int check_rule_run(struct db_check *check, const struct check_rule *rule)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	char path[CHECK_PATH_SIZE];
	int r = check_rows_get(check, &rows, rule->find);

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		int64_t id = rows.rows[i].v[0];

		r = check_found(check, rule->kind, rule->what, rule->repair, "%s %lld%s",
				rule->noun, (long long)id, check_path(check, id, path));
		if (r == 0)
			r = sql_exec(&check->tx, rule->mend, "i", id);
	}
	return r;
}

const char *check_path(struct db_check *check, int64_t id, char buf[CHECK_PATH_SIZE])
{
	sqlite3_stmt *st;
	int r = sql_query(&check->tx, &st,
			  "WITH RECURSIVE up(parent, path, depth) AS ("
			  "SELECT * FROM (SELECT parent, '/' || CAST(name AS TEXT), 1 FROM dirent"
			  " WHERE id = ?1 ORDER BY parent, name LIMIT 1)"
			  " UNION ALL SELECT d.parent, '/' || CAST(d.name AS TEXT) || up.path,"
			  " up.depth + 1 FROM up JOIN dirent AS d ON d.id = up.parent"
			  " WHERE up.parent <> 1 AND up.depth < 1000)"
			  " SELECT path FROM up WHERE parent = 1 LIMIT 1",
			  "i", id);

	buf[0] = '\0';
	if (r == 0 && sql_step(&check->tx, st) > 0) {
		snprintf(buf, CHECK_PATH_SIZE, " (%s)", sql_text(st, 0));
		sql_reset(st);
	}
	return buf;
}

/* ---- the file ---- */

static bool is_about_an_index(const char *message)
{
	return strstr(message, "missing from index") || strstr(message, "entries in index");
}

/* These are found and mended one by one. */
static bool is_about_a_row(const char *message)
{
	return strncmp(message, "CHECK constraint", 16) == 0 ||
	       strncmp(message, "NULL value", 10) == 0;
}

/*
 * Pages, records, indices. Gives 1 if the tables cannot be relied on: then nothing else is looked
 * at. The rows that break a constraint are left to the others, unless they have been there already.
 */
static int check_file(struct db_check *check, bool again)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	bool indices = false, bad = false;
	int r = check_rows_get(check, &rows, "PRAGMA integrity_check");

	if (r == -EUCLEAN) {
		r = check_found(check, "database", "SQLite cannot read it", NULL, "wpfs.db");
		return r ? r : 1;
	}
	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		const char *message = rows.rows[i].bytes ? rows.rows[i].bytes : "";

		if (strcmp(message, "ok") == 0 || (is_about_a_row(message) && !again))
			continue;
		if (is_about_an_index(message) && !again) {
			indices = true;
			continue;
		}
		bad = !is_about_a_row(message);
		r = check_found(check, "database", message, NULL, "wpfs.db");
	}
	if (r == 0 && bad)
		return 1;
	if (r == 0 && indices) {
		r = check_found(check, "index", "an index does not agree with its table",
				"make the indices anew", "wpfs.db");
		if (r == 0)
			r = sql_exec_text(&check->tx, "REINDEX");
	}
	return r;
}

/* What no part has found. */
static int check_rest(struct db_check *check)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_file(check, true);

	if (r)
		return r;
	r = check_rows_get(check, &rows,
			   "SELECT \"table\", count(*) FROM pragma_foreign_key_check GROUP BY 1");
	for (size_t i = 0; r == 0 && i < rows.nr; i++)
		r = check_found(check, "reference", "refer to nothing", NULL, "%lld rows of %s",
				(long long)rows.rows[i].v[1], rows.rows[i].bytes);
	return r;
}

/* ---- meta ---- */

static int check_id(struct db_check *check)
{
	char id[64];
	int r = db_tx_meta_get(&check->tx, DB_META_UUID, id, sizeof(id));

	if (r == -ENODATA)
		return 0; /* made by the next mount */
	if (r == 0 && id[0] && strspn(id, "0123456789abcdef-") == strlen(id))
		return 0;
	if (r < 0 && r != -ERANGE)
		return r;
	r = check_found(check, "id", "the id of the store is none",
			"remove it: the next mount makes one", "meta");
	return r ? r : sql_exec(&check->tx, "DELETE FROM meta WHERE key = ?1", "t", DB_META_UUID);
}

/* A number must not be given out twice: marks and contents are found by it. */
static int check_id_base(struct db_check *check)
{
	uint64_t base = 0;
	int64_t used = 0;
	int r = db_tx_meta_get_u64(&check->tx, DB_META_ID_BASE, &base);

	if (r < 0 && r != -ENODATA)
		return r;
	r = sql_get_i64(&check->tx, &used,
			"SELECT max((SELECT coalesce(max(id), 0) FROM inode),"
			" (SELECT coalesce(max(id), 0) FROM file))",
			"");
	if (r < 0 || (uint64_t)used <= base || used == DB_ROOT_ID)
		return r;
	r = check_found(check, "numbers", "numbers in use could be given out again",
			"go on behind the largest one", "meta");
	return r ? r : db_tx_meta_set_u64(&check->tx, DB_META_ID_BASE, (uint64_t)used);
}

static int read_clean(struct db_check *check)
{
	uint64_t clean = 0;
	int r = db_tx_meta_get_u64(&check->tx, DB_META_CLEAN, &clean);

	check->clean = r == 0 && clean;
	return r == -ENODATA ? 0 : r;
}

/* ---- open, run, finish ---- */

/* Rows are mended one by one, and until the last one they break constraints. */
static int check_begin(struct db_check *check)
{
	int r = sql_exec_text(&check->tx,
			      "PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=OFF;"
			      "PRAGMA ignore_check_constraints=OFF; PRAGMA synchronous=FULL");

	if (r == 0)
		r = sql_exec_text(&check->tx, "BEGIN IMMEDIATE");
	check->begun = r == 0;
	return r;
}

int db_check_open(const char *path, struct db_check **checkp, char why[DB_WHY_SIZE])
{
	struct db_check *check = calloc(1, sizeof(*check));
	int version = 0, r;

	if (!check)
		return -ENOMEM;
	r = sql_open(&check->tx, path, SQL_WRITE);
	if (r == 0)
		r = schema_check(&check->tx, db_nr_migrations, &version);
	if (r == 0 && version == 0)
		r = -EMEDIUMTYPE;
	if (r == 0 && version < db_nr_migrations)
		r = -ESTALE;
	if (r == 0)
		r = check_begin(check);
	if (r < 0) {
		db_open_why(why, path, r);
		sql_close(&check->tx);
		free(check);
		return r;
	}
	*checkp = check;
	return 0;
}

int db_check_run(struct db_check *check, db_finding_fn fn, void *ctx)
{
	static int (*const parts[])(struct db_check * check) = {
		read_clean, check_id,	    check_tree,	   check_names, check_refs,
		check_sets, check_mappings, check_id_base, check_rest};
	int r;

	check->fn = fn;
	check->ctx = ctx;
	r = check_file(check, false);
	if (r)
		return r;
	/* Only now: it has to tell what breaks them. */
	r = sql_exec_text(&check->tx, "PRAGMA ignore_check_constraints=ON");
	for (size_t i = 0; r == 0 && i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (parts[i] == check_rest)
			r = sql_exec_text(&check->tx, "PRAGMA ignore_check_constraints=OFF");
		if (r == 0)
			r = parts[i](check);
	}
	return r;
}

bool db_check_is_clean(const struct db_check *check)
{
	return check->clean;
}

int db_check_is_file(struct db_check *check, uint64_t id)
{
	int64_t ignored;
	int r = sql_get_i64(&check->tx, &ignored,
			    "SELECT 1 FROM inode WHERE id = ?1 AND mode & 0xf000 = 0x8000", "i",
			    (int64_t)id);

	return r == -ENODATA ? 0 : r < 0 ? r : 1;
}

#define TICK_STEPS 20000 /* of SQLite's machine: some milliseconds */

static int check_ticked(void *ctx)
{
	const struct db_check *check = ctx;

	check->tick(check->tick_ctx);
	return 0; /* go on */
}

void db_check_tick(struct db_check *check, void (*fn)(void *ctx), void *ctx)
{
	check->tick = fn;
	check->tick_ctx = ctx;
	sqlite3_progress_handler(check->tx.sql, TICK_STEPS, fn ? check_ticked : NULL, check);
}

int db_check_finish(struct db_check *check, bool commit)
{
	int r = 0;

	if (check->begun && commit)
		r = sql_commit(&check->tx, NULL);
	if (check->begun && !sqlite3_get_autocommit(check->tx.sql))
		sql_exec_text(&check->tx, "ROLLBACK");
	sql_close(&check->tx);
	free(check);
	return r;
}
