/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A picture of the lower tree in memory, or of what changed in it, taken while no name changes, and
 * put into the database by one transaction: requests do not wait for the database.
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
	struct snap_file *files; /* of a whole picture: ascending by ino */
	size_t nr_files, files_room;
	bool some_gone; /* some file is */
};

/*
 * Walks the tree below `lower_fd`, the lower's root; the caller keeps names from changing. 0 or
 * -errno; to be freed in either case.
 */
int snap_take(struct snap *snap, struct fs *fs, int lower_fd);

/*
 * Adds to a picture. keep_size: the contents that go with its present size are not stored. The size
 * that is stored is st's, whatever the file has. 0 or -errno.
 */
int snap_put_inode(struct snap *snap, struct fs *fs, int fd, const struct stat *st, bool keep_size);
int snap_put_name(struct snap *snap, uint64_t parent, const char *name, uint64_t id);
int snap_remove_name(struct snap *snap, uint64_t parent, const char *name);
int snap_remove_inode(struct snap *snap, uint64_t id);

/* The file with this id, or NULL. */
struct snap_file *snap_file_find(const struct snap *snap, uint64_t ino);

/* Puts a whole one: for db_tree_replace, with the snap as ctx. One of changes: for db_tree_change.
 */
int snap_produce(struct db_tx *tx, void *snap);
int snap_produce_changes(struct db_tx *tx, void *snap);

/* Each inode it removes; not 0 ends the walk and is given. */
int snap_removed_each(const struct snap *snap, int (*fn)(void *ctx, uint64_t id), void *ctx);

void snap_free(struct snap *snap);

#endif
