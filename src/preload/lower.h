/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Mappings of files on a capped mount: of the lower file, through a descriptor of the daemon's. */
#ifndef WPFS_PRELOAD_LOWER_H
#define WPFS_PRELOAD_LOWER_H

#include "preload/mapping.h"

/*
 * mmap(2) of the program's descriptor r->fd, under the shim's lock, attached. Where the daemon
 * gives no descriptor or cannot serve the mapping, what the kernel says of a file that cannot be
 * mapped shared: -ENODEV.
 */
long lower_map(struct mapping *r);

#endif
