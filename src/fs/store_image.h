/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a data file holds, page by page, as hashes: a large file that is in use is compared with it
 * at each fsync, and neither the store nor a copy of the file has to be read for that.
 *
 * One user at a time: the holder of the file's shard of fs_store.data.
 */
#ifndef WPFS_FS_STORE_IMAGE_H
#define WPFS_FS_STORE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct store_image;

/* Of a file whose data file has not been looked at. NULL: no memory. */
struct store_image *store_image_new(void);

/* NULL is nothing. */
void store_image_free(struct store_image *image);

/*
 * Is every page known? Set when all of them were put, or there is no data file. A page that was
 * never put is zeros.
 */
bool store_image_known(const struct store_image *image);
void store_image_set_known(struct store_image *image);

/* Was every page noted that was put since, and none doubted? Else set_known will not succeed. */
bool store_image_whole(const struct store_image *image);

/* The next set_known does not succeed: all is to be compared by reading once. */
void store_image_doubt(struct store_image *image);

/* Page number `page` is now `data`, a whole page. Without memory set_known will not succeed. */
void store_image_put(struct store_image *image, uint64_t page, const char *data);
bool store_image_same(const struct store_image *image, uint64_t page, const char *data);

/* The first page at or after `page` that is not zeros; UINT64_MAX: none. */
uint64_t store_image_next(const struct store_image *image, uint64_t page);

/* The data file ends before page `pages`. */
void store_image_cut(struct store_image *image, uint64_t pages);

/*
 * Before each pass over it: maps the lower file behind `lower_fd`, which may be open for reading
 * only, to be scanned from the begin to the end; a mapping of at least `size` bytes that is there
 * stays. While it is there the lower file counts as open for writing. Without it all pages are said
 * to differ.
 */
void store_image_map(struct store_image *image, int lower_fd, uint64_t size);
void store_image_unmap(struct store_image *image);

/*
 * It is not going to be scanned for a while: its pages do not count as memory of this process
 * meanwhile, for which who looks for memory (the kernel, to kill somebody) would blame us.
 */
void store_image_rest(struct store_image *image);

/*
 * Which pages of [off, off + len) of the mapped file may differ from what is known: `may` gets one
 * for each page; `off` is that of a page. lower_fd: of the file. Allocates nothing in it, and what
 * is allocated without being data stays so. False: none does.
 */
bool store_image_scan(struct store_image *image, int lower_fd, uint64_t off, size_t len, bool *may);

#endif
