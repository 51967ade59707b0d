/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Attributes of files and of the file system. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "base/cleanup.h"
#include "fs/priv.h"

/* `changed`: by this request. */
static void reply_attr(fuse_req_t req, uint64_t ino, int fd, bool changed)
{
	struct fs *fs = fs_of(req);
	struct fs_inode *inode = fs_inode_find(fs, ino);
	double timeout = inode ? fs_backing_attr_timeout(fs, inode) : 0;
	struct stat st;
	int r = inode ? fs_stat_of(fs, ino, fd, true, &st) : -ESTALE;

	if (r) {
		fuse_reply_err(req, -r);
		return;
	}
	if (changed)
		fs_symlink_changed(fs, &st);
	fs_stat_show(fs, &st);
	fuse_reply_attr(req, &st, timeout);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int r = fs_inode_ref(fs_of(req), ino, &ref);

	if (r)
		fuse_reply_err(req, -r);
	else
		reply_attr(req, ino, ref.fd, false);
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
static void op_statx(fuse_req_t req, fuse_ino_t ino, int flags, int mask, struct fuse_file_info *fi)
{
	struct fs *fs = fs_of(req);
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct fs_inode *inode = fs_inode_find(fs, ino);
	struct statx stx;
	struct stat st;
	int r = fs_inode_ref(fs, ino, &ref);
	double timeout = inode ? fs_backing_attr_timeout(fs, inode) : 0;

	if (!r &&
	    statx(ref.fd, "", AT_EMPTY_PATH, (unsigned int)mask | STATX_BASIC_STATS, &stx) < 0)
		r = -errno;
	if (!r && (fs->kind == WPFS_KIND_CAPPED || fs_absent_is(fs->absent, ino))) {
		r = fs_stat_of(fs, ino, ref.fd, true, &st);
		stx.stx_atime.tv_sec = st.st_atim.tv_sec;
		stx.stx_atime.tv_nsec = (uint32_t)st.st_atim.tv_nsec;
		stx.stx_mtime.tv_sec = st.st_mtim.tv_sec;
		stx.stx_mtime.tv_nsec = (uint32_t)st.st_mtim.tv_nsec;
		stx.stx_blocks = (uint64_t)st.st_blocks;
	}
	if (r || !inode) {
		fuse_reply_err(req, r ? -r : ESTALE);
		return;
	}
	stx.stx_ino = fs_ids_get(fs->ids, stx.stx_ino);
	fuse_reply_statx(req, 0, &stx, timeout);
}
#endif

struct owner {
	fuse_req_t req;
	int fd;
	uid_t uid;
	gid_t gid;
};

/* As the caller, whose groups decide whether an sgid bit stays. */
static int set_owner_still(void *arg)
{
	const struct owner *owner = arg;
	struct creds_caller caller = fs_caller(owner->req);
	struct stat st;
	int r;

	if (fstat(owner->fd, &st) < 0)
		return -errno;
	r = creds_become_writer(&caller, &st);
	if (!r && fchownat(owner->fd, "", owner->uid, owner->gid, AT_EMPTY_PATH) < 0)
		r = -errno;
	creds_restore();
	return r;
}

/* Takes capabilities away. */
static int set_owner(fuse_req_t req, uint64_t ino, int fd, const struct stat *attr, int to_set)
{
	struct owner owner = {
		.req = req,
		.fd = fd,
		.uid = to_set & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1,
		.gid = to_set & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1,
	};

	return fs_hook_still(fs_of(req), ino, set_owner_still, &owner);
}

/* By descriptor, as ftruncate(2), times move though the size does not. */
static int truncate_lower(struct fs *fs, uint64_t ino, int fd, const struct stat *st, off_t size,
			  bool by_fd)
{
	const bool empty = size == 0 && st->st_size > 0 && fs_absent_is(fs->absent, ino);
	_cleanup_ref_ struct fs_ref file = FS_REF_INIT;
	int r;

	if (!by_fd && !empty)
		return truncate(fs_proc_path(fd).s, size) < 0 ? -errno : 0;
	r = fs_inode_ref_contents(fs, ino, O_RDWR, &file);
	if (!r && empty)
		return fs_backing_empty(fs, ino, file.fd);
	if (!r && ftruncate(file.fd, size) < 0)
		r = -errno;
	return r;
}

static int set_size(fuse_req_t req, uint64_t ino, int fd, off_t size, bool by_fd)
{
	struct creds_caller caller = fs_caller(req);
	struct fs_drop drop = {.ino = ino, .off = (uint64_t)size};
	struct fs *fs = fs_of(req);
	struct stat st;
	bool shrinks;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	shrinks = size < st.st_size;
	if (shrinks && st.st_size - size >= FS_MUCH)
		fs_request_may_wait();
	if (shrinks)
		fs_hook_drop_begin(fs, &drop);
	r = fs_hook_io_begin(fs, ino, (uint64_t)size, 0, FS_IO_DROP);
	if (r)
		goto out;
	fs_touch(fs, ino);
	fs_backing_sizing(fs, ino, true);
	r = creds_become_writer(&caller, &st);
	if (!r)
		r = truncate_lower(fs, ino, fd, &st, size, by_fd);
	creds_restore();
	fs_backing_sizing(fs, ino, false);
	fs_touch(fs, ino); /* again: a flush that has read it in between must not be the last */
	fs_hook_io_end(fs, ino, (uint64_t)size, 0, FS_IO_DROP, !r);
out:
	if (shrinks)
		fs_hook_drop_end(fs, &drop);
	return r;
}

/*
 * A descriptor that is not O_PATH is that of a regular file or a directory, and needs no path.
 * Whether a set-group-id bit may stay was decided by the VFS before it asked.
 */
static int set_mode(int fd, mode_t mode)
{
	int r;

	if (mode & S_ISGID)
		creds_take_fsetid();
	r = fchmod(fd, mode) < 0 ? -errno : 0;
	if (r == -EBADF)
		r = chmod(fs_proc_path(fd).s, mode) < 0 ? -errno : 0;
	creds_back_fsetid();
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

static int set_times(struct fs *fs, uint64_t ino, int fd, const struct stat *attr, int to_set)
{
	struct timespec times[2] = {
		set_time(to_set, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW, attr->st_atim),
		set_time(to_set, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW, attr->st_mtim),
	};

	return fs_hook_set_times(fs, ino, fd, times);
}

/*
 * A request to set nothing comes from chown(2) to nobody else, which moves the ctime; and from the
 * kernel's own call before a fallocate that has to clear suid bits, which does that itself (or is
 * refused and does not).
 */
static int set_nothing(fuse_req_t req, int fd)
{
	struct creds_caller caller = fs_caller(req);
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode) &&
	    ((st.st_mode & (S_ISUID | S_ISGID)) ||
	     getxattr(fs_proc_path(fd).s, "security.capability", NULL, 0) >= 0))
		return 0;
	r = creds_become_writer(&caller, &st);
	if (!r && fchownat(fd, "", (uid_t)-1, (gid_t)-1, AT_EMPTY_PATH) < 0)
		r = -errno;
	creds_restore();
	return r;
}

/* Owner before mode: a chown clears suid bits, a mode that comes with it is meant to stay. */
static int set_all(fuse_req_t req, uint64_t ino, int fd, const struct stat *attr, int to_set,
		   bool by_fd)
{
	const int owner = FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID;
	const int times = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
			  FUSE_SET_ATTR_MTIME_NOW;
	int r = 0;

	if (!(to_set & (owner | times | FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_SIZE)))
		return set_nothing(req, fd);
	if (to_set & owner)
		r = set_owner(req, ino, fd, attr, to_set);
	if (!r && (to_set & FUSE_SET_ATTR_MODE))
		r = set_mode(fd, attr->st_mode & 07777);
	if (!r && (to_set & FUSE_SET_ATTR_SIZE))
		r = set_size(req, ino, fd, attr->st_size, by_fd);
	if (!r && (to_set & times))
		r = set_times(fs_of(req), ino, fd, attr, to_set);
	return r;
}

/*
 * Contents that are still in the store come before the size changes, and never meanwhile. Those of
 * a file that is to be empty need not come.
 */
static int set_with_contents(fuse_req_t req, uint64_t ino, int fd, const struct stat *attr,
			     int to_set, bool by_fd)
{
	struct fs *fs = fs_of(req);
	bool held = false;
	int r = 0;

	if (to_set & FUSE_SET_ATTR_SIZE)
		r = attr->st_size ? fs_absent_bring(fs->absent, ino) : 0;
	else
		held = fs_absent_hold(fs->absent, ino);
	if (!r)
		r = set_all(req, ino, fd, attr, to_set, by_fd);
	if (held)
		fs_absent_release(fs->absent, ino);
	return r;
}

static void setattr(fuse_req_t req, struct fs_wait *wait)
{
	struct fs *fs = fs_of(req);
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int r = fs_inode_ref(fs, wait->ino, &ref);

	if (!r) {
		r = set_with_contents(req, wait->ino, ref.fd, &wait->attr, wait->to_set,
				      wait->by_fd);
		if (r) /* part of it may have been done */
			fs_symlink_touched(fs, ref.fd, "");
		fs_change_inode(fs, wait->ino);
	}
	if (r)
		fuse_reply_err(req, -r);
	else
		reply_attr(req, wait->ino, ref.fd, true);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
		       struct fuse_file_info *fi)
{
	struct fs_wait wait = {.ino = ino, .attr = *attr, .to_set = to_set, .by_fd = fi != NULL};

	if ((to_set & FUSE_SET_ATTR_SIZE) || fs_absent_is(fs_of(req)->absent, ino))
		fs_wait_in(req, &wait, setattr);
	else
		setattr(req, &wait);
}

/* umount(8) asks for the file system's type first: whatever would keep it busy goes now. */
static void statfs_settled(fuse_req_t req, struct fs_wait *wait)
{
	struct fs *fs = fs_of(req);
	struct statvfs st;

	fs_hook_settle(fs);
	if (fstatvfs(fs->lower_fd, &st) < 0) {
		fuse_reply_err(req, errno);
		return;
	}
	fs_hook_space(fs, &st);
	fuse_reply_statfs(req, &st);
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	fs_wait_in(req, &(struct fs_wait){.ino = ino}, statfs_settled);
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
