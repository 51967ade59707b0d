/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef WPFS_BASE_THREAD_H
#define WPFS_BASE_THREAD_H

#include <sys/types.h>

/*
 * Thread `tid` of this process, 0: this one, runs where the first thread may, and as that does: a
 * new one begins as the thread that made it, which may be kept somewhere for the moment.
 */
void thread_anywhere(pid_t tid);

#endif
