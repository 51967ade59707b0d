/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is durable when fsync(2) returns: the contents and the marks of the file, and all names and
 * attributes as they are, in one commit that all who wait at the time share. Names are a prefix of
 * what was done whoever asks, so there is no commit of a single name.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "fs/store_data.h"
#include "fs/store_priv.h"

/* A link's text cannot be read without moving its access time but where a mount has noatime. */
static int open_unnoticed(int lower_fd)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOATIME, .attr_clr = MOUNT_ATTR__ATIME};
	_cleanup_close_ int tree = -1;
	int fd;

	tree = open_tree(lower_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	if (tree < 0 || mount_setattr(tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0)
		return -errno;
	fd = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int fs_store_attach(struct fs *fs, struct db *db, int data_fd, bool adopted)
{
	struct fs_store *store = calloc(1, sizeof(*store));
	int lower_fd = open_unnoticed(fs->lower_fd);

	if (!store || lower_fd < 0) {
		free(store);
		close_fd(&lower_fd);
		return lower_fd < 0 ? lower_fd : -ENOMEM;
	}
	store->lower_fd = lower_fd;
	store->fs = fs;
	store->db = db;
	store->data_fd = data_fd;
	store->whole = adopted;
	pthread_mutex_init(&store->commit, NULL);
	pthread_mutex_init(&store->lock, NULL);
	for (size_t i = 0; i < FS_SHARDS; i++)
		pthread_mutex_init(&store->data[i], NULL);
	fs->store = store;
	fs_change_inode(fs, FS_ROOT_ID); /* a new store has no row of it */
	return 0;
}

void fs_store_detach(struct fs *fs)
{
	struct fs_store *store = fs->store;

	if (!store)
		return;
	fs->store = NULL;
	store_notes_free(store);
	for (size_t i = 0; i < FS_SHARDS; i++)
		pthread_mutex_destroy(&store->data[i]);
	pthread_mutex_destroy(&store->lock);
	pthread_mutex_destroy(&store->commit);
	close(store->lower_fd);
	free(store);
}

int fs_store_wake_fd(const struct fs *fs)
{
	return fs->changes_fd;
}

int fs_store_error(const struct fs *fs, size_t *failing)
{
	int error = 0;

	*failing = fs->store ? store_failing(fs->store, &error) : 0;
	if (fs->store && atomic_load(&fs->store->error))
		error = atomic_load(&fs->store->error);
	return error;
}

/* ---- names ---- */

/* It had none when the picture was taken, but one made with O_TMPFILE may have got it since. */
static bool has_name(struct fs *fs, uint64_t ino)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct stat st;
	bool has;
	int r;

	if (!fs_inode_get(fs, ino))
		return false; /* and nobody can give it one */
	r = fs_inode_ref(fs, ino, &ref);
	/* Whatever else goes wrong: to keep it costs room only. */
	has = r ? r != -ESTALE : fstat(ref.fd, &st) < 0 || st.st_nlink > 0;
	fs_ref_put(&ref);
	ref = (struct fs_ref)FS_REF_INIT;
	fs_inode_forget(fs, ino, 1);
	return has;
}

bool store_may_be_asked_for(struct fs_store *store, uint64_t ino)
{
	struct fs_inode *inode =
		fs_absent_is(store->fs->absent, ino) ? fs_inode_get(store->fs, ino) : NULL;

	if (inode)
		fs_inode_forget(store->fs, ino, 1);
	return inode != NULL;
}

/*
 * With the lock of the file's shard of `data` held: an fsync may be about to write it. -EBUSY: it
 * has to stay for now.
 */
static int remove_locked(struct fs_store *store, uint64_t ino, bool final)
{
	if (has_name(store->fs, ino))
		return 0;
	store_size_forget(store, ino);
	if (!final && store_may_be_asked_for(store, ino))
		return -EBUSY;
	store_unsynced_forget(store, ino);
	store_succeeded(store, ino);
	store_known_forget(store, ino);
	return store_data_remove(store->data_fd, ino);
}

static int remove_or_leave(struct fs_store *store, uint64_t ino, bool final)
{
	int r;

	pthread_mutex_lock(&store->data[ino % FS_SHARDS]);
	r = remove_locked(store, ino, final);
	pthread_mutex_unlock(&store->data[ino % FS_SHARDS]);
	if (r)
		store_leftover_add(store, ino);
	return r;
}

static int remove_data(void *ctx, uint64_t ino)
{
	int r = remove_or_leave(ctx, ino, false);

	if (r && r != -EBUSY)
		log_warn("cannot remove the contents of file %" PRIu64 " from the store: %s", ino,
			 log_errstr(r));
	return 0; /* what is left is only room */
}

void store_remove_leftovers(struct fs_store *store, bool final)
{
	struct store_leftover *all = store_leftovers_take(store), *one, *next;

	HASH_ITER (hh, all, one, next) {
		HASH_DEL(all, one);
		remove_or_leave(store, one->ino, final);
		free(one);
	}
}

int store_commit(struct fs_store *store)
{
	struct fs *fs = store->fs;
	struct fs_changes changes;
	struct snap snap;
	uint64_t ticket;
	int r;

	if (store->whole)
		return store_flush_whole(store, false);
	pthread_mutex_lock(&store->lock);
	ticket = store->asked;
	pthread_mutex_unlock(&store->lock);

	pthread_rwlock_wrlock(&fs->names_lock);
	changes = fs_changes_take(fs);
	r = snap_take_changes(&snap, store, &changes);
	pthread_rwlock_unlock(&fs->names_lock);

	if (!r && snap.used)
		r = db_tree_change(store->db, snap_produce_changes, &snap);
	if (r) {
		fs_changes_return(fs, &changes);
		if (r == -ENOENT || r == -EEXIST) {
			log_warn("the stored tree is not what it was thought to be: it will be "
				 "stored whole");
			store->whole = true;
		}
	} else {
		snap_removed_each(&snap, remove_data, store);
		fs_changes_free(&changes);
		pthread_mutex_lock(&store->lock);
		store->done = ticket;
		pthread_mutex_unlock(&store->lock);
	}
	snap_free(&snap);
	return r;
}

int fs_store_flush_names(struct fs *fs)
{
	struct fs_store *store = fs->store;
	uint64_t ticket;
	bool done;
	int r = 0;

	if (!store)
		return 0;
	pthread_mutex_lock(&store->lock);
	ticket = ++store->asked;
	pthread_mutex_unlock(&store->lock);

	pthread_mutex_lock(&store->commit);
	pthread_mutex_lock(&store->lock);
	done = store->done >= ticket; /* by a commit that began after we asked */
	pthread_mutex_unlock(&store->lock);
	if (!done)
		r = store_commit(store);
	pthread_mutex_unlock(&store->commit);
	if (r && store_is_news(store, r))
		log_err("cannot store names: %s", log_errstr(r));
	return r;
}

/* ---- contents ---- */

static int sync_marks(void *ctx, uint64_t ino)
{
	return fs_hook_sync_file(ctx, ino);
}

static int read_through(void *ctx, uint64_t ino, int lower_fd, void *buf, size_t len, uint64_t off)
{
	return fs_hook_read_through(ctx, ino, lower_fd, buf, len, off);
}

static uint64_t next_through(void *ctx, uint64_t ino, uint64_t off)
{
	return fs_hook_next_through(ctx, ino, off);
}

/* From this size on a file is compared by what is known of its data file. */
#define KNOWN_SIZE (1 << 20)

/*
 * Is it worth a hash for each page and addresses for all of them? Not of a file that is mostly
 * holes: its size costs nobody anything, and would cost us memory.
 */
static bool sync_is_dense(const struct stat *st)
{
	return st->st_size >= KNOWN_SIZE && st->st_size / 4 <= (off_t)st->st_blocks * 512;
}

int64_t store_write_contents(struct fs_store *store, uint64_t ino, int fd, bool again, bool final,
			     struct store_data_written *written)
{
	struct fs *fs = store->fs;
	const struct store_data_through through = {fs, read_through, next_through};
	bool native = fs->kind == WPFS_KIND_NATIVE;
	struct store_image *image;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!sync_is_dense(&st) && st.st_size >= KNOWN_SIZE)
		store_known_forget(store, ino);
	image = store_known_get(store, ino, again && native && sync_is_dense(&st));
	if (image && again && store_image_known(image))
		store_image_map(image, fd, (uint64_t)st.st_size);
	else if (image)
		store_image_unmap(image); /* what was seen of its holes is of an earlier pass */
	r = store_data_write(store->data_fd, ino, fd, (uint64_t)st.st_size,
			     final ? NULL : sync_marks, fs, native ? NULL : &through, image,
			     written);
	if (written->changed) {
		int noted = store_unsynced_add(store, ino, written->made);

		r = r ? r : noted;
	}
	if (r)
		store_known_forget(store, ino);
	return r ? r : st.st_size;
}

/* The same of the pages of [off, end), with the lock of the file's shard of `data` held. */
static int store_write_part(struct fs_store *store, uint64_t ino, int fd, uint64_t off,
			    uint64_t end)
{
	const struct store_data_through through = {store->fs, read_through, next_through};
	const bool native = store->fs->kind == WPFS_KIND_NATIVE;
	struct store_image *image = store_known_get(store, ino, false);
	struct store_data_written written = {.changed = false};
	int r = store_data_write_part(store->data_fd, ino, fd, off, end, sync_marks, store->fs,
				      native ? NULL : &through, image, &written);

	if (image && !store_image_whole(image))
		store_known_forget(store, ino);
	if (written.changed) {
		int noted = store_unsynced_add(store, ino, written.made);

		r = r ? r : noted;
	}
	return r;
}

int store_open_lower(struct fs *fs, uint64_t ino, const struct fs_handle *handle)
{
	struct fs_inode *inode = NULL;
	int fd = -1;

	if (fs->kind == WPFS_KIND_CAPPED)
		inode = fs_inode_get(fs, ino);
	if (inode)
		fd = fs_backing_dup(fs, ino);
	if (inode)
		fs_inode_forget(fs, ino, 1);
	return fd >= 0 ? fd : fs_handle_open_at(fs->lower_fd, handle, O_RDONLY | O_NOATIME);
}

/* What was written to the data file becomes durable: with the file's lock held. */
static int sync_written(struct fs_store *store, uint64_t ino)
{
	struct store_unsynced unsynced = {.times = 0};
	int r = 0;

	if (store_unsynced_get(store, ino, &unsynced))
		r = store_data_sync(store->data_fd, ino, unsynced.made);
	if (!r)
		store_unsynced_done(store, ino, unsynced.times);
	return r;
}

/*
 * 0 or -errno; nothing for a file without a name, which ends with the mount. With the lock: else a
 * commit could remove it in between, and it would be made again.
 */
static int sync_has_name(int fd, struct stat *st, bool *has)
{
	*has = false;
	if (fstat(fd, st) < 0)
		return -errno;
	*has = st->st_nlink > 0;
	return 0;
}

static int sync_contents(struct fs_store *store, uint64_t ino, int fd)
{
	pthread_mutex_t *lock = &store->data[ino % FS_SHARDS];
	struct store_data_written written = {.changed = false};
	struct stat st;
	bool has;
	int r;

	fs_hook_contents_begin(store->fs, ino);
	pthread_mutex_lock(lock);
	r = sync_has_name(fd, &st, &has);
	if (has) {
		int64_t size;

		store_size_begin(store, ino, true);
		size = store_write_contents(store, ino, fd, true, false, &written);
		r = size < 0 ? (int)size : sync_written(store, ino);
		if (!r) {
			store_size_set(store, ino, (uint64_t)size);
		} else {
			store_known_forget(store, ino);
			store_size_cut(store, ino);
		}
	}
	pthread_mutex_unlock(lock);
	/* What a daemon before this one has written, nobody has noted: the flush of all syncs it.
	 */
	if (has && !r && !atomic_load(&store->whole))
		fs_hook_contents_durable(store->fs, ino);
	return r;
}

/*
 * A data file that has all below its size as it was at some time, and not less of the file than
 * that, needs only the pages that were written. 1: all of it has to be looked at.
 */
static int sync_part(struct fs_store *store, uint64_t ino, int fd, uint64_t off, uint64_t len)
{
	const uint64_t page = off & ~(WPFS_PAGE_SIZE - 1);
	pthread_mutex_t *lock = &store->data[ino % FS_SHARDS];
	uint64_t size, end = (off + len + WPFS_PAGE_SIZE - 1) & ~(WPFS_PAGE_SIZE - 1);
	struct stat st;
	bool has;
	int r;

	pthread_mutex_lock(lock);
	r = sync_has_name(fd, &st, &has);
	if (has &&
	    (!store_size_uncut(store, ino, &size) || page > size || (uint64_t)st.st_size < size)) {
		r = 1;
	} else if (has) {
		if (end > (uint64_t)st.st_size)
			end = (uint64_t)st.st_size;
		r = store_write_part(store, ino, fd, page, end);
		if (!r)
			r = sync_written(store, ino);
		if (r) {
			store_known_forget(store, ino);
			store_size_cut(store, ino);
		} else if (end > size) {
			store_size_set(store, ino, end);
		}
	}
	pthread_mutex_unlock(lock);
	return r;
}

/*
 * Contents are durable, or could not be made so (-ESTALE: the file is gone); names follow. A part
 * of the contents says nothing of what else could not be stored.
 */
static int sync_finish(struct fs *fs, uint64_t ino, int r, bool part)
{
	struct fs_store *store = fs->store;

	if (r && r != -ESTALE) {
		store_failed(store, ino, r);
		return r;
	}
	if (!part)
		store_succeeded(store, ino);
	r = fs_store_flush_names(fs);
	if (!r && !part)
		atomic_store(&store->error, 0);
	return r;
}

int fs_store_sync_file(struct fs *fs, uint64_t ino)
{
	struct fs_store *store = fs->store;
	_cleanup_close_ int fd = -1;
	struct fs_handle handle;
	int r;

	r = fs_hook_sync_file(fs, ino);
	if (r || !store)
		return r;
	if (fs_touched_handle(fs, ino, &handle)) {
		fd = store_open_lower(fs, ino, &handle);
		r = fd < 0 ? fd : sync_contents(store, ino, fd);
		fs_change_handle(fs, ino, &handle);
	} else {
		fs_change_inode(fs, ino);
	}
	return sync_finish(fs, ino, r, false);
}

int fs_store_sync_part(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len)
{
	_cleanup_close_ int fd = -1;
	struct fs_handle handle;
	int r = 1;

	/* After an error all of it is: with that it is over. */
	if (!atomic_load(&fs->store->error) && fs_touched_handle(fs, ino, &handle)) {
		fd = store_open_lower(fs, ino, &handle);
		r = fd < 0 ? fd : sync_part(fs->store, ino, fd, off, len);
	}
	if (r > 0)
		return fs_store_sync_file(fs, ino);
	fs_change_handle(fs, ino, &handle);
	return sync_finish(fs, ino, r, true);
}

void fs_store_cut(struct fs *fs, uint64_t ino)
{
	if (fs->store)
		store_size_cut(fs->store, ino);
}
