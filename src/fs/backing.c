/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Backing files. The kernel opens the lower file again for every passthrough open, with the
 * credentials of the thread that registered the backing file. That thread must not have
 * CAP_FSETID: otherwise no write by any user would ever clear a suid bit.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/log.h"
#include "fs/priv.h"

/* Not libfuse's wrapper: it loses the errno. */
static int backing_register(struct fs *fs, int fd)
{
	struct fuse_backing_map map = {.fd = fd};
	int id = ioctl(fs->dev_fd, FUSE_DEV_IOC_BACKING_OPEN, &map);

	return id > 0 ? id : -errno;
}

static int backing_open(struct fs *fs, struct fs_inode *inode)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int fd, r;

	r = fs_inode_ref(fs, inode->ino, &ref);
	if (r)
		return r;
	fd = open(fs_proc_path(ref.fd).s, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static int backing_make(struct fs *fs, struct fs_inode *inode, int given)
{
	_cleanup_close_ int fd = given;
	int id;

	if (fs->kind == WPFS_KIND_CAPPED) {
		/* The one struct file that is used and handed out; not only by FUSE threads. */
		if (fd < 0)
			fd = backing_open(fs, inode);
		id = fd < 0 ? fd : 0;
	} else {
		creds_drop_fsetid();
		if (fd < 0)
			fd = backing_open(fs, inode);
		id = fd < 0 ? fd : backing_register(fs, fd);
		creds_take_fsetid();
	}
	if (id < 0) {
		log_err("cannot open file %llu of the lower tmpfs: %s",
			(unsigned long long)inode->ino, log_errstr(id));
		return id;
	}
	inode->backing_id = id;
	atomic_store(&inode->backing_fd, fd);
	return steal_fd(&fd);
}

int fs_backing_get(struct fs *fs, struct fs_inode *inode, int given, bool *made)
{
	struct fs_shard *shard = &fs->shards[inode->ino % FS_SHARDS];
	int fd;

	if (made)
		*made = false;
	fd = atomic_load(&inode->backing_fd);
	if (fd >= 0) {
		if (given >= 0)
			close(given);
		return fd;
	}
	fd = given < 0 ? fs_absent_bring(fs->absent, inode->ino) : 0;
	if (fd < 0)
		return fd;
	pthread_mutex_lock(&shard->backing);
	fd = atomic_load(&inode->backing_fd);
	if (fd < 0) {
		fd = backing_make(fs, inode, given);
		given = -1;
		if (made)
			*made = fd >= 0;
	}
	pthread_mutex_unlock(&shard->backing);
	if (given >= 0)
		close(given);
	return fd;
}

void fs_backing_close(struct fs *fs, struct fs_inode *inode)
{
	int id = inode->backing_id;

	if (inode->backing_fd < 0)
		return;
	/* ENOTCONN after an unmount: the kernel has dropped it itself. */
	if (id)
		ioctl(fs->dev_fd, FUSE_DEV_IOC_BACKING_CLOSE, &id);
	close(inode->backing_fd);
	inode->backing_fd = -1;
}

bool fs_backing_in_use(int backing_fd)
{
	if (fcntl(backing_fd, F_SETLEASE, F_WRLCK) < 0)
		return true;
	fcntl(backing_fd, F_SETLEASE, F_UNLCK);
	return false;
}
