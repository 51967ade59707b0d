/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One thread reads requests and answers them itself, as long as requests come one after the other:
 * program and thread then stay together on one processor. If all threads waited in read(2) the
 * kernel would wake another one each time, the one that has slept longest, on another processor,
 * which sleeps; that takes twice as long as the request. The others wait for one of these:
 *
 * - a request is about to wait, or to take long (fs_request_may_wait): one more thread reads
 * - requests pile up: one more reads, up to one for each processor; it stops when they do not
 * - a request that was thought to be short does not end: another thread, the guard, looks once in a
 *   millisecond as long as there are requests, and then reads in its place. Beside a program that
 *   has the machine for itself it looks once in eight: while it runs the kernel may take the
 * program away from its reader
 *
 * A thread is kept on a program's processor (near.h) only as long as the guard sees it serve
 * requests: while it waits for one, or is long at one, others there could keep it from running.
 *
 * Nobody wakes up on a mount that is not used.
 *
 * Not chosen: to look for the next request for some time before sleeping. The program is waked on
 * the other processor then, which sleeps: three times as slow as one after the other on one.
 */
#include "fs/loop.h"

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "fs/fs.h"
#include "fs/near.h"

#define LOOK_NS	    1000000
#define SLEPT_NS    10000   /* a read(2) that took longer has waited for its request */
#define CALM_NS	    8000000 /* until the next look when a reader yields and gets on */
#define QUIET_LOOKS 20	    /* then the guard sleeps */
#define IDLE_LOOKS  3	    /* then a reader is not kept any more */
#define LOOK_EVERY  4	    /* requests: one that waits is looked for */
#define PILED_UP    4	    /* looks in a row that found one */
#define MAX_EMPTY   4	    /* requests after each of which none waited: a reader too many */

/* Moves: FOLLOWS -> READS <-> SERVES -> AWAY -> FOLLOWS; READS -> FOLLOWS. */
enum role {
	FOLLOWS, /* waits to be a reader, or has not begun */
	READS,	 /* a reader that waits for a request */
	SERVES,	 /* a reader that serves one and goes on reading */
	AWAY,	 /* serves one and is no reader any more */
};

struct worker {
	struct loop *loop;
	pthread_t thread;
	_Atomic enum role role; /* SERVES -> AWAY: by itself or the guard; others by itself */
	_Atomic unsigned served;
	unsigned seen;	       /* `served` when the guard looked; loop.lock, like the next */
	unsigned idle;	       /* looks in a row that saw it wait for a request */
	unsigned piled, empty; /* requests in a row; its own */
	struct near near;      /* its own, but to let it go */
	bool slept;	       /* until the request came; its own, like the next */
	struct fuse_buf buf;
};

struct loop {
	struct fuse_session *session; /* constant, like the next four */
	struct fs_loop_calls calls;
	unsigned max_workers, max_readers;
	bool (*alone)(void);	 /* as near.h has it */
	pthread_mutex_t lock;	 /* innermost; the rest, but what is atomic */
	pthread_cond_t spare;	 /* followers but the guard: a reader is wanted, or a guard */
	pthread_cond_t guarding; /* the guard, on CLOCK_MONOTONIC: a reader, or to look */
	pthread_cond_t ended;
	struct worker *workers;
	unsigned nr, followers;
	_Atomic unsigned readers; /* changed with the lock held */
	unsigned wanted;	  /* to become readers: with `readers` at least 1 until the end */
	struct worker *_Atomic guard; /* a follower, or NULL; changed with the lock held */
	unsigned quiet;		      /* looks in a row that saw no request */
	bool calm;		      /* the last look saw a reader that yields, and gets on */
	_Atomic bool lacks;   /* one more worker could not be started; set with the lock held */
	_Atomic bool watched; /* the guard looks */
	_Atomic bool over;    /* set with the lock held */
	int error;
};

static __thread struct worker *this_worker;

static void *worker_main(void *arg);

/* With the lock held, outside of requests: the new one has the credentials of this thread. */
static int worker_start(struct loop *loop)
{
	struct worker *w = &loop->workers[loop->nr];
	int r;

	if (loop->nr == loop->max_workers)
		return 0;
	w->loop = loop;
	r = -pthread_create(&w->thread, NULL, worker_main, w);
	loop->nr += r == 0;
	return r;
}

/* With the lock held: one more follower is to be a reader. */
static void reader_want(struct loop *loop)
{
	loop->wanted++;
	if (loop->followers > (loop->guard ? 1 : 0))
		pthread_cond_signal(&loop->spare);
	else
		pthread_cond_signal(&loop->guarding);
}

/* With the lock held: one less is. */
static void reader_leave(struct loop *loop)
{
	loop->readers--;
	if (loop->readers + loop->wanted == 0)
		reader_want(loop);
}

static bool serves_to_away(struct worker *w)
{
	enum role serves = SERVES;

	return atomic_compare_exchange_strong(&w->role, &serves, AWAY);
}

void fs_request_may_wait(void)
{
	struct worker *w = this_worker;

	if (!w)
		return;
	near_leave(&w->near);
	if (!serves_to_away(w)) /* the guard was first */
		return;
	pthread_mutex_lock(&w->loop->lock);
	reader_leave(w->loop);
	pthread_mutex_unlock(&w->loop->lock);
}

static bool request_waits(const struct loop *loop)
{
	struct pollfd fd = {.fd = loop->calls.fd, .events = POLLIN};

	return poll(&fd, 1, 0) > 0 && (fd.revents & POLLIN);
}

/* ---- the guard: all with the lock held ---- */

/* What a worker is at. */
enum seen { IDLE, BUSY, STUCK };

/* STUCK: at the same request as at the last look. */
static enum seen worker_look(struct worker *w)
{
	unsigned served = atomic_load(&w->served);
	bool old = served == w->seen;

	w->seen = served;
	if (atomic_load(&w->role) == SERVES)
		return old ? STUCK : BUSY;
	return old ? IDLE : BUSY;
}

static void workers_let_go(struct loop *loop, enum role role)
{
	for (unsigned i = 0; i < loop->nr; i++) {
		if (atomic_load(&loop->workers[i].role) == role)
			near_let_go(&loop->workers[i].near, false);
	}
}

/* With a request that it has not said it serves, it may have been kept from running there. */
static bool is_idle_for_long(struct worker *w, enum seen seen)
{
	w->idle = seen == IDLE ? w->idle + 1 : 0;
	return w->idle >= IDLE_LOOKS && atomic_load(&w->role) == READS;
}

/* It does not get on: at a request, or to the one that waits for it. */
static bool is_starved(const struct worker *w, enum seen seen)
{
	return near_is_kept(&w->near) &&
	       (seen == STUCK ||
		(seen == IDLE && atomic_load(&w->role) == READS && request_waits(w->loop)));
}

/* Is there any request? Who is at the same one as at the last look reads no more. */
static bool guard_look(struct loop *loop)
{
	bool any = false;

	loop->calm = false;
	for (unsigned i = 0; i < loop->nr; i++) {
		struct worker *w = &loop->workers[i];
		enum seen seen = worker_look(w);
		bool starved = is_starved(w, seen);

		any |= seen != IDLE || starved;
		loop->calm |= seen == BUSY && near_yields(&w->near);
		if (starved) /* it may be that it only was kept from running */
			near_let_go(&w->near, true);
		else if (seen == STUCK && serves_to_away(w))
			reader_leave(loop);
		else if (is_idle_for_long(w, seen))
			near_let_go(&w->near, false);
	}
	workers_let_go(loop, AWAY);
	return any;
}

static void guard_sleep(struct loop *loop)
{
	loop->quiet = 0;
	atomic_store(&loop->watched, false);
	if (guard_look(loop))
		atomic_store(&loop->watched, true);
	else
		workers_let_go(loop, READS);
}

/*
 * With the lock held. A reader says that it serves and then asks whether it is watched, the guard
 * says that nobody is and then looks: so one of them sees the other.
 */
static void guard_wait(struct loop *loop)
{
	struct timespec until;

	if (!atomic_load(&loop->watched)) {
		pthread_cond_wait(&loop->guarding, &loop->lock);
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += loop->calm ? CALM_NS : LOOK_NS;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	if (pthread_cond_timedwait(&loop->guarding, &loop->lock, &until) != ETIMEDOUT)
		return;
	loop->quiet = guard_look(loop) ? 0 : loop->quiet + 1;
	if (loop->quiet == QUIET_LOOKS)
		guard_sleep(loop);
}

/* This and what follows take the lock that the guard needs: no thread that is kept may have it. */
static void loop_watch(struct worker *w)
{
	struct loop *loop = w->loop;

	near_leave(&w->near);
	pthread_mutex_lock(&loop->lock);
	atomic_store(&loop->watched, true);
	pthread_cond_signal(&loop->guarding);
	pthread_mutex_unlock(&loop->lock);
}

/* ---- readers ---- */

/* 0: not known here. */
static pid_t caller_of(const struct worker *w)
{
	return (pid_t)((const struct fuse_in_header *)w->buf.mem)->pid;
}

/* Has the request no caller? Then its header has no number either, wherever that one is. */
static bool is_nobodys(const struct worker *w)
{
	switch (((const struct fuse_in_header *)w->buf.mem)->opcode) {
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		return true;
	default:
		return false;
	}
}

/* With a request received: if others have waited for some time now one more reads them. */
static void call_for_help(struct worker *w)
{
	struct loop *loop = w->loop;

	/*
	 * One that yields is alone with its program: who else came would end that first, if it has
	 * a number here (in a pid namespace beside ours nobody has).
	 */
	if (near_yields(&w->near) && (caller_of(w) || is_nobodys(w))) {
		w->piled = 0;
		return;
	}
	if (atomic_load(&loop->readers) >= loop->max_readers ||
	    atomic_load(&w->served) % LOOK_EVERY)
		return;
	w->piled = request_waits(loop) ? w->piled + 1 : 0;
	if (w->piled < PILED_UP)
		return;
	w->piled = 0;
	near_leave(&w->near);
	pthread_mutex_lock(&loop->lock);
	if (loop->followers && loop->readers + loop->wanted < loop->max_readers)
		reader_want(loop);
	pthread_mutex_unlock(&loop->lock);
}

/* The request is answered: true when it reads the next one. */
static bool goes_on(struct worker *w)
{
	struct loop *loop = w->loop;
	enum role serves = SERVES;
	bool leaves;

	if (!atomic_compare_exchange_strong(&w->role, &serves, READS))
		return false;
	if (atomic_load(&loop->readers) == 1)
		return true;
	w->empty = request_waits(loop) ? 0 : w->empty + 1;
	if (w->empty < MAX_EMPTY)
		return true;
	w->empty = 0;
	near_leave(&w->near);
	pthread_mutex_lock(&loop->lock);
	leaves = loop->readers > 1;
	loop->readers -= leaves;
	pthread_mutex_unlock(&loop->lock);
	return !leaves;
}

static void loop_end(struct loop *loop, int r)
{
	pthread_mutex_lock(&loop->lock);
	atomic_store(&loop->over, true);
	if (r)
		loop->error = r;
	pthread_cond_broadcast(&loop->spare);
	pthread_cond_broadcast(&loop->guarding);
	pthread_cond_signal(&loop->ended);
	pthread_mutex_unlock(&loop->lock);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* True with a request received; false: the session is over. */
static bool worker_receive(struct worker *w)
{
	const bool timed = near_yields(&w->near);
	const int64_t began = timed ? now_ns() : 0;
	struct loop *loop = w->loop;
	int r;

	do {
		r = loop->calls.receive(loop->session, &w->buf);
		if (r == -ENOMEM) /* there is no room for a buffer just now */
			nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	} while ((r == -EINTR || r == -ENOMEM) && !atomic_load(&loop->over));
	w->slept = timed && now_ns() - began > SLEPT_NS;
	if (r > 0)
		return true;
	near_leave(&w->near);
	loop_end(loop, r == -EINTR ? 0 : r);
	return false;
}

/* There is no other one that could read, or be the guard. */
static void worker_start_again(struct worker *w)
{
	struct loop *loop = w->loop;

	near_leave(&w->near);
	pthread_mutex_lock(&loop->lock);
	if (atomic_load(&loop->lacks) && !atomic_load(&loop->over))
		atomic_store(&loop->lacks, worker_start(loop) != 0);
	pthread_mutex_unlock(&loop->lock);
}

/* False: the session is over. */
static bool worker_read(struct worker *w)
{
	struct loop *loop = w->loop;

	do {
		if (!worker_receive(w))
			return false;
		atomic_fetch_add(&w->served, 1);
		atomic_store(&w->role, SERVES);
		if (!atomic_load(&loop->watched))
			loop_watch(w);
		if (atomic_load(&loop->lacks))
			worker_start_again(w);
		call_for_help(w);
		if (atomic_load(&loop->readers) == 1 && atomic_load(&loop->guard))
			near_request(&w->near, caller_of(w), w->slept);
		else
			near_leave(&w->near);
		loop->calls.process(loop->session, &w->buf);
	} while (goes_on(w));
	return true;
}

/* Waits until it is to be a reader; false: the session is over. */
static bool worker_follow(struct worker *w)
{
	struct loop *loop = w->loop;
	bool over;

	near_leave(&w->near);
	pthread_mutex_lock(&loop->lock);
	atomic_store(&w->role, FOLLOWS);
	loop->followers++;
	while (!atomic_load(&loop->over) && !loop->wanted) {
		if (!loop->guard)
			loop->guard = w;
		if (loop->guard == w)
			guard_wait(loop);
		else
			pthread_cond_wait(&loop->spare, &loop->lock);
	}
	loop->followers--;
	if (loop->guard == w) {
		loop->guard = NULL;
		pthread_cond_signal(&loop->spare);
		workers_let_go(loop, READS); /* there may not be another one */
		workers_let_go(loop, SERVES);
	}
	over = atomic_load(&loop->over);
	if (!over) {
		if (--loop->wanted)
			pthread_cond_signal(&loop->guarding);
		loop->readers++;
		atomic_store(&w->role, READS);
		if (!loop->followers)
			atomic_store(&loop->lacks, worker_start(loop) != 0);
	}
	pthread_mutex_unlock(&loop->lock);
	return !over;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	pthread_setname_np(pthread_self(), "wpfs-fuse");
	near_begin(&w->near, w->loop->alone);
	this_worker = w;
	while (worker_follow(w) && worker_read(w))
		;
	this_worker = NULL;
	near_leave(&w->near);
	free(w->buf.mem);
	return NULL;
}

/* ---- the session ---- */

static void on_kick(int signal)
{
}

/* After an error others may wait for a request that does not come. */
static void worker_join(struct worker *w, bool kick)
{
	struct timespec until;

	while (kick) {
		pthread_kill(w->thread, SIGUSR1);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec++;
		if (pthread_timedjoin_np(w->thread, NULL, &until) != ETIMEDOUT)
			return;
	}
	pthread_join(w->thread, NULL);
}

static int loop_init(struct loop *loop)
{
	struct sigaction kick = {.sa_handler = on_kick};
	pthread_condattr_t attr;

	loop->workers = calloc(loop->max_workers, sizeof(*loop->workers));
	if (!loop->workers)
		return -ENOMEM;
	sigaction(SIGUSR1, &kick, NULL);
	pthread_mutex_init(&loop->lock, NULL);
	pthread_cond_init(&loop->spare, NULL);
	pthread_cond_init(&loop->ended, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&loop->guarding, &attr);
	pthread_condattr_destroy(&attr);
	return 0;
}

int fs_loop_run(struct fuse_session *session, const struct fs_loop_calls *calls,
		unsigned max_threads, unsigned max_readers)
{
	struct loop loop = {.session = session,
			    .calls = *calls,
			    .max_workers = max_threads,
			    .max_readers = max_readers,
			    .alone = near_can_yield() ? calls->alone : NULL,
			    .wanted = 1};
	int r = loop_init(&loop);

	if (r)
		return r;
	pthread_mutex_lock(&loop.lock);
	r = worker_start(&loop);
	while (!r && !atomic_load(&loop.over))
		pthread_cond_wait(&loop.ended, &loop.lock);
	pthread_mutex_unlock(&loop.lock);
	for (unsigned i = 0; i < loop.nr; i++)
		worker_join(&loop.workers[i], loop.error != 0);
	free(loop.workers);
	pthread_mutex_destroy(&loop.lock);
	pthread_cond_destroy(&loop.spare);
	pthread_cond_destroy(&loop.guarding);
	pthread_cond_destroy(&loop.ended);
	return r ? r : loop.error;
}

int fs_loop_first(struct fuse_session *session, const struct fs_loop_calls *calls)
{
	struct fuse_buf buf = {.mem = NULL};
	int r;

	do
		r = calls->receive(session, &buf);
	while (r == -EINTR);
	if (r > 0)
		calls->process(session, &buf);
	free(buf.mem);
	return r > 0 ? 1 : r;
}

unsigned fs_loop_processors(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0) /* more than the set has room for */
		return (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	return (unsigned)CPU_COUNT(&set);
}
