/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Attributes of files and of the file system. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/cleanup.h"
#include "fs/priv.h"

static void reply_attr(fuse_req_t req, uint64_t ino, int fd)
{
	struct fs *fs = fs_of(req);
	struct fs_inode *inode = fs_inode_find(fs, ino);
	struct stat st;

	if (!inode || fstat(fd, &st) < 0) {
		fuse_reply_err(req, inode ? errno : ESTALE);
		return;
	}
	fs_stat_show(fs, &st);
	fuse_reply_attr(req, &st, fs_inode_attr_timeout(inode));
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int r = fs_inode_ref(fs_of(req), ino, &ref);

	if (r)
		fuse_reply_err(req, -r);
	else
		reply_attr(req, ino, ref.fd);
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
static void op_statx(fuse_req_t req, fuse_ino_t ino, int flags, int mask, struct fuse_file_info *fi)
{
	struct fs *fs = fs_of(req);
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct fs_inode *inode = fs_inode_find(fs, ino);
	struct statx stx;
	int r = fs_inode_ref(fs, ino, &ref);

	if (!r &&
	    statx(ref.fd, "", AT_EMPTY_PATH, (unsigned int)mask | STATX_BASIC_STATS, &stx) < 0)
		r = -errno;
	if (r || !inode) {
		fuse_reply_err(req, r ? -r : ESTALE);
		return;
	}
	stx.stx_ino = fs_ids_get(fs->ids, stx.stx_ino);
	fuse_reply_statx(req, 0, &stx, fs_inode_attr_timeout(inode));
}
#endif

static int set_owner(int fd, const struct stat *attr, int to_set)
{
	uid_t uid = to_set & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1;
	gid_t gid = to_set & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1;

	return fchownat(fd, "", uid, gid, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* The kernel says whether the caller's lack of CAP_FSETID clears suid bits here. */
static int set_size(struct fs *fs, uint64_t ino, int fd, off_t size, int to_set)
{
	bool kill = (to_set & FUSE_SET_ATTR_KILL_SUID) != 0;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	r = fs_hook_io_begin(fs, ino, (uint64_t)size, 0, FS_IO_DROP);
	if (r)
		return r;
	fs_touch(fs, ino);
	if (kill)
		creds_drop_fsetid();
	r = truncate(fs_proc_path(fd).s, size) < 0 ? -errno : 0;
	if (kill)
		creds_take_fsetid();
	fs_hook_io_end(fs, ino, (uint64_t)size, 0, FS_IO_DROP, !r);
	if (!r && size < st.st_size)
		fs_hook_dropped(fs, ino, (uint64_t)size, 0);
	return r;
}

static struct timespec set_time(int to_set, int set, int now, struct timespec value)
{
	if (to_set & now)
		return (struct timespec){.tv_nsec = UTIME_NOW};
	if (to_set & set)
		return value;
	return (struct timespec){.tv_nsec = UTIME_OMIT};
}

static int set_times(int fd, const struct stat *attr, int to_set)
{
	struct timespec times[2] = {
		set_time(to_set, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW, attr->st_atim),
		set_time(to_set, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW, attr->st_mtim),
	};

	return utimensat(fd, "", times, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* Owner before mode: a chown clears suid bits, a mode that comes with it is meant to stay. */
static int set_all(struct fs *fs, uint64_t ino, int fd, const struct stat *attr, int to_set)
{
	int r = 0;

	if (to_set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
		r = set_owner(fd, attr, to_set);
	if (!r && (to_set & FUSE_SET_ATTR_MODE) &&
	    chmod(fs_proc_path(fd).s, attr->st_mode & 07777) < 0)
		r = -errno;
	if (!r && (to_set & FUSE_SET_ATTR_SIZE))
		r = set_size(fs, ino, fd, attr->st_size, to_set);
	if (!r && (to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
			     FUSE_SET_ATTR_MTIME_NOW)))
		r = set_times(fd, attr, to_set);
	return r;
}

/* Contents that are still in the store come before the size changes, and never meanwhile. */
static int set_with_contents(struct fs *fs, uint64_t ino, int fd, const struct stat *attr,
			     int to_set)
{
	bool held = false;
	int r = 0;

	if (to_set & FUSE_SET_ATTR_SIZE)
		r = fs_absent_bring(fs->absent, ino);
	else
		held = fs_absent_hold(fs->absent, ino);
	if (!r)
		r = set_all(fs, ino, fd, attr, to_set);
	if (held)
		fs_absent_release(fs->absent, ino);
	return r;
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		       struct fuse_file_info *fi)
{
	struct fs *fs = fs_of(req);
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int r = fs_inode_ref(fs, ino, &ref);

	if (!r) {
		r = set_with_contents(fs, ino, ref.fd, attr, to_set);
		fs_change_inode(fs, ino);
	}
	if (r)
		fuse_reply_err(req, -r);
	else
		reply_attr(req, ino, ref.fd);
}

/* umount(8) asks for the file system's type first: whatever would keep it busy goes now. */
static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct fs *fs = fs_of(req);
	struct statvfs st;

	fs_hook_settle(fs);
	if (fstatvfs(fs->lower_fd, &st) < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_statfs(req, &st);
}

void fs_ops_attrs(struct fuse_lowlevel_ops *ops)
{
	ops->getattr = op_getattr;
	ops->setattr = op_setattr;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
	ops->statx = op_statx; /* libfuse 3.17 has none: then the kernel asks getattr */
#endif
	ops->statfs = op_statfs;
}
