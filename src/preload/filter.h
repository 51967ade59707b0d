/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program that installs a seccomp filter allows the system calls that it makes itself, not the
 * shim's. From then on every hook is the plain system call, and what maps is counted as untold.
 */
#ifndef WPFS_PRELOAD_FILTER_H
#define WPFS_PRELOAD_FILTER_H

#include "preload/shim.h"

/* Filters installed or being installed. */
extern _Atomic uint32_t filters;

static inline bool filtered(void)
{
	return unlikely(atomic_load_explicit(&filters, memory_order_relaxed) != 0);
}

/*
 * Makes prctl(2) or any system call of syscall(2), and notes it if it installs a filter. The
 * kernel's result.
 */
long filter_prctl(const long args[5]);
long filter_syscall(long nr, const long args[6]);

#endif
