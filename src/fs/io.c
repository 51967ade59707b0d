/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is done to the contents of open files. read and write come only for a file that was not
 * opened for passthrough; the rest has no passthrough in the kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"

#define FALLOCATE_PIECE ((off_t)1 << 20)

/* The backing descriptor of a file that is open, or -errno. */
static int open_fd(fuse_req_t req, fuse_ino_t ino)
{
	struct fs_inode *inode = fs_inode_find(fs_of(req), ino);

	return inode ? fs_backing_get(fs_of(req), inode, -1, NULL) : -ESTALE;
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	struct fuse_bufvec buf = FUSE_BUFVEC_INIT(size);
	struct fs *fs = fs_of(req);
	int fd = open_fd(req, ino);
	int r = fd < 0 ? fd : fs_hook_io_begin(fs, ino, (uint64_t)off, size, FS_IO_READ);

	if (r < 0) {
		fuse_reply_err(req, -r);
		return;
	}
	buf.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
	buf.buf[0].fd = fd;
	buf.buf[0].pos = off;
	fuse_reply_data(req, &buf, FUSE_BUF_SPLICE_MOVE);
	fs_hook_io_end(fs, ino, (uint64_t)off, size, FS_IO_READ, true);
}

static void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *in, off_t off,
			 struct fuse_file_info *fi)
{
	size_t size = fuse_buf_size(in);
	struct fuse_bufvec out = FUSE_BUFVEC_INIT(size);
	struct fs *fs = fs_of(req);
	int fd = open_fd(req, ino);
	int r = fd < 0 ? fd : fs_hook_io_begin(fs, ino, (uint64_t)off, size, FS_IO_WRITE);
	ssize_t n;

	if (r < 0) {
		fuse_reply_err(req, -r);
		return;
	}
	out.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
	out.buf[0].fd = fd;
	out.buf[0].pos = off;
	if (fs_kills_suid(fi))
		creds_drop_fsetid();
	n = fuse_buf_copy(&out, in, 0);
	if (fs_kills_suid(fi))
		creds_take_fsetid();
	fs_hook_io_end(fs, ino, (uint64_t)off, size, FS_IO_WRITE, n >= 0);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	fuse_reply_err(req, -fs_store_sync_file(fs_of(req), ino));
}

/* Like a write, it clears suid bits for a caller without CAP_FSETID; no flag says which it is. */
static int fallocate_as(fuse_req_t req, int fd, int mode, off_t off, off_t len)
{
	struct stat st;
	bool kill;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	kill = (st.st_mode & (S_ISUID | S_ISGID)) &&
	       !creds_caller_capable(fuse_req_ctx(req)->pid, CAP_FSETID);
	if (kill)
		creds_drop_fsetid();
	r = fallocate(fd, mode, off, len) < 0 ? -errno : 0;
	if (kill)
		creds_take_fsetid();
	return r;
}

/*
 * Allocates piece by piece on a capped mount, where not all of it need fit into memory at once.
 * What is done when an error comes stays done, as on other file systems.
 */
static int fallocate_pieces(fuse_req_t req, fuse_ino_t ino, int fd, int mode, off_t off, off_t len)
{
	struct fs *fs = fs_of(req);
	off_t piece = fs->kind == WPFS_KIND_CAPPED ? FALLOCATE_PIECE : len;
	int r = 0;

	for (off_t at = 0; !r && at < len; at += piece) {
		uint64_t from = (uint64_t)(off + at);

		if (piece > len - at)
			piece = len - at;
		r = fs_hook_io_begin(fs, ino, from, (uint64_t)piece, FS_IO_WRITE);
		if (r)
			break;
		r = fallocate_as(req, fd, mode, (off_t)from, piece);
		fs_hook_io_end(fs, ino, from, (uint64_t)piece, FS_IO_WRITE, !r);
	}
	return r;
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
			 struct fuse_file_info *fi)
{
	const int shifts = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE;
	const int drops = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
	bool drop = (mode & (shifts | drops)) != 0;
	int fd = open_fd(req, ino), r = fd < 0 ? fd : 0;

	if (!r && drop) {
		r = fs_hook_io_begin(fs_of(req), ino, (uint64_t)off, (uint64_t)len, FS_IO_DROP);
		if (!r) {
			r = fallocate_as(req, fd, mode, off, len);
			fs_hook_io_end(fs_of(req), ino, (uint64_t)off, (uint64_t)len, FS_IO_DROP,
				       !r);
		}
	} else if (!r) {
		r = fallocate_pieces(req, ino, fd, mode, off, len);
	}
	if (!r && (mode & shifts))
		fs_hook_dropped(fs_of(req), ino, (uint64_t)off, 0);
	else if (!r && (mode & drops))
		fs_hook_dropped(fs_of(req), ino, (uint64_t)off, (uint64_t)len);
	fuse_reply_err(req, -r);
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
		     struct fuse_file_info *fi)
{
	int fd = open_fd(req, ino);
	off_t at = fd < 0 ? fd : fs_hook_seek(fs_of(req), ino, fd, off, whence);

	if (at < 0)
		fuse_reply_err(req, (int)-at);
	else
		fuse_reply_lseek(req, at);
}

static void op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
			       struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
			       struct fuse_file_info *fi_out, size_t len, int flags)
{
	int in = open_fd(req, ino_in), out = open_fd(req, ino_out);
	ssize_t n;

	/* The kernel then reads and writes: two files at once cannot be kept in memory. */
	if (fs_of(req)->kind == WPFS_KIND_CAPPED) {
		fuse_reply_err(req, EOPNOTSUPP);
		return;
	}
	if (in < 0 || out < 0) {
		fuse_reply_err(req, in < 0 ? -in : -out);
		return;
	}
	n = copy_file_range(in, &off_in, out, &off_out, len, (unsigned int)flags);
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_write(req, (size_t)n);
}

static void reply_ticket(fuse_req_t req, fuse_ino_t ino, const struct fuse_file_info *fi)
{
	struct wpfs_ticket ticket;
	int r = fs_hook_ticket(fs_of(req), ino, (int)fi->fh, &ticket);

	if (r)
		fuse_reply_err(req, -r);
	else
		fuse_reply_ioctl(req, 0, &ticket, sizeof(ticket));
}

static void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg,
		     struct fuse_file_info *fi, unsigned int flags, const void *in, size_t in_size,
		     size_t out_size)
{
	struct fs *fs = fs_of(req);
	struct wpfs_mount_info info = {.version = 1, .kind = fs->kind};

	if (cmd == WPFS_IOC_TICKET && out_size >= sizeof(struct wpfs_ticket) &&
	    !(flags & FUSE_IOCTL_DIR)) {
		reply_ticket(req, ino, fi);
		return;
	}
	if (cmd != WPFS_IOC_MOUNT_INFO || out_size < sizeof(info)) {
		fuse_reply_err(req, ENOTTY);
		return;
	}
	snprintf(info.id, sizeof(info.id), "%s", fs->id);
	fuse_reply_ioctl(req, 0, &info, sizeof(info));
}

void fs_ops_io(struct fuse_lowlevel_ops *ops)
{
	ops->read = op_read;
	ops->write_buf = op_write_buf;
	ops->fsync = op_fsync;
	ops->fallocate = op_fallocate;
	ops->lseek = op_lseek;
	ops->copy_file_range = op_copy_file_range;
	ops->ioctl = op_ioctl;
}
