/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* mount -o remount: limits of the lower tmpfs and flags of the mount, without the daemon's help. */
#ifndef WPFS_WPFS_REMOUNT_H
#define WPFS_WPFS_REMOUNT_H

#include "wpfs/options.h"

/* 0 or -errno, logged. */
int remount_run(const struct options *options);

#endif
