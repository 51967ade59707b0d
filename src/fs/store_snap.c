/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The records of a picture: made from descriptors, put into the database. */
#include "fs/snap.h"

#include <errno.h>
#include <linux/limits.h>
#include <linux/xattr.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"

#define LIST_SHORT 256

enum record_kind {
	RECORD_INODE,
	RECORD_DIRENT,
	RECORD_XATTR,
	RECORD_NO_INODE,
	RECORD_NO_DIRENT,
};

/* Followed by `a` bytes and a NUL, then `b` bytes and a NUL; padded to 8. */
struct record {
	uint32_t kind;
	uint32_t a, b; /* inode: target, -; dirent: name, -; xattr: name, value */
	bool keep_size;
	union {
		struct db_inode inode; /* target is filled in when it is put */
		struct {
			uint64_t parent, id;
		} dirent;
		uint64_t id; /* xattr, no inode */
	};
};

static size_t record_size(const struct record *rec)
{
	return (sizeof(*rec) + rec->a + rec->b + 2 + 7) & ~(size_t)7;
}

static int snap_add(struct snap *snap, const struct record *rec, const void *a, const void *b)
{
	size_t size = record_size(rec);
	char *at;

	if (snap->room - snap->used < size) {
		size_t room = snap->room * 2 + size + 4096;
		char *records = realloc(snap->records, room);

		if (!records)
			return -ENOMEM;
		snap->records = records;
		snap->room = room;
	}
	at = snap->records + snap->used;
	memset(at, 0, size);
	memcpy(at, rec, sizeof(*rec));
	if (rec->a)
		memcpy(at + sizeof(*rec), a, rec->a);
	if (rec->b)
		memcpy(at + sizeof(*rec) + rec->a + 1, b, rec->b);
	snap->used += size;
	return 0;
}

/* A time that is set may lie beyond what a row can tell, the years 1678 to 2262: the nearest. */
static int64_t to_ns(struct timespec ts)
{
	int64_t ns;

	if (__builtin_mul_overflow((int64_t)ts.tv_sec, 1000000000, &ns) ||
	    __builtin_add_overflow(ns, ts.tv_nsec, &ns))
		return ts.tv_sec < 0 ? INT64_MIN : INT64_MAX;
	return ns;
}

static int add_inode(struct snap *snap, uint64_t id, int fd, const struct stat *st, bool keep_size)
{
	struct record rec = {.kind = RECORD_INODE, .keep_size = keep_size};
	char target[PATH_MAX];
	ssize_t n = 0;

	rec.inode = (struct db_inode){
		.id = id,
		.mode = st->st_mode,
		.uid = st->st_uid,
		.gid = st->st_gid,
		.nlink = (uint32_t)st->st_nlink,
		.rdev = st->st_rdev,
		.size = (uint64_t)st->st_size,
		.atime_ns = to_ns(st->st_atim),
		.mtime_ns = to_ns(st->st_mtim),
		.ctime_ns = to_ns(st->st_ctim),
	};
	if (S_ISLNK(st->st_mode))
		n = readlinkat(fd, "", target, sizeof(target));
	if (n < 0)
		return -errno;
	rec.a = (uint32_t)n;
	return snap_add(snap, &rec, target, NULL);
}

static int add_xattr(struct snap *snap, struct fs *fs, int fd, uint64_t ino, const char *name)
{
	struct record rec = {.kind = RECORD_XATTR, .a = (uint32_t)strlen(name), .id = ino};
	_cleanup_free_ char *value = malloc(XATTR_SIZE_MAX);
	ssize_t n;

	if (!value)
		return -ENOMEM;
	if (strcmp(name, XATTR_NAME_CAPS) == 0) {
		n = fs_absent_caps(fs->absent, ino, fd, value, XATTR_SIZE_MAX);
	} else {
		n = getxattr(fs_proc_path(fd).s, name, value, XATTR_SIZE_MAX);
		n = n < 0 ? -errno : n;
	}
	if (n < 0)
		return n == -ENODATA ? 0 : (int)n; /* xattrs may go meanwhile */
	rec.b = (uint32_t)n;
	return snap_add(snap, &rec, name, value);
}

/* Most have none: the kernel makes room for as much as there is in `list`, so first for little. */
static ssize_t list_xattrs(int fd, char list[XATTR_LIST_MAX])
{
	const struct fs_proc_path path = fs_proc_path(fd);
	ssize_t n = listxattr(path.s, list, LIST_SHORT);

	return n < 0 && errno == ERANGE ? listxattr(path.s, list, XATTR_LIST_MAX) : n;
}

static int add_xattrs(struct snap *snap, struct fs *fs, int fd, uint64_t ino)
{
	/* Capabilities are not in the list while contents come, so they are asked for. */
	bool caps = fs_absent_is(fs->absent, ino);
	char list[XATTR_LIST_MAX];
	ssize_t n = list_xattrs(fd, list);
	int r = 0;

	if (n < 0)
		return errno == ENOTSUP ? 0 : -errno;
	for (ssize_t at = 0; !r && at < n; at += (ssize_t)strlen(list + at) + 1) {
		if (strcmp(list + at, XATTR_NAME_CAPS) == 0)
			caps = true;
		else
			r = add_xattr(snap, fs, fd, ino, list + at);
	}
	return r || !caps ? r : add_xattr(snap, fs, fd, ino, XATTR_NAME_CAPS);
}

int snap_put_inode(struct snap *snap, struct fs *fs, int fd, const struct stat *st, bool keep_size)
{
	const uint64_t ino = fs_ids_get(fs->ids, st->st_ino);
	int r = add_inode(snap, ino, fd, st, keep_size);

	return r ? r : add_xattrs(snap, fs, fd, ino);
}

int snap_put_name(struct snap *snap, uint64_t parent, const char *name, uint64_t id)
{
	struct record rec = {.kind = RECORD_DIRENT, .a = (uint32_t)strlen(name)};

	rec.dirent.parent = parent;
	rec.dirent.id = id;
	return snap_add(snap, &rec, name, NULL);
}

int snap_remove_name(struct snap *snap, uint64_t parent, const char *name)
{
	struct record rec = {.kind = RECORD_NO_DIRENT, .a = (uint32_t)strlen(name)};

	rec.dirent.parent = parent;
	return snap_add(snap, &rec, name, NULL);
}

int snap_remove_inode(struct snap *snap, uint64_t id)
{
	struct record rec = {.kind = RECORD_NO_INODE, .id = id};

	return snap_add(snap, &rec, NULL, NULL);
}

static const char *record_a(const struct record *rec)
{
	return (const char *)(rec + 1);
}

static struct db_inode record_inode(const struct record *rec)
{
	struct db_inode inode = rec->inode;

	if (S_ISLNK(inode.mode)) {
		inode.target = record_a(rec);
		inode.target_len = rec->a;
	}
	return inode;
}

static int put_xattr(struct db_tx *tx, const struct record *rec)
{
	const char *a = record_a(rec);

	return db_tree_put_xattr(tx, rec->id, a, rec->a, a + rec->a + 1, rec->b);
}

static uint64_t record_id(const struct record *rec)
{
	switch ((enum record_kind)rec->kind) {
	case RECORD_INODE:
		return rec->inode.id;
	case RECORD_DIRENT:
	case RECORD_NO_DIRENT:
		return rec->dirent.id;
	case RECORD_XATTR:
	case RECORD_NO_INODE:
		return rec->id;
	}
	return 0;
}

static bool record_is_gone(const struct snap *snap, const struct record *rec)
{
	const struct snap_file *file =
		snap->some_gone ? snap_file_find(snap, record_id(rec)) : NULL;

	return file && file->gone;
}

/* A file has the size that its contents were stored with, after the picture was taken. */
static int put_inode(struct db_tx *tx, const struct snap *snap, const struct record *rec)
{
	struct db_inode inode = record_inode(rec);
	const struct snap_file *file = S_ISREG(inode.mode) ? snap_file_find(snap, inode.id) : NULL;

	if (file)
		inode.size = file->size;
	return db_tree_put_inode(tx, &inode);
}

static int put_record(struct db_tx *tx, const struct snap *snap, const struct record *rec)
{
	switch ((enum record_kind)rec->kind) {
	case RECORD_INODE:
		return put_inode(tx, snap, rec);
	case RECORD_DIRENT:
		return db_tree_put_dirent(tx, rec->dirent.parent, record_a(rec), rec->a,
					  rec->dirent.id);
	case RECORD_XATTR:
		return put_xattr(tx, rec);
	case RECORD_NO_INODE:
	case RECORD_NO_DIRENT:
		break;
	}
	return -EINVAL;
}

static int change_record(struct db_tx *tx, const struct snap *snap, const struct record *rec)
{
	struct db_inode inode;

	switch ((enum record_kind)rec->kind) {
	case RECORD_INODE:
		inode = record_inode(rec);
		return db_tree_set_inode(tx, &inode, rec->keep_size);
	case RECORD_DIRENT:
		return db_tree_set_dirent(tx, rec->dirent.parent, record_a(rec), rec->a,
					  rec->dirent.id);
	case RECORD_XATTR:
		return put_xattr(tx, rec);
	case RECORD_NO_INODE:
		return db_tree_remove_inode(tx, rec->id);
	case RECORD_NO_DIRENT:
		return db_tree_remove_dirent(tx, rec->dirent.parent, record_a(rec), rec->a);
	}
	return -EINVAL;
}

static int for_each_record(struct db_tx *tx, const struct snap *snap,
			   int (*fn)(struct db_tx *tx, const struct snap *snap,
				     const struct record *rec))
{
	int r = 0;

	for (size_t at = 0; !r && at < snap->used;) {
		const struct record *rec = (const struct record *)(snap->records + at);

		if (!record_is_gone(snap, rec))
			r = fn(tx, snap, rec);
		at += record_size(rec);
	}
	return r;
}

int snap_produce(struct db_tx *tx, void *snap)
{
	return for_each_record(tx, snap, put_record);
}

int snap_produce_changes(struct db_tx *tx, void *snap)
{
	return for_each_record(tx, snap, change_record);
}

int snap_removed_each(const struct snap *snap, int (*fn)(void *ctx, uint64_t id), void *ctx)
{
	int r = 0;

	for (size_t at = 0; !r && at < snap->used;) {
		const struct record *rec = (const struct record *)(snap->records + at);

		if (rec->kind == RECORD_NO_INODE)
			r = fn(ctx, rec->id);
		at += record_size(rec);
	}
	return r;
}

void snap_free(struct snap *snap)
{
	free(snap->records);
	free(snap->files);
	*snap = (struct snap){.records = NULL};
}
