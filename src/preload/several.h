/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One mremap(2) of several mappings. */
#ifndef WPFS_PRELOAD_SEVERAL_H
#define WPFS_PRELOAD_SEVERAL_H

#include "preload/shim.h"

/*
 * mremap(2) of [old, old + len), which has no holes, to new_addr with MREMAP_FIXED has given
 * EFAULT. If that is because wpfs watches one of several mappings, the rest of them is moved. The
 * kernel's result: -EFAULT, or new_addr. Under the shim's lock.
 */
long several_move(uint64_t old, uint64_t len, int flags, uint64_t new_addr);

#endif
