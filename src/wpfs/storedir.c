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

/* Also when it cannot be read. */
static bool is_empty(int fd)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	dir = own < 0 ? NULL : fdopendir(own);
	if (!dir) {
		close_fd(&own);
		return true;
	}
	while ((de = readdir(dir))) {
		if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0)
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
 * Who owns the directory reads what is in it, permissions or not, and can put another tree in its
 * place, with set-user-ID programs of root. One that is empty becomes ours.
 */
static int check_owner(int fd, const char *path, bool database)
{
	struct stat st;
	int r = fstat(fd, &st) < 0 ? -errno : 0;

	if (!r && st.st_uid == geteuid())
		return 0;
	if (!r && database) {
		log_err("the store %s belongs to user %u, who could change what is in it: chown it "
			"to root, if nobody did",
			path, st.st_uid);
		return -EPERM;
	}
	if (!r && fchown(fd, geteuid(), getegid()) < 0)
		r = -errno;
	if (r)
		log_err("cannot make the store %s root's: %s", path, log_errstr(r));
	return r;
}

/* A store, or an empty directory that may become one. 0 or -errno, logged. */
static int check_contents(int fd, const char *path)
{
	_cleanup_dir_ DIR *dir = NULL;
	bool foreign = false, database = false;
	struct dirent *de;
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	dir = copy < 0 ? NULL : fdopendir(copy);
	if (!dir) {
		close_fd(&copy);
		return -ENOMEM;
	}
	while ((de = readdir(dir))) {
		if (strcmp(de->d_name, "wpfs.db") == 0)
			database = true;
		else if (strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0 &&
			 strcmp(de->d_name, "lost+found") != 0 && strcmp(de->d_name, "lock") != 0 &&
			 !is_begun(fd, de->d_name))
			foreign = true;
	}
	if (!foreign || database)
		return check_owner(fd, path, database);
	log_err("%s is not a store: it has files in it, but no wpfs.db: give an empty or a new "
		"directory",
		path);
	return -ENOTEMPTY;
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
	r = check_contents(fd, path);
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

/* A directory of the store, made if need be. */
static int open_part(int fd, const char *path, const char *name, int *part)
{
	int r = mkdirat(fd, name, 0700) < 0 && errno != EEXIST ? -errno : 0;

	if (!r) {
		*part = openat(fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		r = *part < 0 ? -errno : 0;
	}
	if (r)
		log_err("cannot open %s/%s: %s", path, name, log_errstr(r));
	return r;
}

int storedir_open(const char *path, const char *mountpoint, struct storedir *store)
{
	_cleanup_close_ int fd = open_dir(path, mountpoint, store);
	int r;

	if (fd < 0)
		return fd;
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
}
