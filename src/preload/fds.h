/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Descriptors that matter when the program closes them: its own userfaultfds on wpfs mappings (the
 * daemon holds a copy and must let go of it first), and the shim's sockets (programs close what
 * they did not open).
 */
#ifndef WPFS_PRELOAD_FDS_H
#define WPFS_PRELOAD_FDS_H

#include "preload/shim.h"

/* How many there are; 0 lets close() go straight to the kernel. */
extern _Atomic uint32_t fds_watched;

static inline bool fds_any(void)
{
	return atomic_load_explicit(&fds_watched, memory_order_relaxed) != 0;
}

/* Is any of [first, last] one? No lock. */
bool fds_hit(unsigned first, unsigned last);

/* Under the lock: a mount's socket has changed. */
void fds_changed(void);

/* Under the lock: `fd` is a userfaultfd of the program, of a range of this mount. */
void fds_add_uffd(int fd, uint32_t mount);

/* Under the lock: forgets all userfaultfds (in a fork child they are the parent's). */
void fds_forget_uffds(void);

/* What the hooks of the same names do when fds_any(). Results are the kernel's: >= 0 or -errno. */
long fds_close(int fd);
long fds_dup3(int old, int fd, int flags, bool is_dup2);
long fds_close_range(unsigned first, unsigned last, unsigned flags);

#endif
