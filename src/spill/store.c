/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * O_DIRECT, because a page that left memory must not come back as page cache of the store. A file
 * system that refuses it at open or at the first transfer is used through its cache.
 */
#include "spill/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "base/units.h"

#define PIECE_PAGES ((uint64_t)256) /* 1 MiB: longer ones are no faster */

struct spill_store {
	int dir_fd;
	enum spill_path want;
	_Atomic bool direct; /* not refused so far */
	struct spill_stats stats;
};

struct store_path {
	char s[40];
};

static struct store_path store_path(uint64_t id)
{
	struct store_path path;

	snprintf(path.s, sizeof(path.s), "%02x/%" PRIu64, (unsigned)(id & 0xff), id);
	return path;
}

int spill_store_open(int dir_fd, enum spill_path want, struct spill_store **out)
{
	struct spill_store *store = calloc(1, sizeof(*store));

	if (!store)
		return -ENOMEM;
	store->dir_fd = dir_fd;
	store->want = want;
	store->direct = true;
	*out = store;
	return 0;
}

void spill_store_close(struct spill_store *store)
{
	free(store);
}

struct spill_stats *spill_store_stats(struct spill_store *store)
{
	return &store->stats;
}

int spill_store_engine(struct spill_store *store, size_t buf_size, struct spill_io **io)
{
	return spill_io_new(store->want, buf_size, &store->stats, io);
}

static int store_openat(struct spill_store *store, uint64_t id, int flags)
{
	int fd = openat(store->dir_fd, store_path(id).s, flags, 0600);
	char dir[3];

	if (fd < 0 && errno == ENOENT && (flags & O_CREAT)) {
		snprintf(dir, sizeof(dir), "%02x", (unsigned)(id & 0xff));
		if (mkdirat(store->dir_fd, dir, 0700) < 0 && errno != EEXIST)
			return -errno;
		fd = openat(store->dir_fd, store_path(id).s, flags, 0600);
	}
	return fd < 0 ? -errno : fd;
}

int spill_store_file(struct spill_store *store, uint64_t id, bool create)
{
	const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0);
	int fd = store_openat(store, id, flags | (store->direct ? O_DIRECT : 0));

	if (fd == -EINVAL && store->direct) {
		store->direct = false;
		fd = store_openat(store, id, flags);
	}
	return fd;
}

/* Cuts the runs into pieces. NULL: out of memory. */
static struct spill_seg *store_pieces(const struct spill_run *runs, size_t nr, size_t *nr_segs)
{
	struct spill_seg *segs;
	size_t n = 0;

	for (size_t i = 0; i < nr; i++)
		n += (runs[i].nr + PIECE_PAGES - 1) / PIECE_PAGES;
	segs = calloc(n + 1, sizeof(*segs));
	*nr_segs = n;
	n = 0;
	for (size_t i = 0; segs && i < nr; i++) {
		for (uint64_t at = 0; at < runs[i].nr; at += PIECE_PAGES) {
			uint64_t pages =
				runs[i].nr - at < PIECE_PAGES ? runs[i].nr - at : PIECE_PAGES;

			segs[n++] = (struct spill_seg){
				.buf = (char *)runs[i].buf + (at << WPFS_PAGE_SHIFT),
				.off = (runs[i].first + at) << WPFS_PAGE_SHIFT,
				.len = (uint32_t)(pages << WPFS_PAGE_SHIFT),
			};
		}
	}
	return segs;
}

static bool store_is_direct(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && (flags & O_DIRECT);
}

/*
 * A file system that takes no O_DIRECT after all: from now on through its cache. `direct`: it was
 * so when it began; by now another one that was under way may have found out.
 */
static bool store_refused(int fd, bool direct, int r)
{
	int flags = r == -EINVAL && direct ? fcntl(fd, F_GETFL) : -1;

	return flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0;
}

static int store_run(struct spill_io *io, int fd, bool write, const struct spill_run *runs,
		     size_t nr)
{
	size_t nr_segs;
	_cleanup_free_ struct spill_seg *segs = store_pieces(runs, nr, &nr_segs);
	int (*run)(struct spill_io *, int, const struct spill_seg *, size_t) =
		write ? spill_io_write : spill_io_read;
	bool direct = store_is_direct(fd);
	int r;

	if (!segs)
		return -ENOMEM;
	r = run(io, fd, segs, nr_segs);
	return store_refused(fd, direct, r) ? run(io, fd, segs, nr_segs) : r;
}

int spill_store_begin(struct spill_io *io, struct spill_job *job, int fd, bool write,
		      const struct spill_run *runs, size_t nr)
{
	size_t nr_segs;
	_cleanup_free_ struct spill_seg *segs = store_pieces(runs, nr, &nr_segs);
	bool direct = store_is_direct(fd);
	int r = segs ? spill_io_begin(io, job, fd, write, segs, nr_segs) : -ENOMEM;

	job->direct = direct;
	return r;
}

int spill_store_end(struct spill_io *io, struct spill_job *job, const struct spill_run *runs,
		    size_t nr)
{
	int r = spill_io_end(io, job);

	return store_refused(job->fd, job->direct, r) ? store_run(io, job->fd, job->write, runs, nr)
						      : r;
}

void spill_store_reserve(int fd, uint64_t pages)
{
	struct stat st;

	if (fstat(fd, &st) == 0 && (uint64_t)st.st_size < pages << WPFS_PAGE_SHIFT &&
	    ftruncate(fd, (off_t)(pages << WPFS_PAGE_SHIFT)) < 0)
		return;
}

int spill_store_write(struct spill_io *io, int fd, const struct spill_run *runs, size_t nr)
{
	return store_run(io, fd, true, runs, nr);
}

int spill_store_read(struct spill_io *io, int fd, const struct spill_run *runs, size_t nr)
{
	return store_run(io, fd, false, runs, nr);
}

void spill_store_discard(int fd, const struct spill_run *runs, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  (off_t)(runs[i].first << WPFS_PAGE_SHIFT),
			  (off_t)(runs[i].nr << WPFS_PAGE_SHIFT));
}

static void *close_main(void *arg)
{
	thread_anywhere(0);
	close((int)(intptr_t)arg);
	return NULL;
}

/*
 * The name goes at once, the room with the last descriptor: for a file in a thousand pieces, on a
 * file system that discards them one by one, that takes minutes.
 */
int spill_store_remove(struct spill_store *store, uint64_t id)
{
	int fd = openat(store->dir_fd, store_path(id).s, O_PATH | O_CLOEXEC | O_NOFOLLOW);
	int r = unlinkat(store->dir_fd, store_path(id).s, 0) < 0 && errno != ENOENT ? -errno : 0;
	pthread_attr_t attr;
	pthread_t thread;

	if (fd < 0)
		return r;
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attr, close_main, (void *)(intptr_t)fd) != 0)
		close(fd);
	pthread_attr_destroy(&attr);
	return r;
}

static int store_wipe_dir(int dir_fd, const char *name)
{
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while ((de = readdir(dir))) {
		/* Only what looks like ours is ours to remove. */
		if (de->d_name[0] && de->d_name[strspn(de->d_name, "0123456789")] == '\0' &&
		    unlinkat(fd, de->d_name, 0) < 0 && errno != ENOENT)
			return -errno;
	}
	return 0;
}

int spill_store_wipe(struct spill_store *store)
{
	int r = 0;

	for (unsigned i = 0; i < 256 && r == 0; i++) {
		char name[12];

		snprintf(name, sizeof(name), "%02x", i);
		r = store_wipe_dir(store->dir_fd, name);
	}
	return r;
}

bool spill_is_zero(const void *page, size_t len)
{
	const uint64_t *p = page;

	for (size_t i = 0; i < len / 8; i += 8) {
		if (p[i] | p[i + 1] | p[i + 2] | p[i + 3] | p[i + 4] | p[i + 5] | p[i + 6] |
		    p[i + 7])
			return false;
	}
	return true;
}
