/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages are unmapped with MADV_PAGEOUT, which takes them out of the page table, leaves a marker
 * where one was marked, and then finds no swap to put them to. With swap they would be written
 * there.
 *
 * Before a whole file is evicted all of it is unmapped: that takes about as long as the rest of its
 * eviction, so a thread does it part by part, and the settle time of the first ones goes by
 * meanwhile.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"

#define PART_PAGES ((uint64_t)4096)

struct capped_unmapper {
	const struct capped_mapping *maps; /* constant, like the next three */
	size_t nr;
	uint64_t nr_parts;
	pthread_t thread;
	pthread_mutex_t lock; /* of the rest; innermost */
	pthread_cond_t cond;
	bool stop;
	uint64_t done;	    /* parts */
	uint64_t done_ns[]; /* when */
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

bool capped_can_unmap(void)
{
	_cleanup_free_ char *text = NULL;
	const char *line;

	if (fdio_read_file(AT_FDCWD, "/proc/swaps", &text, NULL) < 0)
		return true; /* a kernel without swap */
	line = strchr(text, '\n');
	return !line || line[1] == '\0';
}

void capped_unmap(int pidfd, const struct iovec *iov, size_t nr)
{
	/* What is not there any more, or not ours any more, is none the worse for it. */
	if (nr)
		syscall(SYS_process_madvise, pidfd, iov, nr, MADV_PAGEOUT, 0);
}

/* Unmaps pages [first, first + PART_PAGES) of the file. */
static void unmap_part(const struct capped_unmapper *u, uint64_t first)
{
	for (size_t i = 0; i < u->nr; i++) {
		const struct capped_mapping *m = &u->maps[i];
		uint64_t end = m->pgoff + ((m->end - m->start) >> WPFS_PAGE_SHIFT);
		uint64_t from = m->pgoff > first ? m->pgoff : first;
		uint64_t to = end < first + PART_PAGES ? end : first + PART_PAGES;
		struct iovec iov;

		if (from >= to)
			continue;
		iov.iov_base = (char *)m->start + ((from - m->pgoff) << WPFS_PAGE_SHIFT);
		iov.iov_len = (to - from) << WPFS_PAGE_SHIFT;
		capped_unmap(m->pidfd, &iov, 1);
	}
}

static void *unmap_main(void *arg)
{
	struct capped_unmapper *u = arg;

	pthread_mutex_lock(&u->lock);
	while (u->done < u->nr_parts && !u->stop) {
		uint64_t part = u->done;

		pthread_mutex_unlock(&u->lock);
		unmap_part(u, part * PART_PAGES);
		pthread_mutex_lock(&u->lock);
		u->done_ns[part] = now_ns();
		u->done++;
		pthread_cond_broadcast(&u->cond);
	}
	pthread_mutex_unlock(&u->lock);
	return NULL;
}

struct capped_unmapper *capped_unmap_begin(const struct capped_mapping *maps, size_t nr,
					   uint64_t pages)
{
	uint64_t parts = (pages + PART_PAGES - 1) / PART_PAGES;
	struct capped_unmapper *u = NULL;

	if (nr && capped_can_unmap())
		u = calloc(1, sizeof(*u) + parts * sizeof(u->done_ns[0]));
	if (!u)
		return NULL;
	u->maps = maps;
	u->nr = nr;
	u->nr_parts = parts;
	pthread_mutex_init(&u->lock, NULL);
	pthread_cond_init(&u->cond, NULL);
	if (pthread_create(&u->thread, NULL, unmap_main, u) == 0)
		return u;
	pthread_cond_destroy(&u->cond);
	pthread_mutex_destroy(&u->lock);
	free(u);
	return NULL;
}

uint64_t capped_unmap_wait(struct capped_unmapper *u, uint64_t end, unsigned settle_ms)
{
	uint64_t parts = (end + PART_PAGES - 1) / PART_PAGES, since = 0, due, now = now_ns();

	if (parts > u->nr_parts)
		parts = u->nr_parts;
	pthread_mutex_lock(&u->lock);
	while (u->done < parts)
		pthread_cond_wait(&u->cond, &u->lock);
	if (parts)
		since = u->done_ns[parts - 1];
	pthread_mutex_unlock(&u->lock);
	due = since + (uint64_t)settle_ms * 1000000;
	if (now < due) {
		struct timespec ts = {.tv_sec = (time_t)(due / 1000000000),
				      .tv_nsec = (long)(due % 1000000000)};

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	}
	return since;
}

void capped_unmap_end(struct capped_unmapper *u)
{
	if (!u)
		return;
	pthread_mutex_lock(&u->lock);
	u->stop = true;
	pthread_mutex_unlock(&u->lock);
	pthread_join(u->thread, NULL);
	pthread_cond_destroy(&u->cond);
	pthread_mutex_destroy(&u->lock);
	free(u);
}
