/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The inode table. Keyed by file id and reached by file handle, so that a million known files
 * cost memory but no descriptors. Not chosen: node id = pointer (the rooms above look files up
 * by id, and a forged or stale id must not be followed), one O_PATH descriptor per inode.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "fs/priv.h"
#include "fs/store.h"

/*
 * Each request looks for an inode, and each in a chain is a miss of all caches: they are to be
 * short. Numbers are given out one after the other, so a product spreads them.
 */
static unsigned inode_hash(const uint64_t *ino)
{
	return (unsigned)((*ino * 0x9e3779b97f4a7c15) >> 32);
}

#undef HASH_FUNCTION
#define HASH_FUNCTION(keyptr, keylen, hashv) ((hashv) = inode_hash(keyptr))
#undef HASH_BKT_CAPACITY_THRESH
#define HASH_BKT_CAPACITY_THRESH 4U

#define FORGOTTEN_MANY		 32768 /* some MiB */

struct fs_proc_path fs_proc_path(int fd)
{
	struct fs_proc_path path;

	snprintf(path.s, sizeof(path.s), "/proc/self/fd/%d", fd);
	return path;
}

struct fs_shard *fs_shard_of(struct fs *fs, uint64_t ino)
{
	return &fs->shards[ino % FS_SHARDS];
}

int fs_handle_of_at(int fd, const char *name, struct fs_handle *handle)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + sizeof(handle->data)];
	} u = {.h.handle_bytes = sizeof(handle->data)};
	int mount_id;

	if (name_to_handle_at(fd, name, &u.h, &mount_id, name[0] ? 0 : AT_EMPTY_PATH) < 0)
		return -errno;
	memset(handle, 0, sizeof(*handle));
	handle->type = (uint8_t)u.h.handle_type;
	handle->len = (uint8_t)u.h.handle_bytes;
	memcpy(handle->data, u.h.f_handle, u.h.handle_bytes);
	return 0;
}

int fs_handle_of(int fd, struct fs_handle *handle)
{
	return fs_handle_of_at(fd, "", handle);
}

int fs_handle_open_at(int lower_fd, const struct fs_handle *handle, int flags)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + sizeof(handle->data)];
	} u = {.h.handle_bytes = handle->len, .h.handle_type = handle->type};
	int fd;

	if (handle->len > sizeof(handle->data))
		return -EINVAL;
	memcpy(u.h.f_handle, handle->data, handle->len);
	fd = open_by_handle_at(lower_fd, &u.h, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

struct fs_handle fs_inode_handle(const struct fs_inode *inode)
{
	struct fs_handle handle = {.type = inode->handle_type, .len = inode->handle_len};

	memcpy(handle.data, inode->handle, sizeof(inode->handle));
	return handle;
}

/* A tmpfs handle is three words. */
static int inode_set_handle(struct fs_inode *inode, int fd)
{
	struct fs_handle handle;
	int r = fs_handle_of(fd, &handle);

	if (r)
		return r;
	if (handle.len > sizeof(inode->handle))
		return -EOVERFLOW;
	inode->handle_type = handle.type;
	inode->handle_len = handle.len;
	memcpy(inode->handle, handle.data, sizeof(inode->handle));
	return 0;
}

static struct fs_inode *inode_new(uint64_t ino)
{
	struct fs_inode *inode = calloc(1, sizeof(*inode));

	if (!inode)
		return NULL;
	inode->ino = ino;
	inode->lookups = 1;
	inode->nameless_fd = -1;
	return inode;
}

static void nameless_count(struct fs *fs, int change)
{
	pthread_mutex_lock(&fs->nameless_lock);
	fs->nr_nameless += (unsigned)change;
	if (change < 0 && fs->nr_waiting)
		pthread_cond_broadcast(&fs->nameless_fewer);
	pthread_mutex_unlock(&fs->nameless_lock);
}

void fs_inode_wait_for_forgets(struct fs *fs)
{
	struct timespec end;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec++;
	pthread_mutex_lock(&fs->nameless_lock);
	if (fs->nr_waiting < FS_THREADS / 2) {
		fs->nr_waiting++;
		while (!r && fs->nr_nameless >= fs->max_nameless) {
			fs_request_may_wait();
			r = pthread_cond_timedwait(&fs->nameless_fewer, &fs->nameless_lock, &end);
		}
		fs->nr_waiting--;
	}
	pthread_mutex_unlock(&fs->nameless_lock);
}

static void inode_free(struct fs *fs, struct fs_inode *inode)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);

	pthread_mutex_lock(&shard->backing);
	fs_backing_free(fs, inode);
	pthread_mutex_unlock(&shard->backing);
	if (inode->nameless_fd >= 0) {
		close(inode->nameless_fd);
		nameless_count(fs, -1);
		fs_store_gone(fs, inode->ino);
	}
	free(inode);
}

int fs_inodes_init(struct fs *fs)
{
	struct fs_inode *root;
	struct stat st;
	int r;

	for (size_t i = 0; i < FS_SHARDS; i++) {
		pthread_mutex_init(&fs->shards[i].lock, NULL);
		pthread_mutex_init(&fs->shards[i].backing, NULL);
	}
	if (fstat(fs->lower_fd, &st) < 0)
		return -errno;
	r = fs_inode_lookup(fs, fs->lower_fd, &st, &root);
	if (!r && root->ino != FS_ROOT_ID) {
		log_err("the lower tmpfs has inode %llu as its root, not 1",
			(unsigned long long)st.st_ino);
		r = -EINVAL;
	}
	return r;
}

void fs_inodes_free(struct fs *fs)
{
	struct fs_inode *inode, *next;

	for (size_t i = 0; i < FS_SHARDS; i++) {
		HASH_ITER (hh, fs->shards[i].inodes, inode, next) {
			HASH_DEL(fs->shards[i].inodes, inode);
			inode_free(fs, inode);
		}
		pthread_mutex_destroy(&fs->shards[i].lock);
		pthread_mutex_destroy(&fs->shards[i].backing);
	}
}

struct fs_inode *fs_inode_find(struct fs *fs, uint64_t ino)
{
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode;

	pthread_mutex_lock(&shard->lock);
	HASH_FIND(hh, shard->inodes, &ino, sizeof(ino), inode);
	pthread_mutex_unlock(&shard->lock);
	return inode;
}

struct fs_inode *fs_inode_get(struct fs *fs, uint64_t ino)
{
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode;

	pthread_mutex_lock(&shard->lock);
	HASH_FIND(hh, shard->inodes, &ino, sizeof(ino), inode);
	if (inode)
		inode->lookups++;
	pthread_mutex_unlock(&shard->lock);
	return inode;
}

uint64_t fs_inode_lookups(struct fs *fs, struct fs_inode *inode)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);
	uint64_t lookups;

	pthread_mutex_lock(&shard->lock);
	lookups = inode->lookups;
	pthread_mutex_unlock(&shard->lock);
	return lookups;
}

int fs_inode_lookup(struct fs *fs, int fd, const struct stat *st, struct fs_inode **found)
{
	uint64_t ino = fs_ids_get(fs->ids, st->st_ino);
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode, *fresh;
	int r;

	*found = fs_inode_get(fs, ino);
	if (*found)
		return 0;
	fresh = inode_new(ino);
	if (!fresh)
		return -ENOMEM;
	r = inode_set_handle(fresh, fd);
	if (r) {
		free(fresh);
		return r;
	}
	fresh->used = fresh->mappable = fs->adopted && S_ISREG(st->st_mode);
	/* The last name may be gone already: a file made with O_TMPFILE, or an unlink that raced.
	 */
	if (st->st_nlink == 0)
		fresh->nameless_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fresh->nameless_fd >= 0)
		nameless_count(fs, 1);

	pthread_mutex_lock(&shard->lock);
	HASH_FIND(hh, shard->inodes, &ino, sizeof(ino), inode);
	if (inode)
		inode->lookups++;
	else
		HASH_ADD(hh, shard->inodes, ino, sizeof(ino), fresh);
	pthread_mutex_unlock(&shard->lock);
	if (inode)
		inode_free(fs, fresh);
	*found = inode ? inode : fresh;
	return 0;
}

/* The C library keeps what is freed below something else that is in use: all of it, most often. */
void fs_inodes_forgotten(struct fs *fs)
{
	unsigned nr = atomic_load(&fs->nr_forgotten);

	if (nr < FORGOTTEN_MANY || !atomic_compare_exchange_strong(&fs->nr_forgotten, &nr, 0))
		return;
	fs_request_may_wait();
	malloc_trim(0);
}

void fs_inode_forget(struct fs *fs, uint64_t ino, uint64_t lookups)
{
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode;

	if (ino == FS_ROOT_ID)
		return;
	pthread_mutex_lock(&shard->lock);
	HASH_FIND(hh, shard->inodes, &ino, sizeof(ino), inode);
	if (inode) {
		inode->lookups -= lookups < inode->lookups ? lookups : inode->lookups;
		if (inode->lookups == 0)
			HASH_DEL(shard->inodes, inode);
		else
			inode = NULL;
	}
	pthread_mutex_unlock(&shard->lock);
	if (!inode)
		return;
	inode_free(fs, inode);
	atomic_fetch_add(&fs->nr_forgotten, 1);
}

/* The descriptor of a backing file, if there is one. */
static bool ref_backing(struct fs *fs, struct fs_inode *inode, struct fs_ref *ref)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);
	bool found;

	pthread_mutex_lock(&shard->backing);
	found = inode->backing && inode->backing->fd >= 0;
	if (found) {
		atomic_fetch_add(&inode->backing->refs, 1);
		*ref = (struct fs_ref){
			.fd = inode->backing->fd, .fs = fs, .backing = inode->backing};
	}
	pthread_mutex_unlock(&shard->backing);
	return found;
}

static int ref_handle(struct fs *fs, const struct fs_inode *inode, int flags, struct fs_ref *ref)
{
	struct fs_handle handle = fs_inode_handle(inode);
	int fd = fs_handle_open_at(fs->lower_fd, &handle, flags);

	if (fd < 0)
		return fd;
	*ref = (struct fs_ref){.fd = fd, .owned = true};
	return 0;
}

int fs_inode_ref(struct fs *fs, uint64_t ino, struct fs_ref *ref)
{
	struct fs_inode *inode;
	int fd;

	if (ino == FS_ROOT_ID) {
		*ref = (struct fs_ref){.fd = fs->lower_fd};
		return 0;
	}
	inode = fs_inode_find(fs, ino);
	if (!inode)
		return -ESTALE;
	if (ref_backing(fs, inode, ref))
		return 0;
	fd = atomic_load(&inode->nameless_fd);
	if (fd < 0 && fs_parent_ref(fs, ino, ref))
		return 0;
	if (fd < 0)
		return ref_handle(fs, inode, O_PATH | O_NOFOLLOW, ref);
	*ref = (struct fs_ref){.fd = fd};
	return 0;
}

int fs_inode_ref_dir(struct fs *fs, uint64_t ino, struct fs_ref *ref)
{
	int r = fs_inode_ref(fs, ino, ref);

	if (!r)
		fs_parent_keep(fs, ino, ref);
	return r;
}

int fs_inode_ref_contents(struct fs *fs, uint64_t ino, int flags, struct fs_ref *ref)
{
	_cleanup_ref_ struct fs_ref any = FS_REF_INIT;
	int fd, r = fs_inode_ref(fs, ino, &any);

	if (r)
		return r;
	if (any.backing && (flags == O_RDONLY || fs->kind == WPFS_KIND_CAPPED)) {
		*ref = any;
		any = (struct fs_ref)FS_REF_INIT;
		return 0;
	}
	fd = open(fs_proc_path(any.fd).s, flags | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	*ref = (struct fs_ref){.fd = fd, .owned = true};
	return 0;
}

void fs_inode_named(struct fs *fs, uint64_t ino, int dir_fd, const char *name)
{
	struct fs_inode *inode = fs_inode_find(fs, ino);
	int kept = inode ? atomic_load(&inode->nameless_fd) : -1;
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (kept < 0)
		return;
	fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	/* In its place: whoever uses the number just now has the one file or the other. */
	if (fd >= 0 && fstat(fd, &st) == 0 && fs_ids_get(fs->ids, st.st_ino) == ino)
		dup3(fd, kept, O_CLOEXEC);
}

void fs_inode_unlinked(struct fs *fs, int fd)
{
	struct fs_inode *inode;
	struct stat st;
	int none = -1;

	if (fstat(fd, &st) < 0) {
		close(fd);
		return;
	}
	if (S_ISDIR(st.st_mode) && st.st_nlink == 0)
		fs_parent_drop(fs, fs_ids_get(fs->ids, st.st_ino));
	/* The lookup held here keeps the inode while the descriptor moves in. */
	inode = fs_inode_get(fs, fs_ids_get(fs->ids, st.st_ino));
	if (!inode) {
		close(fd);
		return;
	}
	if (st.st_nlink > 0) {
		close(fd);
		fs_backing_astray(fs, inode);
	} else if (atomic_compare_exchange_strong(&inode->nameless_fd, &none, fd))
		nameless_count(fs, 1);
	else
		close(fd);
	fs_inode_forget(fs, inode->ino, 1);
}
