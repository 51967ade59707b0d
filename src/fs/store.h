/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The tree on disk: names and attributes in the database, contents in one sparse file for each
 * regular file, STORE/data/<low byte of the id in hex>/<id>, page n at n*4096, zeros as holes.
 *
 * Order: contents are durable before the rows that tell their size are. What a crash can leave is
 * written in schema/README.md.
 */
#ifndef WPFS_FS_STORE_H
#define WPFS_FS_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "db/db.h"
#include "fs/fs.h"
#include "fs/ids.h"

/*
 * Somebody who takes the contents of a file that are to be restored: 1: done, 0: they go into the
 * lower file; -errno. `data_fd` is the data file, open for reading; with `unseen` it is -1, and
 * whether there is a data file was not looked at.
 */
struct fs_store_elsewhere {
	void *ctx;
	int (*take)(void *ctx, uint64_t ino, const struct fs_handle *handle, int data_fd,
		    uint64_t size);
	bool unseen;
};

/*
 * Fills an empty lower with the stored tree and notes its ids; sets ids->base to the largest id
 * ever given out, and reserves ids for the lower in the database, before any is given out. With
 * `keep_root` the attributes of the root directory stay as they are. Before any FUSE thread runs.
 * `elsewhere` may be NULL.
 * 0 or -errno, logged: -ENOSPC: the contents do not fit.
 */
int fs_store_load(struct db *db, int data_fd, int lower_fd, bool keep_root, struct fs_ids *ids,
		  const struct fs_store_elsewhere *elsewhere);

/*
 * From now on changes are noted for the store: after fs_new, before requests come. With `adopted`
 * the rows are not known to be those of this lower, and the first flush stores everything. Both
 * are borrowed until fs_store_detach. 0 or -errno.
 */
int fs_store_attach(struct fs *fs, struct db *db, int data_fd, bool adopted);

/* After the last flush, when no request comes any more. */
void fs_store_detach(struct fs *fs);

/*
 * Writes what has changed. One at a time; while the mount works, or after fs_wait with `final`:
 * then no hooks are called, and unused ids are given back. While it works, the hook sync_file makes
 * the marks of a file durable between reading and writing its pages. 0 or -errno, logged; then the
 * next flush takes up what this one did not do. A file that cannot be written is left out.
 */
int fs_store_flush(struct fs *fs, bool final);

/* How far a final flush is: bytes looked at, and of how many; about, and at least once a MiB. */
typedef void (*fs_progress_fn)(void *ctx, uint64_t done, uint64_t total);

/* The next final flush tells `fn`, in its own thread. Before that. */
void fs_store_progress(struct fs *fs, fs_progress_fn fn, void *ctx);

/*
 * fsync: contents, marks and names of a file are durable when it returns. Any thread but the track
 * thread. Without a store only the hook sync_file is called. 0 or -errno, logged.
 */
int fs_store_sync_file(struct fs *fs, uint64_t ino);

/*
 * The same of what a write with O_DSYNC has written, [off, off + len): no more is looked at, unless
 * more than that is needed to read it. Marks are as durable as they have to be before the contents.
 */
int fs_store_sync_part(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len);

/*
 * Before and after contents of a file go (a truncate, a hole, MADV_REMOVE): a part of it may not be
 * enough. Any thread; it waits for nobody.
 */
void fs_store_cut(struct fs *fs, uint64_t ino);

/*
 * Nobody has the file open or mapped any more, and it has no name: the store lets go of its memory,
 * unless it is being stored just now; then the next commit does. Any thread. Without a store
 * nothing.
 */
void fs_store_gone(struct fs *fs, uint64_t ino);

/* Readable (an eventfd) when so much has changed that names should be stored early. */
int fs_store_wake_fd(const struct fs *fs);

/*
 * The -errno of the last attempt to store something that failed and has not succeeded since; 0:
 * all was stored, or there is no store. *failing gets how many files have contents that could not
 * be written; the next flush tries again.
 */
int fs_store_error(const struct fs *fs, size_t *failing);

/* Stores names and attributes, all of them. 0 or -errno, logged. */
int fs_store_flush_names(struct fs *fs);

#endif
