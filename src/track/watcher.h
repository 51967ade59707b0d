/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Adds inotify watches on files of the daemon's own mount. To look up a file there may take a
 * request to the daemon itself, so it is another process that does it. A thread would not do: the
 * daemon killed while one of its threads waits for its own answer holds /dev/fuse open for ever.
 * And the FUSE threads that are to answer may all be waiting for the track thread: that one waits
 * for a bounded time only.
 */
#ifndef WPFS_TRACK_WATCHER_H
#define WPFS_TRACK_WATCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct watcher;

/* `inotify_fd` is borrowed until watcher_stop. 0 or -errno. */
int watcher_start(int inotify_fd, struct watcher **watcher);

/* NULL is fine. */
void watcher_stop(struct watcher *watcher);

/*
 * Watches the file at `path` for one IN_MODIFY, if it is the one with that st_dev and st_ino. Gives
 * the watch (> 0), or -errno: -ESTALE: it is another file; -ETIMEDOUT: not within WATCHER_MS, and
 * it will not be watched.
 */
#define WATCHER_MS 500
int watcher_add(struct watcher *watcher, const char *path, uint64_t dev, uint64_t ino);

#endif
