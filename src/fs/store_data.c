/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/store_data.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"

#define WINDOW ((size_t)1 << 20)

struct data_path {
	char s[40];
};

static struct data_path data_path(uint64_t id)
{
	struct data_path path;

	snprintf(path.s, sizeof(path.s), "%02x/%" PRIu64, (unsigned)(id & 0xff), id);
	return path;
}

static int data_open(int data_fd, uint64_t id, int flags)
{
	struct data_path path = data_path(id);
	int fd = openat(data_fd, path.s, flags | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 && errno == ENOENT && (flags & O_CREAT)) {
		path.s[2] = '\0';
		if (mkdirat(data_fd, path.s, 0700) < 0 && errno != EEXIST)
			return -errno;
		fd = openat(data_fd, data_path(id).s, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	}
	return fd < 0 ? -errno : fd;
}

/* The next offset from `off` on that is not in a hole, or `end`. */
static uint64_t next_data(int fd, uint64_t off, uint64_t end)
{
	off_t at = fd < 0 ? -1 : lseek(fd, (off_t)off, SEEK_DATA);

	return at < 0 || (uint64_t)at > end ? end : (uint64_t)at;
}

int store_data_open(int data_fd, uint64_t id)
{
	return data_open(data_fd, id, O_RDONLY);
}

/* The end of the data at `off`, at most `size`. */
static uint64_t data_end(int fd, uint64_t off, uint64_t size)
{
	off_t hole = lseek(fd, (off_t)off, SEEK_HOLE);

	return hole < 0 || (uint64_t)hole > size ? size : (uint64_t)hole;
}

int store_data_blocks(int data_fd, uint64_t id, uint64_t size, uint64_t *blocks)
{
	_cleanup_close_ int fd = data_open(data_fd, id, O_RDONLY);
	uint64_t pages = 0, next = 0; /* the first page that is not counted */

	*blocks = 0;
	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	for (uint64_t off = next_data(fd, 0, size); off < size;) {
		uint64_t end = data_end(fd, off, size), first = off / WPFS_PAGE_SIZE;
		uint64_t past = (end + WPFS_PAGE_SIZE - 1) / WPFS_PAGE_SIZE;

		if (first < next)
			first = next;
		if (past > first)
			pages += past - first;
		next = past;
		off = next_data(fd, end, size);
	}
	*blocks = pages * (WPFS_PAGE_SIZE / 512);
	return 0;
}

int store_data_read(int data_fd, uint64_t id, int lower_fd, uint64_t size, const _Atomic bool *stop)
{
	_cleanup_close_ int fd = data_open(data_fd, id, O_RDONLY);
	_cleanup_free_ char *buf = NULL;
	int r = 0;

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd; /* nothing but zeros */
	buf = malloc(WINDOW);
	if (!buf)
		return -ENOMEM;
	for (uint64_t off = next_data(fd, 0, size); !r && off < size;) {
		uint64_t end = data_end(fd, off, size);
		size_t len = end - off < WINDOW ? (size_t)(end - off) : WINDOW;

		if (stop && atomic_load(stop))
			return -ECANCELED;
		r = fdio_pread_full(fd, buf, len, (off_t)off);
		if (!r)
			r = fdio_put_full(lower_fd, buf, len, (off_t)off);
		off = next_data(fd, off + len, size);
	}
	return r;
}

static bool is_zero(const char *buf, size_t len)
{
	return len == 0 || (buf[0] == 0 && memcmp(buf, buf + 1, len - 1) == 0);
}

struct window {
	int fd; /* data file */
	uint64_t off;
	size_t len;
	const char *now;
	bool *differs; /* for each page */
};

static size_t page_len(const struct window *w, size_t at)
{
	return w->len - at < WPFS_PAGE_SIZE ? w->len - at : WPFS_PAGE_SIZE;
}

static bool page_differs(const struct window *w, size_t at)
{
	return w->differs[at / WPFS_PAGE_SIZE];
}

/* Writes the run of differing pages at `at` that are all zero or all not; gives its length. */
static ssize_t write_run(const struct window *w, size_t at)
{
	bool zero = is_zero(w->now + at, page_len(w, at));
	size_t end = at;
	int r;

	while (end < w->len && page_differs(w, end) &&
	       is_zero(w->now + end, page_len(w, end)) == zero)
		end += page_len(w, end);
	if (!zero)
		r = fdio_pwrite_full(w->fd, w->now + at, end - at, (off_t)(w->off + at));
	else
		r = fallocate(w->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      (off_t)(w->off + at), (off_t)(end - at)) < 0
			    ? -errno
			    : 0;
	/* A file system without holes keeps the zeros. */
	if (zero && r == -EOPNOTSUPP)
		r = fdio_pwrite_full(w->fd, w->now + at, end - at, (off_t)(w->off + at));
	return r ? r : (ssize_t)(end - at);
}

static int write_window(const struct window *w)
{
	for (size_t at = 0; at < w->len;) {
		ssize_t n;

		if (!page_differs(w, at)) {
			at += page_len(w, at);
			continue;
		}
		n = write_run(w, at);
		if (n < 0)
			return (int)n;
		at += (size_t)n;
	}
	return 0;
}

/* One file being written. The data file is made when there is something to put into it. */
struct writing {
	int data_fd;
	uint64_t id;
	int fd; /* data file, -1: none yet */
	store_data_before_fn before;
	void *ctx;
	const struct store_data_through *through;
	struct store_image *image; /* or NULL */
	bool known;		   /* it tells what the data file has */
	bool part;		   /* only of some windows: none is to be skipped */
	struct store_data_written *written;
};

static int read_lower(const struct writing *wr, int lower_fd, char *buf, size_t len, uint64_t off)
{
	return wr->through ? wr->through->read(wr->through->ctx, wr->id, lower_fd, buf, len, off)
			   : fdio_pread_zeros(lower_fd, buf, len, off);
}

static uint64_t next_lower(const struct writing *wr, int lower_fd, uint64_t off, uint64_t end)
{
	/* In this order: what comes into the lower file meanwhile is found there. */
	uint64_t through = wr->through ? wr->through->next(wr->through->ctx, wr->id, off) : end;
	uint64_t at = next_data(lower_fd, off, end);

	return through < at ? through : at;
}

static int prepare(struct writing *wr)
{
	int r = wr->before ? wr->before(wr->ctx, wr->id) : 0;

	if (!r && wr->fd < 0) {
		wr->fd = data_open(wr->data_fd, wr->id, O_RDWR | O_CREAT);
		r = wr->fd < 0 ? wr->fd : 0;
		wr->written->made = !r;
	}
	wr->written->changed = true;
	return r;
}

static uint64_t next_stored(const struct writing *wr, uint64_t off, uint64_t end)
{
	uint64_t page;

	if (!wr->known)
		return next_data(wr->fd, off, end);
	page = store_image_next(wr->image, off / WPFS_PAGE_SIZE);
	return page < end / WPFS_PAGE_SIZE + 1 && page * WPFS_PAGE_SIZE < end
		       ? page * WPFS_PAGE_SIZE
		       : end;
}

/* Reads a window; what is behind its end in the last page is zeros. */
static int read_window(const struct writing *wr, int lower_fd, const struct window *w, char *now)
{
	int r = read_lower(wr, lower_fd, now, w->len, w->off);

	memset(now + w->len, 0, -w->len & (WPFS_PAGE_SIZE - 1));
	return r;
}

/* By what is known of the data file: only what may differ is read. 1: something differs; -errno. */
static int compare_known(const struct writing *wr, int lower_fd, const struct window *w, char *now)
{
	bool any = false;
	int r;

	/* To scan takes finding the end of the data, behind the part. */
	if (wr->part)
		memset(w->differs, true, WINDOW / WPFS_PAGE_SIZE * sizeof(*w->differs));
	else if (!store_image_scan(wr->image, lower_fd, w->off, w->len, w->differs))
		return 0;
	r = read_window(wr, lower_fd, w, now);
	for (size_t at = 0; !r && at < w->len; at += WPFS_PAGE_SIZE) {
		bool *differs = &w->differs[at / WPFS_PAGE_SIZE];

		if (*differs)
			*differs = !store_image_same(wr->image, (w->off + at) / WPFS_PAGE_SIZE,
						     now + at);
		any |= *differs;
	}
	return r ? r : any;
}

/* By reading both. */
static int compare_read(const struct writing *wr, int lower_fd, const struct window *w, char *now,
			char *stored)
{
	bool any = false;
	int r = read_window(wr, lower_fd, w, now);

	if (!r)
		r = fdio_pread_zeros(wr->fd, stored, w->len, w->off);
	for (size_t at = 0; !r && at < w->len; at += WPFS_PAGE_SIZE) {
		bool differs = memcmp(now + at, stored + at, page_len(w, at)) != 0;

		w->differs[at / WPFS_PAGE_SIZE] = differs;
		any |= differs;
	}
	return r ? r : any;
}

/* The data file has what was read. */
static void note_window(const struct writing *wr, const struct window *w)
{
	for (size_t at = 0; wr->image && at < w->len; at += WPFS_PAGE_SIZE)
		if (!wr->known || page_differs(w, at))
			store_image_put(wr->image, (w->off + at) / WPFS_PAGE_SIZE, w->now + at);
}

/* Where the next window begins; at or behind the end: there is none. */
static uint64_t next_window(const struct writing *wr, int lower_fd, uint64_t off, uint64_t end)
{
	uint64_t lower, stored;

	if (wr->part)
		return off;
	lower = next_lower(wr, lower_fd, off, end);
	stored = next_stored(wr, off, end);
	return (lower < stored ? lower : stored) & ~(WPFS_PAGE_SIZE - 1);
}

/* [off, end), from the beginning of a page on. `bufs`: room for two windows. */
static int write_windows(struct writing *wr, int lower_fd, uint64_t off, uint64_t end, char *bufs)
{
	bool differs[WINDOW / WPFS_PAGE_SIZE];

	while (off < end) {
		struct window w = {.now = bufs, .differs = differs};
		int r;

		w.off = next_window(wr, lower_fd, off, end);
		if (w.off >= end)
			return 0;
		w.len = end - w.off < WINDOW ? (size_t)(end - w.off) : WINDOW;
		r = wr->known ? compare_known(wr, lower_fd, &w, bufs)
			      : compare_read(wr, lower_fd, &w, bufs, bufs + WINDOW);
		if (r > 0) {
			r = prepare(wr);
			w.fd = wr->fd;
			if (!r)
				r = write_window(&w);
			if (!r)
				note_window(wr, &w);
		} else if (r == 0 && !wr->known) {
			note_window(wr, &w);
		}
		if (r)
			return r;
		if (wr->written->step)
			wr->written->step(wr->written->ctx, w.len);
		off = w.off + w.len;
	}
	return 0;
}

/*
 * The row tells the size. The data file has it too, unless its file system has none that large:
 * then what is missing is zeros.
 */
static int fit_size(const struct writing *wr, uint64_t size)
{
	struct stat st;

	if (fstat(wr->fd, &st) < 0)
		return -errno;
	if ((uint64_t)st.st_size == size || (wr->part && (uint64_t)st.st_size > size))
		return 0;
	if (ftruncate(wr->fd, (off_t)size) < 0)
		return errno == EFBIG && (uint64_t)st.st_size < size ? 0 : -errno;
	wr->written->changed = true;
	/* Behind a cut in a page are zeros; it may have been whole when it was scanned. */
	if (wr->image && (uint64_t)st.st_size > size && size % WPFS_PAGE_SIZE)
		store_image_doubt(wr->image);
	return 0;
}

/* With the image a data file that is not there is known: it is nothing but zeros. */
static int writing_begin(struct writing *wr)
{
	wr->fd = data_open(wr->data_fd, wr->id, O_RDWR);
	if (wr->fd < 0 && wr->fd != -ENOENT)
		return wr->fd;
	if (wr->fd < 0)
		wr->fd = -1;
	if (wr->image && wr->fd < 0)
		store_image_set_known(wr->image);
	wr->known = wr->image && store_image_known(wr->image);
	return 0;
}

static int writing_run(struct writing *wr, int lower_fd, uint64_t off, uint64_t end)
{
	_cleanup_free_ char *bufs = malloc(2 * WINDOW);
	int r = bufs ? writing_begin(wr) : -ENOMEM;

	if (r)
		return r;
	r = write_windows(wr, lower_fd, off, end, bufs);
	if (!r && wr->fd >= 0)
		r = fit_size(wr, end);
	close_fd(&wr->fd);
	return r;
}

int store_data_write_part(int data_fd, uint64_t id, int lower_fd, uint64_t off, uint64_t end,
			  store_data_before_fn before, void *ctx,
			  const struct store_data_through *through, struct store_image *image,
			  struct store_data_written *written)
{
	struct writing wr = {.data_fd = data_fd,
			     .id = id,
			     .before = before,
			     .ctx = ctx,
			     .through = through,
			     .image = image,
			     .part = true,
			     .written = written};

	return writing_run(&wr, lower_fd, off & ~(WPFS_PAGE_SIZE - 1), end);
}

int store_data_write(int data_fd, uint64_t id, int lower_fd, uint64_t size,
		     store_data_before_fn before, void *ctx,
		     const struct store_data_through *through, struct store_image *image,
		     struct store_data_written *written)
{
	struct writing wr = {.data_fd = data_fd,
			     .id = id,
			     .before = before,
			     .ctx = ctx,
			     .through = through,
			     .image = image,
			     .written = written};
	int r = writing_run(&wr, lower_fd, 0, size);

	if (!r && image) {
		store_image_cut(image, (size + WPFS_PAGE_SIZE - 1) / WPFS_PAGE_SIZE);
		store_image_set_known(image);
	}
	return r;
}

void store_data_doubt(int data_fd, uint64_t id)
{
	_cleanup_close_ int fd = data_open(data_fd, id, O_RDONLY);

	if (fd >= 0)
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

int store_data_sync(int data_fd, uint64_t id, bool made)
{
	struct data_path path = data_path(id);
	_cleanup_close_ int fd = data_open(data_fd, id, O_RDONLY), dir = -1;

	if (fd < 0)
		return fd;
	if (fsync(fd) < 0) {
		int r = -errno;

		store_data_doubt(data_fd, id);
		return r;
	}
	if (!made)
		return 0;
	path.s[2] = '\0';
	dir = openat(data_fd, path.s, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir < 0 || fsync(dir) < 0 || fsync(data_fd) < 0 ? -errno : 0;
}

int store_data_remove(int data_fd, uint64_t id)
{
	return unlinkat(data_fd, data_path(id).s, 0) < 0 && errno != ENOENT ? -errno : 0;
}

static int prune_dir(int data_fd, const char *name, bool (*keep)(const void *ctx, uint64_t id),
		     const void *ctx)
{
	int fd = openat(data_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;

	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		close(fd);
		return -ENOMEM;
	}
	while ((de = readdir(dir))) {
		char *end;
		uint64_t id = strtoull(de->d_name, &end, 10);

		/* Only what looks like ours is ours to remove. */
		if (de->d_name[0] < '0' || de->d_name[0] > '9' || *end || keep(ctx, id))
			continue;
		if (unlinkat(fd, de->d_name, 0) < 0 && errno != ENOENT)
			return -errno;
	}
	return 0;
}

int store_data_prune(int data_fd, bool (*keep)(const void *ctx, uint64_t id), const void *ctx)
{
	for (unsigned i = 0; i < 256; i++) {
		char name[3];
		int r;

		snprintf(name, sizeof(name), "%02x", i);
		r = prune_dir(data_fd, name, keep, ctx);
		if (r && r != -ENOENT)
			return r;
	}
	return 0;
}
