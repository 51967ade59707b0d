/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files with pages in memory that nothing is known of: those that a killed daemon knew, those that
 * a mount restored, and those that were let go of because there were so many. Nobody tells of their
 * pages, so they are looked for in the lower tree when there is too much in memory and no page that
 * is known can leave.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"

#define AGAIN_S 2 /* after a look that found nothing */

struct find {
	struct capped *c;
	uint64_t pages, want;	/* found; as many are enough */
	struct fs_handle *dirs; /* still to be read */
	size_t nr_dirs, room;
};

static int push_dir(struct find *find, int fd)
{
	if (find->nr_dirs == find->room) {
		size_t room = find->room ? find->room * 2 : 64;
		struct fs_handle *dirs = reallocarray(find->dirs, room, sizeof(*dirs));

		if (!dirs)
			return -ENOMEM;
		find->dirs = dirs;
		find->room = room;
	}
	return fs_handle_of_fd(fd, &find->dirs[find->nr_dirs++]);
}

/* A regular file with pages, which nothing is known of. */
static void found_file(struct find *find, uint64_t ino, int fd, const struct stat *st)
{
	struct capped *c = find->c;
	struct fs_handle handle;
	struct capped_file *f;

	if (fs_handle_of_fd(fd, &handle) < 0)
		return;
	pthread_mutex_lock(&c->lock);
	if (!capped_file_find(c, ino) && capped_file_get(c, &handle, ino, &f) == 0) {
		capped_know(c, f, 0, UINT64_MAX);
		find->pages += (uint64_t)st->st_blocks / (WPFS_PAGE_SIZE / 512);
	}
	pthread_mutex_unlock(&c->lock);
}

static bool is_known(struct capped *c, uint64_t ino)
{
	bool known;

	pthread_mutex_lock(&c->lock);
	known = capped_file_find(c, ino) != NULL;
	pthread_mutex_unlock(&c->lock);
	return known;
}

static int found_name(struct find *find, int dir_fd, const struct dirent *de)
{
	uint64_t ino = fs_ino_of_lower(find->c->config.fs, de->d_ino);
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (de->d_name[0] == '.' && (!de->d_name[1] || strcmp(de->d_name, "..") == 0))
		return 0;
	if (de->d_type != DT_DIR && (de->d_type != DT_REG || is_known(find->c, ino)))
		return 0;
	fd = openat(dir_fd, de->d_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return 0; /* gone meanwhile */
	if (S_ISDIR(st.st_mode))
		return push_dir(find, fd);
	if (S_ISREG(st.st_mode) && st.st_blocks)
		found_file(find, ino, fd, &st);
	return 0;
}

/* Takes fd over. */
static int find_in(struct find *find, int fd)
{
	_cleanup_dir_ DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *de;
	int r = 0;

	if (!dir) {
		close_fd(&fd);
		return 0; /* removed meanwhile */
	}
	while (r == 0 && find->pages < find->want && (de = readdir(dir)))
		r = found_name(find, dirfd(dir), de);
	return r;
}

static int64_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

uint64_t capped_find(struct capped *c, uint64_t want)
{
	struct find find = {.c = c, .want = want};
	int r;

	if (c->found_nothing && now_s() < c->found_nothing + AGAIN_S)
		return 0;
	r = find_in(&find, openat(c->config.lower_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	while (r == 0 && find.nr_dirs && find.pages < want) {
		struct fs_handle handle = find.dirs[--find.nr_dirs];

		r = find_in(&find, fs_handle_open(c->config.fs, &handle,
						  O_RDONLY | O_DIRECTORY | O_NOATIME));
	}
	free(find.dirs);
	if (r < 0)
		log_err("cannot look for what is in memory: %s", log_errstr(r));
	c->found_nothing = find.pages ? 0 : now_s();
	return find.pages;
}
