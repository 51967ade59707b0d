/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The schema's history, built in from schema/NNN_*.sql, and bringing a database up to it. */
#ifndef WPFS_DB_SCHEMA_H
#define WPFS_DB_SCHEMA_H

#include "db/db.h"
#include "db/sql.h"

struct db_migration {
	int version; /* PRAGMA user_version after it; the first is 1 */
	const char *name;
	const char *sql;
};

extern const struct db_migration db_migrations[]; /* ascending, without gaps */
extern const int db_nr_migrations;

/*
 * Looks whose database this is. 0 with *version (0: empty and new), -EMEDIUMTYPE: not ours,
 * -EPROTONOSUPPORT: newer than the last of `nr` migrations.
 */
int schema_check(struct db_tx *tx, int nr, int *version);

/* Runs the migrations that are missing, each in a transaction of its own in which the version is
 * read again: another process may have been faster. */
int schema_migrate(struct db_tx *tx, const struct db_migration *migrations, int nr);

#endif
