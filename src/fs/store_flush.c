/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The flush: contents of the files that may have changed, then names and attributes. A file that
 * nobody has open or mapped for writing after that is not looked at again before its next open.
 *
 * A file whose contents cannot be written does not hold up the others, nor the names: it keeps the
 * size that is stored, stays touched, and the next flush tries again. Names that wait for a disk to
 * get well for ever would be the greater loss.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/marks.h"
#include "fs/store_data.h"
#include "fs/store_priv.h"

/* A file whose contents were written, and are durable with all the others. */
struct flushed {
	struct fs_handle handle;
	uint64_t ino, size;
	uint64_t time; /* of its size when they were written */
	struct store_unsynced unsynced;
	bool in_use;
};

struct flush {
	struct fs_store *store;
	bool final;
	const struct snap *picture; /* of all: the sizes are in it; NULL: of what was touched */
	bool changed;		    /* data files are not durable */
	uint64_t looked, total;	    /* final: bytes */
	struct flushed *done;
	size_t nr_done, room;
};

static int flush_note(struct flush *flush, const struct flushed *flushed)
{
	if (flush->nr_done == flush->room) {
		size_t room = flush->room ? flush->room * 2 : 256;
		struct flushed *done = reallocarray(flush->done, room, sizeof(*done));

		if (!done)
			return -ENOMEM;
		flush->done = done;
		flush->room = room;
	}
	flush->done[flush->nr_done++] = *flushed;
	return 0;
}

/* Our own mapping counts as a writer: it stays while another one is known. */
static void flush_let_go(struct flush *flush, uint64_t ino)
{
	struct fs_store *store = flush->store;
	struct store_image *image;

	if (fs_backing_has_writers(store->fs, ino))
		return;
	pthread_mutex_lock(&store->data[ino % FS_SHARDS]);
	image = store_known_get(store, ino, false);
	if (image)
		store_image_unmap(image);
	pthread_mutex_unlock(&store->data[ino % FS_SHARDS]);
}

/* May somebody change its contents from now on without a request? Asked before they are read. */
static bool flush_in_use(struct flush *flush, uint64_t ino, int fd)
{
	/* On a capped mount clients map our own descriptor, and no lease tells of that. */
	return !flush->final && fs_backing_may_be_written(flush->store->fs, ino, fd);
}

static void flush_step(void *ctx, size_t len)
{
	struct flush *flush = ctx;
	struct fs_store *store = flush->store;

	flush->looked += len;
	store->progress(store->progress_ctx, flush->looked, flush->total);
}

/* What a file will count for. */
static uint64_t flush_weight(struct fs_store *store, uint64_t ino, const struct fs_handle *handle)
{
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (fs_absent_is(store->fs->absent, ino))
		return 0;
	fd = store_open_lower(store->fs, ino, handle);
	if (fd < 0 || fstat(fd, &st) < 0)
		return 0;
	if (store->fs->kind == WPFS_KIND_CAPPED)
		return (uint64_t)st.st_size; /* pages that are not in memory have no blocks */
	return (uint64_t)st.st_blocks * 512;
}

static int flush_contents(struct flush *flush, uint64_t ino, const struct fs_handle *handle)
{
	struct fs_store *store = flush->store;
	pthread_mutex_t *lock = &store->data[ino % FS_SHARDS];
	struct store_data_written written = {.step = flush->total ? flush_step : NULL,
					     .ctx = flush};
	struct flushed flushed = {.ino = ino, .handle = *handle};
	_cleanup_close_ int fd = store_open_lower(store->fs, ino, handle);
	struct store_image *image;
	struct stat st;
	uint64_t ignored;
	int64_t size;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (st.st_nlink == 0)
		return -ESTALE; /* in use, and it will not be there after this mount */
	if (fs_absent_is(store->fs->absent, ino)) {
		flushed.size =
			(uint64_t)st.st_size; /* nobody has had it since the store was read */
		return flush_note(flush, &flushed);
	}
	flush_let_go(flush, ino);
	flushed.in_use = flush_in_use(flush, ino, fd);
	fs_hook_contents_begin(store->fs, ino);
	pthread_mutex_lock(lock);
	/* Again, with the lock: a commit removes what has lost its name with it held. */
	size = fstat(fd, &st) < 0 ? -errno : st.st_nlink ? 0 : -ESTALE;
	if (size == 0) {
		store_size_begin(store, ino, false);
		size = store_write_contents(store, ino, fd, flushed.in_use, flush->final, &written);
	}
	image = store_known_get(store, ino, false);
	if (image)
		store_image_rest(image);
	store_size_get(store, ino, &ignored, &flushed.time);
	flush->changed |= store_unsynced_get(store, ino, &flushed.unsynced);
	pthread_mutex_unlock(lock);
	if (size < 0)
		return (int)size;
	flushed.size = (uint64_t)size;
	return flush_note(flush, &flushed);
}

/* All that was written is durable now: the sizes that go with it may be stored. */
static int flush_durable(struct flush *flush)
{
	struct fs_store *store = flush->store;

	if (flush->changed && syncfs(store->data_fd) < 0) {
		int r = -errno;

		store_unsynced_doubt(store);
		for (size_t i = 0; flush->picture && i < flush->picture->nr_files; i++)
			store_data_doubt(store->data_fd, flush->picture->files[i].ino);
		store_known_forget_all(store);
		return r;
	}
	for (size_t i = 0; i < flush->nr_done; i++) {
		const struct flushed *f = &flush->done[i];
		pthread_mutex_t *lock = &store->data[f->ino % FS_SHARDS];
		uint64_t size, time;

		pthread_mutex_lock(lock);
		store_size_get(store, f->ino, &size, &time);
		if (time == f->time) /* else an fsync was there later and knows better */
			store_size_set(store, f->ino, f->size);
		store_unsynced_done(store, f->ino, f->unsynced.times);
		pthread_mutex_unlock(lock);
		/* Not before: a commit that an fsync of another file makes would take it along. */
		if (!flush->picture)
			fs_change_handle(store->fs, f->ino, &f->handle);
		store_succeeded(store, f->ino);
		fs_hook_contents_durable(store->fs, f->ino);
	}
	return 0;
}

/* Files that nobody has need no second look; their sizes are what their inodes say. */
static void flush_untouch(struct flush *flush)
{
	struct fs_store *store = flush->store;

	for (size_t i = 0; i < flush->nr_done; i++) {
		const struct flushed *f = &flush->done[i];

		if (!f->in_use)
			fs_untouch(store->fs, f->ino);
		/* It was touched before an fsync could note its size: with this lock held. */
		pthread_mutex_lock(&store->data[f->ino % FS_SHARDS]);
		if (!fs_is_touched(store->fs, f->ino)) {
			store_size_forget(store, f->ino);
			store_known_forget(store, f->ino);
		}
		pthread_mutex_unlock(&store->data[f->ino % FS_SHARDS]);
	}
}

static int flush_touched(struct flush *flush)
{
	struct fs *fs = flush->store->fs;
	struct fs_change *touched = fs_touched_copy(fs);
	const struct fs_change *entry;
	const bool told = flush->final && flush->store->progress;

	for (entry = told ? touched : NULL; entry; entry = entry->hh.next)
		flush->total += flush_weight(flush->store, entry->ino, &entry->handle);
	for (entry = touched; entry; entry = entry->hh.next) {
		int r = flush_contents(flush, entry->ino, &entry->handle);

		if (r == -ESTALE) { /* removed */
			fs_untouch(fs, entry->ino);
			store_succeeded(flush->store, entry->ino);
		} else if (r) {
			store_failed(flush->store, entry->ino, r);
		}
		if (r)
			fs_change_handle(fs, entry->ino, &entry->handle);
	}
	fs_change_set_free(&touched);
	return flush_durable(flush);
}

/* ---- all of it ---- */

/* The row of a file that cannot be written tells what the store had of it. */
static int flush_whole_failed(struct flush *flush, struct snap_file *file, int error)
{
	struct fs_store *store = flush->store;

	store_failed(store, file->ino, error);
	fs_touch_handle(store->fs, file->ino, &file->handle);
	return db_tree_size(store->db, file->ino, &file->size);
}

/* A file that was removed since the picture was taken leaves the picture. */
static int flush_whole_file(struct flush *flush, struct snap *snap, struct snap_file *file)
{
	const struct flushed *f;
	int r = flush_contents(flush, file->ino, &file->handle);

	if (r == -ESTALE) {
		file->gone = snap->some_gone = true;
		return 0;
	}
	if (r)
		return flush_whole_failed(flush, file, r);
	f = &flush->done[flush->nr_done - 1];
	file->size = f->size;
	if (f->in_use)
		fs_touch_handle(flush->store->fs, file->ino, &file->handle);
	return 0;
}

struct keep {
	struct fs_store *store;
	const struct snap *snap;
	bool final;
};

/* Also what was made since the picture was taken: an fsync of it may be under way, or done. */
static bool keep_file(const void *ctx, uint64_t ino)
{
	const struct keep *keep = ctx;
	const struct snap_file *file = snap_file_find(keep->snap, ino);

	if (file ? !file->gone : fs_is_touched(keep->store->fs, ino))
		return true;
	if (keep->final || !store_may_be_asked_for(keep->store, ino))
		return false;
	store_leftover_add(keep->store, ino);
	return true;
}

static int flush_picture(struct flush *flush, struct snap *snap)
{
	struct fs_store *store = flush->store;
	const bool told = flush->final && store->progress;
	const struct keep keep = {store, snap, flush->final};
	int r = 0;

	for (size_t i = 0; told && i < snap->nr_files; i++)
		flush->total += flush_weight(store, snap->files[i].ino, &snap->files[i].handle);
	for (size_t i = 0; !r && i < snap->nr_files; i++)
		r = flush_whole_file(flush, snap, &snap->files[i]);
	if (!r)
		r = flush_durable(flush);
	if (!r)
		r = db_tree_replace(store->db, snap_produce, snap);
	if (!r)
		r = store_data_prune(store->data_fd, keep_file, &keep);
	store_known_forget_all(store);
	return r;
}

int store_flush_whole(struct fs_store *store, bool final)
{
	/* What a daemon before this one has written and not made durable, nobody has noted. */
	struct snap snap;
	struct flush flush = {.store = store, .final = final, .picture = &snap, .changed = true};
	struct fs *fs = store->fs;
	struct fs_changes changes;
	struct fs_change *touched;
	int r;

	pthread_rwlock_wrlock(&fs->names_lock);
	changes = fs_changes_take(fs);
	touched = fs_touched_copy(fs);
	r = snap_take(&snap, fs, store->lower_fd);
	pthread_rwlock_unlock(&fs->names_lock);
	if (!r)
		r = flush_picture(&flush, &snap);
	if (r) {
		fs_changes_return(fs, &changes);
	} else {
		store->whole = false;
		flush_untouch(&flush);
		fs_changes_free(&changes);
	}
	fs_change_set_free(&touched);
	snap_free(&snap);
	free(flush.done);
	return r;
}

struct end {
	uint64_t id_base; /* 0: not known */
	bool clean;	  /* no data file is there that should not be */
};

static int end_job(struct db_tx *tx, void *arg)
{
	const struct end *end = arg;
	int r = end->clean ? db_tx_meta_set_u64(tx, DB_META_CLEAN, 1) : 0;

	/* Of a file without a name that no report has asked for the marks are there still. */
	if (!r)
		r = db_file_delete_gone(tx);
	return r || !end->id_base ? r : db_tx_meta_set_u64(tx, DB_META_ID_BASE, end->id_base);
}

/*
 * All is stored. The ids that were reserved and not used are given back: a file made last tells the
 * largest one. In a lower that is full the reservation stands, which costs nothing but numbers.
 */
static int flush_end(struct fs *fs, struct fs_store *store)
{
	_cleanup_close_ int fd = openat(fs->lower_fd, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
	struct end end = {.clean = !store_has_leftovers(store)};
	struct stat st;

	if (fd >= 0 && fstat(fd, &st) == 0)
		end.id_base = fs->ids->base + st.st_ino;
	return db_call(store->db, end_job, &end);
}

void fs_store_progress(struct fs *fs, fs_progress_fn fn, void *ctx)
{
	fs->store->progress = fn;
	fs->store->progress_ctx = ctx;
}

/*
 * Before anything else: of what a daemon before this one has written an error is told once only,
 * and a flush of some files would take it for one of theirs.
 */
static int flush_adopted(struct fs_store *store, bool final)
{
	int r = 0;

	pthread_mutex_lock(&store->commit);
	if (store->whole)
		r = store_flush_whole(store, final);
	pthread_mutex_unlock(&store->commit);
	return r;
}

int fs_store_flush(struct fs *fs, bool final)
{
	struct fs_store *store = fs->store;
	struct flush flush = {.store = store, .final = final};
	int r = flush_adopted(store, final), error;

	if (!r)
		r = flush_touched(&flush);
	if (!r) {
		pthread_mutex_lock(&store->commit);
		r = store_commit(store);
		/* What was found to be wrong must not be left so. */
		if (r && store->whole)
			r = store_flush_whole(store, final);
		pthread_mutex_unlock(&store->commit);
	}
	if (!r) {
		flush_untouch(&flush);
		store_remove_leftovers(store, final);
	}
	if (!r && final && !store_failing(store, &error))
		r = flush_end(fs, store);
	if (store_is_news(store, r) && r)
		log_err("cannot flush to the store: %s", log_errstr(r));
	free(flush.done);
	store_failing(store, &error);
	return r ? r : error;
}
