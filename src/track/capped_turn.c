/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Pages whose turn has come (spill/policy.h): what is new is unmapped and kept, what was mapped
 * again since is used and kept, what was not goes.
 *
 * With swap no page can be unmapped (capped_unmap.c), so there all that is known of one is what the
 * daemon itself saw. A page that stays mapped for whatever reason (two mms map it) is not asked
 * about for ever: the second time it goes, with the settle time waited for.
 */
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "uffd/pagemap.h"

#define TICK_MS	    8
#define TICKS_MAX   16384
#define TICKS_ALL   ((uint32_t)1 << 16) /* no tick tells that it is so long ago */
#define IOV_BATCH   512
#define PROBE_TRIES 3
#define VAIN_TURNS  8
#define READ_TICKS  16u /* a read(2) that takes so long is not waited for under a fence */

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

	return ticks > TICKS_MAX ? TICKS_MAX : (uint16_t)ticks;
}

/* So long ago pages have to have been unmapped that no direct I/O can have pinned since. */
static uint32_t pin_ticks(struct capped *c)
{
	uint32_t settle = settle_ticks(c);
	uint64_t since = capped_reading_since(c), ticks;
	struct timespec ts;

	if (since == UINT64_MAX)
		return settle;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	ticks = ((uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec - since) / 1000000 /
			TICK_MS +
		2;
	if (ticks > TICKS_ALL)
		return TICKS_ALL;
	return ticks > settle ? (uint32_t)ticks : settle;
}

static int by_page(const void *a, const void *b)
{
	const struct policy_page *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

void capped_turn_take(struct capped *c, struct capped_turn *turn)
{
	struct policy_page others[64];
	uint16_t now = tick_now(), age = settle_ticks(c);
	size_t nr_others = 0;

	turn->nr = 0;
	turn->file = NULL;
	pthread_mutex_lock(&c->lock);
	while (turn->nr < CAPPED_TURN && nr_others < 64) {
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

/* The first page of the turn from `i` on that is in the set (NULL: any). */
static size_t turn_next(const struct capped_turn *turn, size_t i, const struct mm_set *only)
{
	while (only && i < turn->nr && !mm_set_contains(only, turn->pages[i].page))
		i++;
	return i;
}

/*
 * What of the pages, or of those in `only`, is mapped somewhere, by offset in the file; pages in
 * between may be among it. 0 or -errno.
 */
static int turn_mapped(const struct capped_turn *turn, const struct capped_mapping *maps, size_t nr,
		       const struct mm_set *only, struct mm_set *mapped)
{
	for (size_t m = 0; m < nr; m++) {
		uint64_t pgoff = maps[m].pgoff;
		uint64_t pages = (maps[m].end - maps[m].start) >> WPFS_PAGE_SHIFT;

		for (size_t i = turn_next(turn, 0, only); i < turn->nr;) {
			_cleanup_set_ struct mm_set set = {0}, moved = {0};
			uint64_t first = turn->pages[i].page, end;
			int r;

			i = turn_next(turn, i + 1, only);
			if (first < pgoff || first - pgoff >= pages)
				continue;
			for (end = first + 1; i < turn->nr; i = turn_next(turn, i + 1, only)) {
				if (turn->pages[i].page - end > 64 ||
				    turn->pages[i].page - pgoff >= pages)
					break;
				end = turn->pages[i].page + 1;
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
			if (n == IOV_BATCH) {
				capped_unmap(maps[m].pidfd, iov, n);
				n = 0;
			}
			iov[n++] = (struct iovec){addr, WPFS_PAGE_SIZE};
		}
		capped_unmap(maps[m].pidfd, iov, n);
	}
}

/*
 * Unmaps what is mapped. `stay` is what is mapped all the same: to try again at once tells a page
 * in much use, which is mapped again within moments, from one that cannot be unmapped.
 */
static int turn_probe(const struct capped_turn *turn, const struct capped_mapping *maps, size_t nr,
		      const struct mm_set *mapped, struct mm_set *stay)
{
	int r = 0;

	for (size_t i = turn_next(turn, 0, mapped); r == 0 && i < turn->nr;
	     i = turn_next(turn, i + 1, mapped))
		r = mm_set_add_range(stay, turn->pages[i].page, 1);
	for (int tries = 0; r == 0 && tries < PROBE_TRIES && !mm_set_is_empty(stay); tries++) {
		_cleanup_set_ struct mm_set now = {0};

		turn_unmap(turn, maps, nr, stay);
		r = turn_mapped(turn, maps, nr, stay, &now);
		for (size_t i = turn_next(turn, 0, stay); r == 0 && i < turn->nr;
		     i = turn_next(turn, i + 1, stay)) {
			if (!mm_set_contains(&now, turn->pages[i].page))
				r = mm_set_remove_range(stay, turn->pages[i].page, 1);
		}
	}
	return r;
}

/* ---- a turn ---- */

/* What is done with each page; by its index in the turn. */
struct verdicts {
	uint8_t of[CAPPED_TURN];
	/* It would go, and is mapped still or was until not long ago. */
	bool settles[CAPPED_TURN];
	bool is_mapped[CAPPED_TURN];
	uint64_t probes;
	bool settle; /* some that go are in `settles` */
};

/*
 * The settle time is waited for if that is so of most of the turn, or if nothing else has gone for
 * some turns. Else what may be mapped is in much use, and the others are not to wait for it. `age`:
 * pin_ticks.
 */
static void turn_part(struct capped *c, const struct capped_turn *turn, uint32_t age,
		      struct verdicts *v)
{
	size_t go = 0, settles = 0;

	for (size_t i = 0; i < turn->nr; i++) {
		go += v->of[i] == POLICY_EVICTED;
		settles += v->settles[i];
	}
	v->settle = settles && age <= settle_ticks(c) + READ_TICKS &&
		    (settles * 2 >= turn->nr || c->vain_turns >= VAIN_TURNS);
	if (v->settle || go > settles)
		c->vain_turns = 0;
	else
		c->vain_turns += settles > 0;
	for (size_t i = 0; !v->settle && i < turn->nr; i++) {
		if (v->settles[i])
			v->of[i] = v->is_mapped[i] ? POLICY_USED : POLICY_WAIT;
	}
}

/* Unmaps what is mapped and says what becomes of each page. */
static int turn_judge(struct capped *c, struct capped_turn *turn, const struct capped_mapping *maps,
		      size_t nr, struct verdicts *v)
{
	_cleanup_set_ struct mm_set mapped = {0}, stay = {0};
	bool probe = nr && capped_can_unmap();
	const uint16_t now = tick_now(); /* before the other: what is in doubt is too young */
	const uint32_t age = pin_ticks(c);
	int r = nr ? turn_mapped(turn, maps, nr, NULL, &mapped) : 0;

	if (r == 0)
		r = probe ? turn_probe(turn, maps, nr, &mapped, &stay) : mm_set_or(&stay, &mapped);
	for (size_t i = 0; r == 0 && i < turn->nr; i++) {
		const struct policy_page *page = &turn->pages[i];
		bool was = mm_set_contains(&mapped, page->page);
		bool is = mm_set_contains(&stay, page->page);

		v->probes += probe && was;
		if (!page->probed && nr)
			v->of[i] = POLICY_PROBED;
		else if (was && !is)
			v->of[i] = POLICY_USED;
		else if (page->touched)
			v->of[i] = POLICY_SPARED;
		else
			v->of[i] = POLICY_EVICTED;
		v->is_mapped[i] = is;
		v->settles[i] = v->of[i] == POLICY_EVICTED && nr &&
				(is || (uint16_t)(now - page->tick) < age);
	}
	if (r == 0)
		turn_part(c, turn, age, v);
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
	struct capped_run runs[CAPPED_TURN];
	_cleanup_set_ struct mm_set used = {0};
	struct verdicts v = {.settle = false};
	size_t nr_runs = 0;
	int r = turn_judge(c, turn, maps, nr, &v);

	if (r == 0) {
		pthread_mutex_lock(&c->lock);
		c->counts.probes += v.probes;
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
