/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How pages leave memory: a batch of a file at a time, under a fence (capped_batch.c).
 *
 *   record -> fence -> settle -> lease -> save -> spilled bits -> punch -> un-fence -> record away
 *
 * Direct I/O that is under way into a page writes into the page itself, past every protection. It
 * began while the page was mapped, so a page that has not been mapped for the settle time is safe
 * at once; for others the time is waited for under the fence. The lease shows that nobody else has
 * the file open.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_internal.h"
#include "track/capped_test.h"

#define LEASE_TRIES 200 /* naps: as long as an open of a moment may take */

/* What of a batch is to be stored: runs of pages in the engine's buffer. */
struct save {
	char *buf;		/* CAPPED_BATCH pages: those of the batch one after the other */
	struct spill_run *runs; /* room for as many as the batch has pages */
	size_t nr;
	uint64_t resident, zeros; /* pages */
};

static void save_page(struct save *s, uint64_t page, char *at)
{
	struct spill_run *last = s->nr ? &s->runs[s->nr - 1] : NULL;

	s->resident++;
	if (spill_is_zero(at, WPFS_PAGE_SIZE)) {
		s->zeros++;
		return;
	}
	if (last && last->first + last->nr == page &&
	    (char *)last->buf + (last->nr << WPFS_PAGE_SHIFT) == at)
		last->nr++;
	else
		s->runs[s->nr++] = (struct spill_run){page, 1, at};
}

/* Reads pages to `to`; what is behind the end of the file is zeros. 0 or -errno. */
static int read_pages(int fd, uint64_t first, uint64_t nr, char *to)
{
	return fdio_pread_zeros(fd, to, nr << WPFS_PAGE_SHIFT, first << WPFS_PAGE_SHIFT);
}

/* Reads what is resident of [first, first + nr) to `to`. 0 or -errno. */
static int save_range(struct save *s, int fd, uint64_t first, uint64_t nr, char *to)
{
	uint64_t there = capped_in_memory(fd, first, nr);
	int r;

	if (there == 0)
		return 0;
	/* Some: halves, down to what is all or nothing. */
	if (there < nr) {
		r = save_range(s, fd, first, nr / 2, to);
		return r < 0 ? r
			     : save_range(s, fd, first + nr / 2, nr - nr / 2,
					  to + ((nr / 2) << WPFS_PAGE_SHIFT));
	}
	r = read_pages(fd, first, nr, to);
	for (uint64_t i = 0; r == 0 && i < nr; i++)
		save_page(s, first + i, to + (i << WPFS_PAGE_SHIFT));
	return r;
}

/* Calls fn for the pages of the batch that go, as runs, with their place in the buffer. */
static int for_leaving(const struct capped_batch *b,
		       int (*fn)(void *arg, uint64_t first, uint64_t nr, uint64_t at), void *arg)
{
	uint64_t at = 0;
	int r = 0;

	for (size_t i = 0; r == 0 && i < b->nr_runs; i++) {
		uint64_t page = b->runs[i].first, end = page + b->runs[i].nr;

		while (r == 0 && page < end) {
			uint64_t n = 0;

			if (mm_set_is_empty(&b->used))
				n = end - page;
			while (page + n < end && !mm_set_contains(&b->used, page + n))
				n++;
			if (n)
				r = fn(arg, page, n, at);
			at += n ? n : 1;
			page += n ? n : 1;
		}
	}
	return r;
}

struct saving {
	struct capped *c;
	struct capped_batch *b;
	struct save *s;
	off_t size;
	uint64_t stay;
};

static int save_leaving(void *arg, uint64_t first, uint64_t nr, uint64_t at)
{
	struct saving *sv = arg;

	return save_range(sv->s, sv->b->file->fd, first, nr, sv->s->buf + (at << WPFS_PAGE_SHIFT));
}

/* A page that did not go although it was punched may be zeros now. */
static int put_back(struct saving *sv, uint64_t page, const char *from)
{
	off_t off = (off_t)(page << WPFS_PAGE_SHIFT);
	off_t left = sv->size - off;
	size_t len = (size_t)(left < (off_t)WPFS_PAGE_SIZE ? left : (off_t)WPFS_PAGE_SIZE);
	int r = fdio_pwrite_full(sv->b->file->fd, from, len, off);

	if (r == 0)
		capped_forget(sv->c, sv->b->file, page, 1);
	return r;
}

static int punch_leaving(void *arg, uint64_t first, uint64_t nr, uint64_t at)
{
	struct saving *sv = arg;
	int fd = sv->b->file->fd, r = 0;

	r = capped_test_fail("punch");
	if (r == 0 &&
	    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)(first << WPFS_PAGE_SHIFT), (off_t)(nr << WPFS_PAGE_SHIFT)) < 0)
		r = -errno;
	if (capped_in_memory(fd, first, nr) == 0)
		return r;
	for (uint64_t i = 0; i < nr; i++) {
		int err;

		if (capped_in_memory(fd, first + i, 1) == 0)
			continue;
		err = put_back(sv, first + i, sv->s->buf + ((at + i) << WPFS_PAGE_SHIFT));
		r = r < 0 ? r : err;
		sv->stay++;
	}
	return r;
}

static int save_and_punch(struct saving *sv, uint64_t *pages)
{
	struct capped *c = sv->c;
	struct capped_file *f = sv->b->file;
	struct save *s = sv->s;
	struct stat st;
	int r = capped_test_fail("lower-read"), fd;

	if (r == 0)
		r = for_leaving(sv->b, save_leaving, sv);

	if (r == 0 && fstat(f->fd, &st) < 0)
		r = -errno;
	pthread_mutex_lock(&c->lock);
	fd = capped_spill_fd(c, f, true);
	pthread_mutex_unlock(&c->lock);
	if (r == 0)
		r = fd < 0 ? fd : capped_test_fail("spill-write");
	if (r == 0)
		r = spill_store_write(c->evict_io, fd, s->runs, s->nr);
	if (r < 0) {
		/* A full store must not stay so for pages that are not in it. */
		if (fd >= 0)
			spill_store_discard(fd, s->runs, s->nr);
		return r;
	}
	sv->size = st.st_size;
	capped_test_point("saved");
	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < s->nr; i++) {
		uint64_t before = f->bits.count;

		for (uint64_t p = 0; p < s->runs[i].nr; p++)
			spill_bits_set(&f->bits, s->runs[i].first + p);
		c->counts.spilled += f->bits.count - before;
	}
	capped_test_point("spilled"); /* with the lock held: nobody is served */
	r = for_leaving(sv->b, punch_leaving, sv);
	*pages += s->resident - sv->stay;
	c->counts.evictions += s->resident - sv->stay;
	c->counts.zeros += s->zeros;
	capped_limit_set(c, true);
	pthread_mutex_unlock(&c->lock);
	futimens(f->fd, (struct timespec[2]){st.st_atim, st.st_mtim});
	capped_test_point("punched");
	return r;
}

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

/* Direct I/O into pages of the batch has ended, or they stay. */
static int wait_settled(struct capped *c, struct capped_batch *b, bool settle, struct mm_set *used)
{
	const struct timespec time = {.tv_sec = c->config.settle_ms / 1000,
				      .tv_nsec = c->config.settle_ms % 1000 * 1000000L};
	int r;

	if (b->nr_pieces == 0)
		return 0;
	if (settle) {
		nanosleep(&time, NULL);
		return 0;
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
	struct save s = {.buf = spill_io_buf(c->evict_io)};
	struct saving sv = {.c = c, .b = b, .s = &s};
	int r = capped_batch_begin(c, b, maps, nr, why, why_size);

	if (r < 0)
		return r;
	capped_test_point("fenced");
	r = wait_settled(c, b, settle, used);
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
	s.runs = calloc(b->pages, sizeof(*s.runs));
	r = s.runs ? save_and_punch(&sv, pages) : -ENOMEM;
	free(s.runs);
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
		uint64_t most = end - *page < CAPPED_BATCH ? end - *page : CAPPED_BATCH;

		if (capped_in_memory(f->fd, *page, most) == most) {
			runs[0] = (struct capped_run){*page, most};
			*page += most;
			return 1;
		}
	}
	while (pages < CAPPED_BATCH && *page < end) {
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
		if (last - first > CAPPED_BATCH - pages)
			last = first + CAPPED_BATCH - pages;
		runs[nr++] = (struct capped_run){first, last - first};
		pages += last - first;
		*page = last;
	}
	return nr;
}

/* One pass over the file. `used` gets pages that were in use, unless their settling is waited for.
 */
static int evict_pass(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		      size_t nr, bool settle, struct mm_set *used, uint64_t *pages, char *why,
		      size_t why_size)
{
	struct capped_run *runs = calloc(CAPPED_BATCH, sizeof(*runs));
	uint64_t end = f->bits.pages, page = 0;
	struct stat st;
	int r = runs ? 0 : -ENOMEM;

	if (fstat(f->fd, &st) == 0 &&
	    ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT < end)
		end = ((uint64_t)st.st_size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT;
	while (r == 0) {
		size_t nr_runs = next_runs(f, &page, end, runs);

		if (nr_runs == 0)
			break;
		r = capped_evict_runs(c, f, maps, nr, runs, nr_runs, settle, used, pages, why,
				      why_size);
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

int capped_evict(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		 size_t nr, uint64_t *pages, char *why, size_t why_size)
{
	const struct timespec time = {.tv_sec = c->config.settle_ms / 1000,
				      .tv_nsec = c->config.settle_ms % 1000 * 1000000L};
	_cleanup_set_ struct mm_set used = {0};
	int r;

	/* Unmapped at once, the settle time is waited for once; what is in use has it for itself.
	 */
	if (nr && capped_unmap(maps, nr)) {
		nanosleep(&time, NULL);
		r = evict_pass(c, f, maps, nr, false, &used, pages, why, why_size);
		if (r < 0 || mm_set_is_empty(&used))
			return r;
	}
	return evict_pass(c, f, maps, nr, true, NULL, pages, why, why_size);
}
