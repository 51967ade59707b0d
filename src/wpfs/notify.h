/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a service manager is told: sd_notify(3), whose protocol is datagrams to the socket that
 * NOTIFY_SOCKET names. Without that variable all of this does nothing. libsystemd is not used: it
 * is larger than wpfs, and this protocol is documented to be spoken without it.
 */
#ifndef WPFS_WPFS_NOTIFY_H
#define WPFS_WPFS_NOTIFY_H

#include <stdint.h>

struct track;

/*
 * Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of the environment. Before the first
 * thread; a variable that makes no sense is said and ignored.
 */
void notify_open(void);

/* Ends the thread of notify_ending. */
void notify_close(void);

/* One message of "NAME=value" lines. Any thread. Never waits; one that does not arrive is lost. */
void notify_send(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * If the manager has asked for it: a thread that says WATCHDOG=1 again and again, each time after
 * the track thread and, through the mount at `mountpoint` with device number `dev`, a FUSE thread
 * have answered. The string is borrowed until notify_unwatch. 0 or -errno. The watchdog of a
 * process that daemonised is not ours (WATCHDOG_PID): then there is none.
 */
int notify_watch(const char *mountpoint, uint64_t dev, struct track *track);

/*
 * From now on until notify_close: a thread that asks the manager for more time, again and again,
 * for what is written at the end takes as long as the disk does. Not for ever: only for half an
 * hour after the last notify_alive. Nothing here fails.
 */
void notify_ending(void);

/* The ending gets on. Any thread. */
void notify_alive(void);

/* Ends the watchdog. After the mount has ended, before the track thread does. */
void notify_unwatch(void);

#endif
