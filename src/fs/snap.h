/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A picture of the lower tree in memory, taken by one walk and put into the database by one
 * transaction: the writer thread must not wait for the walk, nor the walk's hooks for the writer.
 */
#ifndef WPFS_FS_SNAP_H
#define WPFS_FS_SNAP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "db/tree.h"
#include "fs/ids.h"

struct snap {
	char *records; /* each a struct record (store_snap.c) and its strings */
	size_t used, room;
	uint64_t *files; /* ids of the regular files, sorted after snap_take */
	size_t nr_files, files_room;
};

/* Called for each regular file once, before its row is noted with this stat; -errno ends it. */
typedef int (*snap_file_fn)(void *ctx, uint64_t ino, int fd, const struct stat *st);

/* Walks the tree. `fd` above is O_PATH. 0 or -errno; *snap is to be freed in either case. */
int snap_take(struct snap *snap, int lower_fd, const struct fs_ids *ids, snap_file_fn fn,
	      void *ctx);

/* Puts it: for db_tree_replace, with the snap as ctx. */
int snap_produce(struct db_tx *tx, void *snap);

void snap_free(struct snap *snap);

#endif
