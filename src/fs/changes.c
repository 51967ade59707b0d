/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What may have changed since the last flush. Writes and stores make no request, so a file counts
 * from its first open until its inode is forgotten, which the kernel does not do while it is open
 * or mapped.
 */
#include <stdlib.h>

#include "base/log.h"
#include "fs/priv.h"

void fs_changed(struct fs *fs)
{
	atomic_fetch_add(&fs->changes, 1);
}

static void touched_add(struct fs_touched **set, uint64_t ino)
{
	struct fs_touched *entry;

	HASH_FIND(hh, *set, &ino, sizeof(ino), entry);
	if (entry)
		return;
	entry = calloc(1, sizeof(*entry));
	if (!entry) {
		/* A file that is missing here would lose its contents in silence. */
		log_err("out of memory");
		abort();
	}
	entry->ino = ino;
	HASH_ADD(hh, *set, ino, sizeof(ino), entry);
}

void fs_touch(struct fs *fs, uint64_t ino)
{
	pthread_mutex_lock(&fs->touched_lock);
	touched_add(&fs->touched, ino);
	pthread_mutex_unlock(&fs->touched_lock);
}

struct fs_touched *fs_touched_take(struct fs *fs)
{
	struct fs_touched *taken, *again = NULL, *entry, *next;

	pthread_mutex_lock(&fs->touched_lock);
	taken = fs->touched;
	fs->touched = NULL;
	pthread_mutex_unlock(&fs->touched_lock);

	HASH_ITER (hh, taken, entry, next) {
		struct fs_inode *inode = fs_inode_get(fs, entry->ino);

		if (inode && atomic_load(&inode->backing_fd) >= 0)
			touched_add(&again, entry->ino);
		if (inode)
			fs_inode_forget(fs, entry->ino, 1);
	}
	HASH_ITER (hh, again, entry, next) {
		fs_touch(fs, entry->ino);
	}
	fs_touched_free(again);
	return taken;
}

void fs_touched_free(struct fs_touched *set)
{
	struct fs_touched *entry, *next;

	HASH_ITER (hh, set, entry, next) {
		HASH_DEL(set, entry);
		free(entry);
	}
}
