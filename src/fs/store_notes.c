/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What is known of single files of the store: sets by file id, each under the store's lock. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "fs/store_priv.h"

/* ---- sizes ---- */

bool store_size_get(struct fs_store *store, uint64_t ino, uint64_t *size, uint64_t *time)
{
	struct store_size *entry;
	bool set;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->sizes, &ino, sizeof(ino), entry);
	set = entry && entry->set;
	*size = set ? entry->size : 0;
	*time = entry ? entry->time : 0;
	pthread_mutex_unlock(&store->lock);
	return set;
}

/* With the store's lock held; NULL: no memory. What was cut before is not known of a new one. */
static struct store_size *size_make(struct fs_store *store, uint64_t ino)
{
	struct store_size *entry;

	HASH_FIND(hh, store->sizes, &ino, sizeof(ino), entry);
	if (entry)
		return entry;
	entry = calloc(1, sizeof(*entry));
	if (entry) {
		entry->ino = ino;
		entry->time = ++store->size_time;
		entry->cut = true;
		HASH_ADD(hh, store->sizes, ino, sizeof(ino), entry);
	}
	return entry;
}

void store_size_set(struct fs_store *store, uint64_t ino, uint64_t size)
{
	struct store_size *entry;

	pthread_mutex_lock(&store->lock);
	entry = size_make(store, ino);
	if (entry) { /* else the stored size stays until the next flush */
		entry->size = size;
		entry->set = true;
		entry->time = ++store->size_time;
	}
	pthread_mutex_unlock(&store->lock);
}

void store_size_begin(struct fs_store *store, uint64_t ino, bool again)
{
	struct store_size *entry;

	pthread_mutex_lock(&store->lock);
	entry = size_make(store, ino);
	if (entry && (again || !entry->set))
		entry->cut = false;
	pthread_mutex_unlock(&store->lock);
}

void store_size_cut(struct fs_store *store, uint64_t ino)
{
	struct store_size *entry;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->sizes, &ino, sizeof(ino), entry);
	if (entry)
		entry->cut = true;
	pthread_mutex_unlock(&store->lock);
}

bool store_size_uncut(struct fs_store *store, uint64_t ino, uint64_t *size)
{
	struct store_size *entry;
	bool uncut;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->sizes, &ino, sizeof(ino), entry);
	uncut = entry && entry->set && !entry->cut;
	*size = uncut ? entry->size : 0;
	pthread_mutex_unlock(&store->lock);
	return uncut;
}

void store_size_forget(struct fs_store *store, uint64_t ino)
{
	struct store_size *entry;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->sizes, &ino, sizeof(ino), entry);
	if (entry)
		HASH_DEL(store->sizes, entry);
	pthread_mutex_unlock(&store->lock);
	free(entry);
}

/* ---- data files that are not durable ---- */

bool store_unsynced_get(struct fs_store *store, uint64_t ino, struct store_unsynced *entry)
{
	struct store_unsynced *found;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->unsynced, &ino, sizeof(ino), found);
	*entry = found ? *found : (struct store_unsynced){.ino = ino};
	pthread_mutex_unlock(&store->lock);
	return found != NULL;
}

int store_unsynced_add(struct fs_store *store, uint64_t ino, bool made)
{
	struct store_unsynced *entry;
	int r = 0;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->unsynced, &ino, sizeof(ino), entry);
	if (!entry) {
		entry = calloc(1, sizeof(*entry));
		if (entry) {
			entry->ino = ino;
			HASH_ADD(hh, store->unsynced, ino, sizeof(ino), entry);
		}
	}
	if (entry) {
		entry->times++;
		entry->made |= made;
	} else {
		r = -ENOMEM;
	}
	pthread_mutex_unlock(&store->lock);
	return r;
}

void store_unsynced_done(struct fs_store *store, uint64_t ino, uint64_t times)
{
	struct store_unsynced *entry;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->unsynced, &ino, sizeof(ino), entry);
	if (entry && entry->times != times)
		entry = NULL;
	if (entry)
		HASH_DEL(store->unsynced, entry);
	pthread_mutex_unlock(&store->lock);
	free(entry);
}

void store_unsynced_forget(struct fs_store *store, uint64_t ino)
{
	struct store_unsynced entry;

	if (store_unsynced_get(store, ino, &entry))
		store_unsynced_done(store, ino, entry.times);
}

void store_unsynced_doubt(struct fs_store *store)
{
	_cleanup_free_ uint64_t *inos = NULL;
	struct store_unsynced *entry;
	size_t nr = 0;

	/* The lock is not held over what may wait for a disk. */
	pthread_mutex_lock(&store->lock);
	inos = calloc(HASH_COUNT(store->unsynced) + 1, sizeof(*inos));
	for (entry = store->unsynced; entry && inos; entry = entry->hh.next)
		inos[nr++] = entry->ino;
	pthread_mutex_unlock(&store->lock);
	if (!inos) {
		log_err("out of memory");
		abort(); /* what a disk has lost would count as stored */
	}
	for (size_t i = 0; i < nr; i++)
		store_data_doubt(store->data_fd, inos[i]);
}

/* ---- files that could not be written ---- */

void store_failed(struct fs_store *store, uint64_t ino, int error)
{
	struct store_failed *entry;
	bool news;

	pthread_mutex_lock(&store->lock);
	news = store->failed_said != error;
	store->failed_said = error;
	HASH_FIND(hh, store->failed, &ino, sizeof(ino), entry);
	if (!entry) {
		entry = calloc(1, sizeof(*entry));
		if (entry) {
			entry->ino = ino;
			HASH_ADD(hh, store->failed, ino, sizeof(ino), entry);
		}
	}
	if (entry)
		entry->error = error;
	pthread_mutex_unlock(&store->lock);
	/* A disk that is full refuses every file: that is said once. */
	if (news)
		log_err("cannot write the contents of file %" PRIu64 " to the store: %s; it is "
			"tried again at each flush",
			ino, log_errstr(error));
}

void store_succeeded(struct fs_store *store, uint64_t ino)
{
	struct store_failed *entry;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->failed, &ino, sizeof(ino), entry);
	if (entry)
		HASH_DEL(store->failed, entry);
	if (!store->failed)
		store->failed_said = 0;
	pthread_mutex_unlock(&store->lock);
	free(entry);
}

size_t store_failing(struct fs_store *store, int *error)
{
	size_t nr;

	pthread_mutex_lock(&store->lock);
	nr = HASH_COUNT(store->failed);
	*error = store->failed ? store->failed->error : 0;
	pthread_mutex_unlock(&store->lock);
	return nr;
}

/* ---- data files of files that are gone ---- */

void store_leftover_add(struct fs_store *store, uint64_t ino)
{
	struct store_leftover *entry;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->leftovers, &ino, sizeof(ino), entry);
	if (!entry) {
		entry = calloc(1, sizeof(*entry));
		if (entry) { /* else it is room only: wpctl check finds it */
			entry->ino = ino;
			HASH_ADD(hh, store->leftovers, ino, sizeof(ino), entry);
		}
	}
	pthread_mutex_unlock(&store->lock);
}

struct store_leftover *store_leftovers_take(struct fs_store *store)
{
	struct store_leftover *all;

	pthread_mutex_lock(&store->lock);
	all = store->leftovers;
	store->leftovers = NULL;
	pthread_mutex_unlock(&store->lock);
	return all;
}

bool store_has_leftovers(struct fs_store *store)
{
	bool has;

	pthread_mutex_lock(&store->lock);
	has = store->leftovers != NULL;
	pthread_mutex_unlock(&store->lock);
	return has;
}

/* ---- what data files have ---- */

struct store_image *store_known_get(struct fs_store *store, uint64_t ino, bool make)
{
	struct store_known *entry;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->known, &ino, sizeof(ino), entry);
	if (!entry && make) {
		entry = calloc(1, sizeof(*entry));
		if (entry)
			entry->image = store_image_new();
		if (entry && !entry->image) {
			free(entry);
			entry = NULL;
		}
		if (entry) {
			entry->ino = ino;
			HASH_ADD(hh, store->known, ino, sizeof(ino), entry);
		}
	}
	pthread_mutex_unlock(&store->lock);
	return entry ? entry->image : NULL;
}

void store_known_forget(struct fs_store *store, uint64_t ino)
{
	struct store_known *entry;

	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->known, &ino, sizeof(ino), entry);
	if (entry)
		HASH_DEL(store->known, entry);
	pthread_mutex_unlock(&store->lock);
	if (entry)
		store_image_free(entry->image);
	free(entry);
}

void fs_store_gone(struct fs *fs, uint64_t ino)
{
	struct fs_store *store = fs->store;
	struct store_known *entry;

	if (!store)
		return;
	pthread_mutex_lock(&store->lock);
	HASH_FIND(hh, store->known, &ino, sizeof(ino), entry);
	pthread_mutex_unlock(&store->lock);
	/* Not waiting: who has the lock may wait for a thread that asks for this. */
	if (!entry || pthread_mutex_trylock(&store->data[ino % FS_SHARDS]) != 0)
		return;
	store_known_forget(store, ino);
	pthread_mutex_unlock(&store->data[ino % FS_SHARDS]);
}

void store_known_forget_all(struct fs_store *store)
{
	uint64_t ino;

	do {
		pthread_mutex_lock(&store->lock);
		ino = store->known ? store->known->ino : 0;
		pthread_mutex_unlock(&store->lock);
		if (ino) {
			pthread_mutex_lock(&store->data[ino % FS_SHARDS]);
			store_known_forget(store, ino);
			pthread_mutex_unlock(&store->data[ino % FS_SHARDS]);
		}
	} while (ino);
}

void store_notes_free(struct fs_store *store)
{
	struct store_known *known, *next_known;
	struct store_unsynced *unsynced, *next_unsynced;
	struct store_failed *failed, *next_failed;
	struct store_leftover *left, *next_left;
	struct store_size *size, *next_size;

	HASH_ITER (hh, store->leftovers, left, next_left) {
		HASH_DEL(store->leftovers, left);
		free(left);
	}
	HASH_ITER (hh, store->unsynced, unsynced, next_unsynced) {
		HASH_DEL(store->unsynced, unsynced);
		free(unsynced);
	}
	HASH_ITER (hh, store->failed, failed, next_failed) {
		HASH_DEL(store->failed, failed);
		free(failed);
	}
	HASH_ITER (hh, store->known, known, next_known) {
		HASH_DEL(store->known, known);
		store_image_free(known->image);
		free(known);
	}
	HASH_ITER (hh, store->sizes, size, next_size) {
		HASH_DEL(store->sizes, size);
		free(size);
	}
}
