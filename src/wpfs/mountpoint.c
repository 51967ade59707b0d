/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/mountpoint.h"

#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/mountinfo.h"

/* realpath(3) asks the last component what it is, and a dead mount there answers ENOTCONN. */
static int resolve_dead(const char *given, char *path)
{
	_cleanup_free_ char *for_dir = strdup(given), *for_base = strdup(given);
	char dir[PATH_MAX];
	int n;

	if (!for_dir || !for_base)
		return -ENOMEM;
	if (!realpath(dirname(for_dir), dir))
		return -errno;
	n = snprintf(path, PATH_MAX, "%s/%s", strcmp(dir, "/") == 0 ? "" : dir, basename(for_base));
	return n >= PATH_MAX ? -ENAMETOOLONG : 0;
}

int mountpoint_resolve(const char *given, char *path)
{
	int r = realpath(given, path) ? 0 : -errno;

	if (r == -ENOTCONN || r == -ECONNABORTED)
		r = resolve_dead(given, path);
	if (r == -ENOENT)
		log_err("the mountpoint %s does not exist: make it with mkdir", given);
	else if (r)
		log_err("cannot use the mountpoint %s: %s", given, log_errstr(r));
	return r;
}

static int check_empty(const char *path)
{
	_cleanup_dir_ DIR *dir = opendir(path);
	struct dirent *de;
	int r;

	if (!dir) {
		r = -errno;
		if (r == -ENOTDIR)
			log_err("the mountpoint %s is not a directory: give one that is", path);
		else
			log_err("cannot use the mountpoint %s: %s", path, log_errstr(r));
		return r;
	}
	while ((de = readdir(dir))) {
		if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
			continue;
		log_err("the mountpoint %s is not empty: give an empty directory", path);
		return -ENOTEMPTY;
	}
	return 0;
}

/* Not stat(2), which the kernel answers from its cache. */
static bool is_dead(const char *path)
{
	struct statfs st;
	int r;

	/* The request was made while it died. */
	do
		r = statfs(path, &st) < 0 ? -errno : 0;
	while (r == -ECONNABORTED);
	return r == -ENOTCONN;
}

int mountpoint_check(const char *path, bool *dead)
{
	struct mountinfo entry;
	int r = mountinfo_find(path, &entry);

	*dead = false;
	if (r == -ENOENT)
		return check_empty(path);
	if (r) {
		log_err("cannot read the mount table: %s", log_errstr(r));
		return r;
	}
	if (strcmp(entry.fstype, "fuse.wpfs") == 0 && is_dead(path)) {
		*dead = true;
		return 0;
	}
	log_err("the mountpoint %s is busy: a file system of type %s is mounted there: unmount it "
		"first",
		path, entry.fstype);
	return -EBUSY;
}
