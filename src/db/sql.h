/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * SQLite as this room uses it: connections, cached statements, errors as -errno. A connection
 * belongs to one thread at a time.
 */
#ifndef WPFS_DB_SQL_H
#define WPFS_DB_SQL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sqlite3.h>

struct sql_stmt;

/* For tests: which call of the connection fails next, and how. Counted down to 0 = none. */
struct sql_fail {
	unsigned step;	 /* the nth step of a statement */
	unsigned commit; /* the nth commit */
	int rc;		 /* SQLITE_* it fails with */
};

/* A connection; rooms above see it as the opaque transaction of a job. */
struct db_tx {
	sqlite3 *sql;
	struct sql_stmt *stmts; /* uthash by address of the text */
	struct sql_fail fail;
	bool never_synced;  /* nothing survives a power loss: nothing is ever synced */
	bool lazy;	    /* a commit is not synced */
	struct db_tx *next; /* in the list of idle readers */
};

enum sql_mode {
	SQL_WRITE,    /* makes the file when it is missing */
	SQL_READ,     /* of a database that this process writes */
	SQL_READ_ALL, /* of a store that nobody may have open: leaves no files behind */
};

/* *tx is zeroed first. Gives 0 or -errno; sql_close in either case. */
int sql_open(struct db_tx *tx, const char *path, enum sql_mode mode);
void sql_close(struct db_tx *tx);

/* The -errno for what SQLite gave last on this connection. */
int sql_errno(struct db_tx *tx, int rc);

/* How the connection meets another process that writes: it waits a while, or not at all. */
void sql_patience(struct db_tx *tx, bool patient);

/* Runs statements without results; not cached. */
int sql_exec_text(struct db_tx *tx, const char *text);

/*
 * Whether the next commits are synced: if not they outlive this process, and are lost by a power
 * loss only if all after them are, too. Between transactions.
 */
int sql_lazy(struct db_tx *tx, bool lazy);

/* COMMIT, through the seam for tests. *wrote (may be NULL): there was something to
 * commit. */
int sql_commit(struct db_tx *tx, bool *wrote);

/* Makes all commits durable that were not synced. */
int sql_sync_log(struct db_tx *tx);

/*
 * Statements. `text` is a string literal: its address is the key of the cache, and one text must
 * not be in use twice at once. `types` tells the values that follow, one letter each, for ?1, ?2
 *...: i  int64_t t  const char *, NULL = SQL NULL b  const void *, size_t: never NULL in SQL, an
 *empty blob if the length is 0 Texts and blobs must stay until the statement is reset.
 */
int sql_query(struct db_tx *tx, sqlite3_stmt **st, const char *text, const char *types, ...);

/* 1: a row, 0: no more (and the statement is reset), -errno (and it is reset). */
int sql_step(struct db_tx *tx, sqlite3_stmt *st);

/* Query and step to the end. */
int sql_exec(struct db_tx *tx, const char *text, const char *types, ...);

/* Query for one integer. -ENODATA: no row, or NULL. */
int sql_get_i64(struct db_tx *tx, int64_t *value, const char *text, const char *types, ...);

/* Ends a query before its last row. */
static inline void sql_reset(sqlite3_stmt *st)
{
	sqlite3_reset(st);
}

/* Column `i`: text is never NULL, a blob's length by sqlite3_column_bytes. */
const char *sql_text(sqlite3_stmt *st, int i);

#endif
