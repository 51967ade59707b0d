/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A place is taken under the lock, and given back by the thread whose call it is without: it may
 * not be able to have it. So a number is first closed, then forgotten: who finds it here in between
 * finds another file under it, or none.
 */
#include "preload/calls.h"

#include <linux/time_types.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "preload/fds.h"

#define CALLS_MAX    16
#define CALL_GOES_MS 2000 /* a thread that has been told so may still be stopped */

/* Who changes it first has the number: the thread whose call it is closes it, or it is left open.
 */
enum call_state { CALL_GOES_ON, CALL_ENDS, CALL_WANTED };

static struct {
	_Atomic int fd; /* 0: a free place; else 1 + number */
	_Atomic enum call_state state;
	uint64_t dev, ino; /* of fstat; written before fd */
} calls[CALLS_MAX];

/* -1: a free place */
static int call_fd(int place)
{
	return atomic_load(&calls[place].fd) - 1;
}

int calls_begin(int sock)
{
	struct stat st;

	if (raw(fstat, sock, &st) != 0)
		return -1;
	for (int i = 0; i < CALLS_MAX; i++) {
		if (call_fd(i) >= 0)
			continue;
		calls[i].dev = st.st_dev;
		calls[i].ino = st.st_ino;
		atomic_store(&calls[i].state, CALL_GOES_ON);
		atomic_store(&calls[i].fd, sock + 1);
		fds_changed();
		return i;
	}
	return -1;
}

bool calls_is_wanted(int place)
{
	return atomic_load(&calls[place].state) == CALL_WANTED;
}

/* Is the call still going on, and `fd` its socket? */
static bool is_of(int place, int fd)
{
	struct stat st;

	return fd >= 0 && call_fd(place) == fd && raw(fstat, fd, &st) == 0 &&
	       st.st_dev == calls[place].dev && st.st_ino == calls[place].ino;
}

void calls_end(int place)
{
	enum call_state goes_on = CALL_GOES_ON;
	int sock = call_fd(place);

	/* One whose number is wanted is closed by who puts something else there: or the next call
	 * would be given it. */
	if (atomic_compare_exchange_strong(&calls[place].state, &goes_on, CALL_ENDS) &&
	    is_of(place, sock)) {
		raw(shutdown, sock, SHUT_RDWR); /* a child may have a copy of it */
		raw(close, sock);
	}
	atomic_store(&calls[place].fd, 0);
}

uint32_t calls_nr(void)
{
	uint32_t nr = 0;

	for (int i = 0; i < CALLS_MAX; i++)
		nr += call_fd(i) >= 0;
	return nr;
}

int calls_lowest(unsigned first, unsigned last)
{
	int lowest = -1;

	for (int i = 0; i < CALLS_MAX; i++) {
		int fd = call_fd(i);

		if (fd >= 0 && (unsigned)fd >= first && (unsigned)fd <= last &&
		    (lowest < 0 || fd < lowest) && is_of(i, fd))
			lowest = fd;
	}
	return lowest;
}

/* The number is wanted, which is of the call at `place` now. False: that closes it just now. */
static bool call_want(int place)
{
	enum call_state state = CALL_GOES_ON;

	return atomic_compare_exchange_strong(&calls[place].state, &state, CALL_WANTED) ||
	       state == CALL_WANTED;
}

bool calls_send_away(int fd, struct calls_left *left)
{
	struct __kernel_timespec ms = {.tv_nsec = 1000000};

	*left = (struct calls_left){0};
	for (int i = 0; i < CALLS_MAX; i++) {
		/* Another call may have taken both place and number meanwhile. */
		for (int n = 0; n < CALL_GOES_MS && is_of(i, fd); n++) {
			if (call_want(i)) {
				*left = (struct calls_left){calls[i].dev, calls[i].ino};
				raw(shutdown, fd, SHUT_RDWR);
			}
			shim_lock_pause();
			raw(nanosleep, &ms, NULL);
			if (!shim_lock_go_on())
				return false;
		}
	}
	return true;
}

void calls_close_left(int fd, const struct calls_left *left)
{
	struct stat st;

	if (left->ino && calls_lowest((unsigned)fd, (unsigned)fd) < 0 && raw(fstat, fd, &st) == 0 &&
	    st.st_dev == left->dev && st.st_ino == left->ino)
		raw(close, fd);
}

void calls_forget(void)
{
	for (int i = 0; i < CALLS_MAX; i++) {
		int sock = call_fd(i);

		if (is_of(i, sock))
			raw(close, sock);
		atomic_store(&calls[i].fd, 0);
	}
	fds_changed();
}
