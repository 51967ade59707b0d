/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the file system asks tracking, and on a capped mount who keeps the pages out of memory. */
#ifndef WPFS_WPFS_HOOKS_H
#define WPFS_WPFS_HOOKS_H

#include "fs/fs.h"

struct capped;
struct track;

struct hooks {
	struct fs_hooks table;
	struct fs *fs;
	struct track *track;
	struct capped *capped;
};

/*
 * Fills in `h`, which has to stay as long as the hooks are set. `track` is NULL when nothing is
 * tracked any more, `capped` on a native mount; all are borrowed.
 */
const struct fs_hooks *hooks_make(struct hooks *h, struct fs *fs, struct track *track,
				  struct capped *capped);

#endif
