/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What wpctl watch is told. One ring of the last events for all who watch, a place in it for each:
 * so nobody who reads slowly costs memory or makes the thread wait. What is overwritten before a
 * client has asked for it is counted for that client, if it was to see it.
 *
 * Not chosen: packets sent as things happen. Those who do not read would need a queue each, and one
 * request with one answer is what this protocol has.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <utlist.h>

#include "base/log.h"
#include "db/report.h"
#include "ipc/record.h"
#include "track/capped_track.h"
#include "track/internal.h"

struct events {
	struct wpfs_rec_event ring[WPFS_WATCH_KEPT];
	uint64_t next;	   /* number of the next event; event n is ring[n % WPFS_WATCH_KEPT] */
	unsigned watching; /* clients */
	struct capped_counts evicted; /* as told so far */
};

static uint64_t events_now(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t events_now_ms(void)
{
	return events_now(CLOCK_MONOTONIC) / 1000000;
}

static bool events_may_see(const struct client *c, const struct wpfs_rec_event *e)
{
	return c->peer.uid == 0 || e->uid == c->peer.uid || e->uid == WPFS_EVENT_ALL;
}

static uint64_t events_oldest(const struct events *ev)
{
	return ev->next > WPFS_WATCH_KEPT ? ev->next - WPFS_WATCH_KEPT : 0;
}

/* The oldest event is about to be overwritten. */
static void events_lose(struct track *t, const struct events *ev)
{
	const uint64_t oldest = events_oldest(ev);
	struct client *c;

	if (ev->next - oldest < WPFS_WATCH_KEPT)
		return;
	DL_FOREACH (t->clients, c) {
		if (!c->events.on || c->events.next > oldest)
			continue;
		c->events.next = oldest + 1;
		c->events.lost += events_may_see(c, &ev->ring[oldest % WPFS_WATCH_KEPT]);
	}
}

static void events_add(struct track *t, const struct wpfs_rec_event *e)
{
	struct events *ev = t->events;
	struct wpfs_rec_event *to = &ev->ring[ev->next % WPFS_WATCH_KEPT];

	events_lose(t, ev);
	*to = *e;
	to->time_ns = events_now(CLOCK_REALTIME);
	ev->next++;
}

void events_mm(struct track *t, const struct tmm *tm, enum wpfs_event kind, bool kept)
{
	struct wpfs_rec_event e = {.kind = kind, .uid = tm->uid, .mm = tm->mm.id};
	struct wpfs_rec_mm count = {0};

	if (!t->events)
		return;
	e.pid = tm->program.pid;
	memcpy(e.name, tm->name, sizeof(e.name));
	memcpy(e.comm, tm->comm, sizeof(e.comm));
	if (kind != WPFS_EVENT_ATTACH && top_count(tm, &count) == 0) {
		e.armed = count.armed;
		e.marked = count.marked;
		e.dirty = count.dirty;
	}
	if (kind == WPFS_EVENT_DETACH) {
		e.flags = kept ? WPFS_EVENT_KEPT : 0;
		e.doubted = tm->mm.conservative;
	}
	events_add(t, &e);
}

/* One event for each uid, so that a user learns of its own programs only. */
void events_commit(struct track *t, struct tmm *const *tmms, size_t nr, bool lazy, int error)
{
	/* Said once; then they are kept aside, and it is tried again and again. */
	if (!t->events || (error && t->db_error))
		return;
	for (size_t i = 0; i < nr; i++) {
		struct wpfs_rec_event e = {.kind = WPFS_EVENT_COMMIT,
					   .uid = tmms[i]->uid,
					   .error = error < 0 ? -error : error,
					   .flags = lazy ? WPFS_EVENT_LAZY : 0};
		bool told = false;

		for (size_t j = 0; j < i && !told; j++)
			told = tmms[j]->uid == e.uid;
		if (told)
			continue;
		for (size_t j = i; j < nr; j++)
			e.programs += tmms[j]->uid == e.uid;
		events_add(t, &e);
	}
}

void events_evict(struct track *t)
{
	struct wpfs_rec_event e = {.kind = WPFS_EVENT_EVICT, .uid = WPFS_EVENT_ALL};
	struct capped_counts now;

	if (!t->events || !t->config.capped)
		return;
	now = capped_counts(t->config.capped);
	e.pages = now.evictions - t->events->evicted.evictions;
	e.zeros = now.zeros - t->events->evicted.zeros;
	t->events->evicted = now;
	if (e.pages)
		events_add(t, &e);
}

/* ---- who watches ---- */

static int events_begin(struct track *t, struct client *c)
{
	if (!t->events) {
		t->events = calloc(1, sizeof(*t->events));
		if (!t->events)
			return -ENOMEM;
		if (t->config.capped)
			t->events->evicted = capped_counts(t->config.capped);
	}
	t->events->watching++;
	c->events.on = true;
	c->events.next = t->events->next;
	return 0;
}

void events_leave(struct track *t, struct client *c)
{
	if (!c->events.on)
		return;
	c->events.on = c->events.waiting = false;
	if (--t->events->watching)
		return;
	free(t->events);
	t->events = NULL;
}

/* Answered by events_send, at the end of this round or a later one. */
void events_watch(struct request *rq)
{
	struct client *c = rq->c;
	int r = c->events.on ? 0 : events_begin(rq->t, c);

	if (r < 0) {
		request_error(rq, r, "out of memory");
		return;
	}
	c->events.waiting = true;
	c->events.seq = rq->hdr->seq;
	c->events.since_ms = events_now_ms();
}

static int events_sink(void *arg, const void *body, size_t len)
{
	struct request *rq = arg;
	struct wpfs_hdr hdr = {.op = WPFS_OP_RECORD, .seq = rq->hdr->seq};

	return ipc_outq_send(&rq->c->out, rq->c->watch.fd, &hdr, body, len, NULL, 0);
}

static void events_answer(struct track *t, struct client *c)
{
	const struct wpfs_hdr hdr = {.op = WPFS_OP_WATCH, .seq = c->events.seq};
	struct wpfs_rec_event lost = {.kind = WPFS_EVENT_LOST, .pages = c->events.lost};
	struct request rq = {.t = t, .c = c, .hdr = &hdr};
	const struct events *ev = t->events;
	struct ipc_records records;
	int r = 0;

	ipc_records_init(&records, events_sink, &rq);
	lost.time_ns = events_now(CLOCK_REALTIME);
	if (lost.pages)
		r = ipc_records_add(&records, WPFS_REC_EVENT, &lost, sizeof(lost));
	for (; r == 0 && c->events.next < ev->next; c->events.next++) {
		const struct wpfs_rec_event *e = &ev->ring[c->events.next % WPFS_WATCH_KEPT];

		if (events_may_see(c, e))
			r = ipc_records_add(&records, WPFS_REC_EVENT, e, sizeof(*e));
	}
	if (r == 0)
		r = ipc_records_flush(&records);
	c->events.waiting = false;
	c->events.lost = 0;
	if (r < 0)
		c->closing = true; /* freed in the next round, which its end brings */
	else
		request_reply(&rq, 0, NULL, 0);
}

/* Passes over what the client may not see. True: there is something for it. */
static bool events_has_some(const struct events *ev, struct client *c)
{
	while (c->events.next < ev->next &&
	       !events_may_see(c, &ev->ring[c->events.next % WPFS_WATCH_KEPT]))
		c->events.next++;
	return c->events.lost || c->events.next < ev->next;
}

void events_send(struct track *t)
{
	const uint64_t now = events_now_ms();
	struct client *c;

	DL_FOREACH (t->clients, c) {
		if (c->events.waiting && !c->closing &&
		    (events_has_some(t->events, c) ||
		     now - c->events.since_ms >= WPFS_WATCH_WAIT_S * 1000))
			events_answer(t, c);
	}
}

void events_end(struct track *t)
{
	const struct wpfs_rec_event e = {.kind = WPFS_EVENT_END, .uid = WPFS_EVENT_ALL};
	struct client *c;

	if (!t->events)
		return;
	events_add(t, &e);
	events_send(t);
	DL_FOREACH (t->clients, c)
		events_leave(t, c);
}
