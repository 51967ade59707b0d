/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * When pages leave: as soon as more is in memory than may be, in rounds of some milliseconds of the
 * track thread; and to make room for a file that is brought back whole.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/log.h"
#include "base/units.h"
#include "track/capped_room.h"
#include "track/capped_track.h"
#include "track/evict_internal.h"

#define ROUND_MS     10 /* what else the thread does waits as long */
#define PAUSE_MS     10 /* after a round that could do nothing */
#define PAUSE_MAX_MS 500
#define STUCK_MS     1000 /* nothing could be evicted for so long: what does not fit is let in, */
#define READ_MS	     500  /* unless a read(2) takes as long: it may be what keeps pages in memory */
#define PRESSURE_MS  50
#define LOAD_BYTES   ((uint64_t)4 << 20) /* brought back at once, before others have to leave */

/* ---- pressure ---- */

/* A file and how many of its pages are mapped. */
struct extent {
	uint64_t ino, pages;
};

struct extents {
	struct extent *of;
	size_t nr, room;
};

static void extent_add(struct extents *x, const struct mm_vma *vma)
{
	uint64_t end = vma->pgoff + mm_vma_pages(vma);
	size_t i = 0;

	while (i < x->nr && x->of[i].ino != vma->file)
		i++;
	if (i == x->room) {
		size_t room = x->room ? x->room * 2 : 32;
		struct extent *bigger = reallocarray(x->of, room, sizeof(*bigger));

		if (!bigger)
			return; /* the next look comes within a second */
		x->of = bigger;
		x->room = room;
	}
	if (i == x->nr)
		x->of[x->nr++] = (struct extent){vma->file, 0};
	if (x->of[i].pages < end)
		x->of[i].pages = end;
}

/* Is there room for all that could come without a word? */
static bool extents_fit(struct capped *c, const struct extents *x)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < x->nr; i++)
		pages += capped_could_come(c, x->of[i].ino, x->of[i].pages);
	return pages == 0 || capped_resident(c) + (pages << WPFS_PAGE_SHIFT) <= capped_low(c);
}

static void evict_press(struct track *t, const struct mm_vma *vma, bool tell)
{
	struct extents x = {0};
	struct tmm *tm;
	bool fit;

	DL_FOREACH (t->tmms, tm) {
		for (size_t i = 0; tm->state != TMM_DETACHED && i < tm->mm.nr_vmas; i++)
			extent_add(&x, &tm->mm.vmas[i]);
	}
	if (vma)
		extent_add(&x, vma);
	fit = extents_fit(t->config.capped, &x);
	for (size_t i = 0; !fit && i < x.nr; i++) {
		struct evict *e;
		struct fs_file file;

		if (capped_is_missing(t->config.capped, x.of[i].ino) ||
		    fs_file_by_ino(t->config.fs, x.of[i].ino, &file) < 0)
			continue;
		if (evict_ready(t, &file, false, &e) < 0 && e && e->why[0] && tell)
			log_info("file %llu stays in memory: %s", (unsigned long long)x.of[i].ino,
				 e->why);
	}
	free(x.of);
}

void evict_pressure(struct track *t, const struct mm_vma *vma)
{
	evict_press(t, vma, true);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Stores to pages that nobody asks for go on while others add what they ask for. */
static void evict_pressure_now(struct track *t)
{
	uint64_t now = now_ms();

	if (now < t->evict_looked_ms + PRESSURE_MS ||
	    capped_resident(t->config.capped) <= capped_low(t->config.capped))
		return;
	t->evict_looked_ms = now;
	evict_press(t, NULL, false);
}

/* ---- rounds ---- */

static void evict_again(struct track *t, uint64_t ms)
{
	const struct itimerspec when = {.it_value = {.tv_sec = (time_t)(ms / 1000),
						     .tv_nsec = (long)(ms % 1000) * 1000000 + 1}};

	timerfd_settime(t->evict_timer.fd, 0, &when, NULL);
}

int evict_start(struct track *t)
{
	int r;

	if (!t->config.capped)
		return 0;
	t->evict_watch.fd = fcntl(capped_evict_fd(t->config.capped), F_DUPFD_CLOEXEC, 0);
	t->evict_timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (t->evict_watch.fd < 0 || t->evict_timer.fd < 0)
		return -errno;
	r = track_watch_add(t, &t->evict_watch, EPOLLIN);
	if (r == 0)
		r = track_watch_add(t, &t->evict_timer, EPOLLIN);
	/* A killed daemon may have left too much. */
	evict_again(t, 0);
	return r;
}

void evict_stop(struct track *t)
{
	evict_forget(t);
	track_watch_remove(t, &t->evict_watch);
	track_watch_remove(t, &t->evict_timer);
}

/* One turn. Pages that left, or -errno: of its pages none can go now. */
static int64_t evict_turn(struct track *t, struct capped_turn *turn)
{
	struct capped *c = t->config.capped;
	char why[EVICT_WHY_SIZE] = "";
	struct evict *e = NULL;
	struct fs_file file;
	uint64_t pages = 0, last;
	int r;

	capped_turn_take(c, turn);
	if (turn->nr == 0)
		return -ENODATA;
	r = fs_file_by_handle(t->config.fs, &turn->file->handle, &file);
	/* fallocate(2) gives pages behind the end too. */
	last = turn->pages[turn->nr - 1].page + 1;
	if (r == 0 && file.size < last << WPFS_PAGE_SHIFT)
		file.size = last << WPFS_PAGE_SHIFT;
	if (r == 0)
		r = evict_ready(t, &file, false, &e);
	if (r < 0) {
		capped_turn_back(c, turn);
		log_debug("file %llu stays for now: %s", (unsigned long long)turn->file->ino,
			  e && e->why[0] ? e->why : log_errstr(r));
		return r;
	}
	r = capped_turn_run(c, turn, e->maps, e->nr, &pages, why, sizeof(why));
	if (r < 0) {
		evict_unsee(e);
		log_debug("file %llu: %s", (unsigned long long)turn->file->ino, why);
	}
	return pages ? (int64_t)pages : r;
}

/* Nothing that is known can leave: is there more? */
static bool evict_find(struct capped *c)
{
	uint64_t resident = capped_resident(c), low = capped_low(c);

	return resident > low && capped_find(c, (resident - low) >> WPFS_PAGE_SHIFT);
}

/* ---- the other way ---- */

/* Has others leave until so many bytes more may be in memory. -EFBIG: they cannot. */
static int evict_others(struct track *t, uint64_t bytes)
{
	struct capped *c = t->config.capped;
	uint64_t since = now_ms();

	if (!t->evict_turn)
		t->evict_turn = calloc(1, sizeof(*t->evict_turn));
	if (!t->evict_turn)
		return -ENOMEM;
	capped_learn_unseen(c);
	while (capped_resident(c) + bytes > capped_cap(c)) {
		int64_t n = evict_turn(t, t->evict_turn);

		if (n > 0) {
			since = now_ms();
			continue;
		}
		if (now_ms() - since > STUCK_MS || (n == -ENODATA && !evict_find(c)))
			return -EFBIG;
		capped_nap();
	}
	return 0;
}

int evict_load(struct track *t, uint64_t ino, enum capped_hold how, uint64_t *loaded)
{
	struct capped *c = t->config.capped;
	uint64_t left;
	int r = capped_hold(c, ino, how);

	if (r <= 0)
		return r;
	r = 0;
	while (r == 0 && (left = capped_nr_spilled(c, ino) << WPFS_PAGE_SHIFT)) {
		r = evict_others(t, left < LOAD_BYTES ? left : LOAD_BYTES);
		if (r == 0 || (r == -EFBIG && how == CAPPED_HOLD_MUST))
			r = capped_load_some(c, ino, LOAD_BYTES >> WPFS_PAGE_SHIFT, loaded);
	}
	capped_unhold(c, ino);
	return r;
}

/* A round in which nothing left; `tried`: something was to. When is the next one? */
static void evict_in_vain(struct track *t, bool tried)
{
	struct capped *c = t->config.capped;
	const uint64_t now = now_ms();

	if (now - t->evict_since_ms > STUCK_MS) {
		if (capped_is_held_up(c, READ_MS)) {
			t->evict_held_up = true;
		} else if (t->evict_held_up) {
			t->evict_held_up = false; /* and has its time from now on */
			t->evict_since_ms = now;
		} else if (tried) {
			capped_set_stuck(c, true);
		}
	}
	if (!tried && !t->evict_held_up) { /* all of it is new or in use */
		evict_again(t, 0);
		return;
	}
	t->evict_pause_ms = t->evict_pause_ms ? t->evict_pause_ms * 2 : PAUSE_MS;
	if (t->evict_pause_ms > PAUSE_MAX_MS)
		t->evict_pause_ms = PAUSE_MAX_MS;
	evict_again(t, t->evict_pause_ms);
}

void evict_round(struct track *t)
{
	struct capped *c = t->config.capped;
	struct capped_turn *turn = t->evict_turn;
	uint64_t begin = now_ms(), count, done = 0;
	unsigned vain = 0;

	if (read(t->evict_watch.fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_err("track: eventfd: %s", log_errstr(errno));
	if (read(t->evict_timer.fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_err("track: timerfd: %s", log_errstr(errno));
	if (!turn)
		turn = t->evict_turn = calloc(1, sizeof(*turn));
	capped_evict_asked(c);
	evict_pressure_now(t);
	capped_learn_unseen(c);
	while (turn && vain < 8 && capped_resident(c) > capped_low(c) &&
	       now_ms() - begin < ROUND_MS) {
		int64_t n = evict_turn(t, turn);

		if (n > 0)
			done += (uint64_t)n;
		else if (n < 0 && (n != -ENODATA || !evict_find(c)))
			vain++;
		if (n == -ENODATA && vain)
			break;
	}
	/* What is known may all be pinned, and what could leave not be known. */
	if (!done && vain && evict_find(c)) {
		evict_again(t, 0);
		return;
	}
	if (done || capped_resident(c) <= capped_low(c)) {
		t->evict_since_ms = t->evict_pause_ms = 0;
		t->evict_held_up = false;
		capped_set_stuck(c, false);
		if (capped_resident(c) > capped_low(c))
			evict_again(t, 0);
		return;
	}
	if (t->evict_since_ms == 0)
		t->evict_since_ms = begin;
	evict_in_vain(t, vain > 0);
}
