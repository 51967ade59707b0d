/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A picture of the whole tree: when what the database has is not known to be that of the lower. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"
#include "fs/snap.h"

/* One walk. Depth first; a directory is open only while its own entries are read. */
struct walk {
	struct snap *snap;
	struct fs *fs;
	int lower_fd;
	struct fs_handle *dirs; /* still to be read */
	size_t nr_dirs, dirs_room;
	struct fs_change *linked; /* files with several names that were seen */
};

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
	struct fs_change *entry;

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
static int visit(struct walk *w, int fd, uint64_t ino)
{
	struct stat st;
	int r = fs_stat_of(w->fs, ino, fd, false, &st);

	if (!r && S_ISREG(st.st_mode))
		r = add_file(w->snap, ino, fd, &st);
	if (!r)
		r = snap_put_inode(w->snap, w->fs, fd, &st, false);
	if (!r && S_ISDIR(st.st_mode))
		r = push_dir(w, fd);
	return r;
}

static int visit_name(struct walk *w, int dir_fd, uint64_t parent, const char *name)
{
	_cleanup_close_ int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	uint64_t id;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	id = fs_ids_get(w->fs->ids, st.st_ino);
	r = seen_before(w, &st, id);
	if (r == 0)
		r = visit(w, fd, id);
	return r < 0 ? r : snap_put_name(w->snap, parent, name, id);
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
			r = visit_name(w, fd, fs_ids_get(w->fs->ids, st.st_ino), de->d_name);
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

int snap_take(struct snap *snap, struct fs *fs, int lower_fd)
{
	struct walk w = {.snap = snap, .fs = fs, .lower_fd = lower_fd};
	int r;

	*snap = (struct snap){.records = NULL};
	r = visit(&w, lower_fd, FS_ROOT_ID);
	while (!r && w.nr_dirs) {
		struct fs_handle dir = w.dirs[--w.nr_dirs];

		r = read_dir(&w, &dir);
	}
	if (!r && snap->nr_files)
		qsort(snap->files, snap->nr_files, sizeof(*snap->files), file_compare);
	free(w.dirs);
	fs_change_set_free(&w.linked);
	return r;
}
