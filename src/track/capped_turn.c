/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages whose turn has come (spill/policy.h): what is new is unmapped and kept, what was mapped
 * again since is used and kept, what was not goes.
 *
 * A page is unmapped with MADV_PAGEOUT, which takes it out of the page table, leaves a marker where
 * it was marked, and then finds no swap to put it to. With swap it would be written there, so there
 * all that is known of a page is what the daemon itself saw. A page that stays mapped for whatever
 * reason (two mms map it) is not asked about for ever: the second time it goes, with the settle
 * time waited for.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/units.h"
#include "track/capped_internal.h"
#include "uffd/pagemap.h"

#define TICK_MS	  8
#define IOV_BATCH 512

static uint16_t tick_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint16_t)((uint64_t)ts.tv_sec * (1000 / TICK_MS) +
			  (uint64_t)ts.tv_nsec / (TICK_MS * 1000000));
}

/* A tick may be nearly over when it begins. */
static uint16_t settle_ticks(const struct capped *c)
{
	uint64_t ticks = c->config.settle_ms ? c->config.settle_ms / TICK_MS + 2 : 0;

	return ticks > 16384 ? 16384 : (uint16_t)ticks;
}

static int by_page(const void *a, const void *b)
{
	const struct policy_page *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

void capped_turn_take(struct capped *c, struct capped_turn *turn)
{
	struct policy_page others[64];
	const size_t max = sizeof(turn->pages) / sizeof(turn->pages[0]);
	uint16_t now = tick_now(), age = settle_ticks(c);
	size_t nr_others = 0;

	turn->nr = 0;
	turn->file = NULL;
	pthread_mutex_lock(&c->lock);
	while (turn->nr < max && nr_others < 64) {
		struct policy_page *page = &turn->pages[turn->nr];

		if (!policy_pop(c->policy, now, age, page))
			break;
		if (!turn->file)
			turn->file = policy_file_owner(c->policy, page->slot);
		if (turn->file == policy_file_owner(c->policy, page->slot))
			turn->nr++;
		else
			others[nr_others++] = *page;
	}
	/* Their next turn is a round later, which is as good. */
	for (size_t i = 0; i < nr_others; i++)
		policy_put(c->policy, &others[i], POLICY_WAIT, now);
	pthread_mutex_unlock(&c->lock);
	qsort(turn->pages, turn->nr, sizeof(turn->pages[0]), by_page);
}

void capped_turn_back(struct capped *c, struct capped_turn *turn)
{
	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < turn->nr; i++)
		policy_put(c->policy, &turn->pages[i], POLICY_WAIT, 0);
	pthread_mutex_unlock(&c->lock);
	turn->nr = 0;
}

/* ---- probes ---- */

static bool can_probe(void)
{
	_cleanup_free_ char *text = NULL;
	const char *line;

	if (fdio_read_file(AT_FDCWD, "/proc/swaps", &text, NULL) < 0)
		return true; /* a kernel without swap */
	line = strchr(text, '\n');
	return !line || line[1] == '\0';
}

/* What of the pages is mapped somewhere, by offset in the file. 0 or -errno. */
static int turn_mapped(const struct capped_turn *turn, const struct capped_mapping *maps, size_t nr,
		       struct mm_set *mapped)
{
	for (size_t m = 0; m < nr; m++) {
		uint64_t pgoff = maps[m].pgoff;
		uint64_t pages = (maps[m].end - maps[m].start) >> WPFS_PAGE_SHIFT;

		for (size_t i = 0; i < turn->nr;) {
			_cleanup_set_ struct mm_set set = {0}, moved = {0};
			uint64_t first = turn->pages[i].page, end;
			int r;

			if (first < pgoff || first - pgoff >= pages) {
				i++;
				continue;
			}
			for (end = first + 1; ++i < turn->nr; end = turn->pages[i].page + 1) {
				if (turn->pages[i].page - end > 64 ||
				    turn->pages[i].page - pgoff >= pages)
					break;
			}
			r = pagemap_present(maps[m].mm->pagemap_fd,
					    maps[m].start + ((first - pgoff) << WPFS_PAGE_SHIFT),
					    maps[m].start + ((end - pgoff) << WPFS_PAGE_SHIFT),
					    &set);
			if (r == 0 && !mm_set_is_empty(&set)) {
				r = mm_set_shift(&moved, &set, (int64_t)first);
				if (r == 0)
					r = mm_set_or(mapped, &moved);
			}
			if (r < 0)
				return r;
		}
	}
	return 0;
}

static void unmap(int pidfd, struct iovec *iov, size_t *nr)
{
	/* What is not there any more, or not ours any more, is none the worse for it. */
	if (*nr)
		syscall(SYS_process_madvise, pidfd, iov, *nr, MADV_PAGEOUT, 0);
	*nr = 0;
}

bool capped_unmap(const struct capped_mapping *maps, size_t nr)
{
	if (!can_probe())
		return false;
	for (size_t m = 0; m < nr; m++) {
		struct iovec iov = {(void *)maps[m].start, maps[m].end - maps[m].start};
		size_t n = 1;

		unmap(maps[m].pidfd, &iov, &n);
	}
	return true;
}

/* Unmaps those of the pages that are mapped. */
static void turn_unmap(const struct capped_turn *turn, const struct capped_mapping *maps, size_t nr,
		       const struct mm_set *mapped)
{
	struct iovec iov[IOV_BATCH];

	for (size_t m = 0; m < nr; m++) {
		uint64_t pages = (maps[m].end - maps[m].start) >> WPFS_PAGE_SHIFT;
		size_t n = 0;

		for (size_t i = 0; i < turn->nr; i++) {
			uint64_t at = turn->pages[i].page - maps[m].pgoff;
			char *addr = (char *)maps[m].start + (at << WPFS_PAGE_SHIFT);

			if (turn->pages[i].page < maps[m].pgoff || at >= pages ||
			    !mm_set_contains(mapped, turn->pages[i].page))
				continue;
			if (n && (char *)iov[n - 1].iov_base + iov[n - 1].iov_len == addr) {
				iov[n - 1].iov_len += WPFS_PAGE_SIZE;
				continue;
			}
			if (n == IOV_BATCH)
				unmap(maps[m].pidfd, iov, &n);
			iov[n++] = (struct iovec){addr, WPFS_PAGE_SIZE};
		}
		unmap(maps[m].pidfd, iov, &n);
	}
}

/* ---- a turn ---- */

/* What is done with each page; by its index in the turn. */
struct verdicts {
	uint8_t of[sizeof(((struct capped_turn *)NULL)->pages) / sizeof(struct policy_page)];
	bool settle; /* some that go may be mapped until now */
};

/* Unmaps what is mapped and says what becomes of each page. */
static int turn_judge(struct capped *c, struct capped_turn *turn, const struct capped_mapping *maps,
		      size_t nr, struct verdicts *v)
{
	_cleanup_set_ struct mm_set mapped = {0}, stay = {0};
	bool probe = nr && can_probe();
	uint16_t now = tick_now(), age = settle_ticks(c);
	int r = nr ? turn_mapped(turn, maps, nr, &mapped) : 0;

	if (r == 0 && probe && !mm_set_is_empty(&mapped)) {
		turn_unmap(turn, maps, nr, &mapped);
		c->counts.probes += mm_set_count(&mapped);
		r = turn_mapped(turn, maps, nr, &stay);
	} else if (r == 0) {
		r = mm_set_or(&stay, &mapped);
	}
	for (size_t i = 0; r == 0 && i < turn->nr; i++) {
		const struct policy_page *page = &turn->pages[i];

		if (!page->probed && nr)
			v->of[i] = POLICY_PROBED;
		else if (page->touched || (mm_set_contains(&mapped, page->page) &&
					   !mm_set_contains(&stay, page->page)))
			v->of[i] = POLICY_USED;
		else
			v->of[i] = POLICY_EVICTED;
		if (v->of[i] == POLICY_EVICTED && nr &&
		    (mm_set_contains(&stay, page->page) || (uint16_t)(now - page->tick) < age))
			v->settle = true;
	}
	return r;
}

/* Of the pages to go those that are in memory and that nobody is at, as runs. Lock held. */
static size_t turn_runs(struct capped *c, const struct capped_turn *turn, struct verdicts *v,
			struct capped_run *runs)
{
	const struct capped_file *f = turn->file;
	size_t nr = 0;

	for (size_t i = 0; i < turn->nr; i++) {
		uint64_t page = turn->pages[i].page;

		if (v->of[i] != POLICY_EVICTED)
			continue;
		if (page >= f->bits.pages || spill_bits_test(&f->bits, page)) {
			v->of[i] = POLICY_GONE;
			continue;
		}
		if (capped_used(c, f->ino, page, page + 1, ~0u)) {
			v->of[i] = POLICY_WAIT;
			continue;
		}
		if (nr && runs[nr - 1].first + runs[nr - 1].nr == page)
			runs[nr - 1].nr++;
		else if (nr == 0 || runs[nr - 1].first + runs[nr - 1].nr < page)
			runs[nr++] = (struct capped_run){page, 1};
	}
	return nr;
}

int capped_turn_run(struct capped *c, struct capped_turn *turn, const struct capped_mapping *maps,
		    size_t nr, uint64_t *pages, char *why, size_t why_size)
{
	struct capped_run runs[sizeof(turn->pages) / sizeof(turn->pages[0])];
	_cleanup_set_ struct mm_set used = {0};
	struct verdicts v = {.settle = false};
	size_t nr_runs = 0;
	int r = turn_judge(c, turn, maps, nr, &v);

	if (r == 0) {
		pthread_mutex_lock(&c->lock);
		nr_runs = turn_runs(c, turn, &v, runs);
		pthread_mutex_unlock(&c->lock);
		r = capped_evict_runs(c, turn->file, maps, nr, runs, nr_runs, v.settle, &used,
				      pages, why, why_size);
	}
	pthread_mutex_lock(&c->lock);
	for (size_t i = 0; i < turn->nr; i++) {
		enum policy_verdict verdict = (enum policy_verdict)v.of[i];

		if (r < 0)
			verdict = POLICY_WAIT;
		else if (verdict == POLICY_EVICTED && mm_set_contains(&used, turn->pages[i].page))
			verdict = POLICY_USED;
		policy_put(c->policy, &turn->pages[i], verdict, tick_now());
	}
	pthread_mutex_unlock(&c->lock);
	return r;
}
