/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Marks in page tables, read and set with PAGEMAP_SCAN (Linux 6.7,
 * Documentation/admin-guide/mm/pagemap.rst) on another process's pagemap.
 *
 * A page is marked when its entry carries the uffd-wp bit: not PAGE_IS_WRITTEN, and PRESENT (a
 * mapped page) or SWAPPED (a swap entry, or the marker that stands for a page that is not there).
 * An empty entry counts as written; poison and guard entries carry no such bit and count as
 * written too.
 */
#ifndef WPFS_UFFD_PAGEMAP_H
#define WPFS_UFFD_PAGEMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "mm/set.h"

/* Opens /proc/PID/pagemap; it stays bound to the mm the process has now. -errno. */
int pagemap_open(pid_t pid);

/* Has nobody that address space any more? The descriptor keeps none alive. */
bool pagemap_is_gone(int pagemap);

/*
 * Adds to *marked the marked pages of [start, end) as page indices relative to `start`. With
 * `async` only pages of mappings registered with a WP_ASYNC uffd count (PAGE_IS_WPALLOWED).
 * 0 or -errno.
 */
int pagemap_marked(int pagemap, uint64_t start, uint64_t end, bool async, struct mm_set *marked);

/* Adds to *present the pages of [start, end) that are mapped, relative to `start`. 0 or -errno. */
int pagemap_present(int pagemap, uint64_t start, uint64_t end, struct mm_set *present);

/*
 * Marks every page of [start, end) and adds those that were not marked before to *written
 * (relative to `start`). Atomic per page: no store falls between the look and the mark. The range
 * must be registered with a WP_ASYNC uffd: -EPERM otherwise, and then some may have been done.
 */
int pagemap_protect(int pagemap, uint64_t start, uint64_t end, struct mm_set *written);

/*
 * Adds the pages of [start, end) that are mapped by a huge entry without a mark. A huge entry can
 * have one mark for all of its pages, and the first store takes it from all: UFFDIO_WRITEPROTECT
 * takes the entry apart, pagemap_protect() does not. 0 or -errno.
 */
int pagemap_huge_unmarked(int pagemap, uint64_t start, uint64_t end, struct mm_set *pages);

/* Is the mapping at `addr` registered with a WP_ASYNC uffd? 1, 0 or -errno. */
int pagemap_is_async(int pagemap, uint64_t addr);

#endif
