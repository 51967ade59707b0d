/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The contents of a file, through its mount or out of a store that is not mounted. */
#ifndef WPFS_CTL_CONTENTS_H
#define WPFS_CTL_CONTENTS_H

#include <stdint.h>

#include "ctl/target.h"

struct contents {
	int fd; /* -1: all zeros */
	uint64_t id, size;
};

/*
 * Opens the regular file at `path`, inside the mount or the stored tree; no symbolic link is
 * followed. 0 or a ctl_status, said. fd is the caller's.
 */
int contents_open(struct contents *contents, struct target *target, const char *path);

/* The first byte at or after `at` that is not in a hole; `size` if there is none. */
uint64_t contents_next_data(const struct contents *contents, uint64_t at);

#endif
