/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A program's own userfaultfd on wpfs mappings: the daemon steps aside, then keeps a copy. */
#ifndef WPFS_PRELOAD_UFFD_H
#define WPFS_PRELOAD_UFFD_H

#include "preload/shim.h"

/* ioctl(fd, UFFDIO_REGISTER, arg) and (fd, UFFDIO_UNREGISTER, arg): the kernel's result. */
long uffd_register(int fd, void *arg);
long uffd_unregister(int fd, void *arg);

#endif
