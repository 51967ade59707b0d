/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Loads from a mapping of a file that somebody else may cut meanwhile, or whose page cannot be had:
 * SIGBUS, and the thread goes on at its landing.
 *
 *   sigjmp_buf here;
 *
 *   if (sigsetjmp(here, 1)) -- with the mask: SIGBUS is blocked in its handler
 *           -- there was none
 *   sigbus_landing = &here;
 *   -- loads
 *   sigbus_landing = NULL;
 */
#ifndef WPFS_BASE_SIGBUS_H
#define WPFS_BASE_SIGBUS_H

#include <setjmp.h>

/* Where this thread goes on; NULL: a SIGBUS is none of this, and ends the process. */
extern _Thread_local sigjmp_buf *sigbus_landing;

/* Before the first landing, and as often as one likes. 0 or -errno. */
int sigbus_begin(void);

#endif
