/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * userfaultfd(2) as wpfs uses it on other processes' mms. Every function takes a uffd of the mm it
 * works on; a uffd acts on the mm it was created in, whoever holds it.
 *
 * Errors common to all: the mm is gone (exec or exit and no task keeps it): -ESRCH from
 * uffd_writeprotect, -ENOMEM from the other two, as the kernel has it. While the owner of the mm
 * has an unread event (fork, mremap) the kernel answers EAGAIN; the calls retry for UFFD_RETRY_MS
 * at most, because only the witness reads events and it may be stopped, and then give -EAGAIN.
 *
 * Kernel: Documentation/admin-guide/mm/userfaultfd.rst, ioctl_userfaultfd(2).
 */
#ifndef WPFS_UFFD_UFFD_H
#define WPFS_UFFD_UFFD_H

#include <stdbool.h>
#include <stdint.h>

#define UFFD_RETRY_MS 2000

/* Is this descriptor a userfaultfd? A client's word is not enough before an ioctl. */
bool uffd_is_uffd(int fd);

/* What its UFFDIO_API has switched on (UFFD_FEATURE_*), as /proc says. 0 or -errno. */
int uffd_features(int fd, uint64_t *features);

/*
 * UFFDIO_API of wpfs's own uffd: WP_ASYNC (the kernel clears marks, nobody is woken); with
 * `events` also EVENT_FORK and EVENT_REMAP (marks follow), which somebody must then read at once
 * and which need CAP_SYS_PTRACE in the caller.
 * -EINVAL: the kernel lacks a feature (WP_ASYNC: Linux 6.7), or it was done already; -EPERM.
 */
int uffd_init_async(int uffd, bool events);

/*
 * UFFDIO_API of wpfs's own uffd on a capped mount, where the daemon serves it: write-protect and
 * missing faults are messages, and so are forks and mremaps. Errors as above.
 */
int uffd_init_sync(int uffd);

/* Is it one of which uffd_init_sync was done, as far as it shows? */
bool uffd_is_inited_sync(int fd);

/*
 * Registers [start, end) write-protect. -EBUSY: another uffd has it; -EPERM: the mapping can never
 * be written (no VM_MAYWRITE); -ENOMEM/-EINVAL: nothing or something else is mapped there.
 */
int uffd_register_wp(int uffd, uint64_t start, uint64_t end);

/*
 * The same, and faults of missing pages too: synchronous uffds only. A range registered so must not
 * be registered with the function above again, which would take that off.
 */
int uffd_register_missing(int uffd, uint64_t start, uint64_t end);

/* Unregisters [start, end): the kernel clears the marks there. */
int uffd_unregister(int uffd, uint64_t start, uint64_t end);

/*
 * Marks (or with on = false un-marks and wakes) all pages of [start, end), which must be
 * registered. -ENOENT: it is not.
 */
int uffd_writeprotect(int uffd, uint64_t start, uint64_t end, bool on);

/* The same, tried once: -EAGAIN at once while an event of the mm is unread, and nothing was done.
 */
int uffd_writeprotect_once(int uffd, uint64_t start, uint64_t end, bool on);

/* Has every thread that waits for a fault in [start, end) try again. */
int uffd_wake(int uffd, uint64_t start, uint64_t end);

/* The same for the whole mm: for who takes a uffd over and does not know which messages were read.
 */
int uffd_wake_all(int uffd);

/*
 * Is what is mapped at an address registered for write protection, with this userfaultfd or another
 * one of its mm? 1 or 0; -errno: that could not be told. A page of room in its file is taken for a
 * moment; nothing else changes.
 */
int uffd_is_registered_wp(int uffd, uint64_t addr);

#endif
