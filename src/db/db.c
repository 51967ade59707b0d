/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening and closing, the pool of readers, meta. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/db_internal.h"

#define WAL_KEPT_BYTES (64 << 20)

/* ---- open, close ---- */

/*
 * Is all of the file what SQLite, the constraints and the references say? Found at the mount it
 * costs an error; found at a commit it would cost marks, and never found a backup. A million names
 * take half a second, far less than it takes to make the files.
 */
static int check_all(struct db_tx *tx)
{
	sqlite3_stmt *st;
	int64_t dangling;
	int r = sql_query(tx, &st, "PRAGMA quick_check(1)", "");

	if (r == 0)
		r = sql_step(tx, st);
	if (r < 0)
		return r;
	if (r > 0 && strcmp(sql_text(st, 0), "ok") != 0) {
		log_debug("database: %s", sql_text(st, 0));
		r = -EUCLEAN;
	}
	sql_reset(st);
	if (r < 0)
		return r;
	r = sql_get_i64(tx, &dangling, "SELECT count(*) FROM pragma_foreign_key_check", "");
	return r < 0 ? r : dangling ? -EUCLEAN : 0;
}

static int open_writer(struct db *db, unsigned flags, const struct db_migration *migrations, int nr)
{
	struct db_tx tx;
	char pragmas[160];
	int version;
	int r = sql_open(&tx, db->path, SQL_WRITE);

	snprintf(pragmas, sizeof(pragmas),
		 "PRAGMA synchronous=%s; PRAGMA journal_mode=WAL; PRAGMA journal_size_limit=%d",
		 flags & DB_VOLATILE ? "OFF" : "FULL", WAL_KEPT_BYTES);
	if (r == 0)
		r = schema_check(&tx, nr, &version); /* before anything is changed */
	if (r == 0 && version == 0 && flags & DB_MUST_EXIST)
		r = -EUCLEAN;
	if (r == 0 && version > 0 && !(flags & DB_VOLATILE))
		r = check_all(&tx);
	if (r == 0)
		r = sql_exec_text(&tx, pragmas);
	if (r == 0)
		r = schema_migrate(&tx, migrations, nr);
	if (r < 0) {
		sql_close(&tx);
		return r;
	}
	tx.never_synced = flags & DB_VOLATILE;
	return writer_start(&tx, &db->writer);
}

/* A connection to check the file by and to have the first reader. */
static int open_reader(struct db *db, int nr)
{
	struct db_tx *tx = calloc(1, sizeof(*tx));
	int version, r;

	if (!tx)
		return -ENOMEM;
	r = sql_open(tx, db->path, db->read);
	if (r == 0)
		r = schema_check(tx, nr, &version);
	if (r == 0 && version == 0)
		r = -EMEDIUMTYPE;
	if (r == 0 && version < nr)
		r = -ESTALE;
	if (r < 0) {
		sql_close(tx);
		free(tx);
		return r;
	}
	LL_PREPEND(db->idle, tx);
	return 0;
}

void db_why_damaged(const char *path, char why[DB_WHY_SIZE])
{
	snprintf(why, DB_WHY_SIZE,
		 "%.130s: it is damaged: copy the store, then see wpctl check and wpfs(5)", path);
}

const char *db_errstr(int error)
{
	switch (abs(error)) {
	case EBUSY:
		return "another process has it locked";
	case EUCLEAN:
	case EBADMSG:
	case EMEDIUMTYPE:
		return "it is damaged";
	default:
		return log_errstr(error);
	}
}

void db_open_why(char *why, const char *path, int error)
{
	const char *text = log_errstr(error);

	if (error == -EPROTONOSUPPORT)
		text = "made by a newer version of wpfs: use that one";
	else if (error == -ESTALE)
		text = "made by an older version of wpfs: mount it once to bring it up to date";
	else if (error == -EMEDIUMTYPE)
		text = "not a database of wpfs";
	else if (error == -EBUSY)
		text = "another process is writing to it";
	if (why && error == -EUCLEAN)
		db_why_damaged(path, why);
	else if (why)
		snprintf(why, DB_WHY_SIZE, "%.160s: %s", path, text);
}

static struct db *db_new(const char *path)
{
	struct db *db = calloc(1, sizeof(*db));

	if (db)
		db->path = strdup(path);
	if (!db || !db->path) {
		free(db);
		return NULL;
	}
	db->dir_fd = -1;
	pthread_mutex_init(&db->lock, NULL);
	return db;
}

/* Frees it where that fails; `shown` is its path for people. */
static int db_begin(struct db *db, const char *shown, unsigned flags,
		    const struct db_migration *migrations, int nr, char why[DB_WHY_SIZE])
{
	int r;

	db->read = flags & DB_READONLY ? SQL_READ_ALL : SQL_READ;
	if (!(flags & DB_READONLY))
		r = open_writer(db, flags, migrations, nr);
	else
		r = open_reader(db, nr);
	if (r < 0) {
		db_open_why(why, shown, r);
		db_close(db);
	}
	return r;
}

int db_open_schema(const char *path, unsigned flags, const struct db_migration *migrations, int nr,
		   struct db **dbp, char why[DB_WHY_SIZE])
{
	struct db *db = db_new(path);
	int r = db ? db_begin(db, path, flags, migrations, nr, why) : -ENOMEM;

	if (r == 0)
		*dbp = db;
	return r;
}

int db_open(const char *path, unsigned flags, struct db **db, char why[DB_WHY_SIZE])
{
	return db_open_schema(path, flags, db_migrations, db_nr_migrations, db, why);
}

int db_open_at(int dir_fd, const char *path, unsigned flags, struct db **dbp, char why[DB_WHY_SIZE])
{
	_cleanup_close_ int own = fcntl(dir_fd, F_DUPFD_CLOEXEC, 0);
	char inside[32 + NAME_MAX];
	struct db *db;
	int r;

	if (own < 0)
		return -errno;
	snprintf(inside, sizeof(inside), "/proc/self/fd/%d/%s", own, strrchr(path, '/') + 1);
	db = db_new(inside);
	if (!db)
		return -ENOMEM;
	db->dir_fd = steal_fd(&own);
	r = db_begin(db, path, flags, db_migrations, db_nr_migrations, why);
	if (r == 0)
		*dbp = db;
	return r;
}

void db_close(struct db *db)
{
	struct db_tx *tx, *next;

	for (tx = db->idle; tx; tx = next) {
		next = tx->next;
		sql_close(tx);
		free(tx);
	}
	if (db->writer)
		writer_stop(db->writer);
	close_fd(&db->dir_fd);
	pthread_mutex_destroy(&db->lock);
	free(db->path);
	free(db);
}

/* ---- jobs ---- */

int db_call(struct db *db, db_job_fn fn, void *arg)
{
	return db->writer ? writer_call(db->writer, fn, arg) : -EROFS;
}

int db_call_lazy(struct db *db, db_job_fn fn, void *arg)
{
	return db->writer ? writer_call_lazy(db->writer, fn, arg) : -EROFS;
}

int db_call_beside(struct db *db, db_job_fn fn, void *arg, void (*beside)(void *), void *beside_arg)
{
	if (db->writer)
		return writer_call_beside(db->writer, fn, arg, beside, beside_arg);
	beside(beside_arg);
	return -EROFS;
}

int db_sync(struct db *db)
{
	return db->writer ? writer_sync(db->writer) : 0;
}

int db_call_all(struct db *db, db_job_fn fn, void *const *args, size_t nr, int *results)
{
	return db->writer ? writer_call_all(db->writer, fn, args, nr, results) : -EROFS;
}

int db_post(struct db *db, db_job_fn fn, void *arg, void (*free_fn)(void *arg))
{
	return db->writer ? writer_post(db->writer, fn, arg, free_fn) : -EROFS;
}

int db_flush(struct db *db)
{
	return db->writer ? writer_flush(db->writer) : 0;
}

static int reader_get(struct db *db, struct db_tx **txp)
{
	struct db_tx *tx;
	int r;

	pthread_mutex_lock(&db->lock);
	tx = db->idle;
	if (tx)
		LL_DELETE(db->idle, tx);
	pthread_mutex_unlock(&db->lock);
	*txp = tx;
	if (tx)
		return 0;
	tx = calloc(1, sizeof(*tx));
	if (!tx)
		return -ENOMEM;
	r = sql_open(tx, db->path, db->read);
	if (r < 0) {
		sql_close(tx);
		free(tx);
		return r;
	}
	*txp = tx;
	return 0;
}

static void reader_put(struct db *db, struct db_tx *tx)
{
	pthread_mutex_lock(&db->lock);
	LL_PREPEND(db->idle, tx);
	pthread_mutex_unlock(&db->lock);
}

int db_read(struct db *db, db_job_fn fn, void *arg)
{
	struct db_tx *tx;
	int r = reader_get(db, &tx);

	if (r < 0)
		return r;
	r = sql_exec_text(tx, "BEGIN");
	if (r == 0) {
		r = fn(tx, arg);
		if (!sqlite3_get_autocommit(tx->sql))
			sql_exec_text(tx, "ROLLBACK");
	}
	reader_put(db, tx);
	return r;
}

/* ---- meta ---- */

struct meta_job {
	const char *key, *text;
	char *buf;
	size_t size;
	uint64_t value;
};

int db_tx_meta_get(struct db_tx *tx, const char *key, char *buf, size_t size)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, "SELECT value FROM meta WHERE key = ?1", "t", key);

	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r < 0 ? r : -ENODATA;
	r = snprintf(buf, size, "%s", sql_text(st, 0)) < (int)size ? 0 : -ERANGE;
	sql_reset(st);
	return r;
}

int db_tx_meta_get_u64(struct db_tx *tx, const char *key, uint64_t *value)
{
	int64_t found;
	int r = sql_get_i64(tx, &found, "SELECT value FROM meta WHERE key = ?1", "t", key);

	if (r == 0)
		*value = (uint64_t)found;
	return r;
}

int db_tx_meta_set(struct db_tx *tx, const char *key, const char *text)
{
	return sql_exec(tx,
			"INSERT INTO meta VALUES (?1, ?2)"
			" ON CONFLICT DO UPDATE SET value = ?2 WHERE value IS NOT ?2",
			"tt", key, text);
}

int db_tx_meta_set_u64(struct db_tx *tx, const char *key, uint64_t value)
{
	return sql_exec(tx,
			"INSERT INTO meta VALUES (?1, ?2)"
			" ON CONFLICT DO UPDATE SET value = ?2 WHERE value IS NOT ?2",
			"ti", key, (int64_t)value);
}

static int meta_get_job(struct db_tx *tx, void *arg)
{
	struct meta_job *job = arg;

	return db_tx_meta_get(tx, job->key, job->buf, job->size);
}

static int meta_get_u64_job(struct db_tx *tx, void *arg)
{
	struct meta_job *job = arg;

	return db_tx_meta_get_u64(tx, job->key, &job->value);
}

static int meta_set_job(struct db_tx *tx, void *arg)
{
	struct meta_job *job = arg;

	if (job->text)
		return db_tx_meta_set(tx, job->key, job->text);
	return db_tx_meta_set_u64(tx, job->key, job->value);
}

int db_meta_get(struct db *db, const char *key, char *buf, size_t size)
{
	struct meta_job job = {.key = key, .buf = buf, .size = size};

	return db_read(db, meta_get_job, &job);
}

int db_meta_get_u64(struct db *db, const char *key, uint64_t *value)
{
	struct meta_job job = {.key = key};
	int r = db_read(db, meta_get_u64_job, &job);

	if (r == 0)
		*value = job.value;
	return r;
}

int db_meta_set(struct db *db, const char *key, const char *text)
{
	struct meta_job job = {.key = key, .text = text};

	return db_call(db, meta_set_job, &job);
}

int db_meta_set_u64(struct db *db, const char *key, uint64_t value)
{
	struct meta_job job = {.key = key, .value = value};

	return db_call(db, meta_set_job, &job);
}
