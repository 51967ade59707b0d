/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A program's own userfaultfd on wpfs mappings: the daemon steps aside, then keeps a copy. */
#ifndef WPFS_PRELOAD_UFFD_H
#define WPFS_PRELOAD_UFFD_H

#include "base/compat.h"
#include "preload/shim.h"

/* ioctl(fd, UFFDIO_REGISTER, arg) and (fd, UFFDIO_UNREGISTER, arg): the kernel's result. */
long uffd_register(int fd, void *arg);
long uffd_unregister(int fd, void *arg);

/*
 * ioctl(fd, PAGEMAP_SCAN, arg). One with PM_SCAN_WP_MATCHING marks what was written, and its caller
 * alone learns that it was: what is armed of the files it goes over is in doubt.
 */
long uffd_pagemap_scan(int fd, void *arg);

/* Can this request mark pages? */
static inline bool uffd_may_mark(uint32_t request)
{
	return request == (uint32_t)UFFDIO_WRITEPROTECT || request == (uint32_t)UFFDIO_COPY ||
	       request == (uint32_t)UFFDIO_CONTINUE;
}

/*
 * One of those. The kernel lets a uffd mark what another one of the mm has registered: where that
 * is wpfs's, what was written would look clean, so what is armed of the file is in doubt. The
 * result is the kernel's.
 */
long uffd_mark(int fd, uint32_t request, void *arg);

#endif
