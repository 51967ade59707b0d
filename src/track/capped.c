/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of a capped mount: what is known of each. A page is in the lower file, or in the store, or
 * it is zeros.
 */
#include "track/capped.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "ipc/wire.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_mm.h"
#include "track/capped_room.h"
#include "track/capped_track.h"
#include "track/capped_test.h"

#define MANY_FILES 4096

/* ---- files ---- */

struct capped_bits_name capped_bits_name(uint64_t ino)
{
	struct capped_bits_name name;

	snprintf(name.s, sizeof(name.s), "%" PRIu64, ino);
	return name;
}

struct capped_file *capped_file_find(struct capped *c, uint64_t ino)
{
	struct capped_file *f;

	HASH_FIND(hh, c->files, &ino, sizeof(ino), f);
	return f;
}

int capped_file_get(struct capped *c, const struct fs_handle *handle, uint64_t ino,
		    struct capped_file **file)
{
	struct capped_file *f = capped_file_find(c, ino);
	struct stat st;
	int r;

	*file = f;
	if (f)
		return 0;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->ino = ino;
	f->handle = *handle;
	f->bits = (struct spill_bits)SPILL_BITS_INIT;
	f->spill_fd = -1;
	r = fs_file_hold(c->config.fs, handle, &f->fd);
	if (r < 0) {
		free(f);
		return r;
	}
	if (fstat(f->fd, &st) == 0) /* which cannot fail */
		f->lower_ino = st.st_ino;
	/* Without a name there its pages are not chosen: they go when somebody says evict. */
	f->has_slot = policy_file_add(c->policy, f, &f->slot) == 0;
	HASH_ADD(hh, c->files, ino, sizeof(f->ino), f);
	/* All of them now: who is known is not looked for (capped_find.c). */
	capped_learn(c, f);
	*file = f;
	return 0;
}

void capped_file_unseen(struct capped *c, struct capped_file *f)
{
	c->nr_unseen += !f->unseen;
	f->unseen = true;
}

static void file_free(struct capped *c, struct capped_file *f)
{
	HASH_DEL(c->files, f);
	c->nr_unseen -= f->unseen;
	capped_ahead_forget(c, f->ino);
	c->pinned -= f->pin_pages;
	if (f->has_slot)
		policy_file_remove(c->policy, f->slot);
	close_fd(&f->spill_fd);
	c->counts.spilled -= f->bits.count;
	spill_bits_close(&f->bits);
	close(f->fd);
	fs_file_unhold(c->config.fs, f->ino);
	free(f);
}

int capped_file_prepare(struct capped *c, struct capped_file *f, uint64_t pages)
{
	int r = capped_test_fail("bits");

	if (r == 0 && !f->missing)
		r = spill_bits_open(&f->bits, c->bits_fd, capped_bits_name(f->ino).s, true);
	if (r == 0 && !f->missing) {
		memcpy(f->bits.head, &f->handle, sizeof(f->handle));
		f->missing = true;
		/* What was stored through mappings so far, nobody told of, nor will anybody until
		 * they are registered. */
		capped_learn(c, f);
		capped_file_unseen(c, f);
	}
	return r < 0 ? r : spill_bits_reserve(&f->bits, pages);
}

int capped_spill_fd(struct capped *c, struct capped_file *f, bool create)
{
	int r = create ? capped_test_fail("spill-open") : 0;

	if (r < 0)
		return r;
	if (f->spill_fd < 0)
		f->spill_fd = spill_store_file(c->store, f->ino, create);
	return f->spill_fd;
}

void capped_tidy(struct capped *c, struct capped_file *f)
{
	/* What a batch has written there has no bits yet. */
	if (!f->missing || f->bits.count || (c->batch && c->batch->file == f) ||
	    capped_used(c, f->ino, 0, UINT64_MAX, 1 << CAPPED_USE_LOAD))
		return;
	close_fd(&f->spill_fd);
	spill_store_remove(c->store, f->ino);
}

void capped_forget(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	uint64_t before = f->bits.count;

	spill_bits_clear_range(&f->bits, first, nr);
	c->counts.spilled -= before - f->bits.count;
	if (before)
		capped_tidy(c, f);
}

int capped_file_open(struct capped *c, const struct fs_handle *handle, uint64_t ino, uint64_t pages,
		     struct capped_file **file, uint64_t *lower_ino)
{
	int r;

	pthread_mutex_lock(&c->lock);
	r = capped_file_get(c, handle, ino, file);
	if (r == 0)
		r = capped_file_prepare(c, *file, pages);
	if (r == 0)
		*lower_ino = (*file)->lower_ino;
	pthread_mutex_unlock(&c->lock);
	return r;
}

int capped_file_dup(struct capped *c, uint64_t ino)
{
	struct capped_file *f;
	int fd = -ENOENT;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	if (f)
		fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
	pthread_mutex_unlock(&c->lock);
	return fd < 0 && f ? -errno : fd;
}

void capped_file_take(struct capped *c, uint64_t ino, int fd)
{
	struct capped_file *f = NULL;
	struct fs_handle handle;
	int r = fs_handle_of_fd(fd, &handle), own;

	pthread_mutex_lock(&c->lock);
	if (r == 0)
		r = capped_file_get(c, &handle, ino, &f);
	/* Who is at its pages has the descriptor that is about to be closed. */
	while (r == 0 && !f->taken && capped_used(c, ino, 0, UINT64_MAX, ~0u))
		pthread_cond_wait(&c->cond, &c->lock);
	own = r == 0 && !f->taken ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
	if (own >= 0 && fs_file_replace(c->config.fs, ino, fd) == 0) {
		close(f->fd);
		f->fd = own;
		f->taken = true;
		own = -1;
		capped_file_unseen(c, f);
	}
	close_fd(&own);
	pthread_mutex_unlock(&c->lock);
}

bool capped_is_missing(struct capped *c, uint64_t ino)
{
	struct capped_file *f;
	bool missing;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	missing = f && f->missing;
	pthread_mutex_unlock(&c->lock);
	return missing;
}

int capped_remove(struct capped *c, uint64_t ino, uint64_t first, uint64_t nr,
		  bool (*is_wanted)(const void *ctx), const void *ctx)
{
	struct capped_use coming = {.ino = ino, .kind = CAPPED_USE_DROP};
	struct capped_file *f;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	DL_APPEND(c->coming, &coming);
	while (capped_used(c, ino, 0, UINT64_MAX, 1 << CAPPED_USE_DROP | 1 << CAPPED_USE_LOAD))
		pthread_cond_wait(&c->cond, &c->lock);
	DL_DELETE(c->coming, &coming);
	capped_retry(c);
	pthread_cond_broadcast(&c->cond);
	f = capped_file_find(c, ino);
	if (!is_wanted(ctx))
		r = -ECANCELED;
	else if (f &&
		 fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			   (off_t)(first << WPFS_PAGE_SHIFT), (off_t)(nr << WPFS_PAGE_SHIFT)) < 0)
		r = -errno;
	if (f && r == 0) {
		capped_forget(c, f, first, nr);
		if (capped_is_chosen(f))
			policy_drop(c->policy, f->slot, first, nr);
		capped_limit_set(c, false);
	}
	pthread_mutex_unlock(&c->lock);
	capped_test_point("removed");
	return r;
}

/* A file that nobody can reach any more, or that has nothing in the store. */
static bool file_is_idle(struct capped *c, const struct capped_file *f)
{
	struct stat st;

	if (f->pinned || f->changers || capped_used(c, f->ino, 0, UINT64_MAX, ~0u) ||
	    !fs_file_held_alone(c->config.fs, f->ino))
		return false;
	if (fstat(f->fd, &st) == 0 && st.st_nlink == 0)
		return true;
	/* What the policy knows of it is worth a descriptor, up to a point. */
	return f->bits.count == 0 && (st.st_blocks == 0 || HASH_COUNT(c->files) > MANY_FILES);
}

/* Lock held. */
static size_t find_idle(struct capped *c)
{
	struct capped_file *f, *next;
	size_t nr = 0;

	HASH_ITER (hh, c->files, f, next) {
		f->idle = !capped_still_pinned(c, f) && file_is_idle(c, f);
		nr += f->idle;
	}
	return nr;
}

size_t capped_nr_idle(struct capped *c)
{
	size_t nr;

	pthread_mutex_lock(&c->lock);
	nr = find_idle(c);
	pthread_mutex_unlock(&c->lock);
	return nr;
}

size_t capped_sweep(struct capped *c, const struct capped_mapped *mapped)
{
	struct capped_file *f, *next;
	bool known;
	size_t nr;

	pthread_mutex_lock(&c->lock);
	nr = find_idle(c);
	/* What such a child maps is not known. */
	known = !capped_mm_orphan_since(c, mapped->now);
	if (nr && known)
		mapped->look(mapped->ctx);
	HASH_ITER (hh, c->files, f, next) {
		if (!f->idle || !known || mapped->is_mapped(mapped->ctx, f->ino))
			continue;
		nr--;
		capped_forget(c, f, 0, UINT64_MAX);
		if (f->missing)
			unlinkat(c->bits_fd, capped_bits_name(f->ino).s, 0);
		file_free(c, f);
	}
	capped_limit_look(c);
	pthread_mutex_unlock(&c->lock);
	return nr;
}

struct capped_counts capped_counts(struct capped *c)
{
	struct capped_counts counts;

	pthread_mutex_lock(&c->lock);
	counts = c->counts;
	pthread_mutex_unlock(&c->lock);
	return counts;
}

struct spill_stats *capped_io_stats(struct capped *c)
{
	return spill_store_stats(c->store);
}

bool capped_is_uring(struct capped *c)
{
	return spill_io_path(c->evict_io) == SPILL_PATH_URING;
}

int capped_evict_fd(const struct capped *c)
{
	return c->evict_fd;
}

uint64_t capped_lower_dev(const struct capped *c)
{
	return c->lower_dev;
}

/* ---- start and end ---- */

static int open_all(struct capped *c)
{
	struct epoll_event ev = {.events = EPOLLIN}, retry = {.events = EPOLLIN | EPOLLET};
	struct stat st;
	int r;

	retry.data.u64 = UINT64_MAX;
	if (fstat(c->config.lower_fd, &st) < 0)
		return -errno;
	c->lower_dev = st.st_dev;
	if (mkdirat(c->config.private_fd, "spilled", 0700) < 0 && errno != EEXIST)
		return -errno;
	c->bits_fd = openat(c->config.private_fd, "spilled", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	c->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->retry_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->evict_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->bits_fd < 0 || c->epoll_fd < 0 || c->stop_fd < 0 || c->retry_fd < 0 ||
	    c->evict_fd < 0 || epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->stop_fd, &ev) < 0 ||
	    epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, c->retry_fd, &retry) < 0)
		return -errno;
	r = policy_new(c->config.resident >> WPFS_PAGE_SHIFT, &c->policy);
	if (r == 0)
		r = spill_store_open(c->config.spill_fd, c->config.path, &c->store);
	if (r == 0)
		r = spill_store_engine(c->store, CAPPED_BATCH * WPFS_PAGE_SIZE, &c->evict_io);
	return r < 0 ? r : capped_adopt(c);
}

/*
 * Eviction begins at the cap and goes on until there is some room. From `full` on nobody adds, so
 * who adds pages rarely waits: what was begun by then is the rest up to 64 MiB.
 */
static void set_marks(struct capped *c)
{
	uint64_t size = c->config.resident, margin = size / 64;

	if (margin > 32 << 20)
		margin = 32 << 20;
	c->high = size;
	c->low = size - margin;
	c->full = size + (32 << 20);
}

bool capped_was(int private_fd)
{
	return faccessat(private_fd, "spilled", F_OK, 0) == 0;
}

int capped_new(const struct capped_config *config, struct capped **out)
{
	struct capped *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->config = *config;
	c->bits_fd = c->epoll_fd = c->stop_fd = c->retry_fd = c->evict_fd = -1;
	c->next_mm = 1;
	set_marks(c);
	capped_test_init();
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->cond, NULL);
	pthread_cond_init(&c->engine_cond, NULL);
	/* Whoever opens a leased file has the kernel send it; the wait for the lease is enough. */
	signal(SIGIO, SIG_IGN);
	r = open_all(c);
	if (r == 0) {
		capped_limit_begin(c);
		r = capped_threads_start(c);
	}
	if (r < 0) {
		log_err("cannot prepare the store for pages out of memory: %s", log_errstr(r));
		capped_free(c, false);
		return r;
	}
	log_info("pages go to the store %s",
		 capped_is_uring(c) ? "through io_uring" : "with pwrite: io_uring is refused");
	*out = c;
	return 0;
}

void capped_free(struct capped *c, bool flushed)
{
	struct capped_file *f, *next;

	capped_threads_stop(c);
	capped_find_free(c);
	while (c->mms)
		capped_mm_remove(c, c->mms);
	HASH_ITER (hh, c->files, f, next)
		file_free(c, f);
	if (flushed)
		spill_store_wipe(c->store);
	while (c->nr_engines)
		spill_io_free(c->engines[--c->nr_engines]);
	spill_io_free(c->evict_io);
	spill_store_close(c->store);
	policy_free(c->policy);
	close_fd(&c->bits_fd);
	close_fd(&c->epoll_fd);
	close_fd(&c->stop_fd);
	close_fd(&c->retry_fd);
	close_fd(&c->evict_fd);
	pthread_cond_destroy(&c->cond);
	pthread_cond_destroy(&c->engine_cond);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
