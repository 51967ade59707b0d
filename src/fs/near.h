/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where a thread runs that answers a program, request after request: on the program's processor. On
 * another one each of the two would have to be waked on a processor that sleeps, each time.
 *
 * The kernel puts them together by itself as long as each wakes the other and then sleeps. A
 * request that nobody waits for (RELEASE, FORGET) parts them: the thread is waked while the program
 * runs on; and then each stays where it was.
 */
#ifndef WPFS_FS_NEAR_H
#define WPFS_FS_NEAR_H

#include <stdatomic.h>
#include <sys/types.h>

/* Of one thread; zero at first, but `tid`. */
struct near {
	pid_t tid; /* constant, and of that thread alone the next two */
	pid_t caller;
	unsigned in_a_row; /* requests of it */
	_Atomic int cpu;   /* 1 + where the thread is kept; 0: nowhere; below: another let it go */
};

/* A new thread: it does not stay where the one is kept that has made it. */
void near_anywhere(void);

/* From any thread: that one may run anywhere, until it is near somebody again. */
void near_let_go(struct near *near);

/* A request of thread `caller` has come to this thread; 0: of nobody. */
void near_request(struct near *near, pid_t caller);

/* This thread serves others, or nobody. */
void near_leave(struct near *near);

#endif
