/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Data files: the contents of one regular file each, sparse. */
#ifndef WPFS_FS_STORE_DATA_H
#define WPFS_FS_STORE_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fs/store_image.h"

/* The data file of a file, for reading; the caller closes it. -ENOENT: it is all zeros. */
int store_data_open(int data_fd, uint64_t id);

/*
 * Copies the stored contents of a file into an empty lower file of `size` bytes. 0 or -errno:
 * -ECANCELED: *stop (may be NULL) became true.
 */
int store_data_read(int data_fd, uint64_t id, int lower_fd, uint64_t size,
		    const _Atomic bool *stop);

/*
 * How many blocks of 512 bytes (st_blocks) a lower file of `size` bytes has when store_data_read
 * has filled it. 0 or -errno.
 */
int store_data_blocks(int data_fd, uint64_t id, uint64_t size, uint64_t *blocks);

/*
 * Where the contents of a file are, if not all in the lower file: reads a window (what is behind
 * the end is zeros), and gives the first offset at or after `off` that is only known here, or
 * UINT64_MAX.
 */
struct store_data_through {
	void *ctx;
	int (*read)(void *ctx, uint64_t id, int lower_fd, void *buf, size_t len, uint64_t off);
	uint64_t (*next)(void *ctx, uint64_t id, uint64_t off);
};

/*
 * Called between reading a window of the lower file and writing what differs in it: what is
 * written must not become durable before the caller's marks. 0, or -errno, which ends the write.
 */
typedef int (*store_data_before_fn)(void *ctx, uint64_t id);

/*
 * What became of a data file; none of it durable yet. `step` (may be NULL) is called after each
 * window that was looked at.
 */
struct store_data_written {
	bool changed, made;
	void (*step)(void *ctx, size_t len);
	void *ctx;
};

/*
 * Makes the data file equal to the first `size` bytes of the lower file, writing only pages that
 * differ; pages of zeros become holes. What it did is set in *written, on errors too. `before`,
 * `through` and `image` may be NULL; what `image` knows need not be read, and it knows everything
 * afterwards. 0 or -errno: then it is not to be used any more.
 */
int store_data_write(int data_fd, uint64_t id, int lower_fd, uint64_t size,
		     store_data_before_fn before, void *ctx,
		     const struct store_data_through *through, struct store_image *image,
		     struct store_data_written *written);

/*
 * The same of a part: of the pages of [off, end), `end` at most what the lower file has. Nothing
 * else is looked at, and what is behind stays, as what `image` knows of it.
 */
int store_data_write_part(int data_fd, uint64_t id, int lower_fd, uint64_t off, uint64_t end,
			  store_data_before_fn before, void *ctx,
			  const struct store_data_through *through, struct store_image *image,
			  struct store_data_written *written);

/* Makes a data file durable, its name too if it was made. 0 or -errno. */
int store_data_sync(int data_fd, uint64_t id, bool made);

/*
 * A sync of it failed: the kernel may call pages clean by now that never came to the disk, and tell
 * of it once only. They leave the cache, so that the next write compares with what the disk has.
 */
void store_data_doubt(int data_fd, uint64_t id);

/* It not being there is no error. 0 or -errno. */
int store_data_remove(int data_fd, uint64_t id);

/* Removes every data file for whose id `keep` says false. 0 or -errno. */
int store_data_prune(int data_fd, bool (*keep)(const void *ctx, uint64_t id), const void *ctx);

#endif
