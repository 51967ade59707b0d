/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What changed since the last commit, as it is now. All of it is read while no name changes, so the
 * stored tree is always that of one moment: a prefix of what was done.
 *
 * A file whose contents may be newer than those stored keeps the stored size: a name whose contents
 * were never synced may come back shorter after a crash, and never with what it did not have.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "fs/store_priv.h"

/* Names cannot change meanwhile, so nothing here may take long: short chains. */
#undef HASH_BKT_CAPACITY_THRESH
#define HASH_BKT_CAPACITY_THRESH 4U

struct delta {
	struct snap *snap;
	struct fs_store *store;
	struct fs_change *seen; /* inodes that are in the picture */
	uint64_t parent;	/* whose descriptor parent_fd is; 0: none */
	int parent_fd;		/* -errno: cannot be opened */
};

static bool delta_has(const struct delta *d, uint64_t ino)
{
	struct fs_change *entry;

	HASH_FIND(hh, d->seen, &ino, sizeof(ino), entry);
	return entry != NULL;
}

/* True the first time. */
static int delta_first(struct delta *d, uint64_t ino)
{
	struct fs_change *entry;

	if (delta_has(d, ino))
		return 0;
	entry = calloc(1, sizeof(*entry));
	if (!entry)
		return -ENOMEM;
	entry->ino = ino;
	HASH_ADD(hh, d->seen, ino, sizeof(ino), entry);
	return 1;
}

static int delta_inode(struct delta *d, uint64_t ino, int fd)
{
	struct fs *fs = d->store->fs;
	struct stat shown;
	bool keep_size = false;
	uint64_t size, time;
	int r = delta_first(d, ino);

	if (r <= 0)
		return r;
	r = fs_stat_of(fs, ino, fd, false, &shown);
	if (r)
		return r;
	if (S_ISREG(shown.st_mode)) {
		/* In this order: it was touched before the size could change. */
		if (store_size_get(d->store, ino, &size, &time))
			shown.st_size = (off_t)size;
		else
			keep_size = fs_is_touched(fs, ino);
	}
	return snap_put_inode(d->snap, fs, fd, &shown, keep_size);
}

static int delta_parent(struct delta *d, const struct fs_change_name *name)
{
	if (d->parent != name->parent) {
		if (d->parent_fd >= 0)
			close(d->parent_fd);
		d->parent_fd = fs_handle_open_at(d->store->lower_fd, &name->parent_handle,
						 O_PATH | O_DIRECTORY);
		d->parent = name->parent;
	}
	return d->parent_fd;
}

static int delta_name(struct delta *d, const struct fs_change_name *name)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	uint64_t id;
	int dir = delta_parent(d, name), r;

	if (dir >= 0)
		fd = openat(dir, name->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	else if (dir != -ESTALE)
		return dir;
	if (fd < 0) {
		if (dir >= 0 && errno != ENOENT)
			return -errno;
		return snap_remove_name(d->snap, name->parent, name->name);
	}
	if (fstat(fd, &st) < 0)
		return -errno;
	id = fs_ids_get(d->store->fs->ids, st.st_ino);
	r = delta_inode(d, id, fd);
	return r ? r : snap_put_name(d->snap, name->parent, name->name, id);
}

static int delta_change(struct delta *d, const struct fs_change *change)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	/* By a name, most often. */
	if (delta_has(d, change->ino))
		return 0;
	fd = fs_handle_open_at(d->store->lower_fd, &change->handle, O_PATH | O_NOFOLLOW);
	if (fd < 0 && fd != -ESTALE)
		return fd;
	if (fd >= 0 && fstat(fd, &st) < 0)
		return -errno;
	/* Without a name it ends with this mount, though somebody may have it open still. */
	if (fd < 0 || (st.st_nlink == 0 && change->ino != FS_ROOT_ID)) {
		r = delta_first(d, change->ino);
		return r <= 0 ? r : snap_remove_inode(d->snap, change->ino);
	}
	return delta_inode(d, change->ino, fd);
}

int snap_take_changes(struct snap *snap, struct fs_store *store, const struct fs_changes *changes)
{
	struct delta d = {.snap = snap, .store = store, .parent_fd = -1};
	const struct fs_change_name *name;
	const struct fs_change *change;
	int r = 0;

	*snap = (struct snap){.records = NULL};
	for (name = changes->names; !r && name; name = name->hh.next)
		r = delta_name(&d, name);
	for (change = changes->inodes; !r && change; change = change->hh.next)
		r = delta_change(&d, change);
	if (d.parent_fd >= 0)
		close(d.parent_fd);
	fs_change_set_free(&d.seen);
	return r;
}
