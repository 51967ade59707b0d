/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Descriptors of directories that were used lately. Most requests name a directory, and the next
 * one names the same: to open it by handle each time takes as long as the call it is opened for.
 *
 * A table with one place for each remainder: who comes later takes it. No order of use is kept;
 * programs work in few directories at a time, and a miss costs what it cost without.
 */
#include <fcntl.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "fs/priv.h"

struct fs_parent {
	uint64_t ino;
	int fd;
	_Atomic unsigned refs; /* of the place, and of requests */
};

static struct fs_parent_place *place_of(struct fs *fs, uint64_t ino)
{
	return &fs->parents[ino % FS_PARENTS];
}

void fs_parent_put(struct fs_parent *parent)
{
	if (atomic_fetch_sub(&parent->refs, 1) > 1)
		return;
	close(parent->fd);
	free(parent);
}

bool fs_parent_ref(struct fs *fs, uint64_t ino, struct fs_ref *ref)
{
	struct fs_parent_place *place = place_of(fs, ino);
	struct fs_parent *parent;

	pthread_mutex_lock(&place->lock);
	parent = place->parent && place->parent->ino == ino ? place->parent : NULL;
	if (parent)
		atomic_fetch_add(&parent->refs, 1);
	pthread_mutex_unlock(&place->lock);
	if (parent)
		*ref = (struct fs_ref){.fd = parent->fd, .parent = parent};
	return parent != NULL;
}

static void place_change(struct fs_parent_place *place, struct fs_parent *parent)
{
	struct fs_parent *old;

	pthread_mutex_lock(&place->lock);
	old = place->parent;
	place->parent = parent;
	pthread_mutex_unlock(&place->lock);
	if (old)
		fs_parent_put(old);
}

void fs_parent_keep(struct fs *fs, uint64_t ino, struct fs_ref *ref)
{
	struct fs_parent *parent = ref->owned ? malloc(sizeof(*parent)) : NULL;

	if (!parent)
		return;
	*parent = (struct fs_parent){.ino = ino, .fd = ref->fd, .refs = 2};
	*ref = (struct fs_ref){.fd = parent->fd, .parent = parent};
	place_change(place_of(fs, ino), parent);
}

void fs_parent_drop(struct fs *fs, uint64_t ino)
{
	struct fs_parent_place *place = place_of(fs, ino);
	struct fs_parent *parent = NULL;

	pthread_mutex_lock(&place->lock);
	if (place->parent && place->parent->ino == ino) {
		parent = place->parent;
		place->parent = NULL;
	}
	pthread_mutex_unlock(&place->lock);
	if (parent)
		fs_parent_put(parent);
}

void fs_parents_init(struct fs *fs)
{
	for (size_t i = 0; i < FS_PARENTS; i++)
		pthread_mutex_init(&fs->parents[i].lock, NULL);
}

void fs_parents_free(struct fs *fs)
{
	for (size_t i = 0; i < FS_PARENTS; i++) {
		place_change(&fs->parents[i], NULL);
		pthread_mutex_destroy(&fs->parents[i].lock);
	}
}
