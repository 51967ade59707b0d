/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How pages leave memory: a batch of a file at a time, under a fence (capped_batch.c).
 *
 *   record -> fence -> settle -> lease -> save -> spilled bits -> punch -> un-fence -> record away
 *
 * What is from save to punch is in capped_save.c.
 *
 * Direct I/O that is under way into a page writes into the page itself, past every protection. It
 * began while the page was mapped, so a page that has not been mapped for the settle time is safe
 * at once; for others the time is waited for under the fence. A read(2) of a file of the mount is
 * such direct I/O, and can wait for the store for longer: but when it began is known. The lease
 * shows that nobody else has the file open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_room.h"
#include "track/capped_test.h"

#define PASS_PAGES  8192u /* of a batch that somebody asked for: 32 MiB */
#define WHY_READING "a read(2) that may go right into its pages has not ended: try again"
#define LEASE_TRIES 200 /* naps: as long as an open of a moment may take */

static int take_lease(int fd)
{
	for (int tries = 0; fcntl(fd, F_SETLEASE, F_WRLCK) < 0; tries++) {
		if (errno != EAGAIN && errno != EBUSY)
			return -errno;
		if (tries == LEASE_TRIES)
			return -EBUSY;
		capped_nap();
	}
	return 0;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Direct I/O into pages of the batch has ended, or they stay. */
static int wait_settled(struct capped *c, struct capped_batch *b, bool settle, struct mm_set *used)
{
	const struct timespec time = {.tv_sec = c->config.settle_ms / 1000,
				      .tv_nsec = c->config.settle_ms % 1000 * 1000000L};
	bool mapped;
	int r;

	pthread_mutex_lock(&c->lock);
	mapped = b->nr_pieces > 0; /* a fork may add some at any time */
	pthread_mutex_unlock(&c->lock);
	if (!mapped)
		return 0;
	if (settle) {
		uint64_t fenced = now_ns();

		nanosleep(&time, NULL);
		return capped_wait_readings(c, fenced);
	}
	pthread_mutex_lock(&c->lock);
	r = capped_batch_mapped(b, &b->used);
	pthread_mutex_unlock(&c->lock);
	return r == 0 && used ? mm_set_or(used, &b->used) : r;
}

static int batch_run(struct capped *c, struct capped_batch *b, const struct capped_mapping *maps,
		     size_t nr, bool settle, struct mm_set *used, uint64_t *pages, char *why,
		     size_t why_size)
{
	int r = capped_batch_begin(c, b, maps, nr, why, why_size);

	if (r < 0)
		return r;
	capped_test_point("fenced");
	r = wait_settled(c, b, settle, used);
	if (r < 0 && settle) {
		snprintf(why, why_size, WHY_READING);
		return r;
	}
	if (r < 0) {
		snprintf(why, why_size, "its mappings change just now (%s): try again",
			 log_errstr(r));
		return -EAGAIN;
	}
	r = take_lease(b->file->fd);
	if (r < 0) {
		snprintf(why, why_size,
			 "somebody has it open or mapped for reading only, or since before the "
			 "daemon was started again");
		return r;
	}
	capped_test_point("leased");
	r = capped_save(c, b, pages);
	fcntl(b->file->fd, F_SETLEASE, F_UNLCK);
	if (r < 0)
		snprintf(why, why_size, "its pages cannot be moved to the store: %s",
			 log_errstr(r));
	return r;
}

int capped_evict_runs(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		      size_t nr, const struct capped_run *runs, size_t nr_runs, bool settle,
		      struct mm_set *used, uint64_t *pages, char *why, size_t why_size)
{
	struct capped_batch b = {.file = f, .runs = runs, .nr_runs = nr_runs};
	int r;

	for (size_t i = 0; i < nr_runs; i++)
		b.pages += runs[i].nr;
	if (b.pages == 0)
		return 0;
	r = batch_run(c, &b, maps, nr, settle, used, pages, why, why_size);
	capped_batch_end(c, &b);
	return r;
}

/* Resident pages of the file from *page on, as runs of one batch. */
static size_t next_runs(const struct capped_file *f, uint64_t *page, uint64_t end,
			struct capped_run *runs)
{
	uint64_t pages = 0;
	size_t nr = 0;

	/* All of it, as a rule; and lseek would look at all that follows. */
	if (*page < end) {
		uint64_t most = end - *page < PASS_PAGES ? end - *page : PASS_PAGES;

		if (capped_in_memory(f->fd, *page, most) == most) {
			runs[0] = (struct capped_run){*page, most};
			*page += most;
			return 1;
		}
	}
	while (pages < PASS_PAGES && nr < CAPPED_BATCH && *page < end) {
		off_t data = lseek(f->fd, (off_t)(*page << WPFS_PAGE_SHIFT), SEEK_DATA), hole;
		uint64_t first, last;

		if (data < 0) {
			*page = end;
			break;
		}
		hole = lseek(f->fd, data, SEEK_HOLE);
		first = (uint64_t)data >> WPFS_PAGE_SHIFT;
		last = hole < 0 ? first + 1
				: ((uint64_t)hole + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
		if (last > end)
			last = end;
		if (first >= end || last <= first) {
			*page = end;
			break;
		}
		if (last - first > PASS_PAGES - pages)
			last = first + PASS_PAGES - pages;
		runs[nr++] = (struct capped_run){first, last - first};
		pages += last - first;
		*page = last;
	}
	return nr;
}

/*
 * One pass over the file. `unmapper`: pages have been out of the page tables for the settle time
 * when they go; those that are in use again stay, and are added to `used`. Without it the settle
 * time is waited for under each fence.
 */
static int evict_pass(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		      size_t nr, struct capped_unmapper *unmapper, struct mm_set *used,
		      uint64_t end, uint64_t *pages, char *why, size_t why_size)
{
	struct capped_run *runs = calloc(CAPPED_BATCH, sizeof(*runs));
	uint64_t page = 0;
	int r = runs ? 0 : -ENOMEM;

	while (r == 0) {
		size_t nr_runs = next_runs(f, &page, end, runs);

		if (nr_runs == 0)
			break;
		if (unmapper)
			r = capped_wait_readings(
				c, capped_unmap_wait(unmapper, page, c->config.settle_ms));
		if (r < 0)
			snprintf(why, why_size, WHY_READING);
		else
			r = capped_evict_runs(c, f, maps, nr, runs, nr_runs, !unmapper, used, pages,
					      why, why_size);
		pthread_mutex_lock(&c->lock);
		for (size_t i = 0; r == 0 && capped_is_chosen(f) && i < nr_runs; i++)
			policy_drop(c->policy, f->slot, runs[i].first, runs[i].nr);
		pthread_mutex_unlock(&c->lock);
		if (c->progress)
			c->progress(c->progress_ctx);
	}
	free(runs);
	return r;
}

/* Pages up to here can be in the store. */
static uint64_t evict_end(const struct capped_file *f)
{
	struct stat st;
	uint64_t end = f->bits.pages;

	if (fstat(f->fd, &st) == 0 &&
	    ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT < end)
		end = ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	return end;
}

int capped_evict(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		 size_t nr, uint64_t *pages, char *why, size_t why_size)
{
	_cleanup_set_ struct mm_set used = {0};
	uint64_t end = evict_end(f);
	struct capped_unmapper *unmapper = capped_unmap_begin(maps, nr, end);
	int r;

	/* What is in use while it goes has the settle time for itself. */
	if (unmapper) {
		r = evict_pass(c, f, maps, nr, unmapper, &used, end, pages, why, why_size);
		capped_unmap_end(unmapper);
		if (r < 0 || mm_set_is_empty(&used))
			return r;
	}
	return evict_pass(c, f, maps, nr, NULL, NULL, end, pages, why, why_size);
}
