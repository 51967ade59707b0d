/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests that may wait long for a disk: an fsync, an open or a change of a file whose contents
 * are in the store; and for the track thread, which commits: a statfs, what drops contents. There
 * are only so many FUSE threads, and if all of them waited nobody could as much as look at a name.
 * So only some of them may; more requests of this kind are done by threads of their own, made when
 * they are needed, and when there are enough of these they queue.
 *
 * Not all of them always: to hand a request over takes longer than many an fsync.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/log.h"
#include "base/thread.h"
#include "fs/priv.h"

#define HERE_MAX    (FS_THREADS / 4)
#define THREADS_MAX 64
#define IDLE_S	    10

struct fs_wait_request {
	struct fs_wait_request *prev, *next;
	fuse_req_t req;
	struct fs_wait wait;
	fs_wait_fn fn;
};

void fs_waits_init(struct fs *fs)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&fs->waits.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&fs->waits.more, &attr);
	pthread_cond_init(&fs->waits.fewer, &attr);
	pthread_condattr_destroy(&attr);
}

/* The next request, with the lock held; NULL: there was none for a while, or there will be none. */
static struct fs_wait_request *waits_next(struct fs_waits *waits)
{
	struct fs_wait_request *first;
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_S;
	waits->idle++;
	while (!waits->queue && !waits->over && !r)
		r = pthread_cond_timedwait(&waits->more, &waits->lock, &until);
	waits->idle--;
	first = waits->queue;
	if (first) {
		DL_DELETE(waits->queue, first);
		waits->queued--;
	}
	return first;
}

static void *waits_thread(void *arg)
{
	struct fs *fs = arg;
	struct fs_wait_request *one;

	thread_anywhere(0);
	pthread_setname_np(pthread_self(), "wpfs-waits");
	pthread_mutex_lock(&fs->waits.lock);
	while ((one = waits_next(&fs->waits))) {
		pthread_mutex_unlock(&fs->waits.lock);
		one->fn(one->req, &one->wait);
		free(one);
		pthread_mutex_lock(&fs->waits.lock);
	}
	fs->waits.threads--;
	pthread_cond_broadcast(&fs->waits.fewer);
	pthread_mutex_unlock(&fs->waits.lock);
	return NULL;
}

/* With the lock held. True: somebody is going to take one more from the queue. */
static bool waits_have_thread(struct fs *fs)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	if (fs->waits.queued < fs->waits.idle || fs->waits.threads == THREADS_MAX)
		return true;
	fs_request_may_wait(); /* a new thread begins as this one, which may be kept somewhere */
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, waits_thread, fs);
	pthread_attr_destroy(&attr);
	fs->waits.threads += r == 0;
	return fs->waits.threads > 0;
}

static bool waits_hand_over(struct fs *fs, fuse_req_t req, const struct fs_wait *wait,
			    fs_wait_fn fn)
{
	struct fs_wait_request *one = calloc(1, sizeof(*one));
	bool handed;

	if (!one)
		return false;
	*one = (struct fs_wait_request){.req = req, .wait = *wait, .fn = fn};
	handed = waits_have_thread(fs);
	if (handed) {
		DL_APPEND(fs->waits.queue, one);
		fs->waits.queued++;
		pthread_cond_signal(&fs->waits.more);
	} else {
		free(one);
	}
	return handed;
}

void fs_wait_in(fuse_req_t req, const struct fs_wait *wait, fs_wait_fn fn)
{
	struct fs_wait own = *wait;
	struct fs *fs = fs_of(req);
	bool handed;

	pthread_mutex_lock(&fs->waits.lock);
	/* With io_uring the entry of a request belongs to the thread that answers it. */
	handed = !fs->uring && fs->waits.here >= HERE_MAX && waits_hand_over(fs, req, wait, fn);
	fs->waits.here += !handed;
	pthread_mutex_unlock(&fs->waits.lock);
	if (handed)
		return;
	fn(req, &own);
	pthread_mutex_lock(&fs->waits.lock);
	fs->waits.here--;
	pthread_mutex_unlock(&fs->waits.lock);
}

void fs_waits_end(struct fs *fs)
{
	pthread_mutex_lock(&fs->waits.lock);
	fs->waits.over = true;
	pthread_cond_broadcast(&fs->waits.more);
	while (fs->waits.threads)
		pthread_cond_wait(&fs->waits.fewer, &fs->waits.lock);
	pthread_mutex_unlock(&fs->waits.lock);
}

void fs_waits_free(struct fs *fs)
{
	fs_waits_end(fs);
	pthread_cond_destroy(&fs->waits.more);
	pthread_cond_destroy(&fs->waits.fewer);
	pthread_mutex_destroy(&fs->waits.lock);
}
