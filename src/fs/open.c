/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening regular files. Every open is passthrough (but see backing.c): reads, writes and mappings
 * then go from the kernel's FUSE file to the lower file without a request, and a mapping is one of
 * shmem. On a capped mount every open is direct I/O: pages may have to come from the store. Who
 * wants to map the file has to get the lower file's descriptor from us, for a ticket; or, if it
 * knows nothing of wpfs, all of the file stays in memory while it has it open or mapped.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"

/* *mode: what the file has afterwards. */
static int open_truncate(fuse_req_t req, fuse_ino_t ino, mode_t *mode)
{
	struct creds_caller caller = fs_caller(req);
	struct fs *fs = fs_of(req);
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct fs_drop drop = {.ino = ino};
	struct stat st;
	bool shrinks;
	int r;

	r = fs_inode_ref_contents(fs, ino, O_RDWR, &ref);
	if (!r && fstat(ref.fd, &st) < 0)
		r = -errno;
	if (r)
		return r;
	if (st.st_size >= FS_MUCH)
		fs_request_may_wait();
	shrinks = st.st_size > 0;
	if (shrinks)
		fs_hook_drop_begin(fs, &drop);
	r = fs_hook_io_begin(fs, ino, 0, 0, FS_IO_DROP);
	if (r)
		goto out;
	fs_touch(fs, ino); /* an open for reading, it may be */
	r = creds_become_writer(&caller, &st);
	if (!r)
		r = fs_backing_empty(fs, ino, ref.fd);
	creds_restore();
	fs_touch(fs, ino);
	fs_hook_io_end(fs, ino, 0, 0, FS_IO_DROP, !r);
	*mode = fstat(ref.fd, &st) == 0 ? st.st_mode : S_ISUID;
out:
	if (shrinks)
		fs_hook_drop_end(fs, &drop);
	return r;
}

static void open_file(fuse_req_t req, struct fs_wait *wait)
{
	struct fs *fs = fs_of(req);
	struct fuse_file_info *fi = &wait->fi;
	fuse_ino_t ino = wait->ino;
	struct fs_inode *inode = fs_inode_find(fs, ino);
	int r = inode ? fs_backing_open(fs, inode, -1, NULL, fuse_req_ctx(req)->pid, fi) : -ESTALE;

	if (!r && (fi->flags & O_TRUNC)) {
		mode_t mode = 0;

		r = open_truncate(req, ino, &mode);
		if (r)
			fs_backing_release(fs, ino, fi);
		else
			fs_backing_truncated(fs, fi, mode);
	}
	if (r)
		fuse_reply_err(req, -r);
	else if (fuse_reply_open(req, fi) < 0)
		fs_backing_release(fs, ino, fi);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs_wait wait = {.ino = ino, .fi = *fi};

	/* Its contents come first, or go, which tracking has to agree to. */
	if ((fi->flags & O_TRUNC) || fs_absent_is(fs_of(req)->absent, ino) ||
	    fs_hook_would_wait(fs_of(req), ino, 0, 0))
		fs_wait_in(req, &wait, open_file);
	else
		open_file(req, &wait);
}

/* Enters a file just made into the table and answers with it. Takes fd over. */
static void reply_created(fuse_req_t req, int fd, struct fuse_file_info *fi)
{
	struct fs *fs = fs_of(req);
	struct fuse_entry_param entry = {.generation = fs->generation,
					 .entry_timeout = FS_LONG_TIMEOUT};
	struct fs_inode *inode;
	int r;

	r = fstat(fd, &entry.attr) < 0 ? -errno : 0;
	if (!r)
		r = fs_inode_lookup(fs, fd, &entry.attr, &inode);
	if (r) {
		close(fd);
		fuse_reply_err(req, -r);
		return;
	}
	entry.ino = inode->ino;
	r = fs_backing_open(fs, inode, fd, &entry.attr, fuse_req_ctx(req)->pid, fi);
	if (r) {
		fs_inode_forget(fs, entry.ino, 1);
		fuse_reply_err(req, -r);
		return;
	}
	if (entry.attr.st_nlink == 0)
		fs_backing_astray(fs, inode);
	entry.attr_timeout = fs_backing_made_timeout(fs, inode, &entry.attr);
	fs_stat_show(fs, &entry.attr);
	if (fuse_reply_create(req, &entry, fi) < 0) {
		fs_backing_release(fs, entry.ino, fi);
		fs_inode_forget(fs, entry.ino, 1);
	}
}

/* The caller makes the file, but the descriptor is ours: one that can be a backing file. */
static int create_as_caller(fuse_req_t req, fuse_ino_t parent, const char *name, int flags,
			    mode_t mode)
{
	struct fs *fs = fs_of(req);
	struct creds_caller caller = fs_caller(req);
	_cleanup_ref_ struct fs_ref dir = FS_REF_INIT;
	int fd, r;

	r = fs_inode_ref_dir(fs, parent, &dir);
	if (!r)
		r = creds_become_maker(&caller, mode);
	if (r)
		return r;
	pthread_rwlock_rdlock(&fs->names_lock);
	fd = openat(dir.fd, name, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, mode & 07777);
	r = fd < 0 ? -errno : fd;
	if (r >= 0 && (flags & O_TMPFILE) != O_TMPFILE)
		fs_change_name(fs, parent, name);
	pthread_rwlock_unlock(&fs->names_lock);
	creds_restore();
	return r;
}

/*
 * The kernel has looked for the name and keeps others out of the directory. Should there be one all
 * the same, ESTALE makes it look once more and open what is there.
 */
static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
		      struct fuse_file_info *fi)
{
	int access = fs_of(req)->kind == WPFS_KIND_CAPPED ? O_RDWR : O_RDONLY;
	int fd = create_as_caller(req, parent, name, access | O_CREAT | O_EXCL, mode);

	if (fd < 0)
		fuse_reply_err(req, fd == -EEXIST && !(fi->flags & O_EXCL) ? ESTALE : -fd);
	else
		reply_created(req, fd, fi);
}

static void op_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
	/* O_EXCL: it may never get a name. */
	int fd =
		create_as_caller(req, parent, ".", O_TMPFILE | O_RDWR | (fi->flags & O_EXCL), mode);

	if (fd >= 0 && fs_of(req)->kind == WPFS_KIND_NATIVE) {
		int again = open(fs_proc_path(fd).s, O_RDONLY | O_CLOEXEC);
		int error = errno;

		close(fd);
		fd = again < 0 ? -error : again;
	}
	if (fd < 0)
		fuse_reply_err(req, -fd);
	else
		reply_created(req, fd, fi);
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	fs_backing_release(fs_of(req), ino, fi);
	fuse_reply_err(req, 0);
}

void fs_ops_files(struct fuse_lowlevel_ops *ops)
{
	ops->open = op_open;
	ops->create = op_create;
	ops->tmpfile = op_tmpfile;
	ops->release = op_release;
}
