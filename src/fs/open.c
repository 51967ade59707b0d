/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening regular files. Every open is passthrough: reads, writes and mappings then go from the
 * kernel's FUSE file to the lower file without a request, and a mapping is one of shmem. On a
 * capped mount every open is direct I/O: pages may have to come from the store, and who wants to
 * map the file has to get the lower file's descriptor from us, for a ticket.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"

/* Fills in what every open answers. */
static void open_reply_fill(const struct fs *fs, const struct fs_inode *inode,
			    struct fuse_file_info *fi)
{
	if (fs->kind == WPFS_KIND_CAPPED)
		fi->direct_io = 1;
	else
		fi->backing_id = inode->backing_id;
	fi->fh = fi->flags & O_ACCMODE; /* for a ticket */
	fi->noflush = 1;
}

static int open_truncate(struct fs *fs, uint64_t ino, int fd, bool kill)
{
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	r = fs_hook_io_begin(fs, ino, 0, 0, FS_IO_DROP);
	if (r)
		return r;
	if (kill)
		creds_drop_fsetid();
	r = ftruncate(fd, 0) < 0 ? -errno : 0;
	if (kill)
		creds_take_fsetid();
	fs_hook_io_end(fs, ino, 0, 0, FS_IO_DROP, !r);
	if (!r && st.st_size > 0)
		fs_hook_dropped(fs, ino, 0, 0);
	return r;
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fs_of(req);
	struct fs_inode *inode = fs_inode_find(fs, ino);
	bool made = false;
	int fd, r = 0;

	fd = inode ? fs_backing_get(fs, inode, -1, &made) : -ESTALE;
	if (fd < 0)
		r = fd;
	/*
	 * Attributes handed out before now were for a long time; from now on they can change
	 * without a request. -1: attributes only.
	 */
	if (made)
		fuse_lowlevel_notify_inval_inode(fs->session, ino, -1, 0);
	if (!r && ((fi->flags & O_ACCMODE) != O_RDONLY || (fi->flags & O_TRUNC)))
		fs_touch(fs, ino);
	if (!r && (fi->flags & O_TRUNC))
		r = open_truncate(fs, ino, fd, fs_kills_suid(fi));
	if (r) {
		fuse_reply_err(req, -r);
		return;
	}
	open_reply_fill(fs, inode, fi);
	fuse_reply_open(req, fi);
}

/* Enters a file just made into the table and answers with it. Takes fd over. */
static void reply_created(fuse_req_t req, int fd, struct fuse_file_info *fi)
{
	struct fs *fs = fs_of(req);
	struct fuse_entry_param entry;
	struct fs_inode *inode;
	int r;

	r = fs_entry_of_fd(fs, fd, &entry);
	if (r) {
		close(fd);
		fuse_reply_err(req, -r);
		return;
	}
	inode = fs_inode_find(fs, entry.ino);
	fd = fs_backing_get(fs, inode, fd, NULL);
	if (fd < 0) {
		fs_inode_forget(fs, entry.ino, 1);
		fuse_reply_err(req, -fd);
		return;
	}
	fs_touch(fs, entry.ino);
	entry.attr_timeout = fs_inode_attr_timeout(inode);
	open_reply_fill(fs, inode, fi);
	if (fuse_reply_create(req, &entry, fi) < 0)
		fs_inode_forget(fs, entry.ino, 1);
}

/* The caller makes the file, but the descriptor is ours: always read-write. */
static int create_as_caller(fuse_req_t req, fuse_ino_t parent, const char *name, int flags,
			    mode_t mode)
{
	struct fs *fs = fs_of(req);
	struct creds_caller caller = fs_caller(req);
	_cleanup_ref_ struct fs_ref dir = FS_REF_INIT;
	int fd, r;

	r = fs_inode_ref(fs, parent, &dir);
	if (!r)
		r = creds_become(&caller, false);
	if (r)
		return r;
	pthread_rwlock_rdlock(&fs->names_lock);
	fd = openat(dir.fd, name, flags | O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
		    mode & 07777);
	r = fd < 0 ? -errno : fd;
	if (r >= 0 && (flags & O_TMPFILE) != O_TMPFILE)
		fs_change_name(fs, parent, name);
	pthread_rwlock_unlock(&fs->names_lock);
	creds_restore();
	return r;
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
		      struct fuse_file_info *fi)
{
	int fd = create_as_caller(req, parent, name, O_CREAT | (fi->flags & (O_EXCL | O_TRUNC)),
				  mode);

	if (fd < 0)
		fuse_reply_err(req, -fd);
	else
		reply_created(req, fd, fi);
}

static void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
	/* O_EXCL: it may never get a name. */
	int fd = create_as_caller(req, parent, ".", O_TMPFILE | (fi->flags & O_EXCL), mode);

	if (fd < 0)
		fuse_reply_err(req, -fd);
	else
		reply_created(req, fd, fi);
}

/* The backing file stays: a mapping may outlive the descriptor, and the next open needs it. */
static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	fuse_reply_err(req, 0);
}

void fs_ops_files(struct fuse_lowlevel_ops *ops)
{
	ops->open = op_open;
	ops->create = op_create;
	ops->tmpfile = op_tmpfile;
	ops->release = op_release;
}
