/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/thread.h"

#include <sched.h>
#include <string.h>
#include <unistd.h>

void thread_anywhere(pid_t tid)
{
	const struct sched_param none = {.sched_priority = 0};
	cpu_set_t set;

	CPU_ZERO(&set);
	if (sched_getaffinity(getpid(), sizeof(set), &set) < 0 ||
	    sched_setaffinity(tid, sizeof(set), &set) < 0) {
		memset(&set, 0xff, sizeof(set));
		sched_setaffinity(tid, sizeof(set), &set);
	}
	if (sched_getscheduler(tid) == SCHED_IDLE && sched_getscheduler(getpid()) != SCHED_IDLE)
		sched_setscheduler(tid, SCHED_OTHER, &none);
}
