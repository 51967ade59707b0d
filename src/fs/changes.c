/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the store has not been told yet: names, inodes, and files whose contents may have changed.
 * Sets, not a log: a name that came and went a thousand times costs one entry, and what is stored
 * is what is there when the picture is taken. Writes and stores make no request, so a file counts
 * as touched from an open for writing until a flush finds that nobody has it open or mapped.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "fs/priv.h"

/* Each request that changes something looks here: chains are short. */
#undef HASH_BKT_CAPACITY_THRESH
#define HASH_BKT_CAPACITY_THRESH 4U

#define CHANGES_MANY		 32768 /* entries: then they are stored before their time */

/* An entry that is missing would lose data in silence. */
static void *must_alloc(size_t size)
{
	void *p = calloc(1, size);

	if (!p) {
		log_err("out of memory");
		abort();
	}
	return p;
}

/* True if it was not there yet. */
static bool change_add(struct fs_change **set, uint64_t ino, const struct fs_handle *handle)
{
	struct fs_change *entry;

	HASH_FIND(hh, *set, &ino, sizeof(ino), entry);
	if (entry)
		return false;
	entry = must_alloc(sizeof(*entry));
	entry->ino = ino;
	entry->handle = *handle;
	HASH_ADD(hh, *set, ino, sizeof(ino), entry);
	return true;
}

/* The key: the number and the name, without its NUL. */
static size_t name_key_len(const char *name)
{
	return sizeof(uint64_t) + strlen(name);
}

static bool name_add(struct fs_change_name **set, struct fs_change_name *fresh)
{
	struct fs_change_name *entry;
	size_t len = name_key_len(fresh->name);

	HASH_FIND(hh, *set, &fresh->parent, len, entry);
	if (entry) {
		free(fresh);
		return false;
	}
	HASH_ADD_KEYPTR(hh, *set, &fresh->parent, len, fresh);
	return true;
}

/* changes_lock held. */
static void changes_count(struct fs *fs, bool added)
{
	fs->changes.nr += added;
	if (added && fs->changes.nr == CHANGES_MANY)
		eventfd_write(fs->changes_fd, 1);
}

void fs_change_name(struct fs *fs, uint64_t parent, const char *name)
{
	struct fs_inode *inode = fs->store ? fs_inode_find(fs, parent) : NULL;
	struct fs_change_name *entry;
	struct fs_handle handle;

	if (!inode)
		return;
	handle = fs_inode_handle(inode);
	entry = must_alloc(sizeof(*entry) + strlen(name) + 1);
	entry->parent = parent;
	entry->parent_handle = handle;
	memcpy(entry->name, name, strlen(name) + 1);
	pthread_mutex_lock(&fs->changes_lock);
	changes_count(fs, name_add(&fs->changes.names, entry));
	changes_count(fs, change_add(&fs->changes.inodes, parent, &handle));
	pthread_mutex_unlock(&fs->changes_lock);
}

void fs_change_handle(struct fs *fs, uint64_t ino, const struct fs_handle *handle)
{
	pthread_mutex_lock(&fs->changes_lock);
	changes_count(fs, change_add(&fs->changes.inodes, ino, handle));
	pthread_mutex_unlock(&fs->changes_lock);
}

void fs_change_inode(struct fs *fs, uint64_t ino)
{
	struct fs_inode *inode = fs->store ? fs_inode_find(fs, ino) : NULL;
	struct fs_handle handle;

	if (!inode)
		return;
	handle = fs_inode_handle(inode);
	fs_change_handle(fs, ino, &handle);
}

void fs_change_fd(struct fs *fs, int fd)
{
	struct fs_handle handle;
	struct stat st;

	if (fs->store && fstat(fd, &st) == 0 && fs_handle_of(fd, &handle) == 0)
		fs_change_handle(fs, fs_ids_get(fs->ids, st.st_ino), &handle);
}

void fs_touch_handle(struct fs *fs, uint64_t ino, const struct fs_handle *handle)
{
	struct fs_change *entry;

	pthread_mutex_lock(&fs->changes_lock);
	change_add(&fs->touched, ino, handle);
	HASH_FIND(hh, fs->touched, &ino, sizeof(ino), entry);
	entry->fresh = true;
	pthread_mutex_unlock(&fs->changes_lock);
}

void fs_touch(struct fs *fs, uint64_t ino)
{
	struct fs_inode *inode = fs->store ? fs_inode_find(fs, ino) : NULL;
	struct fs_handle handle;

	if (!inode)
		return;
	handle = fs_inode_handle(inode);
	fs_touch_handle(fs, ino, &handle);
}

bool fs_touched_handle(struct fs *fs, uint64_t ino, struct fs_handle *handle)
{
	struct fs_change *entry;

	pthread_mutex_lock(&fs->changes_lock);
	HASH_FIND(hh, fs->touched, &ino, sizeof(ino), entry);
	if (entry)
		*handle = entry->handle;
	pthread_mutex_unlock(&fs->changes_lock);
	return entry != NULL;
}

bool fs_is_touched(struct fs *fs, uint64_t ino)
{
	struct fs_handle ignored;

	return fs_touched_handle(fs, ino, &ignored);
}

struct fs_changes fs_changes_take(struct fs *fs)
{
	struct fs_changes taken;

	pthread_mutex_lock(&fs->changes_lock);
	taken = fs->changes;
	fs->changes = (struct fs_changes){.nr = 0};
	pthread_mutex_unlock(&fs->changes_lock);
	return taken;
}

void fs_changes_return(struct fs *fs, struct fs_changes *changes)
{
	struct fs_change_name *name, *next_name;
	struct fs_change *inode, *next;

	pthread_mutex_lock(&fs->changes_lock);
	HASH_ITER (hh, changes->inodes, inode, next) {
		fs->changes.nr += change_add(&fs->changes.inodes, inode->ino, &inode->handle);
	}
	HASH_ITER (hh, changes->names, name, next_name) {
		HASH_DEL(changes->names, name);
		fs->changes.nr += name_add(&fs->changes.names, name);
	}
	pthread_mutex_unlock(&fs->changes_lock);
	fs_changes_free(changes);
}

struct fs_change *fs_touched_copy(struct fs *fs)
{
	struct fs_change *copy = NULL, *entry, *next;

	pthread_mutex_lock(&fs->changes_lock);
	HASH_ITER (hh, fs->touched, entry, next) {
		change_add(&copy, entry->ino, &entry->handle);
		entry->fresh = false;
	}
	pthread_mutex_unlock(&fs->changes_lock);
	return copy;
}

void fs_untouch(struct fs *fs, uint64_t ino)
{
	struct fs_change *entry;

	pthread_mutex_lock(&fs->changes_lock);
	HASH_FIND(hh, fs->touched, &ino, sizeof(ino), entry);
	if (entry && entry->fresh)
		entry = NULL;
	if (entry)
		HASH_DEL(fs->touched, entry);
	pthread_mutex_unlock(&fs->changes_lock);
	free(entry);
}

void fs_change_set_free(struct fs_change **set)
{
	struct fs_change *entry, *next;

	HASH_ITER (hh, *set, entry, next) {
		HASH_DEL(*set, entry);
		free(entry);
	}
}

void fs_changes_free(struct fs_changes *changes)
{
	struct fs_change_name *name, *next;

	HASH_ITER (hh, changes->names, name, next) {
		HASH_DEL(changes->names, name);
		free(name);
	}
	fs_change_set_free(&changes->inodes);
	changes->nr = 0;
}
