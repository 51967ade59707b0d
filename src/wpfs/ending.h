/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who learns how far the last flush is: a terminal that wpfs -f writes to, the service manager,
 * which must not lose patience, and the umount helper, which reads a file of the run directory.
 */
#ifndef WPFS_WPFS_ENDING_H
#define WPFS_WPFS_ENDING_H

#include <stdbool.h>
#include <stdint.h>

#include "base/progress.h"

struct ending {
	int fd; /* of the file; -1: none */
	bool terminal;
	struct progress line;
	uint64_t noted_ms, told_ms;
};

/* `path`: of the file, which is made. Nothing here fails: it is only told. */
void ending_begin(struct ending *ending, const char *path, bool terminal);

/* An fs_progress_fn whose ctx is a struct ending. */
void ending_progress(void *ctx, uint64_t done, uint64_t total);

void ending_end(struct ending *ending);

#endif
