/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "fs/priv.h"
#include "fs/snap.h"
#include "fs/store_data.h"

struct flush {
	struct fs *fs;
	int data_fd;
	unsigned flags;
	struct fs_touched *touched;
	bool changed; /* data files were written and are not durable */
};

static int sync_marks(void *ctx, uint64_t ino)
{
	struct flush *flush = ctx;

	return fs_hook_sync_file(flush->fs, ino);
}

static int read_through(void *ctx, uint64_t ino, int lower_fd, void *buf, size_t len, uint64_t off)
{
	return fs_hook_read_through(ctx, ino, lower_fd, buf, len, off);
}

static uint64_t next_through(void *ctx, uint64_t ino, uint64_t off)
{
	return fs_hook_next_through(ctx, ino, off);
}

static int write_contents(struct flush *flush, const struct snap_file *file, int fd)
{
	const struct store_data_through through = {flush->fs, read_through, next_through};
	bool final = (flush->flags & FS_STORE_FINAL) != 0;

	return store_data_write(
		flush->data_fd, file->ino, fd, file->size, final ? NULL : sync_marks, flush,
		flush->fs->kind == WPFS_KIND_CAPPED ? &through : NULL, &flush->changed);
}

/*
 * On a capped mount the one struct file that there is, if there is one: while it has another no
 * page of it can leave memory.
 */
static int open_lower(const struct flush *flush, const struct snap_file *file)
{
	struct fs_inode *inode = NULL;
	int fd = -1;

	if (flush->fs->kind == WPFS_KIND_CAPPED)
		inode = fs_inode_get(flush->fs, file->ino);
	if (inode && atomic_load(&inode->backing_fd) >= 0)
		fd = fcntl(atomic_load(&inode->backing_fd), F_DUPFD_CLOEXEC, 0);
	if (inode)
		fs_inode_forget(flush->fs, file->ino, 1);
	if (fd >= 0)
		return fd;
	return fs_handle_open_at(flush->fs->lower_fd, &file->handle, O_RDONLY | O_NOATIME);
}

/* A file that was removed since the picture was taken leaves the picture. */
static int flush_file(struct flush *flush, struct snap *snap, struct snap_file *file)
{
	_cleanup_close_ int fd = -1;
	struct fs_touched *entry;
	int r;

	HASH_FIND(hh, flush->touched, &file->ino, sizeof(file->ino), entry);
	if (!entry && !(flush->flags & FS_STORE_WHOLE))
		return 0;
	fd = open_lower(flush, file);
	if (fd == -ESTALE) {
		file->gone = snap->some_gone = true;
		return 0;
	}
	r = fd < 0 ? fd : write_contents(flush, file, fd);
	if (r)
		log_err("cannot write the contents of file %" PRIu64 " to the store: %s", file->ino,
			log_errstr(r));
	return r;
}

static int flush_files(struct flush *flush, struct snap *snap)
{
	int r = 0;

	for (size_t i = 0; !r && i < snap->nr_files; i++)
		r = flush_file(flush, snap, &snap->files[i]);
	if (!r && flush->changed && syncfs(flush->data_fd) < 0)
		r = -errno;
	return r;
}

static bool keep_file(const void *ctx, uint64_t ino)
{
	const struct snap_file *file = snap_file_find(ctx, ino);

	return file && !file->gone;
}

/* The ids that were reserved and not used. A file made last tells the largest one. */
static int give_back_ids(struct fs *fs, struct db *db)
{
	_cleanup_close_ int fd = openat(fs->lower_fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return 0; /* full: the reservation stands, which costs nothing but numbers */
	return db_meta_set_u64(db, DB_META_ID_BASE, fs->ids->base + st.st_ino);
}

static int flush_all(struct flush *flush, struct db *db, struct snap *snap)
{
	struct fs *fs = flush->fs;
	int r;

	pthread_rwlock_wrlock(&fs->names_lock);
	r = snap_take(snap, fs->lower_fd, fs->ids);
	pthread_rwlock_unlock(&fs->names_lock);
	if (!r)
		r = flush_files(flush, snap);
	if (!r)
		r = db_tree_replace(db, snap_produce, snap);
	if (!r && (flush->flags & (FS_STORE_WHOLE | FS_STORE_FINAL)))
		r = store_data_prune(flush->data_fd, keep_file, snap);
	if (!r && (flush->flags & FS_STORE_FINAL))
		r = give_back_ids(fs, db);
	return r;
}

int fs_store_flush(struct fs *fs, struct db *db, int data_fd, unsigned flags)
{
	struct flush flush = {.fs = fs, .data_fd = data_fd, .flags = flags};
	uint64_t changes = atomic_load(&fs->changes);
	struct snap snap = {.records = NULL};
	struct fs_touched *entry, *next;
	int r;

	flush.touched = fs_touched_take(fs);
	if (!flush.touched && changes == fs->flushed_changes && !flags)
		return 0;
	r = flush_all(&flush, db, &snap);
	if (r) {
		log_err("cannot flush to the store: %s", log_errstr(r));
		HASH_ITER (hh, flush.touched, entry, next) {
			fs_touch(fs, entry->ino);
		}
	} else {
		fs->flushed_changes = changes;
	}
	snap_free(&snap);
	fs_touched_free(flush.touched);
	return r;
}
