/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * msync(MS_SYNC): contents and marks of what is mapped there are durable before it is answered.
 * Contents take a disk's time, which the track thread has not: a thread of its own waits for them.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/log.h"
#include "base/units.h"
#include "fs/store.h"
#include "track/residency.h"
#include "uffd/maps.h"

/* A request that is being seen to. */
struct durable {
	struct track *t;
	uint64_t client;     /* its id: it may be gone by then */
	struct wpfs_hdr hdr; /* of the request */
	int result;
	size_t nr;
	uint64_t inos[];
};

static int durable_answer(struct track *t, void *arg)
{
	const struct durable *d = arg;
	struct request rq = {.t = t, .hdr = &d->hdr};

	DL_SEARCH_SCALAR(t->clients, rq.c, id_nr, d->client);
	if (rq.c && !rq.c->closing)
		request_reply(&rq, d->result, NULL, 0);
	return 0;
}

static void *durable_main(void *arg)
{
	struct durable *d = arg;
	struct track *t = d->t;

	for (size_t i = 0; i < d->nr; i++) {
		int r = fs_store_sync_file(t->config.fs, d->inos[i]);

		if (r < 0 && d->result == 0)
			d->result = r;
	}
	track_call(t, durable_answer, d);
	free(d);
	pthread_mutex_lock(&t->durable_lock);
	t->nr_durable--;
	pthread_cond_broadcast(&t->durable_done);
	pthread_mutex_unlock(&t->durable_lock);
	return NULL;
}

/* The files that the mm maps in the range, each once. */
static void durable_files(struct durable *d, const struct mm *mm, const struct wpfs_range *range)
{
	for (size_t i = 0; i < mm->nr_vmas; i++) {
		const struct mm_vma *vma = &mm->vmas[i];
		bool known = vma->end <= range->addr || vma->start >= range->addr + range->len;

		for (size_t k = 0; k < d->nr && !known; k++)
			known = d->inos[k] == vma->file;
		if (!known)
			d->inos[d->nr++] = vma->file;
	}
}

/* Does `mm` map files of the mount? Their contents are made durable by a thread that answers. */
static int durable_start(struct request *rq, const struct mm *mm)
{
	struct durable *d = calloc(1, sizeof(*d) + mm->nr_vmas * sizeof(d->inos[0]));
	struct track *t = rq->t;
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	if (!d)
		return -ENOMEM;
	d->t = t;
	d->client = rq->c->id_nr;
	d->hdr = *rq->hdr;
	durable_files(d, mm, rq->body);
	pthread_mutex_lock(&t->durable_lock);
	t->nr_durable++;
	pthread_mutex_unlock(&t->durable_lock);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, durable_main, d);
	pthread_attr_destroy(&attr);
	if (r == 0)
		return 0;
	pthread_mutex_lock(&t->durable_lock);
	t->nr_durable--;
	pthread_mutex_unlock(&t->durable_lock);
	free(d);
	return -r;
}

/*
 * Who asks is not tracked (any more): given up after a time-out, or unknown to this daemon. It has
 * no marks; its contents are those of the files that the kernel shows.
 */
static int durable_start_untracked(struct request *rq)
{
	struct track *t = rq->t;
	struct maps_list maps = {0};
	struct mm mm = {0};
	int r = maps_read(rq->c->id.pid, t->devs, t->nr_devs, &maps);

	if (r == 0)
		mm.vmas = calloc(maps.nr + 1, sizeof(*mm.vmas));
	if (r == 0 && !mm.vmas)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < maps.nr; i++) {
		const struct maps_vma *m = &maps.vmas[i];

		if (m->shared)
			mm.vmas[mm.nr_vmas++] = (struct mm_vma){
				.start = m->start, .end = m->end, .file = m->ino, .dev = m->dev};
	}
	if (r == 0) {
		residency_translate(t, mm.vmas, mm.nr_vmas);
		r = mm.nr_vmas ? durable_start(rq, &mm) : -ESRCH;
	}
	free(mm.vmas);
	maps_free(&maps);
	return r;
}

void durable_msync(struct request *rq)
{
	/* On a connection of its own it says who it is by that. */
	struct tmm *tm = rq->c->ctl ? self_find(rq) : rq->c->tmm;
	int r = 0;

	if (tm && tm->state == TMM_NEW)
		r = tmm_enlist(rq->t, tm);
	if (tm && r == 0)
		r = tmm_harvest(rq->t, tm);
	if (tm && r == 0)
		r = persist_mm(rq->t, tm);
	if (tm && r == 0)
		r = aside_retry(rq->t); /* MS_SYNC asks for what outlives the machine */
	if (r == 0 && rq->t->stopping && !tm)
		r = -ESRCH;
	if (r == 0 && !rq->t->stopping) {
		r = tm ? durable_start(rq, &tm->mm) : durable_start_untracked(rq);
		if (r == 0)
			return; /* answered by its thread */
	}
	request_reply(rq, r, NULL, 0);
}

static int durable_no_more(struct track *t, void *arg)
{
	t->stopping = true;
	return 0;
}

void durable_wait(struct track *t)
{
	track_call(t, durable_no_more, NULL);
	pthread_mutex_lock(&t->durable_lock);
	while (t->nr_durable)
		pthread_cond_wait(&t->durable_done, &t->durable_lock);
	pthread_mutex_unlock(&t->durable_lock);
}
