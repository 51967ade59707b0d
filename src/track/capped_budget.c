/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How much is in memory: what the lower tmpfs says of itself, which is exact and includes what
 * programs store through mappings. Whoever adds pages asks here first and tells afterwards; the
 * track thread evicts when it is told to.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"
#include "track/capped_room.h"

uint64_t capped_resident(const struct capped *c)
{
	struct statfs st;

	if (fstatfs(c->config.lower_fd, &st) < 0)
		return 0; /* which cannot fail */
	return (uint64_t)(st.f_blocks - st.f_bfree) * (uint64_t)st.f_bsize;
}

/* Not lseek: it goes on to the next page that is there, or is not, however far away. */
uint64_t capped_in_memory(int fd, uint64_t first, uint64_t nr)
{
	struct cachestat_range range = {first << WPFS_PAGE_SHIFT, nr << WPFS_PAGE_SHIFT};
	struct cachestat stat;

	if (syscall(SYS_cachestat, fd, &range, &stat, 0) < 0) {
		log_err("cachestat: %s", log_errstr(errno)); /* it is in every kernel we run on */
		abort();
	}
	return stat.nr_cache + stat.nr_evicted;
}

static void ask(struct capped *c)
{
	const uint64_t one = 1;

	if (c->asked)
		return;
	c->asked = true;
	if (write(c->evict_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_err("capped: cannot wake the track thread: %s", log_errstr(errno));
}

/* Whoever adds has asked before: what the tmpfs said then and what came since are enough. */
void capped_added(struct capped *c, uint64_t pages)
{
	c->guess += pages << WPFS_PAGE_SHIFT;
	if (!c->asked && c->guess > c->high) {
		c->guess = capped_resident(c);
		if (c->guess > c->high)
			ask(c);
	}
}

bool capped_is_full(struct capped *c)
{
	c->guess = capped_resident(c);
	if (c->guess > c->high)
		ask(c);
	return c->guess >= c->full && !c->stuck;
}

static bool may_add(struct capped *c, const struct capped_use *use)
{
	return !capped_is_full(c) || (c->held_up && use && c->readings == use);
}

void capped_wait_room(struct capped *c, const struct capped_use *use)
{
	if (may_add(c, use))
		return;
	c->counts.throttled++;
	fs_request_may_wait();
	while (!may_add(c, use))
		pthread_cond_wait(&c->cond, &c->lock);
}

void capped_know(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	off_t at, hole,
		end = nr > (UINT64_MAX >> 13) - first ? INT64_MAX
						      : (off_t)((first + nr) << WPFS_PAGE_SHIFT);

	if (!capped_is_chosen(f))
		return;
	at = lseek(f->fd, (off_t)(first << WPFS_PAGE_SHIFT), SEEK_DATA);
	while (at >= 0 && at < end) {
		hole = lseek(f->fd, at, SEEK_HOLE);
		if (hole < 0)
			return;
		for (; at < hole && at < end; at += (off_t)WPFS_PAGE_SIZE)
			policy_insert(c->policy, f->slot, (uint64_t)at >> WPFS_PAGE_SHIFT);
		at = lseek(f->fd, hole, SEEK_DATA);
	}
}

/* By halves, down to what is all there or not at all. */
static void learn_range(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr)
{
	uint64_t there = nr ? capped_in_memory(f->fd, first, nr) : 0;

	if (there == nr) {
		for (uint64_t page = first; page < first + nr; page++)
			policy_learn(c->policy, f->slot, page);
	} else if (there) {
		learn_range(c, f, first, nr / 2);
		learn_range(c, f, first + nr / 2, nr - nr / 2);
	}
}

/*
 * SEEK_DATA is quick, and does not show pages that were allocated and never written, nor those
 * behind the end of the file.
 */
void capped_learn(struct capped *c, struct capped_file *f)
{
	uint64_t seen = 0, end;
	off_t at, hole;
	struct stat st;

	if (!capped_is_chosen(f) || fstat(f->fd, &st) < 0)
		return;
	end = ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	for (at = lseek(f->fd, 0, SEEK_DATA); at >= 0; at = lseek(f->fd, hole, SEEK_DATA)) {
		hole = lseek(f->fd, at, SEEK_HOLE);
		if (hole < 0)
			break;
		for (; at < hole; at += (off_t)WPFS_PAGE_SIZE, seen++)
			policy_learn(c->policy, f->slot, (uint64_t)at >> WPFS_PAGE_SHIFT);
	}
	if (capped_in_memory(f->fd, 0, POLICY_MAX_PAGES) <= seen)
		return;
	if (end > POLICY_MAX_PAGES)
		end = POLICY_MAX_PAGES;
	learn_range(c, f, 0, end);
	learn_range(c, f, end, POLICY_MAX_PAGES - end);
}

void capped_learn_unseen(struct capped *c)
{
	struct capped_file *f, *next;

	pthread_mutex_lock(&c->lock);
	HASH_ITER (hh, c->files, f, next) {
		if (c->nr_unseen == 0)
			break;
		if (!f->unseen)
			continue;
		f->unseen = false;
		c->nr_unseen--;
		capped_learn(c, f);
	}
	pthread_mutex_unlock(&c->lock);
}

uint64_t capped_could_come(struct capped *c, uint64_t ino, uint64_t pages)
{
	struct capped_file *f;
	uint64_t there = 0;

	pthread_mutex_lock(&c->lock);
	f = capped_file_find(c, ino);
	if (f)
		there = f->missing ? pages : capped_in_memory(f->fd, 0, pages);
	pthread_mutex_unlock(&c->lock);
	return there < pages ? pages - there : 0;
}

uint64_t capped_low(const struct capped *c)
{
	return c->low;
}

uint64_t capped_cap(const struct capped *c)
{
	return c->config.resident;
}

void capped_evict_asked(struct capped *c)
{
	pthread_mutex_lock(&c->lock);
	c->asked = false;
	pthread_mutex_unlock(&c->lock);
}

void capped_set_stuck(struct capped *c, bool stuck)
{
	pthread_mutex_lock(&c->lock);
	if (stuck && !c->stuck)
		log_warn("nothing can be evicted: what is in use is more than resident= allows");
	c->stuck = stuck;
	c->held_up = false;
	if (stuck) {
		capped_retry(c);
		pthread_cond_broadcast(&c->cond);
	}
	pthread_mutex_unlock(&c->lock);
}

bool capped_is_held_up(struct capped *c, uint64_t ms)
{
	struct timespec ts;
	uint64_t before;
	bool is;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	before = (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec - ms * 1000000;
	pthread_mutex_lock(&c->lock);
	is = c->readings && c->readings->since_ns <= before;
	if (is && !c->held_up) {
		log_warn("nothing can be evicted before a read(2) ends that has not for %llu ms",
			 (unsigned long long)ms);
		c->held_up = true;
		pthread_cond_broadcast(&c->cond);
	}
	pthread_mutex_unlock(&c->lock);
	return is;
}

void capped_retry(struct capped *c)
{
	const uint64_t one = 1;
	/* Who reads ahead already looks for more by itself. */
	bool ahead = c->aheads && !c->reading_ahead;

	if ((c->waits || ahead) && write(c->retry_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_err("capped: cannot wake the fault threads: %s", log_errstr(errno));
}
