/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * File ids. The lower tmpfs numbers its files upward from 1, its root, and never gives a number
 * twice (inode64). A file made in this lower has the id `base + lower number`; one that was
 * restored from a store keeps the id it had, found by binary search in `pairs`. `base` is at
 * least the largest id the store ever gave out, so the two kinds never meet.
 */
#ifndef WPFS_FS_IDS_H
#define WPFS_FS_IDS_H

#include <stddef.h>
#include <stdint.h>

struct fs_id_pair {
	uint64_t lower; /* inode number in the lower tmpfs */
	uint64_t id;
};

/* Constant after fs_ids_sort. Zeroed = a lower that started empty. */
struct fs_ids {
	uint64_t base;
	size_t nr, room; /* pairs in use, pairs allocated */
	struct fs_id_pair *pairs;
};

/* 0 or -ENOMEM. */
int fs_ids_add(struct fs_ids *ids, uint64_t lower, uint64_t id);

/* Makes the pairs searchable: after the last fs_ids_add, before the first fs_ids_get. */
void fs_ids_sort(struct fs_ids *ids);

/* The id of a lower file. The root of the lower is FS_ROOT_ID. */
uint64_t fs_ids_get(const struct fs_ids *ids, uint64_t lower);

/*
 * The table as a file beside the lower, so that a restarted daemon can adopt the lower. Saving
 * replaces the file atomically. 0 or -errno; loading: -ENOENT, or -EBADMSG when it is not whole.
 */
int fs_ids_save(const struct fs_ids *ids, int dirfd, const char *name);
int fs_ids_load(struct fs_ids *ids, int dirfd, const char *name);

/* Frees what it holds and leaves it zeroed. */
void fs_ids_clear(struct fs_ids *ids);

#endif
