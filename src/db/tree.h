/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file tree of a store: inodes, names, extended attributes. What changed since the last time is
 * written in one transaction, so that after a crash the tree is that of one moment.
 */
#ifndef WPFS_DB_TREE_H
#define WPFS_DB_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "db/db.h"

#define DB_ROOT_ID 1

struct db_inode {
	uint64_t id;			/* file id; the root directory is DB_ROOT_ID */
	uint32_t mode, uid, gid, nlink; /* of stat(2) */
	uint64_t rdev;
	uint64_t size;			      /* bytes; of a symbolic link the length of target */
	int64_t atime_ns, mtime_ns, ctime_ns; /* ns since 1970 */
	const char *target; /* of a symbolic link, target_len bytes and a NUL; else NULL */
	size_t target_len;
};

/* A callback that gives a negative value ends the load with it. Strings and values are valid
 * during the call; names and targets have a NUL behind their length. NULL: not wanted. */
struct db_tree_visitor {
	void *ctx;
	int (*inode)(void *ctx, const struct db_inode *inode);
	int (*dirent)(void *ctx, uint64_t parent, const char *name, size_t name_len, uint64_t id);
	int (*xattr)(void *ctx, uint64_t id, const char *name, size_t name_len, const void *value,
		     size_t value_len);
};

/*
 * Gives the stored tree: first all inodes, ascending by id; then all names, breadth first from the
 * root, so that a directory's own name comes before the names in it; then all xattrs, ascending by
 * id. A file with several links has as many names. An empty store gives nothing.
 */
int db_tree_load(struct db *db, const struct db_tree_visitor *visitor);

/*
 * Looks a path up in the stored tree, following no symbolic link: id, mode and size; the rest of
 * *inode is zeros. 0, -ENOENT, or another -errno.
 */
int db_tree_stat(struct db *db, const char *path, struct db_inode *inode);

/* The stored size of a file, 0 of one that is not stored. 0 or -errno. */
int db_tree_size(struct db *db, uint64_t id, uint64_t *size);

/* The id alone, in a job. -ENODATA: not there. */
int db_tx_tree_find(struct db_tx *tx, const char *path, uint64_t *id);

/* A path of a file inside the mount, with leading '/', inside a job. 0 or -errno: -ENODATA: none.
 */
int db_tx_tree_path(struct db_tx *tx, uint64_t id, char *path, size_t size);

/*
 * Replaces the stored tree by what `produce` puts with the functions below, in any order: one
 * transaction, committed on return. A negative value of produce changes nothing and is returned.
 * produce runs in the writer thread.
 */
int db_tree_replace(struct db *db, int (*produce)(struct db_tx *tx, void *ctx), void *ctx);

/* The same as a part of a larger job. -ENOENT: a name without inode, or xattrs of none. */
int db_tx_tree_replace(struct db_tx *tx, int (*produce)(struct db_tx *tx, void *ctx), void *ctx);

int db_tree_put_inode(struct db_tx *tx, const struct db_inode *inode);
int db_tree_put_dirent(struct db_tx *tx, uint64_t parent, const char *name, size_t name_len,
		       uint64_t id);
int db_tree_put_xattr(struct db_tx *tx, uint64_t id, const char *name, size_t name_len,
		      const void *value, size_t value_len);

/*
 * Changes the stored tree by what `produce` says with the functions below, in any order: one
 * transaction, committed on return. A negative value of produce changes nothing and is returned.
 * -ENOENT: a name without inode would have been left. produce runs in the writer thread.
 */
int db_tree_change(struct db *db, int (*produce)(struct db_tx *tx, void *ctx), void *ctx);

/*
 * Makes or changes a row. Its xattrs are none then, to be put anew. `keep_size`: the size stays as
 * it is stored (0 of a new one), because the contents that go with the new one are not there yet.
 */
int db_tree_set_inode(struct db_tx *tx, const struct db_inode *inode, bool keep_size);
int db_tree_set_dirent(struct db_tx *tx, uint64_t parent, const char *name, size_t name_len,
		       uint64_t id);

/* What is not there is no error. */
int db_tree_remove_dirent(struct db_tx *tx, uint64_t parent, const char *name, size_t name_len);
int db_tree_remove_inode(struct db_tx *tx, uint64_t id);

#endif
