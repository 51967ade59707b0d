/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The MNT or STORE of a command line: who answers for it. A mount and a mounted store are answered
 * by their daemon, a store that is not mounted by its database.
 */
#ifndef WPFS_CTL_TARGET_H
#define WPFS_CTL_TARGET_H

#include <stdbool.h>

#include "ipc/client.h"
#include "ipc/wire.h"

struct target {
	const char *command; /* for messages; borrowed, as arg */
	const char *arg;
	char id[WPFS_ID_MAX];
	bool mounted;		   /* false: a store that is not mounted */
	struct ipc_client *client; /* mounted: a connection, unless it was not asked for */
	int store_fd;		   /* a store, mounted or not: its directory; else -1 */
};

#define TARGET_INIT                                                                                \
	(struct target)                                                                            \
	{                                                                                          \
		.store_fd = -1                                                                     \
	}

#define TARGET_STORE_OK	  (1u << 0) /* a store that is not mounted will do */
#define TARGET_NO_CONNECT (1u << 1) /* only the id is wanted */

/*
 * Finds out what `arg` is and connects. 0, or a ctl_status after having said why not. To be
 * closed in either case.
 */
int target_open(struct target *target, const char *command, const char *arg, unsigned flags);

/*
 * Says what a negative errno of this target means, in its daemon's own words if the last call came
 * with some, and gives CTL_FAILED.
 */
int target_fail(const struct target *target, int err);

/* The same of a call on its connection, which may have broken: then what became of the mount. */
int target_fail_call(const struct target *target, int err);

/* What a negative errno of a call of the file system means. */
const char *target_errstr(int err);

/* What became of the mount of a target whose connection broke. */
enum target_fate {
	TARGET_ENDED,	/* it was unmounted */
	TARGET_KILLED,	/* its daemon is gone, and the mount is dead */
	TARGET_DROPPED, /* a daemon serves it, that one or another, and did not like us */
};

enum target_fate target_lost(const struct target *target);

/* Says so, and gives CTL_FAILED. */
int target_say_lost(const struct target *target);

void target_closep(struct target *target);

/* Is it the program of the --name that is asked for, or an instance of it: NAME/2, NAME/PID? */
bool target_selects(const struct wpfs_select *select, const char *name);

/*
 * ipc_client_call on a mounted target. 0, or a ctl_status after having said what went wrong:
 * "COMMAND: ARG: reason: what to do".
 */
int target_call(struct target *target, enum wpfs_op op, const struct wpfs_select *select,
		void *reply, ipc_record_fn fn, void *arg);

/*
 * A report, from whoever answers. fn as in ipc_client_call. 0 or a ctl_status, said.
 */
int target_report(struct target *target, const struct wpfs_select *select, ipc_record_fn fn,
		  void *arg);

#endif
