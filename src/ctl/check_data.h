/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* STORE/data against the tree: `wpctl check`. */
#ifndef WPFS_CTL_CHECK_DATA_H
#define WPFS_CTL_CHECK_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/progress.h"
#include "db/check.h"

/* What is asked and told. */
struct check_data {
	int dir_fd;  /* STORE */
	bool repair; /* move what is out of place; nothing is ever removed */
	struct db_check *db;
	db_finding_fn fn;
	void *ctx;
	struct progress *progress; /* files looked at */
	uint64_t looked;
	uint64_t leftovers; /* out: contents without a file that a crash explains; left alone */
};

/*
 * Looks at every entry below STORE/data: what is not named and placed as contents are, and contents
 * of what is no file. A repair moves them to STORE/lost+found, or to their place. 0, -errno, or
 * what fn gave.
 */
int check_data_run(struct check_data *check);

#endif
