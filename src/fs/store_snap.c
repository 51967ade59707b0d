/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"
#include "fs/snap.h"

enum record_kind { RECORD_INODE, RECORD_DIRENT, RECORD_XATTR };

/* Followed by `a` bytes and a NUL, then `b` bytes and a NUL; padded to 8. */
struct record {
	uint32_t kind;
	uint32_t a, b; /* inode: target, -; dirent: name, -; xattr: name, value */
	uint32_t reserved;
	union {
		struct db_inode inode; /* target is filled in when it is put */
		struct {
			uint64_t parent, id;
		} dirent;
		uint64_t xattr_of;
	};
};

/* One walk. Depth first; a directory is open only while its own entries are read. */
struct walk {
	struct snap *snap;
	int lower_fd;
	const struct fs_ids *ids;
	struct fs_handle *dirs; /* still to be read */
	size_t nr_dirs, dirs_room;
	struct fs_touched *linked; /* files with several names that were seen */
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

static int64_t to_ns(struct timespec ts)
{
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int add_inode(struct walk *w, int fd, const struct stat *st)
{
	struct record rec = {.kind = RECORD_INODE};
	char target[PATH_MAX];
	ssize_t n = 0;

	rec.inode = (struct db_inode){
		.id = fs_ids_get(w->ids, st->st_ino),
		.mode = st->st_mode,
		.uid = st->st_uid,
		.gid = st->st_gid,
		.nlink = (uint32_t)st->st_nlink,
		.rdev = st->st_rdev,
		.size = (uint64_t)st->st_size,
		.atime_ns = to_ns(st->st_atim),
		.mtime_ns = to_ns(st->st_mtim),
		.ctime_ns = to_ns(st->st_ctim),
		.lower_ino = st->st_ino,
	};
	if (S_ISLNK(st->st_mode))
		n = readlinkat(fd, "", target, sizeof(target));
	if (n < 0)
		return -errno;
	rec.a = (uint32_t)n;
	return snap_add(w->snap, &rec, target, NULL);
}

static int add_xattr(struct walk *w, int fd, uint64_t ino, const char *name)
{
	struct record rec = {.kind = RECORD_XATTR, .a = (uint32_t)strlen(name), .xattr_of = ino};
	_cleanup_free_ char *value = malloc(XATTR_SIZE_MAX);
	ssize_t n;

	if (!value)
		return -ENOMEM;
	n = getxattr(fs_proc_path(fd).s, name, value, XATTR_SIZE_MAX);
	if (n < 0)
		return errno == ENODATA ? 0 : -errno; /* xattrs may go meanwhile */
	rec.b = (uint32_t)n;
	return snap_add(w->snap, &rec, name, value);
}

static int add_xattrs(struct walk *w, int fd, uint64_t ino)
{
	char list[XATTR_LIST_MAX];
	ssize_t n = listxattr(fs_proc_path(fd).s, list, sizeof(list));
	int r = 0;

	if (n < 0)
		return errno == ENOTSUP ? 0 : -errno;
	for (ssize_t at = 0; !r && at < n; at += (ssize_t)strlen(list + at) + 1)
		r = add_xattr(w, fd, ino, list + at);
	return r;
}

static int add_file(struct snap *snap, uint64_t ino, int fd, const struct stat *st)
{
	struct snap_file *file;

	if (snap->nr_files == snap->files_room) {
		size_t room = snap->files_room ? snap->files_room * 2 : 256;
		struct snap_file *files = reallocarray(snap->files, room, sizeof(*files));

		if (!files)
			return -ENOMEM;
		snap->files = files;
		snap->files_room = room;
	}
	file = &snap->files[snap->nr_files++];
	*file = (struct snap_file){.ino = ino, .size = (uint64_t)st->st_size};
	return fs_handle_of(fd, &file->handle);
}

static int push_dir(struct walk *w, int fd)
{
	if (w->nr_dirs == w->dirs_room) {
		size_t room = w->dirs_room ? w->dirs_room * 2 : 64;
		struct fs_handle *dirs = reallocarray(w->dirs, room, sizeof(*dirs));

		if (!dirs)
			return -ENOMEM;
		w->dirs = dirs;
		w->dirs_room = room;
	}
	return fs_handle_of(fd, &w->dirs[w->nr_dirs++]);
}

/* 1 when this name is not the first one of its file, else 0 or -errno. */
static int seen_before(struct walk *w, const struct stat *st, uint64_t ino)
{
	struct fs_touched *entry;

	if (S_ISDIR(st->st_mode) || st->st_nlink < 2)
		return 0;
	HASH_FIND(hh, w->linked, &ino, sizeof(ino), entry);
	if (entry)
		return 1;
	entry = calloc(1, sizeof(*entry));
	if (!entry)
		return -ENOMEM;
	entry->ino = ino;
	HASH_ADD(hh, w->linked, ino, sizeof(ino), entry);
	return 0;
}

/* Everything about one inode but its name. */
static int visit(struct walk *w, int fd, const struct stat *st, uint64_t ino)
{
	int r = 0;

	if (S_ISREG(st->st_mode))
		r = add_file(w->snap, ino, fd, st);
	if (!r)
		r = add_inode(w, fd, st);
	if (!r)
		r = add_xattrs(w, fd, ino);
	if (!r && S_ISDIR(st->st_mode))
		r = push_dir(w, fd);
	return r;
}

static int visit_name(struct walk *w, int dir_fd, uint64_t parent, const char *name)
{
	struct record rec = {.kind = RECORD_DIRENT, .a = (uint32_t)strlen(name)};
	_cleanup_close_ int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	rec.dirent.parent = parent;
	rec.dirent.id = fs_ids_get(w->ids, st.st_ino);
	r = seen_before(w, &st, rec.dirent.id);
	if (r == 0)
		r = visit(w, fd, &st, rec.dirent.id);
	return r < 0 ? r : snap_add(w->snap, &rec, name, NULL);
}

static int read_dir(struct walk *w, const struct fs_handle *handle)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	struct stat st;
	int fd, r = 0;

	fd = fs_handle_open_at(w->lower_fd, handle, O_RDONLY | O_DIRECTORY | O_NOATIME);
	if (fd < 0)
		return fd;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	if (fstat(fd, &st) < 0)
		return -errno;
	while (!r && (errno = 0, de = readdir(dir))) {
		if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0)
			r = visit_name(w, fd, fs_ids_get(w->ids, st.st_ino), de->d_name);
	}
	return r ? r : -errno;
}

static int file_compare(const void *a, const void *b)
{
	const struct snap_file *x = a, *y = b;

	return (x->ino > y->ino) - (x->ino < y->ino);
}

struct snap_file *snap_file_find(const struct snap *snap, uint64_t ino)
{
	struct snap_file key = {.ino = ino};

	return snap->nr_files
		       ? bsearch(&key, snap->files, snap->nr_files, sizeof(key), file_compare)
		       : NULL;
}

int snap_take(struct snap *snap, int lower_fd, const struct fs_ids *ids)
{
	struct walk w = {.snap = snap, .lower_fd = lower_fd, .ids = ids};
	struct stat st;
	int r;

	*snap = (struct snap){.records = NULL};
	r = fstat(lower_fd, &st) < 0 ? -errno : visit(&w, lower_fd, &st, FS_ROOT_ID);
	while (!r && w.nr_dirs) {
		struct fs_handle dir = w.dirs[--w.nr_dirs];

		r = read_dir(&w, &dir);
	}
	if (!r && snap->nr_files)
		qsort(snap->files, snap->nr_files, sizeof(*snap->files), file_compare);
	free(w.dirs);
	fs_touched_free(w.linked);
	return r;
}

static uint64_t record_id(const struct record *rec)
{
	switch ((enum record_kind)rec->kind) {
	case RECORD_INODE:
		return rec->inode.id;
	case RECORD_DIRENT:
		return rec->dirent.id;
	case RECORD_XATTR:
		return rec->xattr_of;
	}
	return 0;
}

static bool record_is_gone(const struct snap *snap, const struct record *rec)
{
	const struct snap_file *file =
		snap->some_gone ? snap_file_find(snap, record_id(rec)) : NULL;

	return file && file->gone;
}

static int record_put(struct db_tx *tx, const struct record *rec)
{
	const char *a = (const char *)(rec + 1), *b = a + rec->a + 1;
	struct db_inode inode;

	switch ((enum record_kind)rec->kind) {
	case RECORD_INODE:
		inode = rec->inode;
		if (S_ISLNK(inode.mode)) {
			inode.target = a;
			inode.target_len = rec->a;
		}
		return db_tree_put_inode(tx, &inode);
	case RECORD_DIRENT:
		return db_tree_put_dirent(tx, rec->dirent.parent, a, rec->a, rec->dirent.id);
	case RECORD_XATTR:
		return db_tree_put_xattr(tx, rec->xattr_of, a, rec->a, b, rec->b);
	}
	return -EINVAL;
}

int snap_produce(struct db_tx *tx, void *ctx)
{
	const struct snap *snap = ctx;
	int r = 0;

	for (size_t at = 0; !r && at < snap->used;) {
		const struct record *rec = (const struct record *)(snap->records + at);

		if (!record_is_gone(snap, rec))
			r = record_put(tx, rec);
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
