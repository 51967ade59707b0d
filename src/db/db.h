/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The database of a mount: one SQLite file in WAL mode. schema/README.md tells what is in it.
 *
 * Writing: one thread owns the only connection that writes. Jobs go to it through a queue; all
 * that wait are done in one transaction (group commit), each in a savepoint of its own, so that a
 * job that fails changes nothing and disturbs no other. Reading: any thread, on read-only
 * connections, each read in one snapshot: the last commit.
 *
 * Errors everywhere: -ENOSPC full, -EIO, -EROFS, -EBUSY another process writes, -EUCLEAN corrupt,
 * -EEXIST a constraint forbids it, -ENOMEM, -EACCES.
 */
#ifndef WPFS_DB_DB_H
#define WPFS_DB_DB_H

#include <stddef.h>
#include <stdint.h>

struct db;
struct db_tx; /* a connection inside a transaction: valid only within a job */

#define DB_VOLATILE                                                                                \
	(1u << 0) /* nothing survives a power loss: no fsync (PRAGMA synchronous=OFF)              \
		   */
#define DB_READONLY   (1u << 1) /* of an unmounted store: no writer, nothing is made or migrated */
#define DB_MUST_EXIST (1u << 2) /* one that is empty is damaged, not new */

#define DB_WHY_SIZE   256

/*
 * Opens the database, makes it when it is missing (not DB_READONLY), brings its schema up to date
 * and starts the writer. `why` (may be NULL) gets a line for people on errors. Besides the above:
 * -EUCLEAN: damaged; all of it is checked, unless DB_READONLY or DB_VOLATILE; -ENOENT;
 * -EPROTONOSUPPORT: its schema is newer than this program; -EMEDIUMTYPE: the file is no database of
 * wpfs; -ESTALE: DB_READONLY and its schema is older than this program's.
 */
int db_open(const char *path, unsigned flags, struct db **db, char why[DB_WHY_SIZE]);

/*
 * The same of the file that `path` ends with, in the directory behind `dir_fd` (borrowed for the
 * call), wherever that is by now and whatever `path` leads to; the rest of it is for people. Not
 * DB_READONLY.
 */
int db_open_at(int dir_fd, const char *path, unsigned flags, struct db **db, char why[DB_WHY_SIZE]);

/* The line for people about a database that is damaged, and what to do. */
void db_why_damaged(const char *path, char why[DB_WHY_SIZE]);

/* What an error of a database means, for people. Either sign. */
const char *db_errstr(int error);

/* Does what is queued, checkpoints, stops the writer, frees. No other thread may use db any more.
 */
void db_close(struct db *db);

/*
 * A job. In the writer thread, or the caller's while that waits for the job. 0, or a
 * negative value: the job is undone. It must not call db_* functions that take a struct db.
 */
typedef int (*db_job_fn)(struct db_tx *tx, void *arg);

/*
 * Runs a job and returns after its commit: what fn gave, or the error of the commit. When the
 * disk is full or fails, SQLite may undo the whole transaction: then every job of the group gets
 * that error.
 */
int db_call(struct db *db, db_job_fn fn, void *arg);

/*
 * The same, but what it did outlives this process only: a loss of power may take it back, with all
 * that came after it. The next job of any other kind makes it durable, also one that changes
 * nothing.
 */
int db_call_lazy(struct db *db, db_job_fn fn, void *arg);

/*
 * As db_call_lazy, in another thread and on another processor; meanwhile beside(beside_arg) is
 * called in this one, once in any case. Worth it where that takes long. If that thread has not come
 * to the job by then, it is done here.
 */
int db_call_beside(struct db *db, db_job_fn fn, void *arg, void (*beside)(void *),
		   void *beside_arg);

/* Makes durable what db_call_lazy did, here or in a process before that was killed. */
int db_sync(struct db *db);

/*
 * As db_call with each of args[0 .. nr): all in one transaction, unless SQLite undoes it half way.
 * results[] gets what db_call would have given. -ENOMEM: none was run.
 */
int db_call_all(struct db *db, db_job_fn fn, void *const *args, size_t nr, int *results);

/*
 * As db_call, without waiting. `arg` is handed over: free_fn (may be NULL) gets it when the job is
 * committed or has failed. Jobs are done in the order they came. -ENOMEM: not queued, arg is the
 * caller's still. A failure is kept for db_flush.
 */
int db_post(struct db *db, db_job_fn fn, void *arg, void (*free_fn)(void *arg));

/* Waits until all jobs posted before are committed. Gives the first failure of a posted job since
 * the last db_flush, or 0. */
int db_flush(struct db *db);

/* Runs a job that only reads, in the calling thread, on the last commit. A write gives -EROFS. */
int db_read(struct db *db, db_job_fn fn, void *arg);

/* ---- meta: single values by key ------------------------------------------------------------ */

/* Keys this program uses; a room may add its own. */
#define DB_META_UUID	      "uuid"	 /* text: id of the store */
#define DB_META_CREATED	      "created"	 /* seconds since 1970 */
#define DB_META_ID_BASE	      "id_base"	 /* the largest file id ever given out */
#define DB_META_LOWER_ID      "lower_id" /* text: the lower tmpfs that handles are valid for */
#define DB_META_MARKS_LOWER   "marks_lower_id" /* text: the lower tmpfs that marks are of */
#define DB_META_LAST_EPOCH    "last_epoch"     /* the largest that was an mm's which is gone */
#define DB_META_LAST_COMMIT   "last_commit"    /* seconds since 1970: of the last flush */
/* number: 1 while no write(2) can have gone unseen since the rows said "not written" */
#define DB_META_WRITTEN_KNOWN "written_known"
/* number: 1 while the last mount has ended in order, so that a crash has left nothing */
#define DB_META_CLEAN	      "clean"

/* Text, NUL-terminated, into buf. -ENODATA: no such key; -ERANGE: longer than size. */
int db_meta_get(struct db *db, const char *key, char *buf, size_t size);
int db_meta_get_u64(struct db *db, const char *key, uint64_t *value);

/* Returns after the commit. */
int db_meta_set(struct db *db, const char *key, const char *text);
int db_meta_set_u64(struct db *db, const char *key, uint64_t value);

/* The same inside a job. */
int db_tx_meta_get(struct db_tx *tx, const char *key, char *buf, size_t size);
int db_tx_meta_get_u64(struct db_tx *tx, const char *key, uint64_t *value);
int db_tx_meta_set(struct db_tx *tx, const char *key, const char *text);
int db_tx_meta_set_u64(struct db_tx *tx, const char *key, uint64_t value);

#endif
