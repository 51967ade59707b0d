/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fault threads, and which of them a message wakes. A uffd is one thread's from the message
 * that woke it until there are no more; its further messages wake nobody. While that thread waits
 * for the store it lends the uffd out: then a message wakes another thread, whose it is from then
 * on.
 *
 * A program that was served often asks for the next page at once. So the thread looks for that a
 * while before it sleeps: to be woken takes longer than to serve. One thread at a time does, only
 * where there are two processors, and the less often the less often it is of use.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_mm.h"

#define RETRY_MS    20	   /* until what waits is looked at unasked */
#define SPIN_NS	    40000  /* as long as a thread takes to be woken and fault again */
#define SLICE_NS    100000 /* the least there is */
#define SPIN_CREDIT 16
#define SPIN_EVERY  32 /* without credit it is tried every so often */

static _Thread_local uint32_t me; /* > 0 in fault threads */

/* ---- whose uffd ---- */

static int epoll_set(struct capped *c, struct capped_mm *mm, int op, uint32_t events)
{
	struct epoll_event ev = {.events = events | EPOLLONESHOT, .data.u64 = mm->id};

	return epoll_ctl(c->epoll_fd, op, mm->uffd, &ev) < 0 ? -errno : 0;
}

int capped_mm_watch(struct capped *c, struct capped_mm *mm)
{
	return epoll_set(c, mm, EPOLL_CTL_ADD, EPOLLIN);
}

bool capped_mm_is_mine(const struct capped_mm *mm)
{
	return mm->thread == me && me;
}

void capped_mm_lend(struct capped *c, struct capped_mm *mm)
{
	if (!capped_mm_is_mine(mm))
		return;
	mm->thread = 0;
	mm->lent = me;
	epoll_set(c, mm, EPOLL_CTL_MOD, EPOLLIN);
}

void capped_mm_reclaim(struct capped *c, struct capped_mm *mm)
{
	if (mm->thread || mm->lent != me || !me)
		return;
	/* Before the program is woken, or its next message would wake another thread. */
	epoll_set(c, mm, EPOLL_CTL_MOD, 0);
	mm->thread = me;
	mm->lent = 0;
}

static bool mm_take(struct capped *c, uint64_t id)
{
	struct capped_mm *mm;
	bool taken;

	pthread_mutex_lock(&c->lock);
	mm = capped_mm_find(c, id);
	taken = mm && !mm->thread; /* else it was reclaimed meanwhile */
	if (taken) {
		mm->thread = me;
		mm->lent = 0;
	}
	pthread_mutex_unlock(&c->lock);
	return taken;
}

static void mm_give(struct capped *c, uint64_t id)
{
	struct capped_mm *mm;

	pthread_mutex_lock(&c->lock);
	mm = capped_mm_find(c, id);
	if (mm && capped_mm_is_mine(mm)) {
		mm->thread = 0;
		epoll_set(c, mm, EPOLL_CTL_MOD, EPOLLIN);
	}
	pthread_mutex_unlock(&c->lock);
}

/* ---- looking before sleeping ---- */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static bool spin_begin(struct capped *c)
{
	bool spin;

	pthread_mutex_lock(&c->lock);
	spin = c->spins && !c->spinning && !c->waits && !c->aheads &&
	       (c->spin_credit || ++c->spin_skipped % SPIN_EVERY == 0);
	if (spin)
		c->spinning = true;
	pthread_mutex_unlock(&c->lock);
	return spin;
}

static void spin_end(struct capped *c, bool served)
{
	pthread_mutex_lock(&c->lock);
	c->spinning = false;
	if (served && c->spin_credit < SPIN_CREDIT)
		c->spin_credit++;
	else if (!served && c->spin_credit)
		c->spin_credit--;
	pthread_mutex_unlock(&c->lock);
}

/* Did a message come, and was it served? */
static bool spin(struct capped *c, uint64_t id)
{
	uint64_t end = now_ns() + SPIN_NS;
	bool served = false;

	if (!spin_begin(c))
		return false;
	do {
		served = capped_fault_read(c, id);
		if (!served)
			sched_yield();
	} while (!served && now_ns() < end);
	spin_end(c, served);
	return served;
}

/* ---- threads ---- */

static void serve(struct capped *c, uint64_t id)
{
	if (!mm_take(c, id))
		return;
	do {
		while (capped_fault_read(c, id))
			;
	} while (spin(c, id));
	mm_give(c, id);
}

/* Reads ahead, unless another thread does. */
static void read_ahead(struct capped *c)
{
	pthread_mutex_lock(&c->lock);
	if (c->aheads && !c->reading_ahead && c->loaders < CAPPED_LOADERS) {
		c->loaders++;
		c->reading_ahead = true;
		/* What is asked for while it ends has woken others in vain. */
		while (c->aheads && capped_ahead_run(c))
			;
		c->reading_ahead = false;
		c->loaders--;
	}
	pthread_mutex_unlock(&c->lock);
}

static bool anything_waits(struct capped *c)
{
	bool any;

	pthread_mutex_lock(&c->lock);
	any = c->waits || (c->aheads && !c->reading_ahead);
	pthread_mutex_unlock(&c->lock);
	return any;
}

/*
 * A blocking one polls as an error, and the program can make it that, for it has it too. Any other
 * error would poll for ever; its messages cannot be read.
 */
static void poll_failed(struct capped *c, uint64_t id)
{
	struct capped_mm *mm;
	int flags;

	pthread_mutex_lock(&c->lock);
	mm = capped_mm_find(c, id);
	flags = mm ? fcntl(mm->uffd, F_GETFL) : -1;
	if (flags >= 0 && !(flags & O_NONBLOCK) &&
	    fcntl(mm->uffd, F_SETFL, flags | O_NONBLOCK) == 0) {
		epoll_set(c, mm, EPOLL_CTL_MOD, EPOLLIN);
	} else if (mm) {
		log_err("the faults of pid %d cannot be served: its uffd polls as an error",
			mm->pid);
		epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, mm->uffd, NULL);
	}
	pthread_mutex_unlock(&c->lock);
}

/*
 * Whoever is served waits: a thread that asks for little at a time is let in sooner (Linux 6.12; an
 * older one does not look at it).
 */
static void ask_for_little(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attr = {.size = sizeof(attr), .policy = SCHED_OTHER, .runtime = SLICE_NS};

	errno = 0;
	attr.nice = getpriority(PRIO_PROCESS, 0);
	if (errno == 0)
		syscall(SYS_sched_setattr, 0, &attr, 0);
}

static void *thread_main(void *arg)
{
	struct capped *c = arg;
	uint64_t count;

	ask_for_little();
	pthread_mutex_lock(&c->lock);
	me = ++c->next_worker;
	pthread_mutex_unlock(&c->lock);
	for (;;) {
		struct epoll_event ev;
		int n = epoll_wait(c->epoll_fd, &ev, 1, anything_waits(c) ? RETRY_MS : -1);

		if (n > 0 && ev.data.u64 == 0)
			return NULL; /* stop_fd, which stays readable for the others */
		if (n > 0 && ev.data.u64 == UINT64_MAX) {
			/* Another thread may have it; there may be more than one can do. */
			if (read(c->retry_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
				log_err("capped: eventfd: %s", log_errstr(errno));
		} else if (n > 0 && ev.events & EPOLLIN) {
			serve(c, ev.data.u64);
		} else if (n > 0) {
			poll_failed(c, ev.data.u64);
		}
		if (anything_waits(c)) {
			capped_fault_retry(c);
			read_ahead(c);
		}
	}
}

int capped_threads_start(struct capped *c)
{
	int r = 0;

	c->spins = sysconf(_SC_NPROCESSORS_ONLN) > 1;
	c->spin_credit = SPIN_CREDIT;
	capped_awake_start(&c->awake);
	for (; r == 0 && c->nr_workers < CAPPED_WORKERS; c->nr_workers += r == 0) {
		r = -pthread_create(&c->workers[c->nr_workers], NULL, thread_main, c);
		if (r == 0)
			pthread_setname_np(c->workers[c->nr_workers], "wpfs-fault");
	}
	return c->nr_workers ? 0 : r;
}

void capped_threads_stop(struct capped *c)
{
	const uint64_t one = 1;

	if (c->nr_workers && write(c->stop_fd, &one, sizeof(one)) < 0)
		log_err("capped: cannot stop the fault threads: %s", log_errstr(errno));
	for (unsigned i = 0; i < c->nr_workers; i++)
		pthread_join(c->workers[i], NULL);
	capped_awake_stop(&c->awake);
}
