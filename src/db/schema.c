/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whose database it is (PRAGMA application_id) and how new its schema is (PRAGMA user_version). */
#include <errno.h>
#include <stdio.h>

#include "base/log.h"
#include "db/schema.h"

#define APPLICATION_ID 0x77706673 /* "wpfs" */

int schema_check(struct db_tx *tx, int nr, int *version)
{
	int64_t app, user, objects;
	int r;

	r = sql_get_i64(tx, &app, "PRAGMA application_id", "");
	if (r == 0)
		r = sql_get_i64(tx, &user, "PRAGMA user_version", "");
	if (r == 0)
		r = sql_get_i64(tx, &objects, "SELECT count(*) FROM sqlite_master", "");
	if (r < 0)
		return r;
	if (app != APPLICATION_ID && (app != 0 || user != 0 || objects != 0))
		return -EMEDIUMTYPE;
	if (user < 0)
		return -EMEDIUMTYPE;
	*version = user > nr ? nr + 1 : (int)user;
	return user > nr ? -EPROTONOSUPPORT : 0;
}

static int run_migration(struct db_tx *tx, const struct db_migration *m, int nr)
{
	char pragmas[128];
	int version, r;

	r = sql_exec_text(tx, "BEGIN IMMEDIATE");
	if (r < 0)
		return r;
	r = schema_check(tx, nr, &version);
	if (r == 0 && version < m->version) {
		snprintf(pragmas, sizeof(pragmas),
			 "PRAGMA application_id=%d; PRAGMA user_version=%d", APPLICATION_ID,
			 m->version);
		r = sql_exec_text(tx, m->sql);
		if (r == 0)
			r = sql_exec_text(tx, pragmas);
	}
	if (r == 0)
		r = sql_commit(tx, NULL);
	if (r < 0 && !sqlite3_get_autocommit(tx->sql))
		sql_exec_text(tx, "ROLLBACK");
	if (r < 0)
		log_debug("database: migration %s: %s", m->name, log_errstr(r));
	return r;
}

int schema_migrate(struct db_tx *tx, const struct db_migration *migrations, int nr)
{
	int version, r = schema_check(tx, nr, &version);

	for (int i = 0; r == 0 && i < nr; i++) {
		if (migrations[i].version > version)
			r = run_migration(tx, &migrations[i], nr);
	}
	return r;
}
