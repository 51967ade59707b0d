/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The track thread: one epoll loop that owns every mm and every client, so that none of it needs
 * a lock. FUSE threads and the main thread put calls into a queue and wait for their results.
 *
 * Not chosen: a lock per mm with handlers on several threads. An mm's kernel state can only be
 * changed by one ioctl at a time anyway, and the answers of a report must be one moment's.
 */
#include "track/track.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/db.h"
#include "track/capped_test.h"
#include "track/evict.h"
#include "track/residency.h"
#include "track/written.h"

/* A call from another thread; lives on its stack until done. */
struct track_call {
	int (*fn)(struct track *t, void *arg);
	void *arg;
	int result;
	bool done; /* guarded by queue_lock */
	pthread_cond_t cond;
	struct track_call *prev, *next;
};

int track_call(struct track *t, int (*fn)(struct track *, void *), void *arg)
{
	struct track_call call = {.fn = fn, .arg = arg, .cond = PTHREAD_COND_INITIALIZER};
	const uint64_t one = 1;

	pthread_mutex_lock(&t->queue_lock);
	DL_APPEND(t->queue, &call);
	if (write(t->queue_watch.fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_err("track: cannot wake the track thread: %s", log_errstr(errno));
	while (!call.done)
		pthread_cond_wait(&call.cond, &t->queue_lock);
	pthread_mutex_unlock(&t->queue_lock);
	pthread_cond_destroy(&call.cond);
	return call.result;
}

static void track_run_queue(struct track *t)
{
	uint64_t count;

	if (read(t->queue_watch.fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_err("track: eventfd: %s", log_errstr(errno));
	pthread_mutex_lock(&t->queue_lock);
	while (t->queue) {
		struct track_call *call = t->queue;

		DL_DELETE(t->queue, call);
		pthread_mutex_unlock(&t->queue_lock);
		call->result = call->fn(t, call->arg);
		pthread_mutex_lock(&t->queue_lock);
		call->done = true;
		pthread_cond_signal(&call->cond);
	}
	pthread_mutex_unlock(&t->queue_lock);
}

static int track_epoll_of(const struct track *t, const struct watch *watch)
{
	return watch->kind == WATCH_PROGRAM ? t->deaths_watch.fd : t->epoll_fd;
}

int track_watch_add(struct track *t, struct watch *watch, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = watch};

	if (epoll_ctl(track_epoll_of(t, watch), EPOLL_CTL_ADD, watch->fd, &ev) < 0)
		return -errno;
	if (watch->kind == WATCH_PROGRAM)
		atomic_fetch_add(&t->programs, 1);
	return 0;
}

void track_watch_remove(struct track *t, struct watch *watch)
{
	if (watch->fd < 0)
		return;
	if (epoll_ctl(track_epoll_of(t, watch), EPOLL_CTL_DEL, watch->fd, NULL) == 0 &&
	    watch->kind == WATCH_PROGRAM)
		atomic_fetch_sub(&t->programs, 1);
	close_fd(&watch->fd);
}

static void track_tick(struct track *t)
{
	uint64_t count;

	if (read(t->timer_watch.fd, &count, sizeof(count)) < 0)
		return;
	life_sweep(t);
	written_update(t);
	residency_sweep(t);
	aside_retry(t);
	events_evict(t);
	t->ticks++;
	if (t->config.harvest_s && t->ticks >= t->config.harvest_s) {
		t->ticks = 0;
		life_sync_all(t);
	}
}

static void *track_main(void *arg)
{
	struct track *t = arg;

	while (!t->stop) {
		struct epoll_event ev[64];
		bool queue = false, evict = false;
		int n = epoll_wait(t->epoll_fd, ev, 64, -1);

		/* Deaths first: an answer given in this round must know of them. */
		if (n > 0)
			life_reap(t);
		for (int i = 0; i < n; i++) {
			struct watch *w = ev[i].data.ptr;

			switch (w->kind) {
			case WATCH_QUEUE:
				queue = true;
				break;
			case WATCH_TIMER:
				track_tick(t);
				break;
			case WATCH_OWN:
				own_look(t);
				break;
			case WATCH_LISTEN:
				client_accept(t);
				break;
			case WATCH_CLIENT:
				client_event(t, (struct client *)w, ev[i].events);
				break;
			case WATCH_WRITTEN:
				written_update(t);
				break;
			case WATCH_EVICT:
				evict = true;
				break;
			case WATCH_DEATHS:
			case WATCH_PROGRAM:
				break;
			}
		}
		client_reap(t);
		if (queue)
			track_run_queue(t);
		if (evict && !t->stop)
			evict_round(t);
		if (t->events)
			events_send(t);
	}
	return NULL;
}

static void track_free(struct track *t)
{
	evict_stop(t);
	free(t->evict_turn);
	while (t->clients)
		client_free(t, t->clients);
	while (t->tmms)
		tmm_free(t, t->tmms);
	files_free(t);
	written_close(t);
	aside_close(t);
	track_watch_remove(t, &t->deaths_watch);
	track_watch_remove(t, &t->queue_watch);
	track_watch_remove(t, &t->timer_watch);
	track_watch_remove(t, &t->own_watch);
	track_watch_remove(t, &t->listen_watch);
	close_fd(&t->epoll_fd);
	close_fd(&t->busy_fd);
	close_fd(&t->devuffd);
	close_fd(&t->life_pipe[0]);
	close_fd(&t->life_pipe[1]);
	free((char *)t->config.id);
	free((char *)t->config.lower_id);
	free((char *)t->config.store);
	free((char *)t->config.mountpoint);
	free((char *)t->config.aside);
	pthread_mutex_destroy(&t->queue_lock);
	pthread_mutex_destroy(&t->durable_lock);
	pthread_mutex_destroy(&t->drops_lock);
	pthread_cond_destroy(&t->durable_done);
	free(t);
}

static int track_open_fds(struct track *t, int listen_fd)
{
	const struct itimerspec second = {.it_interval.tv_sec = 1, .it_value.tv_sec = 1};
	int r;

	t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	t->deaths_watch.fd = epoll_create1(EPOLL_CLOEXEC);
	t->queue_watch.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	t->timer_watch.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	t->own_watch.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	t->devuffd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (t->epoll_fd < 0 || t->deaths_watch.fd < 0 || t->queue_watch.fd < 0 ||
	    t->timer_watch.fd < 0 || t->own_watch.fd < 0 || t->devuffd < 0)
		return -errno;
	if (pipe2(t->life_pipe, O_CLOEXEC) < 0 ||
	    timerfd_settime(t->timer_watch.fd, 0, &second, NULL) < 0)
		return -errno;
	r = track_watch_add(t, &t->deaths_watch, EPOLLIN);
	if (r == 0)
		r = track_watch_add(t, &t->queue_watch, EPOLLIN);
	if (r == 0)
		r = track_watch_add(t, &t->timer_watch, EPOLLIN);
	if (r == 0)
		r = track_watch_add(t, &t->own_watch, EPOLLIN);
	if (r < 0)
		return r;
	t->listen_watch.fd = listen_fd;
	return track_watch_add(t, &t->listen_watch, EPOLLIN);
}

static int track_copy_config(struct track *t, const struct track_config *config)
{
	t->config = *config;
	t->config.id = strdup(config->id);
	t->config.lower_id = strdup(config->lower_id);
	t->config.store = strdup(config->store);
	t->config.mountpoint = strdup(config->mountpoint);
	t->config.aside = strdup(config->aside);
	if (!t->config.id || !t->config.lower_id || !t->config.store || !t->config.mountpoint ||
	    !t->config.aside)
		return -ENOMEM;
	return 0;
}

int track_start(const struct track_config *config, struct track **track)
{
	struct track *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	capped_test_init();
	t->busy_fd = t->epoll_fd = t->devuffd = t->life_pipe[0] = t->life_pipe[1] = -1;
	t->deaths_watch = (struct watch){WATCH_DEATHS, -1};
	t->queue_watch = (struct watch){WATCH_QUEUE, -1};
	t->timer_watch = (struct watch){WATCH_TIMER, -1};
	t->own_watch = (struct watch){WATCH_OWN, -1};
	t->listen_watch = (struct watch){WATCH_LISTEN, -1};
	t->written_watch = (struct watch){WATCH_WRITTEN, -1};
	t->evict_watch = t->evict_timer = (struct watch){WATCH_EVICT, -1};
	t->next_mm = 1;
	pthread_mutex_init(&t->queue_lock, NULL);
	pthread_mutex_init(&t->durable_lock, NULL);
	pthread_mutex_init(&t->drops_lock, NULL);
	pthread_cond_init(&t->durable_done, NULL);
	r = track_copy_config(t, config);
	if (r == 0)
		r = track_open_fds(t, config->listen_fd);
	if (r == 0)
		r = proc_boot_id(t->boot_id);
	if (r == 0)
		r = persist_load(t);
	if (r == 0)
		r = written_open(t);
	if (r == 0)
		r = written_begin(t);
	if (r == 0)
		r = life_resume(t);
	if (r == 0)
		r = aside_resumed(t);
	if (r == 0)
		r = evict_start(t);
	if (r == 0)
		r = -pthread_create(&t->thread, NULL, track_main, t);
	if (r < 0) {
		track_free(t);
		return r;
	}
	pthread_setname_np(t->thread, "wpfs-track");
	*track = t;
	return 0;
}

static int track_settle_fn(struct track *t, void *arg)
{
	life_sweep(t);
	residency_busy(t, true);
	residency_let_go(t);
	return 0;
}

/*
 * One at a time; who comes meanwhile does not wait. statfs(2) asks for this, and so does every
 * program that attaches: hundreds at once would hold all FUSE threads, while the track thread waits
 * for the watcher, which waits for one of them.
 */
void track_settle(struct track *track)
{
	if (!track->config.capped && atomic_load(&track->programs) == 0)
		return; /* nobody to have left */
	if (atomic_flag_test_and_set(&track->settling))
		return;
	track_call(track, track_settle_fn, NULL);
	atomic_flag_clear(&track->settling);
}

static int track_ping_fn(struct track *t, void *arg)
{
	return 0;
}

void track_ping(struct track *track)
{
	track_call(track, track_ping_fn, NULL);
}

static int track_serving_fn(struct track *t, void *arg)
{
	written_serve(t);
	return written_update(t);
}

int track_serving(struct track *track)
{
	return track_call(track, track_serving_fn, NULL);
}

static int track_drop_fn(struct track *t, void *arg)
{
	const struct fs_drop *drop = arg;

	return drops_tell(t, drop->ino, drop->off, drop->len);
}

/* Noted first: who is armed after the look at nr_tmms finds it noted. */
void track_drop_begin(struct track *track, struct fs_drop *drop)
{
	drops_add(track, drop);
	if (!atomic_load(&track->nr_tmms))
		return;
	fs_request_may_wait();
	track_call(track, track_drop_fn, drop);
}

void track_drop_end(struct track *track, struct fs_drop *drop)
{
	drops_remove(track, drop);
}

static int contents_begin_fn(struct track *t, void *arg)
{
	const uint64_t ino = *(uint64_t *)arg;
	struct mm_file *f;
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		f = mm_file_find(&tm->mm, ino);
		if (f && f->unsettled)
			f->settling = true;
	}
	return 0;
}

void track_contents_begin(struct track *track, uint64_t ino)
{
	track_call(track, contents_begin_fn, &ino);
}

static int contents_durable_fn(struct track *t, void *arg)
{
	const uint64_t ino = *(uint64_t *)arg;
	struct mm_file *f;
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		f = mm_file_find(&tm->mm, ino);
		if (f && f->settling)
			persist_settle(t, tm, f);
	}
	return 0;
}

void track_contents_durable(struct track *track, uint64_t ino)
{
	track_call(track, contents_durable_fn, &ino);
}

static int track_sync_file_fn(struct track *t, void *arg)
{
	const uint64_t ino = *(uint64_t *)arg;
	struct tmm *tm;
	int result = 0;

	life_sweep(t);
	DL_FOREACH (t->tmms, tm) {
		int r;

		if (tm->state != TMM_LIVE || !mm_file_find(&tm->mm, ino))
			continue;
		r = life_harvest(t, tm);
		if (r == 0)
			r = persist_mm(t, tm);
		if (r < 0 && result == 0)
			result = r;
	}
	/* Contents must not become durable before what is aside does, or was stored lazily. */
	if (result == 0)
		result = aside_retry(t);
	return result < 0 ? result : db_sync(t->config.db);
}

int track_sync_file(struct track *track, uint64_t ino)
{
	return track_call(track, track_sync_file_fn, &ino);
}

static int track_stop_fn(struct track *t, void *arg)
{
	int r;

	life_sweep(t);
	life_end_all(t);
	t->unmounted = true;
	r = aside_retry(t);
	if (r == 0)
		r = files_refresh(t); /* what nobody has mapped any more may be gone */
	written_end(t);
	events_end(t);
	t->stop = true;
	return r;
}

int track_stop(struct track *track)
{
	int r;

	durable_wait(track);
	r = track_call(track, track_stop_fn, NULL);

	pthread_join(track->thread, NULL);
	track_free(track);
	return r;
}
