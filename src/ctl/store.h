/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A store that no daemon has mounted, read (and with `forget`, changed) by wpctl itself. */
#ifndef WPFS_CTL_STORE_H
#define WPFS_CTL_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "ipc/record.h"
#include "ipc/wire.h"

/* Is the directory a store: does it have a wpfs.db? 1, 0 or -errno. */
int store_is(int dir_fd);

/* The id of the store at `path`: WPFS_ID_MAX bytes. 0 or -errno, `why` as from db_open. */
int store_id(const char *path, char *id, char *why);

/* Does a daemon hold the store's lock? 1, 0 or -errno. */
int store_is_locked(int dir_fd);

/*
 * The lock, for this command alone, until it is closed. An fd; -EAGAIN: a daemon has it; -errno. A
 * store without one gets it.
 */
int store_lock_alone(int dir_fd);

/*
 * A report out of the database. All mms are shown detached: what was live when a daemon died is
 * known only as of its last harvest, and a note says so. 0, -errno with `why`, or what fn gave.
 */
int store_report(const char *path, const struct wpfs_select *select, ipc_record_fn fn, void *arg,
		 char *why);

/*
 * Id and size of a regular file of the stored tree. 0 or -errno: -EMEDIUMTYPE for one of another
 * kind, -ESTALE: it was not unmounted in order; `why` for what log_errstr does not tell.
 */
int store_stat(const char *path, const char *file, uint64_t *id, uint64_t *size, char *why);

/*
 * Removes the mms of that name, and of its instances and children, that are of this user (of every
 * user, for root). 0, -EAGAIN when a daemon holds the lock, -ENOENT when there is none, or another
 * -errno with `why`.
 */
int store_forget(int dir_fd, const char *path, const char *name, char *why);

#define STORE_WHY_SIZE 256

#endif
