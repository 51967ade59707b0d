/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Page contents on disk: STORE/spill/<low byte of the file id in hex>/<id>, page n at n*4096.
 *
 * The files mean nothing without the spilled bits of the same lower tmpfs (spill/bits.h): after a
 * crash of the machine those are gone and a new daemon removes the files. So nothing here is ever
 * synced.
 *
 * Any thread.
 */
#ifndef WPFS_SPILL_STORE_H
#define WPFS_SPILL_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spill/io.h"

struct spill_store;

/* `dir_fd` is the directory, borrowed for ever. 0 or -errno. */
int spill_store_open(int dir_fd, enum spill_path want, struct spill_store **store);
void spill_store_close(struct spill_store *store);

struct spill_stats *spill_store_stats(struct spill_store *store);

/* An engine for it: spill_io_new. */
int spill_store_engine(struct spill_store *store, size_t buf_size, struct spill_io **io);

/* A descriptor for the pages of file `id`, the caller's. -ENOENT without `create`. */
int spill_store_file(struct spill_store *store, uint64_t id, bool create);

/* Pages [first, first + nr) of one file, in a buffer aligned to the page size. */
struct spill_run {
	uint64_t first, nr;
	void *buf;
};

/*
 * Writes or reads pages of a file. 0 or -errno: -EIO, -ENOSPC, ... A page that was never written
 * reads as -ENODATA or as zeros: ask the bits first.
 */
int spill_store_write(struct spill_io *io, int fd, const struct spill_run *runs, size_t nr);
int spill_store_read(struct spill_io *io, int fd, const struct spill_run *runs, size_t nr);

/* The same in two steps, as spill_io_begin and spill_io_end; `runs` stays as long too. */
int spill_store_begin(struct spill_io *io, struct spill_job *job, int fd, bool write,
		      const struct spill_run *runs, size_t nr);
int spill_store_end(struct spill_io *io, struct spill_job *job, const struct spill_run *runs,
		    size_t nr);

/*
 * The file is long enough for so many pages from now on, sparse: writes behind the end of a file
 * are made by the file system one after the other. If that is not to be had, it is slower.
 */
void spill_store_reserve(int fd, uint64_t pages);

/* These pages are not needed: their room is given back as far as the file system can. */
void spill_store_discard(int fd, const struct spill_run *runs, size_t nr);

/* The file is not needed any more. 0 or -errno; it not being there is no error. */
int spill_store_remove(struct spill_store *store, uint64_t id);

/* Removes all files: what is there is of another lower. 0 or -errno. */
int spill_store_wipe(struct spill_store *store);

/* True if all bytes are zero. `len` is a multiple of 64, `page` aligned to 8. */
bool spill_is_zero(const void *page, size_t len);

#endif
