/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The consistency of a database that nobody has mounted: SQLite's structures, the tree, the marks.
 *
 * Everything is mended in one transaction, which is committed for a repair and undone else: a check
 * tells what a repair would find. Nothing is made cleaner than it was: an inode that cannot be
 * reached gets a name, a set that cannot be read is all dirty.
 */
#ifndef WPFS_DB_CHECK_H
#define WPFS_DB_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "db/db.h"

/* Strings are valid during the call. */
struct db_finding {
	const char *kind;  /* a word that stays the same from version to version */
	const char *where; /* file, name, mm; any bytes but NUL */
	const char *what;
	const char *repair; /* what a repair does about it; NULL: nothing, it is left to people */
};

/* Gives 0, or a negative value that ends the check with it. */
typedef int (*db_finding_fn)(void *ctx, const struct db_finding *finding);

struct db_check;

/*
 * Opens the database for a check of nobody but us: the caller holds the store's lock. Errors and
 * `why` as of db_open; -ESTALE: its schema is older. -EUCLEAN is given only for a file that SQLite
 * cannot read at all.
 */
int db_check_open(const char *path, struct db_check **check, char why[DB_WHY_SIZE]);

/* fn is called some times a second while the run goes on, whatever it does. */
void db_check_tick(struct db_check *check, void (*fn)(void *ctx), void *ctx);

/*
 * Finds and mends all that is wrong. 0, -errno, what fn gave, or 1: SQLite cannot rely on the file,
 * and nothing else was looked at or is to be committed.
 */
int db_check_run(struct db_check *check, db_finding_fn fn, void *ctx);

/*
 * Was the store unmounted in order? Else what a crash leaves is there: contents without a row,
 * files that marks refer to and that had no row yet.
 */
bool db_check_is_clean(const struct db_check *check);

/* After the run: is `id` a regular file of the tree? 1, 0 or -errno. */
int db_check_is_file(struct db_check *check, uint64_t id);

/* Commits what was mended, or leaves all as it was; frees. 0 or -errno. */
int db_check_finish(struct db_check *check, bool commit);

#endif
