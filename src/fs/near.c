/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/near.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/thread.h"

#define LOOK_EVERY   32 /* requests in a row: a look takes as long as half of one */
#define APART_MIN    2	/* it slept before so many: where is the program? */
#define APART_MAX    64 /* the same, when it was found where it should be, again and again */
#define PATIENCE_MAX 65536
#define STAT_CPU     36 /* fields of /proc/PID/stat from the one after the name to "processor" */
#define LET_GO	     (-1)
#define STARVED	     (-2)

static const struct sched_param no_priority;

static void *yield_and_return(void *ok)
{
	*(bool *)ok = sched_setscheduler(0, SCHED_IDLE, &no_priority) == 0 &&
		      sched_setscheduler(0, SCHED_OTHER, &no_priority) == 0;
	return NULL;
}

bool near_can_yield(void)
{
	pthread_t thread;
	bool ok = false;

	if (sched_getscheduler(getpid()) == SCHED_OTHER &&
	    pthread_create(&thread, NULL, yield_and_return, &ok) == 0)
		pthread_join(thread, NULL);
	return ok;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int loadavg_fd = -1; /* constant after once; stays open: half of a look was to open it */

static void open_loadavg(void)
{
	loadavg_fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
}

bool near_is_alone(void)
{
	char text[64];
	unsigned running;
	ssize_t n;

	pthread_once(&once, open_loadavg);
	n = pread(loadavg_fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return false;
	text[n] = '\0';
	return sscanf(text, "%*s %*s %*s %u/", &running) == 1 && running <= 1;
}

void near_begin(struct near *near, bool (*alone)(void))
{
	thread_anywhere(0);
	near->tid = gettid();
	near->alone = alone;
	near->caller = 0;
	near->in_a_row = 0;
	near->patience = LOOK_EVERY;
	near->apart = 0;
	near->apart_max = APART_MIN;
	atomic_store(&near->yields, false);
	atomic_store(&near->cpu, 0); /* who may let it go looks at this alone */
}

bool near_is_kept(const struct near *near)
{
	return atomic_load(&near->cpu) > 0;
}

bool near_yields(const struct near *near)
{
	return near_is_kept(near) && atomic_load(&near->yields);
}

/*
 * The thread itself sees to it once more before it takes itself for free. Until it does it may have
 * been just about to be kept, so it is let go each time that this is called.
 */
void near_let_go(struct near *near, bool starved)
{
	int cpu = atomic_load(&near->cpu);

	while (cpu) {
		if (cpu > 0 &&
		    !atomic_compare_exchange_strong(&near->cpu, &cpu, starved ? STARVED : LET_GO))
			continue;
		thread_anywhere(near->tid);
		/* It may have come back and be kept again meanwhile, and be nowhere by now. */
		cpu = atomic_load(&near->cpu);
		if (cpu < 0)
			return;
	}
}

/*
 * Where it runs, or did; -1: not known, or nothing to be beside of: a real-time program that
 * computes there lets nobody else run.
 */
static int cpu_of(pid_t tid)
{
	char path[64], text[1024];
	_cleanup_close_ int fd = -1;
	int cpu, policy;
	const char *at;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", tid, tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	at = strrchr(text, ')');
	for (int i = 0; at && i <= STAT_CPU; i++)
		at = strchr(at + 1, ' ');
	if (!at || sscanf(at, " %d %*u %d", &cpu, &policy) != 2 || policy != SCHED_OTHER)
		return -1;
	return cpu;
}

static void come_back(struct near *near)
{
	int cpu = atomic_exchange(&near->cpu, 0);

	if (cpu)
		thread_anywhere(0);
	if (cpu == STARVED && near->patience < PATIENCE_MAX)
		near->patience *= 4;
	atomic_store(&near->yields, false);
	near->in_a_row = 0;
}

void near_leave(struct near *near)
{
	near->caller = 0;
	come_back(near);
}

/*
 * Who lets the thread go can do so from the moment that it could be kept from running, so what it
 * looks at comes first. It may have done so meanwhile.
 */
static void keep(struct near *near, int cpu, bool yields)
{
	int before = atomic_load(&near->cpu);
	cpu_set_t one, all;

	if (sched_getaffinity(getpid(), sizeof(all), &all) < 0 || !CPU_ISSET(cpu, &all)) {
		come_back(near);
		return;
	}
	if (before < 0 || !atomic_compare_exchange_strong(&near->cpu, &before, cpu + 1)) {
		come_back(near);
		return;
	}
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one) < 0 ||
	    (yields != atomic_load(&near->yields) &&
	     sched_setscheduler(0, yields ? SCHED_IDLE : SCHED_OTHER, &no_priority) < 0) ||
	    !near_is_kept(near)) {
		come_back(near);
		return;
	}
	atomic_store(&near->yields, yields);
}

/*
 * Has the thread slept before each of the last requests? One that yields does not where the program
 * is: it is kept from running by the program, until the next request is there.
 */
static bool came_apart(struct near *near, bool slept)
{
	near->apart = slept ? near->apart + 1 : 0;
	if (near->apart < near->apart_max)
		return false;
	near->apart = 0;
	return true;
}

/* After came_apart: was the program found where it should be? Then it waited for something else. */
static void look_less(struct near *near, bool here)
{
	if (!here)
		near->apart_max = APART_MIN;
	else if (near->apart_max < APART_MAX)
		near->apart_max *= 2;
}

void near_request(struct near *near, pid_t caller, bool slept)
{
	int cpu, kept = atomic_load(&near->cpu);
	bool together, apart, yields;

	if (!caller)
		return;
	if (caller != near->caller) {
		near_leave(near);
		near->caller = caller;
		return;
	}
	if (kept < 0)
		come_back(near);
	together = near_yields(near);
	apart = together && came_apart(near, slept);
	near->in_a_row++;
	if (!apart && (near->in_a_row % LOOK_EVERY || (!kept && near->in_a_row < near->patience)))
		return;
	cpu = together && !apart ? kept - 1 : cpu_of(caller);
	if (apart)
		look_less(near, cpu + 1 == kept);
	yields = cpu >= 0 && near->alone && near->alone();
	if (cpu < 0)
		come_back(near);
	else if (cpu + 1 != kept || yields != atomic_load(&near->yields))
		keep(near, cpu, yields);
	else if (near->patience > LOOK_EVERY)
		near->patience /= 2;
}
