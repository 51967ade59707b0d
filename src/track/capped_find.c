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
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_test.h"

#define AGAIN_S	   2   /* after a look at all of it that found nothing */
#define TURN_NAMES 512 /* looked at at once: the track thread has other work */

/* A look that goes on from turn to turn. Track thread. */
struct capped_find {
	struct fs_handle *dirs; /* still to be read */
	size_t nr_dirs, room;
	DIR *dir;	/* that is being read; NULL: none */
	uint64_t found; /* pages */
};

/* One turn. */
struct turn {
	struct capped *c;
	struct capped_find *find;
	uint64_t pages, names;
};

static int push_dir(struct capped_find *find, int fd)
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
static void found_file(struct turn *turn, uint64_t ino, int fd, const struct stat *st)
{
	struct capped *c = turn->c;
	struct fs_handle handle;
	struct capped_file *f;

	if (fs_handle_of_fd(fd, &handle) < 0)
		return;
	pthread_mutex_lock(&c->lock);
	if (!capped_file_find(c, ino) && capped_file_get(c, &handle, ino, &f) == 0)
		turn->pages += (uint64_t)st->st_blocks / (WPFS_PAGE_SIZE / 512);
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

static int found_name(struct turn *turn, int dir_fd, const struct dirent *de)
{
	uint64_t ino = fs_ino_of_lower(turn->c->config.fs, de->d_ino);
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (de->d_name[0] == '.' && (!de->d_name[1] || strcmp(de->d_name, "..") == 0))
		return 0;
	if (de->d_type != DT_DIR && (de->d_type != DT_REG || is_known(turn->c, ino)))
		return 0;
	fd = openat(dir_fd, de->d_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return 0; /* gone meanwhile */
	if (S_ISDIR(st.st_mode))
		return push_dir(turn->find, fd);
	if (S_ISREG(st.st_mode) && st.st_blocks)
		found_file(turn, ino, fd, &st);
	return 0;
}

/* The next directory; one that was removed meanwhile is none. False: there are no more. */
static bool next_dir(struct capped *c, struct capped_find *find)
{
	int fd;

	if (find->nr_dirs == 0)
		return false;
	fd = fs_handle_open(c->config.fs, &find->dirs[--find->nr_dirs],
			    O_RDONLY | O_DIRECTORY | O_NOATIME);
	find->dir = fd < 0 ? NULL : fdopendir(fd);
	if (!find->dir)
		close_fd(&fd);
	return true;
}

/* 1: there is more to look at. 0: it has all been seen. -errno. */
static int look_on(struct turn *turn, uint64_t want)
{
	struct capped_find *find = turn->find;
	int r = 0;

	while (r == 0 && turn->pages < want && turn->names < TURN_NAMES) {
		const struct dirent *de;

		if (!find->dir) {
			if (!next_dir(turn->c, find))
				return 0;
			turn->names++;
			continue;
		}
		de = readdir(find->dir);
		if (de) {
			r = found_name(turn, dirfd(find->dir), de);
			turn->names++;
		} else {
			closedir(find->dir);
			find->dir = NULL;
		}
	}
	return r < 0 ? r : 1;
}

static int64_t now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

void capped_find_free(struct capped *c)
{
	if (!c->find)
		return;
	if (c->find->dir)
		closedir(c->find->dir);
	free(c->find->dirs);
	free(c->find);
	c->find = NULL;
}

bool capped_find(struct capped *c, uint64_t want)
{
	struct turn turn = {.c = c};
	bool any;
	int r = 0;

	if (c->found_nothing && now_s() < c->found_nothing + AGAIN_S)
		return false;
	if (!c->find) {
		c->find = calloc(1, sizeof(*c->find));
		if (!c->find)
			return false;
		r = push_dir(c->find, c->config.lower_fd);
	}
	turn.find = c->find;
	if (r == 0)
		r = look_on(&turn, want);
	c->find->found += turn.pages;
	if (r == 1) {
		capped_test_point("looking");
		return true;
	}
	if (r < 0)
		log_err("cannot look for what is in memory: %s", log_errstr(r));
	any = c->find->found > 0;
	c->found_nothing = any ? 0 : now_s();
	capped_find_free(c);
	return any;
}
