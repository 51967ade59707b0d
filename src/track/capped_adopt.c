/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a killed daemon left of a capped mount, and what of it goes on. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "ipc/wire.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_room.h"
#include "track/capped_track.h"

bool capped_lower_has(const struct capped_file *f, uint64_t page)
{
	char buf[WPFS_PAGE_SIZE];

	if (fdio_pread_zeros(f->fd, buf, sizeof(buf), page << WPFS_PAGE_SHIFT) < 0 ||
	    !spill_is_zero(buf, sizeof(buf)))
		return true;
	return capped_load_is_noted(f, page) && capped_in_memory(f->fd, page, 1) > 0;
}

static void twice_settle(struct capped *c, struct capped_file *f, uint64_t page)
{
	if (capped_lower_has(f, page))
		capped_forget(c, f, page, 1);
	else
		fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  (off_t)(page << WPFS_PAGE_SHIFT), (off_t)WPFS_PAGE_SIZE);
}

/* Calls fn for each page that a killed daemon left both in the lower file and in the store. */
static void for_each_twice(struct capped *c, struct capped_file *f,
			   void (*fn)(struct capped *c, struct capped_file *f, uint64_t page))
{
	off_t at = lseek(f->fd, 0, SEEK_DATA);

	while (at >= 0) {
		uint64_t first = (uint64_t)at >> WPFS_PAGE_SHIFT, end, page;
		off_t hole = lseek(f->fd, at, SEEK_HOLE);

		if (hole < 0)
			return;
		end = ((uint64_t)hole + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
		while ((page = spill_bits_next(&f->bits, first)) < end) {
			fn(c, f, page);
			first = page + 1;
		}
		at = lseek(f->fd, hole, SEEK_DATA);
	}
}

void capped_lower_wins(struct capped *c)
{
	struct capped_file *f, *next;

	pthread_mutex_lock(&c->lock);
	HASH_ITER (hh, c->files, f, next) {
		if (f->bits.count == 0) {
			capped_load_notes_clear(f);
			continue;
		}
		capped_time_begin(c, f, CAPPED_ATIME);
		capped_time_begin(c, f, CAPPED_MTIME);
		for_each_twice(c, f, twice_settle);
		capped_time_end(f, CAPPED_MTIME);
		capped_time_end(f, CAPPED_ATIME);
		capped_load_notes_clear(f);
	}
	capped_limit_set(c, false);
	pthread_mutex_unlock(&c->lock);
}

void capped_settled(struct capped *c)
{
	pthread_mutex_lock(&c->lock);
	c->unsettled = false;
	pthread_mutex_unlock(&c->lock);
}

static int adopt_file(struct capped *c, const char *name)
{
	struct spill_bits bits;
	struct fs_handle handle;
	struct capped_file *f;
	struct stat st;
	uint64_t ino = strtoull(name, NULL, 10);
	int r = spill_bits_open(&bits, c->bits_fd, name, false);

	if (r < 0)
		return r;
	memcpy(&handle, bits.head, sizeof(handle));
	/* Killed before it could write whose they are: nothing was spilled then. */
	r = handle.len || bits.count ? capped_file_get(c, &handle, ino, &f) : -ESTALE;
	if (r == -ESTALE) {
		spill_bits_close(&bits); /* removed, and nobody had it open */
		spill_store_remove(c->store, ino);
		return unlinkat(c->bits_fd, name, 0) < 0 ? -errno : 0;
	}
	if (r < 0) {
		spill_bits_close(&bits);
		return r;
	}
	f->bits = bits;
	f->missing = true;
	c->counts.spilled += bits.count;
	/* Cut off by a daemon that was killed before it could say so: zeros, if it grows again. */
	if (fstat(f->fd, &st) == 0)
		capped_forget(c, f, ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT,
			      UINT64_MAX);
	return 0;
}

/*
 * The lease of a daemon that was killed in the midst of a batch lives on with the mappings of its
 * struct file, and whoever opens the file waits until the kernel takes it away: 45 seconds, unless
 * the setting is made shorter while that begins. Others that read it back see their own value: one
 * at a time, and nothing is done if it is short already.
 */
static void break_lease(struct capped *c, const struct fs_handle *handle)
{
	static const char *const setting = "/proc/sys/fs/lease-break-time";
	_cleanup_close_ int lock = open(WPFS_RUN_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = open(setting, O_RDWR | O_CLOEXEC), file = -1;
	char was[16] = "";
	bool changed;

	if (lock < 0 || flock(lock, LOCK_EX) < 0 || fd < 0)
		return; /* then it takes its time */
	changed = pread(fd, was, sizeof(was) - 1, 0) > 0 && atoi(was) > 1 &&
		  pwrite(fd, "1", 1, 0) == 1;
	file = fs_handle_open(c->config.fs, handle, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (changed && pwrite(fd, was, strlen(was), 0) < 0)
		log_err("cannot set %s back to %s", setting, was);
	if (file < 0)
		file = fs_handle_open(c->config.fs, handle, O_RDWR | O_CLOEXEC);
}

static void break_left_lease(struct capped *c)
{
	struct spill_bits bits;
	struct fs_handle handle;

	if (c->left.nr == 0 ||
	    spill_bits_open(&bits, c->bits_fd, capped_bits_name(c->left.ino).s, false) < 0)
		return;
	memcpy(&handle, bits.head, sizeof(handle));
	spill_bits_close(&bits);
	break_lease(c, &handle);
}

static int read_record(struct capped *c)
{
	_cleanup_close_ int fd = openat(c->bits_fd, "evicting", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	/* Cut short: killed while it was written, before the first fence. */
	if (fdio_pread_full(fd, &c->left, offsetof(struct capped_record, runs), 0) < 0 ||
	    c->left.nr > CAPPED_BATCH ||
	    fdio_pread_full(fd, c->left.runs, c->left.nr * sizeof(c->left.runs[0]),
			    offsetof(struct capped_record, runs)) < 0)
		c->left.nr = 0;
	return 0;
}

int capped_adopt(struct capped *c)
{
	_cleanup_dir_ DIR *dir = NULL;
	struct dirent *de;
	int fd, r = 0;

	if (!c->config.adopted)
		return spill_store_wipe(c->store);
	c->unsettled = true;
	r = read_record(c);
	if (r < 0)
		return r;
	break_left_lease(c);
	fd = openat(c->bits_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		return -errno;
	while (r == 0 && (de = readdir(dir))) {
		if (de->d_name[0] >= '0' && de->d_name[0] <= '9')
			r = adopt_file(c, de->d_name);
	}
	return r;
}
