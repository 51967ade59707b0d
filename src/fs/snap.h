/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A picture of the lower tree in memory, taken by one walk while no name changes, and put into the
 * database by one transaction after the contents are written: neither requests nor the database's
 * writer wait for contents.
 */
#ifndef WPFS_FS_SNAP_H
#define WPFS_FS_SNAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "db/tree.h"
#include "fs/fs.h"
#include "fs/ids.h"

/* A regular file. */
struct snap_file {
	uint64_t ino, size; /* file id, bytes */
	struct fs_handle handle;
	bool gone; /* removed since: it is not put */
};

struct snap {
	char *records; /* each a struct record (store_snap.c) and its strings */
	size_t used, room;
	struct snap_file *files; /* ascending by ino */
	size_t nr_files, files_room;
	bool some_gone; /* some file is */
};

/* Walks the tree; the caller keeps names from changing. 0 or -errno; to be freed in either case. */
int snap_take(struct snap *snap, int lower_fd, const struct fs_ids *ids);

/* The file with this id, or NULL. */
struct snap_file *snap_file_find(const struct snap *snap, uint64_t ino);

/* Puts it: for db_tree_replace, with the snap as ctx. */
int snap_produce(struct db_tx *tx, void *snap);

void snap_free(struct snap *snap);

#endif
