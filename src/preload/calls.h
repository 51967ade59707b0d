/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sockets that live for one call, whose thread waits for the answer without the lock. The number
 * stays the socket's until the call is over: its thread is about to read from it, or does. So to
 * the program it is not open; who puts something else there has the call go first.
 */
#ifndef WPFS_PRELOAD_CALLS_H
#define WPFS_PRELOAD_CALLS_H

#include "preload/shim.h"

/* `sock` is one from now on: its place, or -1: there are too many. Under the lock. */
int calls_begin(int sock);

/* Does somebody want the number? The socket is shut down then. No lock. */
bool calls_is_wanted(int place);

/* It is over, the socket closed, unless its number is wanted. No lock. */
void calls_end(int place);

/* How many are under way? No lock. */
uint32_t calls_nr(void);

/* The lowest number in [first, last] that is one's, or -1. No lock. */
int calls_lowest(unsigned first, unsigned last);

/* A socket that nobody closes any more but who wanted its number. */
struct calls_left {
	uint64_t dev, ino; /* of fstat; 0: there is none */
};

/*
 * The number is wanted: has the call go. Under the lock, which is free meanwhile; false: it was not
 * to be had again. Its socket stays open, to be replaced.
 */
bool calls_send_away(int fd, struct calls_left *left);

/* It was not: closes it. */
void calls_close_left(int fd, const struct calls_left *left);

/* In a fork child: they are of threads that it has not. Under the lock. */
void calls_forget(void);

#endif
