/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by the parts of the check. */
#ifndef WPFS_DB_CHECK_INTERNAL_H
#define WPFS_DB_CHECK_INTERNAL_H

#include <stddef.h>

#include "db/check.h"
#include "db/sql.h"

struct db_check {
	struct db_tx tx;
	bool clean;
	bool begun; /* a transaction is open */
	db_finding_fn fn;
	void *ctx;
	void (*tick)(void *ctx);
	void *tick_ctx;
};

#define CHECK_COLUMNS 6

/* Rows that are read before anything is changed. */
struct check_row {
	int64_t v[CHECK_COLUMNS]; /* its integers, by column */
	char *bytes;		  /* of its one blob or text, with a NUL behind it; or NULL */
	size_t len;
};

struct check_rows {
	struct check_row *rows;
	size_t nr, room;
};

#define _cleanup_rows_ __attribute__((cleanup(check_rows_free)))

/* All rows of a query without parameters, or with ?1. 0 or -errno. */
int check_rows_get(struct db_check *check, struct check_rows *rows, const char *text);
int check_rows_get_for(struct db_check *check, struct check_rows *rows, const char *text,
		       int64_t id);
void check_rows_free(struct check_rows *rows);

/* Tells of a finding. `where` as printf. 0 or what the caller's function gave. */
int check_found(struct db_check *check, const char *kind, const char *what, const char *repair,
		const char *where, ...) __attribute__((format(printf, 5, 6)));

/*
 * A kind of damage that SQL finds and mends row by row: `find` gives the id of each, `mend` takes
 * it as ?1. `noun` stands before the number.
 */
struct check_rule {
	const char *kind, *noun, *what, *repair;
	const char *find, *mend;
};

int check_rule_run(struct db_check *check, const struct check_rule *rule);

#define CHECK_PATH_SIZE 4096

/* Where an inode is, for people: "" or " (/path)". */
const char *check_path(struct db_check *check, int64_t id, char buf[CHECK_PATH_SIZE]);

/* ---- the parts; 0, -errno or what fn gave ---- */

int check_tree(struct db_check *check);
int check_names(struct db_check *check);    /* of what cannot be reached */
int check_refs(struct db_check *check);	    /* rows of marks that refer to nothing */
int check_sets(struct db_check *check);	    /* sets of pages by themselves */
int check_mappings(struct db_check *check); /* mappings, and marks against them */

#endif
