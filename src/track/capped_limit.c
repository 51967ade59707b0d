/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * size= limits what is in memory and in the store together. The kernel keeps to it, for stores
 * through mappings too: the size of the lower tmpfs is made what is left for memory, whenever what
 * is in the store changes. Making it so costs a call that is not free, so as long as there is much
 * room it is done for some MiB at a time.
 *
 * A page that comes back is counted twice for a moment, and has room for that. It is nobody else's:
 * what a write(2) would add when all else is used waits until no page is coming back.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"
#include "track/capped_room.h"

#define NEAR	    ((uint64_t)64 << 20) /* with less room than this each page counts */
#define STALE	    ((uint64_t)16 << 20)
#define LIMIT_TRIES 16
#define WAIT_TRIES  256 /* loads that end; there may always be one under way */

/* The size of the lower tmpfs, as it is; 0: none. */
static uint64_t lower_size(const struct capped *c, uint64_t *used)
{
	struct statfs st;

	*used = 0;
	if (fstatfs(c->config.lower_fd, &st) < 0)
		return 0; /* which cannot fail */
	*used = (uint64_t)(st.f_blocks - st.f_bfree) * (uint64_t)st.f_bsize;
	return (uint64_t)st.f_blocks * (uint64_t)st.f_bsize;
}

static int lower_resize(const struct capped *c, uint64_t bytes)
{
	_cleanup_close_ int fd = fspick(c->config.lower_fd, "", FSPICK_EMPTY_PATH | FSPICK_CLOEXEC);
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, bytes);
	if (fd < 0 || fsconfig(fd, FSCONFIG_SET_STRING, "size", text, 0) < 0 ||
	    fsconfig(fd, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0) < 0)
		return -errno;
	return 0;
}

static uint64_t limit_wanted(const struct capped *c, uint64_t used)
{
	uint64_t out = c->counts.spilled << WPFS_PAGE_SHIFT;
	uint64_t loading = c->loading << WPFS_PAGE_SHIFT, wanted = loading;

	if (c->size > out)
		wanted += c->size - out;
	/* More than the limit is in use: nothing can be added but what comes back. */
	return wanted > used + loading ? wanted : used + loading;
}

void capped_limit_set(struct capped *c, bool exact)
{
	uint64_t used = 0, is, wanted;
	int r = 0;

	if (c->size == 0)
		return;
	for (int tries = 0; tries < LIMIT_TRIES; tries++) {
		is = lower_size(c, &used);
		wanted = limit_wanted(c, used);
		if (is == wanted)
			return;
		if (!exact && used + NEAR < is && used + NEAR < wanted &&
		    (is < wanted ? wanted - is : is - wanted) < STALE)
			return;
		if (wanted == 0)
			wanted = WPFS_PAGE_SIZE; /* 0 would be no limit */
		r = lower_resize(c, wanted);
		c->limit = lower_size(c, &used);
		if (r != -EINVAL)
			break; /* else pages were added in between */
	}
	if (r < 0)
		log_debug("cannot set the size of the lower tmpfs: %s", log_errstr(r));
}

/* Of a mount that goes on with another daemon: what was given, and what a remount made of it. */
struct noted {
	uint64_t given, size;
};

static void note(const struct capped *c)
{
	const struct noted noted = {c->config.size, c->size};
	_cleanup_close_ int fd =
		openat(c->bits_fd, "size", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, &noted, sizeof(noted)) != sizeof(noted))
		log_warn("cannot write to the run directory: %s", log_errstr(errno));
}

static bool noted_read(const struct capped *c, struct noted *noted)
{
	_cleanup_close_ int fd = openat(c->bits_fd, "size", O_RDONLY | O_CLOEXEC);

	return fd >= 0 && read(fd, noted, sizeof(*noted)) == sizeof(*noted);
}

void capped_limit_look(struct capped *c)
{
	uint64_t used, is = lower_size(c, &used);

	/* Not ours: "mount -o remount,size=" has set the limit for both. */
	if (is != c->limit) {
		c->size = is;
		c->limit = is;
		note(c);
	}
	capped_limit_set(c, true);
}

void capped_limit_begin(struct capped *c)
{
	struct noted noted;
	uint64_t used;

	/* Other options than those of the last start are meant. */
	if (noted_read(c, &noted) && noted.given == c->config.size)
		c->size = noted.size;
	else
		c->size = c->config.size;
	note(c);
	c->limit = lower_size(c, &used);
	capped_limit_set(c, true);
}

uint64_t capped_size(struct capped *c)
{
	uint64_t size;

	pthread_mutex_lock(&c->lock);
	capped_limit_look(c);
	size = c->size;
	pthread_mutex_unlock(&c->lock);
	return size;
}

bool capped_has_limit(struct capped *c)
{
	bool has;

	pthread_mutex_lock(&c->lock);
	has = c->size != 0;
	pthread_mutex_unlock(&c->lock);
	return has;
}

bool capped_is_exhausted(struct capped *c)
{
	return c->size && capped_resident(c) + (c->counts.spilled << WPFS_PAGE_SHIFT) >= c->size;
}

static bool is_short(const struct capped *c, uint64_t len)
{
	return c->size &&
	       capped_resident(c) + (c->counts.spilled << WPFS_PAGE_SHIFT) + len > c->size;
}

bool capped_is_short(struct capped *c, uint64_t len)
{
	bool is;

	pthread_mutex_lock(&c->lock);
	is = is_short(c, len);
	pthread_mutex_unlock(&c->lock);
	return is;
}

/* Pages of [first, first + nr) that are neither in memory nor in the store. */
static uint64_t nr_absent(const struct capped_file *f, uint64_t first, uint64_t nr)
{
	uint64_t there = f ? capped_in_memory(f->fd, first, nr) : 0;
	uint64_t page = f ? spill_bits_next(&f->bits, first) : UINT64_MAX;

	for (; page < first + nr; page = spill_bits_next(&f->bits, page + 1))
		there++;
	return there < nr ? nr - there : 0;
}

void capped_wait_loads(struct capped *c, uint64_t ino, uint64_t first, uint64_t nr)
{
	for (int tries = 0; c->loading && tries < WAIT_TRIES; tries++) {
		uint64_t absent;

		if (!is_short(c, nr << WPFS_PAGE_SHIFT))
			return;
		absent = nr_absent(capped_file_find(c, ino), first, nr);
		if (absent == 0 || !is_short(c, absent << WPFS_PAGE_SHIFT))
			return;
		pthread_cond_wait(&c->cond, &c->lock);
	}
}

bool capped_has_removed(struct capped *c)
{
	struct capped_file *f, *next;
	bool has = false;

	pthread_mutex_lock(&c->lock);
	HASH_ITER (hh, c->files, f, next) {
		struct stat st;

		has = has ||
		      (fstat(f->fd, &st) == 0 && st.st_nlink == 0 &&
		       (st.st_blocks || f->bits.count) && !fs_file_is_open(c->config.fs, f->ino));
	}
	pthread_mutex_unlock(&c->lock);
	return has;
}

void capped_space(struct capped *c, struct statvfs *st)
{
	uint64_t used = (uint64_t)(st->f_blocks - st->f_bfree) * st->f_frsize;
	struct statvfs store;

	pthread_mutex_lock(&c->lock);
	capped_limit_look(c);
	used += c->counts.spilled << WPFS_PAGE_SHIFT;
	st->f_blocks = c->size / st->f_frsize;
	pthread_mutex_unlock(&c->lock);
	if (st->f_blocks == 0) {
		/* No limit but the store's. */
		if (fstatvfs(c->config.spill_fd, &store) < 0)
			return;
		st->f_blocks = (used + (uint64_t)store.f_bavail * store.f_frsize) / st->f_frsize;
	}
	used /= st->f_frsize;
	st->f_bfree = st->f_bavail = st->f_blocks > used ? st->f_blocks - used : 0;
}
