/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The only file that opens connections and turns SQLite's results into errno values.
 *
 * Reading a store that is not mounted: a read-only connection to a database in WAL mode has to make
 * the -shm and -wal files and cannot remove them again. So it is opened for writing where that is
 * allowed, under query_only, and the last one out tidies up; on read-only media without a
 * left-over WAL the file is immutable.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uthash.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/mark_runs.h"
#include "db/sql.h"

#define BUSY_TIMEOUT_MS	  5000
#define WRITER_TIMEOUT_MS 1000 /* programs may wait for it */

struct sql_stmt {
	const char *text;
	sqlite3_stmt *st;
	UT_hash_handle hh;
};

/* SQLite's I/O errors hide the reason in errno. */
static int system_errno(struct db_tx *tx, int otherwise)
{
	switch (tx->sql ? sqlite3_system_errno(tx->sql) : 0) {
	case ENOSPC:
	case EDQUOT:
		return -ENOSPC;
	case ENOENT:
		return -ENOENT;
	case EACCES:
	case EPERM:
		return -EACCES;
	case EROFS:
		return -EROFS;
	case ENOMEM:
		return -ENOMEM;
	default:
		return otherwise;
	}
}

int sql_errno(struct db_tx *tx, int rc)
{
	switch (rc & 0xff) {
	case SQLITE_OK:
	case SQLITE_DONE:
	case SQLITE_ROW:
		return 0;
	case SQLITE_FULL:
		return -ENOSPC;
	case SQLITE_IOERR:
		return rc == SQLITE_IOERR_NOMEM ? -ENOMEM : system_errno(tx, -EIO);
	case SQLITE_CANTOPEN:
		return system_errno(tx, -EIO);
	case SQLITE_READONLY:
		return -EROFS;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
	case SQLITE_PROTOCOL:
		return -EBUSY;
	case SQLITE_CORRUPT:
		return -EUCLEAN;
	case SQLITE_NOTADB:
		return -EMEDIUMTYPE;
	case SQLITE_NOMEM:
		return -ENOMEM;
	case SQLITE_PERM:
	case SQLITE_AUTH:
		return -EACCES;
	case SQLITE_TOOBIG:
		return -EFBIG;
	case SQLITE_CONSTRAINT:
		return rc == SQLITE_CONSTRAINT_FOREIGNKEY ? -ENOENT : -EEXIST;
	default:
		return -EINVAL;
	}
}

static int sql_failed(struct db_tx *tx, int rc, const char *text)
{
	log_debug("database: %s: %s", sqlite3_errmsg(tx->sql), text);
	return sql_errno(tx, rc);
}

/*
 * SQLite resolves links in a path before it opens anything, that of /proc/self/fd/N too, and then
 * goes by the path of a directory in whose place somebody may have put another one. Here the path
 * is what is opened each time; a file that is a link itself is refused, by O_NOFOLLOW.
 */
static sqlite3_vfs literal; /* constant after literal_once */
static const sqlite3_vfs *resolving;
static pthread_once_t literal_once = PTHREAD_ONCE_INIT;

static int literal_path(sqlite3_vfs *vfs, const char *path, int size, char *out)
{
	if (path[0] != '/')
		return resolving->xFullPathname(vfs, path, size, out);
	return snprintf(out, (size_t)size, "%s", path) < size ? SQLITE_OK : SQLITE_CANTOPEN;
}

static void literal_register(void)
{
	resolving = sqlite3_vfs_find(NULL);
	literal = *resolving;
	literal.zName = "wpfs";
	literal.xFullPathname = literal_path;
	sqlite3_vfs_register(&literal, 0);
}

static int open_uri(struct db_tx *tx, const char *path, int flags, const char *query,
		    const char *vfs)
{
	_cleanup_free_ char *uri = NULL;
	char *p;
	int rc;

	/* every byte may be special in a URI: all are escaped but those that cannot be */
	uri = malloc(3 * strlen(path) + strlen(query) + sizeof("file:"));
	if (!uri)
		return -ENOMEM;
	p = stpcpy(uri, "file:");
	for (; *path; path++) {
		if (*path == '/' || (*path >= '0' && *path <= '9') ||
		    (*path >= 'a' && *path <= 'z'))
			*p++ = *path;
		else
			p += sprintf(p, "%%%02X", (unsigned char)*path);
	}
	strcpy(p, query);
	rc = sqlite3_open_v2(uri, &tx->sql, flags | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, vfs);
	if (!tx->sql)
		return -ENOMEM;
	sqlite3_extended_result_codes(tx->sql, 1);
	sqlite3_busy_timeout(tx->sql, BUSY_TIMEOUT_MS);
	sqlite3_db_config(tx->sql, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	/* views use it, and a migration that alters a table looks at all views */
	if (rc == SQLITE_OK)
		rc = mark_runs_register(tx->sql);
	if (rc != SQLITE_OK)
		return sql_errno(tx, rc);
	/* the schema may be a stranger's: it must not call functions, and sizes are checked */
	return sql_exec_text(tx, "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;"
				 "PRAGMA foreign_keys=ON");
}

/* Is there a write-ahead log that must not be overlooked? */
static bool has_wal(const char *path)
{
	_cleanup_free_ char *wal = NULL;

	return asprintf(&wal, "%s-wal", path) < 0 || access(wal, F_OK) == 0;
}

/* The first look into the file: only now SQLite reads it. */
static int first_read(struct db_tx *tx)
{
	int64_t ignored;

	return sql_get_i64(tx, &ignored, "PRAGMA schema_version", "");
}

static int open_foreign(struct db_tx *tx, const char *path)
{
	int r = open_uri(tx, path, SQLITE_OPEN_READWRITE, "", NULL);

	if (r == 0)
		r = sql_exec_text(tx, "PRAGMA query_only=ON");
	if (r == 0)
		r = first_read(tx);
	if ((r != -EROFS && r != -EACCES) || has_wal(path))
		return r;
	sql_close(tx);
	r = open_uri(tx, path, SQLITE_OPEN_READONLY, "?immutable=1", NULL);
	return r < 0 ? r : first_read(tx);
}

int sql_open(struct db_tx *tx, const char *path, enum sql_mode mode)
{
	*tx = (struct db_tx){NULL};
	if (mode == SQL_READ_ALL)
		return open_foreign(tx, path);
	pthread_once(&literal_once, literal_register);
	return open_uri(tx, path,
			mode == SQL_WRITE ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE
					  : SQLITE_OPEN_READONLY,
			"", literal.zName);
}

void sql_close(struct db_tx *tx)
{
	struct sql_stmt *s, *next;

	HASH_ITER (hh, tx->stmts, s, next) {
		HASH_DEL(tx->stmts, s);
		sqlite3_finalize(s->st);
		free(s);
	}
	if (tx->sql && sqlite3_close(tx->sql) != SQLITE_OK)
		log_err("database: closed with statements in use");
	tx->sql = NULL;
}

void sql_patience(struct db_tx *tx, bool patient)
{
	sqlite3_busy_timeout(tx->sql, patient ? WRITER_TIMEOUT_MS : 0);
}

int sql_exec_text(struct db_tx *tx, const char *text)
{
	int rc = sqlite3_exec(tx->sql, text, NULL, NULL, NULL);

	return rc == SQLITE_OK ? 0 : sql_failed(tx, rc, text);
}

static bool fail_now(unsigned *countdown)
{
	return *countdown > 0 && --*countdown == 0;
}

int sql_lazy(struct db_tx *tx, bool lazy)
{
	int r = 0;

	if (tx->never_synced || tx->lazy == lazy)
		return 0;
	r = sql_exec_text(tx, lazy ? "PRAGMA synchronous=NORMAL" : "PRAGMA synchronous=FULL");
	if (r == 0)
		tx->lazy = lazy;
	return r;
}

/* Pages that this connection has written, ever. */
static int pages_written(struct db_tx *tx)
{
	int pages = 0, high;

	sqlite3_db_status(tx->sql, SQLITE_DBSTATUS_CACHE_WRITE, &pages, &high, 0);
	return pages;
}

int sql_commit(struct db_tx *tx, bool *wrote)
{
	int before = pages_written(tx), r;

	if (fail_now(&tx->fail.commit))
		return sql_errno(tx, tx->fail.rc);
	r = sql_exec_text(tx, "COMMIT");
	/* SQLite appends no frame for a transaction that changed nothing, and then syncs none. */
	if (wrote)
		*wrote = pages_written(tx) != before;
	return r;
}

int sql_sync_log(struct db_tx *tx)
{
	sqlite3_file *log = NULL;
	int rc;

	if (tx->never_synced)
		return 0;
	rc = sqlite3_file_control(tx->sql, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log);
	if (rc == SQLITE_OK && log && log->pMethods)
		rc = log->pMethods->xSync(log, SQLITE_SYNC_NORMAL);
	return rc == SQLITE_OK ? 0 : sql_failed(tx, rc, "sync of the log");
}

static int stmt_get(struct db_tx *tx, const char *text, sqlite3_stmt **st)
{
	struct sql_stmt *s;
	int rc;

	HASH_FIND_PTR(tx->stmts, &text, s);
	if (s) {
		assert(!sqlite3_stmt_busy(s->st));
		*st = s->st;
		return 0;
	}
	rc = sqlite3_prepare_v3(tx->sql, text, -1, SQLITE_PREPARE_PERSISTENT, st, NULL);
	if (rc != SQLITE_OK)
		return sql_failed(tx, rc, text);
	s = calloc(1, sizeof(*s));
	if (!s) {
		sqlite3_finalize(*st);
		return -ENOMEM;
	}
	s->text = text;
	s->st = *st;
	HASH_ADD_PTR(tx->stmts, text, s);
	return 0;
}

static int bind_values(sqlite3_stmt *st, const char *types, va_list ap)
{
	int rc = SQLITE_OK;

	for (int i = 1; rc == SQLITE_OK && *types; i++, types++) {
		const void *blob;
		size_t len;

		switch (*types) {
		case 'i':
			rc = sqlite3_bind_int64(st, i, va_arg(ap, int64_t));
			break;
		case 't':
			rc = sqlite3_bind_text(st, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
			break;
		default:
			assert(*types == 'b');
			blob = va_arg(ap, const void *);
			len = va_arg(ap, size_t);
			rc = sqlite3_bind_blob64(st, i, len ? blob : "", len, SQLITE_STATIC);
		}
	}
	return rc;
}

static int query(struct db_tx *tx, sqlite3_stmt **st, const char *text, const char *types,
		 va_list ap)
{
	int rc, r = stmt_get(tx, text, st);

	if (r < 0)
		return r;
	rc = bind_values(*st, types, ap);
	return rc == SQLITE_OK ? 0 : sql_failed(tx, rc, text);
}

int sql_query(struct db_tx *tx, sqlite3_stmt **st, const char *text, const char *types, ...)
{
	va_list ap;
	int r;

	va_start(ap, types);
	r = query(tx, st, text, types, ap);
	va_end(ap);
	return r;
}

int sql_step(struct db_tx *tx, sqlite3_stmt *st)
{
	int rc = fail_now(&tx->fail.step) ? tx->fail.rc : sqlite3_step(st);
	int r = 0;

	if (rc == SQLITE_ROW)
		return 1;
	if (rc != SQLITE_DONE)
		r = sql_failed(tx, rc, sqlite3_sql(st));
	sqlite3_reset(st);
	return r;
}

int sql_exec(struct db_tx *tx, const char *text, const char *types, ...)
{
	sqlite3_stmt *st;
	va_list ap;
	int r;

	va_start(ap, types);
	r = query(tx, &st, text, types, ap);
	va_end(ap);
	if (r == 0) {
		do
			r = sql_step(tx, st);
		while (r > 0);
	}
	return r;
}

int sql_get_i64(struct db_tx *tx, int64_t *value, const char *text, const char *types, ...)
{
	sqlite3_stmt *st;
	va_list ap;
	int r;

	va_start(ap, types);
	r = query(tx, &st, text, types, ap);
	va_end(ap);
	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r < 0 ? r : -ENODATA;
	r = sqlite3_column_type(st, 0) == SQLITE_NULL ? -ENODATA : 0;
	*value = sqlite3_column_int64(st, 0);
	sql_reset(st);
	return r;
}

const char *sql_text(sqlite3_stmt *st, int i)
{
	const unsigned char *text = sqlite3_column_text(st, i);

	return text ? (const char *)text : "";
}
