/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A library that registers a handler of fork before a preloaded library can: it runs after that
 * one's, just before the process is copied.
 */
#include <pthread.h>

extern void (*earlyfork_before)(void);
void (*earlyfork_before)(void);

static void before(void)
{
	if (earlyfork_before)
		earlyfork_before();
}

__attribute__((constructor)) static void earlyfork(void)
{
	pthread_atfork(before, NULL, NULL);
}
