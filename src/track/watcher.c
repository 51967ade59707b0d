/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "track/watcher.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "base/cleanup.h"

struct watcher {
	int inotify_fd;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t asked, done;
	/* guarded by lock */
	bool stop;
	bool busy;	/* there is a path; the thread may be at it */
	bool abandoned; /* nobody waits for the result any more */
	char path[PATH_MAX];
	uint64_t dev, ino;
	int result;
};

static dev_t watcher_dev(const struct statx *stx)
{
	return makedev(stx->stx_dev_major, stx->stx_dev_minor);
}

static int watcher_watch(int inotify_fd, const char *path, uint64_t dev, uint64_t ino)
{
	_cleanup_close_ int fd = open(path, O_PATH | O_CLOEXEC);
	struct statx stx;
	char link[40];
	int wd;

	if (fd < 0 ||
	    statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &stx) < 0)
		return -errno;
	if (watcher_dev(&stx) != dev || stx.stx_ino != ino)
		return -ESTALE;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	wd = inotify_add_watch(inotify_fd, link, IN_MODIFY | IN_ONESHOT);
	return wd < 0 ? -errno : wd;
}

static void *watcher_main(void *arg)
{
	struct watcher *w = arg;

	pthread_mutex_lock(&w->lock);
	while (!w->stop) {
		char path[PATH_MAX];
		uint64_t dev, ino;
		int r;

		if (!w->busy) {
			pthread_cond_wait(&w->asked, &w->lock);
			continue;
		}
		memcpy(path, w->path, sizeof(path));
		dev = w->dev;
		ino = w->ino;
		pthread_mutex_unlock(&w->lock);
		r = watcher_watch(w->inotify_fd, path, dev, ino);
		pthread_mutex_lock(&w->lock);
		if (w->abandoned && r > 0)
			inotify_rm_watch(w->inotify_fd, r);
		w->result = r;
		w->busy = false;
		pthread_cond_signal(&w->done);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

int watcher_start(int inotify_fd, struct watcher **watcher)
{
	struct watcher *w = calloc(1, sizeof(*w));
	pthread_condattr_t attr;
	int r;

	if (!w)
		return -ENOMEM;
	w->inotify_fd = inotify_fd;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->asked, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->done, &attr);
	pthread_condattr_destroy(&attr);
	r = -pthread_create(&w->thread, NULL, watcher_main, w);
	if (r < 0) {
		free(w);
		return r;
	}
	pthread_setname_np(w->thread, "wpfs-watcher");
	*watcher = w;
	return 0;
}

void watcher_stop(struct watcher *w)
{
	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = w->abandoned = true;
	pthread_cond_signal(&w->asked);
	pthread_mutex_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	pthread_cond_destroy(&w->asked);
	pthread_cond_destroy(&w->done);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

/* Until the thread is not at a path any more. 0 or -ETIMEDOUT. */
static int watcher_wait(struct watcher *w, const struct timespec *until)
{
	int r = 0;

	while (w->busy && r == 0)
		r = -pthread_cond_timedwait(&w->done, &w->lock, until);
	return w->busy ? -ETIMEDOUT : 0;
}

int watcher_add(struct watcher *w, const char *path, uint64_t dev, uint64_t ino)
{
	struct timespec until;
	int r;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += WATCHER_MS * 1000000L;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	pthread_mutex_lock(&w->lock);
	r = watcher_wait(w, &until); /* one that was abandoned may be stuck still */
	if (r == 0) {
		snprintf(w->path, sizeof(w->path), "%s", path);
		w->dev = dev;
		w->ino = ino;
		w->busy = true;
		w->abandoned = false;
		pthread_cond_signal(&w->asked);
		r = watcher_wait(w, &until);
		w->abandoned = r < 0;
		if (r == 0)
			r = w->result;
	}
	pthread_mutex_unlock(&w->lock);
	return r;
}

bool watcher_uses(const char *pid, const uint64_t *devs, size_t nr)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *entry;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		struct statx stx;

		if (statx(dirfd(dir), entry->d_name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
			  STATX_TYPE, &stx) < 0 ||
		    !S_ISREG(stx.stx_mode))
			continue;
		for (size_t i = 0; i < nr; i++) {
			if (watcher_dev(&stx) == devs[i])
				return true;
		}
	}
	return false;
}
