/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading directories. Positions are the lower's own d_off: tmpfs gives every name a stable one
 * (Linux 6.6), so telldir() stays good while others create and remove names.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "fs/priv.h"
#include "fs/store.h"

/*
 * An open directory. Two threads may read one descriptor at once. The lower is read anew for each
 * request: it moves the access time as it does on a tmpfs.
 */
struct fs_dir {
	struct fs_dir *prev, *next; /* fs.dirs_lock */
	pthread_mutex_t lock;	    /* the position of fd */
	int fd;
};

static struct fs_dir *dir_of(const struct fuse_file_info *fi)
{
	return (struct fs_dir *)(uintptr_t)fi->fh;
}

static int dir_open_fd(struct fs *fs, uint64_t ino)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int fd, r;

	r = fs_inode_ref(fs, ino, &ref);
	if (r)
		return r;
	fd = openat(ref.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void dir_free(struct fs *fs, struct fs_dir *dir)
{
	pthread_mutex_lock(&fs->dirs_lock);
	DL_DELETE(fs->dirs, dir);
	pthread_mutex_unlock(&fs->dirs_lock);
	close(dir->fd);
	pthread_mutex_destroy(&dir->lock);
	free(dir);
}

/* The kernel may drop the last releases when it is unmounted. */
void fs_dirs_free(struct fs *fs)
{
	while (fs->dirs)
		dir_free(fs, fs->dirs);
}

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fs_of(req);
	struct fs_dir *dir = malloc(sizeof(*dir));
	int fd = dir ? dir_open_fd(fs, ino) : -ENOMEM;

	if (fd < 0) {
		free(dir);
		fuse_reply_err(req, -fd);
		return;
	}
	pthread_mutex_init(&dir->lock, NULL);
	dir->fd = fd;
	pthread_mutex_lock(&fs->dirs_lock);
	DL_APPEND(fs->dirs, dir);
	pthread_mutex_unlock(&fs->dirs_lock);
	fi->fh = (uintptr_t)dir;
	if (fuse_reply_open(req, fi) < 0)
		dir_free(fs, dir);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	dir_free(fs_of(req), dir_of(fi));
	fuse_reply_err(req, 0);
}

static bool is_dots(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/*
 * Adds one entry to the answer. Gives its size, 0 when the name has gone meanwhile, or -errno. A
 * size above `room` means that it was not added.
 */
static ssize_t add_entry(fuse_req_t req, struct fs_dir *dir, const struct dirent64 *de, char *buf,
			 size_t room, bool plus)
{
	struct fs *fs = fs_of(req);
	struct fuse_entry_param entry = {.attr = {.st_ino = fs_ids_get(fs->ids, de->d_ino),
						  .st_mode = (mode_t)DTTOIF(de->d_type)}};
	size_t size;
	int r;

	if (!plus)
		return (ssize_t)fuse_add_direntry(req, buf, room, de->d_name, &entry.attr,
						  de->d_off);
	size = fuse_add_direntry_plus(req, NULL, 0, de->d_name, &entry, 0);
	if (size > room)
		return (ssize_t)size;
	if (!is_dots(de->d_name)) {
		r = fs_entry_listed(fs, dir->fd, de->d_name, de->d_ino, &entry);
		if (r)
			return r == -ENOENT ? 0 : r;
	}
	return (ssize_t)fuse_add_direntry_plus(req, buf, room, de->d_name, &entry, de->d_off);
}

struct listing {
	char *buf;
	size_t used, size;
	bool plus;
	bool full;
};

/* Adds what one getdents gave; 0 or -errno. */
static int add_entries(fuse_req_t req, struct fs_dir *dir, const char *entries, size_t len,
		       struct listing *out)
{
	for (size_t at = 0; at < len && !out->full;) {
		const struct dirent64 *de = (const struct dirent64 *)(entries + at);
		ssize_t n = add_entry(req, dir, de, out->buf + out->used, out->size - out->used,
				      out->plus);

		if (n < 0)
			return (int)n;
		out->full = (size_t)n > out->size - out->used;
		if (!out->full)
			out->used += (size_t)n;
		at += de->d_reclen;
	}
	return 0;
}

/* An entry with attributes takes about five times the room that it has in the lower. */
static int list_from(fuse_req_t req, struct fs_dir *dir, off_t off, struct listing *out)
{
	_Alignas(struct dirent64) char entries[16384];
	size_t part = out->plus ? out->size / 5 : out->size;
	int r = 0;

	if (part > sizeof(entries))
		part = sizeof(entries);
	if (part < sizeof(struct dirent64))
		part = sizeof(struct dirent64);
	if (lseek(dir->fd, off, SEEK_SET) < 0)
		return -errno;
	while (!r && !out->full) {
		long n = syscall(SYS_getdents64, dir->fd, entries, part);

		if (n <= 0)
			return n < 0 ? -errno : 0;
		if (out->used)
			fs_request_may_wait(); /* there are many */
		r = add_entries(req, dir, entries, (size_t)n, out);
	}
	return r;
}

static void read_entries(fuse_req_t req, size_t size, off_t off, struct fs_dir *dir, bool plus)
{
	_cleanup_free_ char *buf = malloc(size);
	struct listing out = {.buf = buf, .size = size, .plus = plus};
	int r;

	if (!buf) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	pthread_mutex_lock(&dir->lock);
	r = list_from(req, dir, off, &out);
	pthread_mutex_unlock(&dir->lock);
	/* Lookups already counted must reach the kernel, so an error waits for the next call. */
	if (r && !out.used)
		fuse_reply_err(req, -r);
	else
		fuse_reply_buf(req, buf, out.used);
}

static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		       struct fuse_file_info *fi)
{
	read_entries(req, size, off, dir_of(fi), false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
			   struct fuse_file_info *fi)
{
	read_entries(req, size, off, dir_of(fi), true);
}

static void sync_names(fuse_req_t req, struct fs_wait *wait)
{
	if (fs_of(req)->store)
		fs_request_may_wait();
	fuse_reply_err(req, -fs_store_flush_names(fs_of(req)));
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	fs_change_inode(fs_of(req), ino);
	fs_wait_in(req, &(struct fs_wait){.ino = ino}, sync_names);
}

void fs_ops_dirs(struct fuse_lowlevel_ops *ops)
{
	ops->opendir = op_opendir;
	ops->readdir = op_readdir;
	ops->readdirplus = op_readdirplus;
	ops->releasedir = op_releasedir;
	ops->fsyncdir = op_fsyncdir;
}
