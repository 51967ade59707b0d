/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes as people and mount(8) write them, and the page arithmetic every room needs. */
#ifndef WPFS_BASE_UNITS_H
#define WPFS_BASE_UNITS_H

#include <stddef.h>
#include <stdint.h>

/* wpfs runs on 4 KiB pages only: wpfs_main refuses any other base page size at start. */
#define WPFS_PAGE_SHIFT 12
#define WPFS_PAGE_SIZE	((uint64_t)1 << WPFS_PAGE_SHIFT)

/*
 * Parses a size: a decimal number with an optional suffix K, M, G, T (powers of 1024, either
 * case) or %, a share of the machine's memory. Gives bytes. -EINVAL: not such a number;
 * -ERANGE: does not fit into 63 bits, or more than 100 %.
 */
int units_parse_size(const char *text, uint64_t *bytes);

/* Writes `bytes` for people ("64.0M", "3.2G"); returns buf. */
const char *units_format_size(uint64_t bytes, char *buf, size_t size);

#endif
