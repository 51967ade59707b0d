/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/near.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

#define LOOK_EVERY 32 /* requests in a row: a look takes as long as half of one */
#define STAT_CPU   36 /* fields of /proc/PID/stat from the one after the name to "processor" */

static cpu_set_t allowed; /* constant after near_setup */

void near_setup(void)
{
	CPU_ZERO(&allowed);
	sched_getaffinity(0, sizeof(allowed), &allowed);
}

/* Where it runs, or did; -1: not known. */
static int cpu_of(pid_t tid)
{
	char path[64], text[1024];
	_cleanup_close_ int fd = -1;
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
	return at ? atoi(at) : -1;
}

void near_leave(struct near *near)
{
	near->caller = 0;
	near->in_a_row = 0;
	if (near->cpu)
		sched_setaffinity(0, sizeof(allowed), &allowed);
	near->cpu = 0;
}

void near_request(struct near *near, pid_t caller)
{
	cpu_set_t one;
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
	if (cpu < 0 || cpu + 1 == near->cpu || !CPU_ISSET(cpu, &allowed))
		return;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one) == 0)
		near->cpu = cpu + 1;
}
