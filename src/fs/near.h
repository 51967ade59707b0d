/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where a thread runs that answers a program, request after request: on the program's processor. On
 * another one each of the two would have to be waked on a processor that sleeps, each time.
 *
 * To be kept there is not enough. A program that is waked looks for a processor that is idle, and
 * while the thread runs that is any but its own; and what nobody waits for (RELEASE, FORGET) wakes
 * the thread while the program runs, so that one of them is pulled away. A processor that runs
 * nothing but SCHED_IDLE counts as idle: with the thread of that policy the program goes on where
 * it was, and the thread when the program sleeps.
 *
 * Then whoever else computes there keeps the thread from running. So this is for a machine that has
 * nothing else to do, where it matters, and as long as somebody sees that the thread runs, and lets
 * it go.
 */
#ifndef WPFS_FS_NEAR_H
#define WPFS_FS_NEAR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

/* Of one thread. */
struct near {
	pid_t tid;	     /* these two: constant after near_begin */
	bool (*alone)(void); /* is nobody else running on the machine? NULL: never be SCHED_IDLE */
	pid_t caller;
	unsigned in_a_row;   /* requests of it */
	unsigned patience;   /* after so many it is kept */
	unsigned apart;	     /* requests in a row before which it slept */
	unsigned apart_max;  /* after so many the program is looked for */
	_Atomic bool yields; /* kept with SCHED_IDLE; changed by the thread, like the next */
	_Atomic int cpu; /* 1 + where the thread is kept; 0: nowhere; below: another let it go */
};

/* May threads of this process be of policy SCHED_IDLE for a while? Not if they could not return. */
bool near_can_yield(void);

/* Is this thread the only one that runs on the machine just now? */
bool near_is_alone(void);

/* In a new thread. */
void near_begin(struct near *near, bool (*alone)(void));

/*
 * A request of thread `caller`, 0: of nobody, has come to this thread, which may have `slept` until
 * it did.
 */
void near_request(struct near *near, pid_t caller, bool slept);

/* This thread serves others, or nobody. */
void near_leave(struct near *near);

/* From any thread. */
bool near_is_kept(const struct near *near);

/* From any thread: is it kept with SCHED_IDLE? */
bool near_yields(const struct near *near);

/* From any thread; `starved`: it did not get to run where it was kept, and is not so soon kept
 * again. */
void near_let_go(struct near *near, bool starved);

#endif
