/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Capped mounts: what asks for contents says so before and after, because they may be in the store
 * and not in the lower file. On native mounts there are no such hooks and all of it is nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/priv.h"

int fs_hook_io_begin(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io)
{
	int r = 0;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->io_begin)
		r = fs->hooks->io_begin(fs->hooks->io_ctx, ino, off, len, io);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

void fs_hook_io_end(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io,
		    bool done)
{
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->io_end)
		fs->hooks->io_end(fs->hooks->io_ctx, ino, off, len, io, done);
	pthread_rwlock_unlock(&fs->hooks_lock);
}

bool fs_hook_would_wait(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len)
{
	bool would = false;

	if (fs->kind != WPFS_KIND_CAPPED)
		return false;
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->would_wait)
		would = fs->hooks->would_wait(fs->hooks->io_ctx, ino, off, len);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return would;
}

int fs_hook_opened(struct fs *fs, uint64_t ino, pid_t opener, bool must)
{
	int r = 0;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->opened)
		r = fs->hooks->opened(fs->hooks->io_ctx, ino, opener, must);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

void fs_hook_released(struct fs *fs, uint64_t ino)
{
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->released)
		fs->hooks->released(fs->hooks->io_ctx, ino);
	pthread_rwlock_unlock(&fs->hooks_lock);
}

void fs_hook_space(struct fs *fs, struct statvfs *st)
{
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->space)
		fs->hooks->space(fs->hooks->io_ctx, st);
	pthread_rwlock_unlock(&fs->hooks_lock);
}

off_t fs_hook_seek(struct fs *fs, uint64_t ino, int fd, off_t off, int whence)
{
	off_t at;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->seek) {
		at = (off_t)fs->hooks->seek(fs->hooks->io_ctx, ino, fd, (uint64_t)off, whence);
	} else {
		at = lseek(fd, off, whence);
		if (at < 0)
			at = -errno;
	}
	pthread_rwlock_unlock(&fs->hooks_lock);
	return at;
}

int fs_hook_set_times(struct fs *fs, uint64_t ino, int fd, const struct timespec times[2])
{
	int r;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->set_times)
		r = fs->hooks->set_times(fs->hooks->io_ctx, ino, fd, times);
	else
		r = utimensat(fd, "", times, AT_EMPTY_PATH) < 0 ? -errno : 0;
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

int fs_hook_still(struct fs *fs, uint64_t ino, int (*fn)(void *arg), void *arg)
{
	int r;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->still)
		r = fs->hooks->still(fs->hooks->io_ctx, ino, fn, arg);
	else
		r = fn(arg);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

int fs_hook_stat(struct fs *fs, uint64_t ino, int fd, const char *name, struct stat *st)
{
	int r;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->stat)
		r = fs->hooks->stat(fs->hooks->io_ctx, ino, fd, name, st);
	else
		r = fstatat(fd, name, st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

int fs_stat_of(struct fs *fs, uint64_t ino, int fd, bool exactly, struct stat *st)
{
	if (fs_absent_is(fs->absent, ino))
		return fs_absent_stat(fs->absent, ino, fd, exactly, st);
	return fs_hook_stat(fs, ino, fd, "", st);
}

int fs_hook_ticket(struct fs *fs, uint64_t ino, int accmode, struct wpfs_ticket *ticket)
{
	int r = -ENOTTY;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->ticket)
		r = fs->hooks->ticket(fs->hooks->io_ctx, ino, accmode, ticket);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

int fs_hook_read_through(struct fs *fs, uint64_t ino, int lower_fd, void *buf, size_t len,
			 uint64_t off)
{
	int r = -ENOTTY;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->read_through)
		r = fs->hooks->read_through(fs->hooks->io_ctx, ino, lower_fd, buf, len, off);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

uint64_t fs_hook_next_through(struct fs *fs, uint64_t ino, uint64_t off)
{
	uint64_t next = UINT64_MAX;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->next_through)
		next = fs->hooks->next_through(fs->hooks->io_ctx, ino, off);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return next;
}
