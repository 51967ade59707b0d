/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Data files: the contents of one regular file each, sparse. */
#ifndef WPFS_FS_STORE_DATA_H
#define WPFS_FS_STORE_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Copies the stored contents of a file into an empty lower file of `size` bytes. 0 or -errno. */
int store_data_read(int data_fd, uint64_t id, int lower_fd, uint64_t size);

/*
 * Called between reading a window of the lower file and writing what differs in it: what is
 * written must not become durable before the caller's marks. 0, or -errno, which ends the write.
 */
typedef int (*store_data_before_fn)(void *ctx, uint64_t id);

/*
 * Makes the data file equal to the first `size` bytes of the lower file, writing only pages that
 * differ; pages of zeros become holes. Sets *changed when something was written (not yet durable).
 * `before` may be NULL. 0 or -errno.
 */
int store_data_write(int data_fd, uint64_t id, int lower_fd, uint64_t size,
		     store_data_before_fn before, void *ctx, bool *changed);

/* Removes every data file whose id is not among the sorted `keep`. 0 or -errno. */
int store_data_prune(int data_fd, const uint64_t *keep, size_t nr);

#endif
