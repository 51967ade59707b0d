/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The life of one mount, from the checked command line to the last file removed. */
#ifndef WPFS_WPFS_DAEMON_H
#define WPFS_WPFS_DAEMON_H

#include "wpfs/options.h"

/*
 * Mounts, calls `ready(ctx)` when the mount works, serves until it is unmounted, cleans up. Runs
 * in the calling thread, which is the only one so far. 0 or -errno, logged.
 */
int daemon_run(const struct options *options, void (*ready)(void *ctx), void *ctx);

#endif
