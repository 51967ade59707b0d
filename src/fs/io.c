/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is done to the contents of open files. read and write come only for a file that was not
 * opened for passthrough; the rest has no passthrough in the kernel. Not here: copy_file_range,
 * which the kernel then does by reads and writes as tmpfs does, and these have.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/units.h"
#include "fs/priv.h"
#include "fs/store.h"

#define FALLOCATE_PIECE	 ((off_t)1 << 20)
#define FALLOCATE_SHIFTS (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)

/*
 * On native mounts a read comes for a file that we read and write (see backing.c), and to fill the
 * kernel's page cache: posix_fadvise(2) with any file, which is not to move the access time, and
 * splice(2) with one of ours. Nothing may stay there: other opens write past it.
 */
static void forget_cached(struct fs *fs, uint64_t ino, off_t off, size_t size)
{
	if (fs->kind == WPFS_KIND_NATIVE)
		fs_inval(fs, ino, off, (off_t)size);
}

static void read_contents(fuse_req_t req, struct fs_wait *wait)
{
	const struct fuse_file_info *fi = &wait->fi;
	const size_t size = (size_t)wait->len;
	struct fuse_bufvec buf = FUSE_BUFVEC_INIT(size);
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct fs *fs = fs_of(req);
	int flags = O_RDONLY | (fi->fh & FS_FH_DIRECT ? fi->flags & O_NOATIME : O_NOATIME);
	int r = fs_inode_ref_contents(fs, wait->ino, flags, &ref);

	if (size >= FS_MUCH)
		fs_request_may_wait();
	if (!r)
		r = fs_hook_io_begin(fs, wait->ino, (uint64_t)wait->off, size, FS_IO_READ);
	if (r < 0) {
		fuse_reply_err(req, -r);
		return;
	}
	buf.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
	buf.buf[0].fd = ref.fd;
	buf.buf[0].pos = wait->off;
	fuse_reply_data(req, &buf, FUSE_BUF_SPLICE_MOVE);
	forget_cached(fs, wait->ino, wait->off, size);
	fs_hook_io_end(fs, wait->ino, (uint64_t)wait->off, size, FS_IO_READ, true);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	struct fs_wait wait = {.ino = ino, .fi = *fi, .off = off, .len = (off_t)size};

	if (fs_hook_would_wait(fs_of(req), ino, (uint64_t)off, size))
		fs_wait_in(req, &wait, read_contents);
	else
		read_contents(req, &wait);
}

/*
 * Whoever maps a file of a capped mount has its struct file too, and may set O_APPEND: what others
 * write is not to go to the end of the file for that.
 */
static ssize_t write_memory(int fd, const struct fuse_buf *in, off_t off)
{
	const struct iovec iov = {in->mem, in->size};
	ssize_t n;

	do
		n = pwritev2(fd, &iov, 1, off, RWF_NOAPPEND);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* Bytes written as the caller, or -errno. */
static ssize_t write_as_caller(fuse_req_t req, int fd, const struct fuse_buf *in, off_t off)
{
	struct creds_caller caller = fs_caller(req);
	struct stat st;
	ssize_t n;

	if (fstat(fd, &st) < 0)
		return -errno;
	n = creds_become_writer(&caller, &st);
	if (!n)
		n = write_memory(fd, in, off);
	creds_restore();
	return n;
}

/* What was written is durable before the answer: `len` bytes at `off`. */
static void reply_synced(fuse_req_t req, struct fs_wait *wait)
{
	int r;

	fs_request_may_wait();
	r = fs_store_sync_part(fs_of(req), wait->ino, (uint64_t)wait->off, (uint64_t)wait->len);
	if (r)
		fuse_reply_err(req, -r);
	else
		fuse_reply_write(req, (size_t)wait->len);
}

static void write_contents(fuse_req_t req, fuse_ino_t ino, const struct fuse_buf *in, off_t off,
			   const struct fuse_file_info *fi)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	const size_t size = in->size;
	struct fs *fs = fs_of(req);
	ssize_t n = fs_inode_ref_contents(fs, ino, O_RDWR, &ref);

	if (size >= FS_MUCH)
		fs_request_may_wait();
	if (!n)
		n = fs_hook_io_begin(fs, ino, (uint64_t)off, size, FS_IO_WRITE);
	if (n < 0) {
		fuse_reply_err(req, (int)-n);
		return;
	}
	n = write_as_caller(req, ref.fd, in, off);
	fs_hook_io_end(fs, ino, (uint64_t)off, size, FS_IO_WRITE, n >= 0);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else if (fs->store && (fi->flags & O_DSYNC))
		fs_wait_in(req, &(struct fs_wait){.ino = ino, .off = off, .len = n}, reply_synced);
	else
		fuse_reply_write(req, (size_t)n);
}

static void write_data(fuse_req_t req, struct fs_wait *wait)
{
	const struct fuse_buf in = {.mem = wait->data, .size = (size_t)wait->len};

	write_contents(req, wait->ino, &in, wait->off, &wait->fi);
	free(wait->data);
}

/*
 * What is written is in memory, in one piece: see session.c. Of one that waits it is copied: the
 * buffer is this thread's.
 */
static void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *in, off_t off,
			 struct fuse_file_info *fi)
{
	const size_t size = in->buf[0].size;
	struct fs_wait wait = {.ino = ino, .fi = *fi, .off = off, .len = (off_t)size};

	if (size && fs_hook_would_wait(fs_of(req), ino, (uint64_t)off, size))
		wait.data = malloc(size);
	if (wait.data) {
		memcpy(wait.data, in->buf[0].mem, size);
		fs_wait_in(req, &wait, write_data);
	} else {
		write_contents(req, ino, &in->buf[0], off, fi);
	}
}

static void sync_file(fuse_req_t req, struct fs_wait *wait)
{
	if (fs_of(req)->store)
		fs_request_may_wait();
	fuse_reply_err(req, -fs_store_sync_file(fs_of(req), wait->ino));
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	fs_wait_in(req, &(struct fs_wait){.ino = ino}, sync_file);
}

static int fallocate_as_caller(fuse_req_t req, int fd, int mode, off_t off, off_t len)
{
	struct creds_caller caller = fs_caller(req);
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	r = creds_become_writer(&caller, &st);
	if (!r && fallocate(fd, mode, off, len) < 0)
		r = -errno;
	creds_restore();
	return r;
}

/*
 * More than the mount can ever hold: then tmpfs does not begin. (In pieces it might succeed, since
 * pages of zeros that leave memory meanwhile do not count.)
 */
static bool allocates_too_much(struct fs *fs, off_t off, off_t len)
{
	uint64_t first = (uint64_t)off / WPFS_PAGE_SIZE;
	uint64_t end = ((uint64_t)(off + len) + WPFS_PAGE_SIZE - 1) / WPFS_PAGE_SIZE;
	struct statvfs st;

	if (fs->kind != WPFS_KIND_CAPPED || fstatvfs(fs->lower_fd, &st) < 0)
		return false;
	fs_hook_space(fs, &st);
	return st.f_blocks && end - first > (uint64_t)st.f_blocks * st.f_frsize / WPFS_PAGE_SIZE;
}

/*
 * Allocates piece by piece on a capped mount, where not all of it need fit into memory at once.
 * What is done when an error comes stays done, as on other file systems.
 */
static int fallocate_pieces(fuse_req_t req, fuse_ino_t ino, int fd, int mode, off_t off, off_t len)
{
	struct fs *fs = fs_of(req);
	off_t piece = fs->kind == WPFS_KIND_CAPPED ? FALLOCATE_PIECE : len;
	int r = allocates_too_much(fs, off, len) ? -ENOSPC : 0;

	for (off_t at = 0; !r && at < len; at += piece) {
		uint64_t from = (uint64_t)(off + at);

		if (piece > len - at)
			piece = len - at;
		r = fs_hook_io_begin(fs, ino, from, (uint64_t)piece, FS_IO_WRITE);
		if (r)
			break;
		r = fallocate_as_caller(req, fd, mode, (off_t)from, piece);
		fs_hook_io_end(fs, ino, from, (uint64_t)piece, FS_IO_WRITE, !r);
	}
	return r;
}

/* Punches, zeroes, or shifts what is behind. */
static void fallocate_drop(fuse_req_t req, struct fs_wait *wait)
{
	const uint64_t off = (uint64_t)wait->off, len = (uint64_t)wait->len;
	const bool punch = wait->mode & FALLOC_FL_PUNCH_HOLE;
	struct fs_drop drop = {
		.ino = wait->ino, .off = off, .len = wait->mode & FALLOCATE_SHIFTS ? 0 : len};
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct fs *fs = fs_of(req);
	int r = fs_inode_ref_contents(fs, wait->ino, O_RDWR, &ref);

	if (r) {
		fuse_reply_err(req, -r);
		return;
	}
	if (punch)
		fs_hook_drop_begin(fs, &drop);
	r = fs_hook_io_begin(fs, wait->ino, off, len, FS_IO_DROP);
	if (!r) {
		r = fallocate_as_caller(req, ref.fd, wait->mode, wait->off, wait->len);
		fs_hook_io_end(fs, wait->ino, off, len, FS_IO_DROP, !r);
	}
	/* tmpfs refuses the others: to tell of them before would make pages dirty for nothing. */
	if (!r && !punch)
		fs_hook_drop_begin(fs, &drop);
	fs_hook_drop_end(fs, &drop);
	fuse_reply_err(req, -r);
}

static void fallocate_more(fuse_req_t req, struct fs_wait *wait)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct fs *fs = fs_of(req);
	int r;

	if (wait->mode & FALLOC_FL_KEEP_SIZE)
		atomic_store(&fs->behind_end, true);
	r = fs_inode_ref_contents(fs, wait->ino, O_RDWR, &ref);
	if (!r)
		r = fallocate_pieces(req, wait->ino, ref.fd, wait->mode, wait->off, wait->len);
	fuse_reply_err(req, -r);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
			 struct fuse_file_info *fi)
{
	struct fs_wait wait = {.ino = ino, .mode = mode, .off = off, .len = len};
	struct fs *fs = fs_of(req);

	if (len >= FS_MUCH)
		fs_request_may_wait();
	if (mode & (FALLOCATE_SHIFTS | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
		fs_wait_in(req, &wait, fallocate_drop);
	else if (fs->kind == WPFS_KIND_CAPPED)
		fs_wait_in(req, &wait, fallocate_more);
	else
		fallocate_more(req, &wait);
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence,
		     struct fuse_file_info *fi)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	off_t at = fs_inode_ref_contents(fs_of(req), ino, O_RDONLY, &ref);

	if (!at)
		at = fs_hook_seek(fs_of(req), ino, ref.fd, off, whence);
	if (at < 0)
		fuse_reply_err(req, (int)-at);
	else
		fuse_reply_lseek(req, at);
}

static void reply_ticket(fuse_req_t req, fuse_ino_t ino, const struct fuse_file_info *fi)
{
	struct wpfs_ticket ticket;
	int r = fs_hook_ticket(fs_of(req), ino, (int)(fi->fh & FS_FH_ACCESS), &ticket);

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
	ops->ioctl = op_ioctl;
}
