/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/storedir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"

static bool is_inside(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	return strncmp(path, dir, len) == 0 &&
	       (path[len] == '\0' || path[len] == '/' || strcmp(dir, "/") == 0);
}

/* What is in it; NULL: it cannot be read. */
static DIR *list(int fd)
{
	int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = own < 0 ? NULL : fdopendir(own);

	if (!dir)
		close_fd(&own);
	return dir;
}

static bool is_dots(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Also when it cannot be read. */
static bool is_empty(int fd)
{
	_cleanup_dir_ DIR *dir = list(fd);
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		if (!is_dots(de->d_name))
			return false;
	}
	return true;
}

/* A directory that a first mount makes before there is a database: it may have ended just then. */
static bool is_begun(int fd, const char *name)
{
	_cleanup_close_ int dir = -1;

	if (strcmp(name, "data") != 0 && strcmp(name, "spill") != 0)
		return false;
	dir = openat(fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	return dir >= 0 && is_empty(dir);
}

/*
 * Who owns a part of a store, or can put another one in its place, reads what is in it, permissions
 * or not, and can make a tree of his own of it, with set-user-ID programs of root.
 */
static int check_owner(const struct stat *st, const char *path, const char *name)
{
	if (st->st_uid == geteuid())
		return 0;
	log_err("the store %s%s%s belongs to user %u, who could change what is in it: chown it to "
		"root, if nobody did",
		path, *name ? "/" : "", name, st->st_uid);
	return -EPERM;
}

static int check_owner_of(int fd, const char *path, const char *name)
{
	struct stat st;

	if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		int r = errno == ENOENT ? 0 : -errno;

		if (r)
			log_err("cannot read %s/%s: %s", path, name, log_errstr(r));
		return r;
	}
	return check_owner(&st, path, name);
}

static bool is_part(const char *name)
{
	return strncmp(name, "wpfs.db", 7) == 0 || strcmp(name, "lock") == 0 ||
	       strcmp(name, "data") == 0 || strcmp(name, "spill") == 0;
}

/* SQLite would refuse it as well, and not say why. */
static int check_no_link(int fd, const char *path, const char *name)
{
	struct stat st;

	if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISLNK(st.st_mode))
		return 0;
	log_err("%s/%s is a symbolic link, which is not followed: move the file itself there", path,
		name);
	return -ELOOP;
}

/*
 * A store, or an empty directory that may become one. With `ours` nobody else can change it any
 * more, and its parts have to be ours too. 0 or -errno, logged.
 */
static int check_contents(int fd, const char *path, bool ours, bool *database)
{
	_cleanup_dir_ DIR *dir = list(fd);
	bool foreign = false;
	struct dirent *de;
	int r = 0;

	*database = false;
	if (!dir) {
		r = -errno;
		log_err("cannot read the store %s: %s", path, log_errstr(r));
		return r;
	}
	while (!r && (de = readdir(dir))) {
		const char *name = de->d_name;

		if (strcmp(name, "wpfs.db") == 0)
			*database = true;
		else if (!is_dots(name) && strcmp(name, "lost+found") != 0 &&
			 strcmp(name, "lock") != 0 && !is_begun(fd, name))
			foreign = true;
		if (ours && is_part(name))
			r = check_owner_of(fd, path, name);
		if (!r && ours && strcmp(name, "wpfs.db") == 0)
			r = check_no_link(fd, path, name);
	}
	if (r || !foreign || *database)
		return r;
	log_err("%s is not a store: it has files in it, but no wpfs.db: give an empty or a new "
		"directory",
		path);
	return -ENOTEMPTY;
}

/* One that is empty becomes ours. What is in it counts from when nobody else can change it. */
static int make_ours(int fd, const char *path)
{
	bool database, mine;
	struct stat st;
	int r = check_contents(fd, path, false, &database);

	if (r)
		return r;
	if (fstat(fd, &st) < 0)
		return -errno;
	mine = st.st_uid == geteuid();
	if (database && !mine)
		return check_owner(&st, path, "");
	if (!mine && fchown(fd, geteuid(), getegid()) < 0)
		r = -errno;
	if (!r && (!mine || (st.st_mode & 022)) && fchmod(fd, 0700) < 0)
		r = -errno;
	if (r) {
		log_err("cannot make the store %s root's: %s", path, log_errstr(r));
		return r;
	}
	r = check_contents(fd, path, true, &database);
	return !r && database && !mine ? check_owner(&st, path, "") : r;
}

static int open_dir(const char *path, const char *mountpoint, struct storedir *store)
{
	char resolved[PATH_MAX];
	_cleanup_close_ int fd = -1;
	bool made;
	int r;

	made = mkdir(path, 0700) == 0;
	if (!made && errno != EEXIST) {
		r = -errno;
		log_err("cannot make the store %s: %s", path, log_errstr(r));
		return r;
	}
	if (!realpath(path, resolved)) {
		r = -errno;
		log_err("cannot open the store %s: %s", path, log_errstr(r));
		return r;
	}
	snprintf(store->path, sizeof(store->path), "%s", resolved);
	if (is_inside(store->path, mountpoint)) {
		if (made)
			rmdir(path);
		log_err("the store %s is inside the mountpoint %s: choose a place elsewhere", path,
			mountpoint);
		return -EINVAL;
	}
	fd = open(store->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		r = -errno;
		log_err("cannot open the store %s: %s", path, log_errstr(r));
		return r;
	}
	r = make_ours(fd, path);
	return r ? r : steal_fd(&fd);
}

static int lock_store(int fd, const char *path, const char *mountpoint, struct storedir *store)
{
	struct lockfile_holder holder;

	store->lock_fd = lockfile_take(fd, "lock", mountpoint, &holder);
	if (store->lock_fd == -EBUSY)
		log_err("the store %s is in use by wpfs with pid %d on %s: unmount that first",
			path, holder.pid, holder.mountpoint);
	else if (store->lock_fd < 0)
		log_err("cannot lock the store %s: %s", path, log_errstr(store->lock_fd));
	return store->lock_fd < 0 ? store->lock_fd : 0;
}

/* Files are written below the directories in it by name. 0 or -errno, logged. */
static int check_part(int part, const char *path, const char *name)
{
	_cleanup_dir_ DIR *dir = list(part);
	char below[PATH_MAX];
	struct dirent *de;
	struct stat st;
	int r;

	if (!dir || fstat(part, &st) < 0 || (st.st_uid == geteuid() && fchmod(part, 0700) < 0)) {
		r = -errno;
		log_err("cannot open %s/%s: %s", path, name, log_errstr(r));
		return r;
	}
	r = check_owner(&st, path, name);
	snprintf(below, sizeof(below), "%s/%s", path, name);
	while (!r && (de = readdir(dir))) {
		if (!is_dots(de->d_name))
			r = check_owner_of(part, below, de->d_name);
	}
	return r;
}

/* A directory of the store, made if need be. */
static int open_part(int fd, const char *path, const char *name, int *part)
{
	int r = mkdirat(fd, name, 0700) < 0 && errno != EEXIST ? -errno : 0;

	if (!r) {
		*part = openat(fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		r = *part < 0 ? -errno : 0;
	}
	if (r) {
		log_err("cannot open %s/%s: %s", path, name, log_errstr(r));
		return r;
	}
	return check_part(*part, path, name);
}

int storedir_open(const char *path, const char *mountpoint, struct storedir *store)
{
	int fd = open_dir(path, mountpoint, store), r;

	if (fd < 0)
		return fd;
	store->dir_fd = fd;
	r = lock_store(fd, path, mountpoint, store);
	if (r)
		return r;
	if (fchmod(fd, 0700) < 0) {
		r = -errno;
		log_err("cannot write to the store %s: %s", path, log_errstr(r));
		return r;
	}
	r = open_part(fd, path, "data", &store->data_fd);
	return r ? r : open_part(fd, path, "spill", &store->spill_fd);
}

bool storedir_has_contents(const struct storedir *store)
{
	return !is_empty(store->data_fd);
}

void storedir_close(struct storedir *store)
{
	close_fd(&store->data_fd);
	close_fd(&store->spill_fd);
	close_fd(&store->lock_fd);
	close_fd(&store->dir_fd);
}
