/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which pages of a file are spilled: one bit each in a mapped file on the run directory's tmpfs, so
 * that what was set is there after a kill -9 without a call being made. Not durable and not meant
 * to be: it is about one lower tmpfs and goes with it. No locks.
 */
#ifndef WPFS_SPILL_BITS_H
#define WPFS_SPILL_BITS_H

#include <stdbool.h>
#include <stdint.h>

#define SPILL_BITS_HEAD 4096

struct spill_bits {
	int fd;		 /* -1: closed */
	void *head;	 /* the first SPILL_BITS_HEAD bytes of the file, the owner's; mapped */
	uint64_t *words; /* mapped behind it */
	uint64_t pages;	 /* there is room for; a multiple of 32768 */
	uint64_t count;	 /* of bits that are set */
};

#define SPILL_BITS_INIT                                                                            \
	{                                                                                          \
		.fd = -1                                                                           \
	}

/* Opens `name` in dir_fd; it is made when there is none and `create` is set. 0 or -errno. */
int spill_bits_open(struct spill_bits *bits, int dir_fd, const char *name, bool create);
void spill_bits_close(struct spill_bits *bits);

/* Makes room for pages 0 .. pages-1. 0 or -errno, and then it is as it was. */
int spill_bits_reserve(struct spill_bits *bits, uint64_t pages);

/* A page without room is not set; setting one is a bug. */
bool spill_bits_test(const struct spill_bits *bits, uint64_t page);
void spill_bits_set(struct spill_bits *bits, uint64_t page);
void spill_bits_clear(struct spill_bits *bits, uint64_t page);
void spill_bits_clear_range(struct spill_bits *bits, uint64_t first, uint64_t nr);

/* The first page at or after `from` that is set, or UINT64_MAX. */
uint64_t spill_bits_next(const struct spill_bits *bits, uint64_t from);

#endif
