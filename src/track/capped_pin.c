/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that programs map which are not tracked. Nobody is told of what such a program touches, so
 * no page of its file may be anywhere but in memory: it is brought back whole before the open is
 * answered, and pinned until the last such open is released and no mapping is left, which a lease
 * tells. What is pinned at once is never more than the cap, except by files that grow; who opens
 * one too many can read and write it, and cannot map it (fs/backing.c).
 *
 * A program with the shim is not asked for all of that: it maps what it gets for a ticket. That it
 * has the shim is seen by its mappings, since it tells of itself only when it maps the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_room.h"

#define UNPIN_TRIES 200 /* naps: the kernel lets go of files some time after they are closed */

static bool has_shim(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0)
		return false;
	return strstr(text, "/libwpfs_preload.so") || strstr(text, "/libwpfs.so");
}

static uint64_t size_pages(const struct capped_file *f)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return 0; /* which cannot fail */
	return ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
}

/* Not while a batch of the file is under way, which holds that lease. */
static bool in_use(int fd)
{
	if (fcntl(fd, F_SETLEASE, F_WRLCK) < 0)
		return true;
	fcntl(fd, F_SETLEASE, F_UNLCK);
	return false;
}

static bool hold_fits(const struct capped *c, const struct capped_file *f, enum capped_hold how)
{
	uint64_t room = c->low >> WPFS_PAGE_SHIFT, pages = size_pages(f);

	if (how == CAPPED_HOLD_MUST || f->pinned || pages == 0)
		return true;
	if (how == CAPPED_HOLD_ASKED)
		pages = f->bits.count + capped_in_memory(f->fd, 0, pages);
	return pages <= room && c->pinned <= room - pages;
}

void capped_pin(struct capped *c, struct capped_file *f)
{
	if (f->pinned)
		return;
	f->pinned = true;
	f->pin_pages = size_pages(f);
	c->pinned += f->pin_pages;
	if (f->has_slot)
		policy_drop(c->policy, f->slot, 0, UINT64_MAX);
}

void capped_pin_resize(struct capped *c, struct capped_file *f)
{
	uint64_t pages = f->pinned ? size_pages(f) : 0;

	if (!f->pinned)
		return;
	c->pinned += pages - f->pin_pages;
	f->pin_pages = pages;
}

bool capped_still_pinned(struct capped *c, struct capped_file *f)
{
	if (!f->pinned)
		return false;
	if (f->opens || in_use(f->fd))
		return true;
	f->pinned = false;
	c->pinned -= f->pin_pages;
	f->pin_pages = 0;
	capped_learn(c, f);
	capped_added(c, 0);
	return false;
}

bool capped_wait_unpinned(struct capped *c, struct capped_file *f, bool patient)
{
	for (int tries = 0;; tries++) {
		bool pinned;

		pthread_mutex_lock(&c->lock);
		pinned = capped_still_pinned(c, f);
		pthread_mutex_unlock(&c->lock);
		if (!pinned || !patient || tries == UNPIN_TRIES)
			return pinned;
		capped_nap();
	}
}

int capped_hold(struct capped *c, uint64_t ino, enum capped_hold how)
{
	struct capped_file *f;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	if (f && !hold_fits(c, f, how)) {
		r = -EFBIG;
	} else if (f && (f->bits.count || how == CAPPED_HOLD_WHOLE)) {
		f->opens++;
		capped_pin(c, f);
		r = 1;
	}
	pthread_mutex_unlock(&c->lock);
	return r;
}

void capped_unhold(struct capped *c, uint64_t ino)
{
	capped_released(c, ino);
}

uint64_t capped_pinned(struct capped *c)
{
	uint64_t pages;

	pthread_mutex_lock(&c->lock);
	pages = c->pinned;
	pthread_mutex_unlock(&c->lock);
	return pages << WPFS_PAGE_SHIFT;
}

/* What is in the store of it, a piece at a time: others have to make room. */
static int bring_back(struct capped *c, struct capped_file *f)
{
	uint64_t page = 0;
	int r = 0;

	while (r == 0 && (page = spill_bits_next(&f->bits, page)) != UINT64_MAX) {
		capped_wait_room(c, NULL);
		r = capped_load(c, f, page, CAPPED_CLUSTER, NULL);
	}
	return r;
}

/* Lock held, let go meanwhile. */
static int open_pinned(struct capped *c, struct capped_file *f)
{
	int r;

	fs_request_may_wait();
	/* From here on no batch of it begins, and it is not let go of. */
	f->opens++;
	capped_pin(c, f);
	while (c->batch && c->batch->file == f)
		pthread_cond_wait(&c->cond, &c->lock);
	r = bring_back(c, f);
	if (r == 0)
		return 0;
	log_err("cannot bring file %" PRIu64 " back from the store, so it cannot be mapped: %s",
		f->ino, log_errstr(r));
	f->opens--;
	capped_still_pinned(c, f);
	return r;
}

int capped_opened(struct capped *c, uint64_t ino, pid_t opener, bool must)
{
	struct capped_file *f;
	struct fs_file file;
	int r;

	if (!must && has_shim(opener))
		return 0;
	r = fs_file_by_ino(c->config.fs, ino, &file);
	if (r < 0)
		return must ? r : 0;
	pthread_mutex_lock(&c->lock);
	r = capped_file_get(c, &file.handle, ino, &f);
	if (r == 0 && !must && !hold_fits(c, f, CAPPED_HOLD_WHOLE))
		r = -ENOSPC;
	if (r == 0)
		r = open_pinned(c, f);
	pthread_mutex_unlock(&c->lock);
	return r == 0 ? 1 : must ? r : 0;
}

void capped_released(struct capped *c, uint64_t ino)
{
	struct capped_file *f;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	if (f) {
		f->opens--;
		capped_still_pinned(c, f);
	}
	pthread_mutex_unlock(&c->lock);
}
