/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/near.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

#define LOOK_EVERY 32 /* requests in a row: a look takes as long as half of one */
#define STAT_CPU   36 /* fields of /proc/PID/stat from the one after the name to "processor" */
#define LET_GO	   (-1)

/* Where threads of the daemon may run now: the first one, which serves nobody, may be anywhere. */
static int allowed(cpu_set_t *set)
{
	CPU_ZERO(set);
	return sched_getaffinity(getpid(), sizeof(*set), set);
}

static void anywhere(pid_t tid)
{
	cpu_set_t set;

	if (allowed(&set) == 0 && sched_setaffinity(tid, sizeof(set), &set) == 0)
		return;
	memset(&set, 0xff, sizeof(set));
	sched_setaffinity(tid, sizeof(set), &set);
}

void near_anywhere(void)
{
	anywhere(0);
}

/* The thread itself sees to it once more before it takes itself for free. */
void near_let_go(struct near *near)
{
	int cpu = atomic_load(&near->cpu);

	if (cpu > 0 && atomic_compare_exchange_strong(&near->cpu, &cpu, LET_GO))
		anywhere(near->tid);
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

static void free_again(struct near *near)
{
	if (atomic_exchange(&near->cpu, 0))
		near_anywhere();
}

void near_leave(struct near *near)
{
	near->caller = 0;
	near->in_a_row = 0;
	free_again(near);
}

void near_request(struct near *near, pid_t caller)
{
	cpu_set_t one, all;
	int cpu;

	if (!caller)
		return;
	if (caller != near->caller) {
		near_leave(near);
		near->caller = caller;
		return;
	}
	if (++near->in_a_row % LOOK_EVERY)
		return;
	cpu = cpu_of(caller);
	if (cpu < 0)
		free_again(near);
	if (cpu < 0 || cpu + 1 == atomic_load(&near->cpu) || allowed(&all) < 0 ||
	    !CPU_ISSET(cpu, &all))
		return;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one) == 0)
		atomic_store(&near->cpu, cpu + 1); /* then: who lets it go does so after it */
}
