/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What tests of this room reach into. */
#ifndef WPFS_DB_DB_INTERNAL_H
#define WPFS_DB_DB_INTERNAL_H

#include <pthread.h>

#include "db/schema.h"
#include "db/sql.h"
#include "db/writer.h"

struct db {
	char *path;	       /* constant */
	int dir_fd;	       /* constant: of db_open_at, in `path`; else -1 */
	enum sql_mode read;    /* constant: how readers open it */
	struct writer *writer; /* constant; NULL: read-only */
	pthread_mutex_t lock;  /* innermost */
	struct db_tx *idle;    /* guarded by lock: readers nobody uses now */
};

/* db_open with another history of the schema. */
int db_open_schema(const char *path, unsigned flags, const struct db_migration *migrations, int nr,
		   struct db **db, char why[DB_WHY_SIZE]);

/* The line of db_open for people; `why` may be NULL. */
void db_open_why(char *why, const char *path, int error);

#endif
