/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of libwpfs share. A handle is constant after wpfs_attach, so nothing here needs a
 * lock but the watches, which have their own (watch.c). Functions give -errno and leave a line for
 * wpfs_error.
 *
 * Questions go over a connection that lives for one call: there is no socket to be closed behind
 * our back, to be inherited by a child that would then speak for its parent, or to be shared by
 * threads. It costs less than the harvest that comes with the answer.
 */
#ifndef WPFS_LIB_HANDLE_H
#define WPFS_LIB_HANDLE_H

#include "ipc/client.h"
#include "ipc/wire.h"
#include "preload/core.h"

struct wpfs {
	const struct core *core;
	int mount; /* the core's index */
	char id[WPFS_ID_MAX];
};

/* Keeps a line for wpfs_error in this thread; gives err. The text after "what: " is err's, if fmt
 * is NULL. */
int lib_fail(int err, const char *what, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same with what the error means, where that is known. */
int lib_fail_errno(int err, const char *what);

/*
 * One request of an SELF_* op. Asks again once if the daemon was started again meanwhile or has
 * forgotten this process. The server's status >= 0 or -errno, said in the name of `what`. fn is
 * also called before each try, with a body of NULL.
 */
int lib_ask(struct wpfs *handle, const char *what, enum wpfs_op op, const struct wpfs_self *self,
	    void *reply, ipc_record_fn fn, void *arg);

/* The file id of an open file of the handle's mount. 0 or -errno, said. */
int lib_file(struct wpfs *handle, const char *what, int fd, uint64_t *ino);

/* watch.c: is any of [addr, addr + len) watched? */
bool watch_overlaps(uint64_t addr, uint64_t len);

/* watch.c: ends those of this handle. */
void watch_end_all(struct wpfs *handle);

#endif
