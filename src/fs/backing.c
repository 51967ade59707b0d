/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Backing files. The kernel opens the lower file again for every passthrough open, and writes to
 * it with the credentials of the thread that registered the backing file, whoever writes. That
 * thread must not have CAP_FSETID, or no write by any user would ever clear a suid bit. To leave
 * such a bit to those who may, a file that has one when it is opened for writing is written by us,
 * as the caller. (A bit that comes later goes with the next write: the safe side.) So is one that
 * is opened with O_SYNC or O_DSYNC where there is a store: the kernel tells of no other writes.
 *
 * An inode has one backing file at a time: the kernel refuses a second one while the first is in
 * use. It stays for a while after the last release, since the next open is often near, but only so
 * many do: the kernel does not forget inodes by itself, and a descriptor each for a million files
 * is too much. A mapping needs it no more; it has a file of its own.
 *
 * On a capped mount every open is direct I/O, and a file has a backing file only for those that map
 * it though they are not tracked: its one struct file, which is open for reading and writing.
 *
 * Else ours is open for reading only, so that a lease can be had exactly while nobody is able to
 * write to the file, or to use it: not by an open, nor by a mapping of which no descriptor is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <time.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/log.h"
#include "base/units.h"
#include "fs/priv.h"

#define DIRECT_MS 100

/* Not libfuse's wrapper: it loses the errno. */
static int backing_register(struct fs *fs, int fd)
{
	struct fuse_backing_map map = {.fd = fd};
	int id;

	creds_drop_fsetid();
	id = ioctl(fs->dev_fd, FUSE_DEV_IOC_BACKING_OPEN, &map);
	id = id > 0 ? id : -errno;
	creds_back_fsetid();
	return id;
}

/* By handle, or by the descriptor of a file without a name. */
static int backing_open_lower(struct fs *fs, struct fs_inode *inode)
{
	int flags = (fs->kind == WPFS_KIND_CAPPED ? O_RDWR : O_RDONLY) | O_NONBLOCK;
	int fd = atomic_load(&inode->nameless_fd);
	struct fs_handle handle = fs_inode_handle(inode);

	if (fd < 0)
		return fs_handle_open_at(fs->lower_fd, &handle, flags);
	fd = open(fs_proc_path(fd).s, flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* All below with shard.backing held, except where a comment says otherwise. */

static struct fs_backing *backing_new(struct fs *fs, struct fs_inode *inode, int given, int *error)
{
	struct fs_backing *backing = calloc(1, sizeof(*backing));
	_cleanup_close_ int fd = given;

	if (fd < 0)
		fd = backing ? backing_open_lower(fs, inode) : -ENOMEM;
	*error = fd < 0 ? fd : 0;
	if (backing && fd >= 0 && fs->kind == WPFS_KIND_NATIVE) {
		backing->id = backing_register(fs, fd);
		*error = backing->id < 0 ? backing->id : 0;
	}
	if (!backing || *error) {
		log_err("cannot open file %llu of the lower tmpfs: %s",
			(unsigned long long)inode->ino, log_errstr(*error));
		free(backing);
		return NULL;
	}
	backing->ino = inode->ino;
	backing->refs = 1;
	backing->attached = true;
	backing->fd = steal_fd(&fd);
	pthread_mutex_lock(&fs->idle_lock);
	DL_APPEND2(fs->backings, backing, all_prev, all_next);
	pthread_mutex_unlock(&fs->idle_lock);
	/* The kernel has the file; ours is only for speed. */
	if (atomic_fetch_add(&fs->nr_backing_fds, 1) >= fs->max_backing_fds && backing->id) {
		close_fd(&backing->fd);
		atomic_fetch_sub(&fs->nr_backing_fds, 1);
	}
	inode->backing = backing;
	return backing;
}

static void idle_remove(struct fs *fs, struct fs_backing *backing)
{
	pthread_mutex_lock(&fs->idle_lock);
	if (backing->idle) {
		DL_DELETE(fs->idle, backing);
		fs->nr_idle--;
		backing->idle = false;
	}
	pthread_mutex_unlock(&fs->idle_lock);
}

void fs_backing_put(struct fs *fs, struct fs_backing *backing)
{
	if (atomic_fetch_sub(&backing->refs, 1) > 1)
		return;
	pthread_mutex_lock(&fs->idle_lock);
	DL_DELETE2(fs->backings, backing, all_prev, all_next);
	pthread_mutex_unlock(&fs->idle_lock);
	/* ENOTCONN after an unmount: the kernel has dropped it itself. */
	if (backing->id)
		ioctl(fs->dev_fd, FUSE_DEV_IOC_BACKING_CLOSE, &backing->id);
	if (backing->fd >= 0) {
		close(backing->fd);
		atomic_fetch_sub(&fs->nr_backing_fds, 1);
	}
	free(backing);
}

void fs_backing_free(struct fs *fs, struct fs_inode *inode)
{
	if (!inode->backing)
		return;
	idle_remove(fs, inode->backing);
	inode->backing->attached = false;
	fs_backing_put(fs, inode->backing);
	inode->backing = NULL;
}

void fs_backings_free(struct fs *fs)
{
	while (fs->backings) {
		fs->backings->refs = 1;
		fs_backing_put(fs, fs->backings);
	}
}

/* Takes the oldest idle backing file of too many away. Called without any lock. */
static void idle_trim(struct fs *fs)
{
	struct fs_backing *oldest = NULL;
	struct fs_inode *inode;
	struct fs_shard *shard;
	uint64_t ino = 0;

	pthread_mutex_lock(&fs->idle_lock);
	if (fs->nr_idle > fs->max_idle) {
		oldest = fs->idle;
		ino = oldest->ino;
		DL_DELETE(fs->idle, oldest);
		fs->nr_idle--;
		oldest->idle = false;
	}
	pthread_mutex_unlock(&fs->idle_lock);
	inode = oldest ? fs_inode_get(fs, ino) : NULL;
	if (!inode)
		return;
	shard = fs_shard_of(fs, ino);
	pthread_mutex_lock(&shard->backing);
	if (inode->backing && !inode->backing->opens && !inode->backing->idle)
		fs_backing_free(fs, inode);
	pthread_mutex_unlock(&shard->backing);
	fs_inode_forget(fs, ino, 1);
}

/*
 * Blocks tell, unless some may lie behind the end, where only fallocate(2) puts them, or a huge
 * page: as many holes may be in front of it then.
 */
static bool has_holes(struct fs *fs, int fd, const struct stat *st)
{
	uint64_t pages = ((uint64_t)st->st_size + WPFS_PAGE_SIZE - 1) / WPFS_PAGE_SIZE;
	bool behind = atomic_load(&fs->behind_end) || (uint64_t)st->st_blksize > WPFS_PAGE_SIZE;
	bool as_many = (uint64_t)st->st_blocks == pages * (WPFS_PAGE_SIZE / 512);

	if (!as_many || !behind)
		return !as_many;
	return lseek(fd, 0, SEEK_HOLE) < st->st_size;
}

/* The lower file of an inode with a backing file. */
static int backing_stat(struct fs *fs, struct fs_inode *inode, struct stat *st, bool *holes)
{
	_cleanup_close_ int own = -1;
	int fd = inode->backing->fd;

	if (fd < 0)
		fd = own = backing_open_lower(fs, inode);
	if (fd < 0 || fstat(fd, st) < 0)
		return -1;
	*holes = has_holes(fs, fd, st);
	return 0;
}

static bool is_writer(const struct fuse_file_info *fi)
{
	return (fi->flags & O_ACCMODE) != O_RDONLY;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* The lower is mounted "sync" as the mount is, also after a remount, which asks nobody. */
static bool writes_are_synced(const struct fs *fs, const struct fuse_file_info *fi)
{
	struct statvfs st;

	return fs->store && ((fi->flags & O_DSYNC) ||
			     (fstatvfs(fs->lower_fd, &st) == 0 && (st.f_flag & ST_SYNCHRONOUS)));
}

static int open_locked(struct fs *fs, struct fs_inode *inode, int fd, const struct stat *made,
		       bool maps, struct fuse_file_info *fi, bool *holes)
{
	struct stat st;
	int r = 0;

	if (!inode->backing)
		backing_new(fs, inode, fd, &r);
	else if (fd >= 0)
		close(fd);
	if (r)
		return r;
	if (made)
		st = *made; /* and empty */
	else if (backing_stat(fs, inode, &st, holes) < 0)
		return -EIO;
	if (maps && !inode->backing->id)
		r = inode->backing->id = backing_register(fs, inode->backing->fd);
	if (r < 0) {
		inode->backing->id = 0;
		return r;
	}
	idle_remove(fs, inode->backing);
	atomic_fetch_add(&inode->backing->refs, 1);
	inode->backing->opens++;
	inode->backing->writers += is_writer(fi);
	if (maps || fs->kind == WPFS_KIND_NATIVE)
		fi->backing_id = inode->backing->id;
	inode->backing->through += maps;
	if (!maps && fs->kind == WPFS_KIND_CAPPED)
		inode->backing->direct_ms = now_ms();
	/* With a backing file: mappings are its, reads and writes come to us. */
	fi->direct_io = fs->kind == WPFS_KIND_CAPPED ||
			(is_writer(fi) &&
			 ((st.st_mode & (S_ISUID | S_ISGID)) || writes_are_synced(fs, fi)));
	fi->fh = (uintptr_t)inode->backing | (unsigned)(fi->flags & O_ACCMODE) |
		 (fi->direct_io ? FS_FH_DIRECT : 0) | (maps ? FS_FH_MAPS : 0);
	fi->noflush = 1;
	return 0;
}

/*
 * Can an open of a capped mount be one to map the file with? One to write only cannot; one with
 * O_TRUNC is about to write who knows how much, and O_DIRECT says that it will not.
 */
static bool could_map(const struct fuse_file_info *fi)
{
	return (fi->flags & O_ACCMODE) != O_WRONLY && !(fi->flags & (O_TRUNC | O_DIRECT));
}

/*
 * Takes shard.backing, with *maps set if this open of a capped mount is one that maps the lower
 * file. While there are any of these all that come have to be: the kernel refuses others (EIO). An
 * error leaves it unlocked.
 */
static int open_lock(struct fs *fs, struct fs_inode *inode, pid_t opener,
		     const struct fuse_file_info *fi, bool *maps)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);
	bool ask = fs->kind == WPFS_KIND_CAPPED && could_map(fi), must = false;

	for (;;) {
		int r = ask ? fs_hook_opened(fs, inode->ino, opener, must) : 0;

		if (r < 0)
			return r;
		*maps = r > 0;
		pthread_mutex_lock(&shard->backing);
		if (*maps || !inode->backing || !inode->backing->through)
			return 0;
		pthread_mutex_unlock(&shard->backing);
		ask = must = true;
	}
}

/*
 * The kernel takes note of answers to opens in no certain order, and refuses one that does not map
 * after one that does. So one that does is not given when one that does not was given just now and
 * was not released.
 */
static void wait_for_direct(uint64_t direct_ms)
{
	uint64_t age = now_ms() - direct_ms;

	if (!direct_ms || age >= DIRECT_MS)
		return;
	fs_request_may_wait();
	nanosleep(&(struct timespec){.tv_nsec = (long)(DIRECT_MS - age) * 1000000}, NULL);
}

int fs_backing_open(struct fs *fs, struct fs_inode *inode, int fd, const struct stat *made,
		    pid_t opener, struct fuse_file_info *fi)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);
	bool stale = false, maps = false, holes = false;
	uint64_t direct_ms = 0;
	bool contents = fd < 0 && !(fi->flags & O_TRUNC);
	int r = contents ? fs_absent_bring(fs->absent, inode->ino) : 0;

	if (!r)
		r = open_lock(fs, inode, opener, fi, &maps);
	if (r) {
		close_fd(&fd);
		return r;
	}
	r = open_locked(fs, inode, fd, made, maps, fi, &holes);
	if (!r && is_writer(fi))
		fs_touch(fs, inode->ino);
	if (!r) {
		/* Who reads what has no holes moves nothing; on a capped mount evictions do. */
		inode->used |= is_writer(fi) || holes || fs->kind == WPFS_KIND_CAPPED;
		inode->mappable |= (fi->flags & O_ACCMODE) == O_RDWR;
		stale = inode->attrs_cached && (is_writer(fi) || holes);
		inode->attrs_cached = inode->attrs_cached && !stale;
		/* One that was released was taken note of. */
		if (maps && inode->backing->opens > inode->backing->through)
			direct_ms = inode->backing->direct_ms;
	}
	pthread_mutex_unlock(&shard->backing);
	if (r && maps)
		fs_hook_released(fs, inode->ino);
	wait_for_direct(direct_ms);
	/*
	 * Attributes handed out before now were for a long time; from now on they can change
	 * without a request. -1: attributes only.
	 */
	if (stale)
		fuse_lowlevel_notify_inval_inode(fs->session, inode->ino, -1, 0);
	return r;
}

/* With shard.backing held, after the last release. True: it is kept for the next open. */
static bool keep_idle(struct fs *fs, struct fs_backing *backing)
{
	struct fs_inode *inode;

	if (backing->opens || !backing->attached || fs->kind != WPFS_KIND_NATIVE)
		return false;
	if (backing->astray) {
		inode = fs_inode_find(fs, backing->ino);
		if (inode && inode->backing == backing)
			fs_backing_free(fs, inode);
		return false;
	}
	pthread_mutex_lock(&fs->idle_lock);
	DL_APPEND(fs->idle, backing);
	fs->nr_idle++;
	backing->idle = true;
	pthread_mutex_unlock(&fs->idle_lock);
	return true;
}

void fs_backing_astray(struct fs *fs, struct fs_inode *inode)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);

	pthread_mutex_lock(&shard->backing);
	if (inode->backing) {
		inode->backing->astray = true;
		if (inode->backing->idle)
			fs_backing_free(fs, inode);
	}
	pthread_mutex_unlock(&shard->backing);
}

/*
 * Asks for a lease and gives it back at once: one to read is granted while no struct file of the
 * lower file may write; one to write, while there is none but ours. An open just then would wait,
 * or fail with O_NONBLOCK, so this is not asked while there are opens that would conflict.
 */
static bool lease_refused(int fd, short type)
{
	if (fcntl(fd, F_SETLEASE, type) < 0)
		return true;
	fcntl(fd, F_SETLEASE, F_UNLCK);
	return false;
}

/*
 * Can attributes change without a request? `contents`: only those, and what goes with them. Not of
 * a file that nobody can write to and that has no holes, until an open for writing, or a new size:
 * `used` is taken back then, and nobody is asked any more.
 */
static bool may_move(struct fs *fs, struct fs_inode *inode, bool contents)
{
	_cleanup_close_ int own = -1;
	int fd = inode->backing ? inode->backing->fd : -1;
	bool writers, holes;
	struct stat st;

	if (!inode->used)
		return false;
	if ((inode->backing && inode->backing->writers) || fs->kind == WPFS_KIND_CAPPED)
		return true;
	if (fd < 0)
		fd = own = backing_open_lower(fs, inode);
	if (fd < 0)
		return true;
	/* Before it is looked for holes: they make some. Who may not read it cannot map it. */
	writers = inode->mappable && lease_refused(fd, F_RDLCK);
	if (writers || contents)
		return writers;
	if (fstat(fd, &st) < 0)
		return true;
	holes = has_holes(fs, fd, &st);
	/* A load through a mapping could fill one. When it is nobody's, then until an open. */
	inode->mappable = false;
	inode->used = inode->sizing || (holes && ((inode->backing && inode->backing->opens) ||
						  lease_refused(fd, F_WRLCK)));
	return inode->used;
}

void fs_backing_release(struct fs *fs, uint64_t ino, const struct fuse_file_info *fi)
{
	struct fs_backing *backing =
		(struct fs_backing *)(uintptr_t)(fi->fh & ~(uint64_t)FS_FH_BITS);
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode;
	bool idle;

	pthread_mutex_lock(&shard->backing);
	backing->through -= (fi->fh & FS_FH_MAPS) != 0;
	backing->writers -= (fi->fh & FS_FH_ACCESS) != O_RDONLY;
	backing->opens--;
	/* Cheap now, and who asks for its attributes next, or lists it, need not wait for that. */
	inode = backing->attached ? fs_inode_find(fs, ino) : NULL;
	if (inode && inode->backing == backing)
		may_move(fs, inode, false);
	idle = keep_idle(fs, backing);
	pthread_mutex_unlock(&shard->backing);
	fs_backing_put(fs, backing);
	if (fi->fh & FS_FH_MAPS)
		fs_hook_released(fs, ino);
	if (idle)
		idle_trim(fs);
}

void fs_backing_truncated(struct fs *fs, struct fuse_file_info *fi, mode_t mode)
{
	if (fs->kind == WPFS_KIND_CAPPED || (mode & (S_ISUID | S_ISGID)) ||
	    writes_are_synced(fs, fi))
		return;
	fi->direct_io = 0;
	fi->fh &= ~(uint64_t)FS_FH_DIRECT;
}

int fs_backing_empty(struct fs *fs, uint64_t ino, int fd)
{
	bool held = fs_absent_hold(fs->absent, ino);
	int r = ftruncate(fd, 0) < 0 ? -errno : 0;

	/* In this order: a daemon that takes over must not find zeros in it. */
	if (held && r)
		fs_absent_release(fs->absent, ino);
	else if (held)
		fs_absent_release_empty(fs->absent, ino);
	return r;
}

int fs_backing_hold(struct fs *fs, struct fs_inode *inode)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);
	int r = fs_absent_bring(fs->absent, inode->ino);

	if (r)
		return r;
	pthread_mutex_lock(&shard->backing);
	if (!inode->backing)
		backing_new(fs, inode, -1, &r);
	if (!r) {
		fs_touch(fs, inode->ino);
		inode->used = inode->mappable = true;
		r = inode->backing->fd;
	}
	pthread_mutex_unlock(&shard->backing);
	return r;
}

int fs_backing_replace(struct fs *fs, struct fs_inode *inode, int fd)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0), r = own < 0 ? -errno : 0;

	pthread_mutex_lock(&shard->backing);
	if (r == 0 && (!inode->backing || inode->backing->fd < 0 || inode->backing->opens))
		r = -EBUSY;
	if (r == 0) {
		if (inode->backing->id)
			ioctl(fs->dev_fd, FUSE_DEV_IOC_BACKING_CLOSE, &inode->backing->id);
		inode->backing->id = 0;
		close(inode->backing->fd);
		inode->backing->fd = own;
		own = -1;
	}
	pthread_mutex_unlock(&shard->backing);
	close_fd(&own);
	return r;
}

int fs_backing_dup(struct fs *fs, uint64_t ino)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int fd = -1;

	if (fs_inode_ref(fs, ino, &ref) == 0 && ref.backing)
		fd = fcntl(ref.fd, F_DUPFD_CLOEXEC, 0);
	return fd;
}

void fs_backing_sizing(struct fs *fs, uint64_t ino, bool begins)
{
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode = fs_inode_find(fs, ino);

	if (!inode)
		return;
	pthread_mutex_lock(&shard->backing);
	inode->sizing = begins;
	inode->used = true;
	pthread_mutex_unlock(&shard->backing);
}

bool fs_backing_may_be_written(struct fs *fs, uint64_t ino, int fd)
{
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode;
	bool may;

	/* Of one that the kernel does not know no open is answered meanwhile either. */
	pthread_mutex_lock(&shard->backing);
	inode = fs_inode_get(fs, ino);
	may = inode ? may_move(fs, inode, true) : lease_refused(fd, F_WRLCK);
	pthread_mutex_unlock(&shard->backing);
	if (inode)
		fs_inode_forget(fs, ino, 1);
	return may;
}

bool fs_backing_has_writers(struct fs *fs, uint64_t ino)
{
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode = fs_inode_get(fs, ino);
	bool has;

	if (!inode)
		return false;
	pthread_mutex_lock(&shard->backing);
	has = inode->backing && inode->backing->writers;
	pthread_mutex_unlock(&shard->backing);
	fs_inode_forget(fs, ino, 1);
	return has;
}

double fs_backing_attr_timeout(struct fs *fs, struct fs_inode *inode)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);
	bool may;

	if (fs_absent_is(fs->absent, inode->ino))
		return 0; /* blocks and change time move when the contents come */
	pthread_mutex_lock(&shard->backing);
	may = may_move(fs, inode, false);
	if (!may)
		inode->attrs_cached = true;
	pthread_mutex_unlock(&shard->backing);
	return may ? 0 : FS_LONG_TIMEOUT;
}

double fs_backing_made_timeout(struct fs *fs, struct fs_inode *inode, const struct stat *st)
{
	struct fs_shard *shard = fs_shard_of(fs, inode->ino);

	if (fs->kind == WPFS_KIND_CAPPED || (st->st_mode & (S_ISUID | S_ISGID)))
		return 0;
	pthread_mutex_lock(&shard->backing);
	inode->attrs_cached = true;
	pthread_mutex_unlock(&shard->backing);
	return FS_LONG_TIMEOUT;
}
