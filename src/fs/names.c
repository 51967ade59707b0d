/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Operations on names: each is one *at() call on the lower directory. The kernel holds the
 * directory's lock around every change, so nothing here races with another change of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"

/*
 * The attributes of an inode with a lookup counted for this, which is given back if that fails: of
 * the file behind `fd`, or of `name` in that directory. What is cached for long must be no older
 * than the question whether it may be.
 */
static int entry_fill(struct fs *fs, struct fs_inode *inode, int fd, const char *name,
		      struct fuse_entry_param *entry)
{
	uint64_t ino = inode->ino;
	int r = 0;

	*entry = (struct fuse_entry_param){
		.ino = ino, .generation = fs->generation, .entry_timeout = FS_LONG_TIMEOUT};
	entry->attr_timeout = fs_backing_attr_timeout(fs, inode);
	if (!name)
		/* It holds up the directory; and who wants to know asks for the attributes. */
		r = fs_stat_of(fs, ino, fd, false, &entry->attr);
	else
		r = fs_hook_stat(fs, ino, fd, name, &entry->attr);
	if (!r && name && fs_ids_get(fs->ids, entry->attr.st_ino) != ino)
		r = -ESTALE; /* another file has the name by now */
	if (r)
		fs_inode_forget(fs, ino, 1);
	else
		fs_stat_show(fs, &entry->attr);
	return r;
}

int fs_entry_of_fd(struct fs *fs, int fd, struct fuse_entry_param *entry)
{
	struct fs_inode *inode;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return -errno;
	r = fs_inode_lookup(fs, fd, &st, &inode);
	return r ? r : entry_fill(fs, inode, fd, NULL, entry);
}

int fs_entry_listed(struct fs *fs, int dir_fd, const char *name, uint64_t lower_ino,
		    struct fuse_entry_param *entry)
{
	uint64_t ino = fs_ids_get(fs->ids, lower_ino);
	struct fs_inode *inode = fs_absent_is(fs->absent, ino) ? NULL : fs_inode_get(fs, ino);

	if (inode && entry_fill(fs, inode, dir_fd, name, entry) == 0)
		return 0;
	return fs_entry_lookup(fs, dir_fd, name, entry);
}

int fs_entry_lookup(struct fs *fs, int dir_fd, const char *name, struct fuse_entry_param *entry)
{
	_cleanup_close_ int fd = openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fs_entry_of_fd(fs, fd, entry);
}

void fs_symlink_changed(struct fs *fs, const struct stat *st)
{
	if (!(fs->mount_flags & MS_NOATIME) && S_ISLNK(st->st_mode))
		fs_inval(fs, fs_ids_get(fs->ids, st->st_ino), 0, 0);
}

void fs_symlink_touched(struct fs *fs, int fd, const char *name)
{
	int flags = name[0] ? AT_SYMLINK_NOFOLLOW : AT_EMPTY_PATH;
	struct stat st;

	if (!(fs->mount_flags & MS_NOATIME) && fstatat(fd, name, &st, flags) == 0)
		fs_symlink_changed(fs, &st);
}

void fs_reply_entry(fuse_req_t req, int r, const struct fuse_entry_param *entry)
{
	struct fs *fs = fs_of(req);

	if (r)
		fuse_reply_err(req, -r);
	else if (fuse_reply_entry(req, entry) < 0)
		fs_inode_forget(fs, entry->ino, 1);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fs *fs = fs_of(req);
	_cleanup_ref_ struct fs_ref dir = FS_REF_INIT;
	struct fuse_entry_param entry;
	int r;

	r = fs_inode_ref_dir(fs, parent, &dir);
	if (!r)
		r = fs_entry_lookup(fs, dir.fd, name, &entry);
	if (r == -ENOENT) {
		/* Node id 0 lets the kernel remember that there is no such name. */
		entry = (struct fuse_entry_param){.entry_timeout = FS_LONG_TIMEOUT};
		fuse_reply_entry(req, &entry);
		return;
	}
	fs_reply_entry(req, r, &entry);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t lookups)
{
	fs_inode_forget(fs_of(req), ino, lookups);
	fs_inodes_forgotten(fs_of(req));
	fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		fs_inode_forget(fs_of(req), forgets[i].ino, forgets[i].nlookup);
	fs_inodes_forgotten(fs_of(req));
	fuse_reply_none(req);
}

struct creation {
	mode_t mode; /* with the file type */
	dev_t rdev;
	const char *target; /* of a symbolic link */
};

static int create_call(int dir_fd, const char *name, const struct creation *what)
{
	int r;

	if (S_ISDIR(what->mode))
		r = mkdirat(dir_fd, name, what->mode & 07777);
	else if (S_ISLNK(what->mode))
		r = symlinkat(what->target, dir_fd, name);
	else
		r = mknodat(dir_fd, name, what->mode, what->rdev);
	return r < 0 ? -errno : 0;
}

/*
 * Makes a name of any kind as the caller, and answers with its entry. Whether a set-group-id bit
 * may stay was decided by the VFS before it asked, with the caller's groups.
 */
static void create_name(fuse_req_t req, fuse_ino_t parent, const char *name,
			const struct creation *what)
{
	struct fs *fs = fs_of(req);
	struct creds_caller caller = fs_caller(req);
	_cleanup_ref_ struct fs_ref dir = FS_REF_INIT;
	struct fuse_entry_param entry;
	int r;

	r = fs_inode_ref_dir(fs, parent, &dir);
	if (!r)
		r = creds_become_maker(&caller, what->mode);
	if (!r) {
		pthread_rwlock_rdlock(&fs->names_lock);
		r = create_call(dir.fd, name, what);
		if (!r)
			fs_change_name(fs, parent, name);
		pthread_rwlock_unlock(&fs->names_lock);
		creds_restore();
	}
	if (!r)
		r = fs_entry_lookup(fs, dir.fd, name, &entry);
	fs_reply_entry(req, r, &entry);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	create_name(req, parent, name, &(struct creation){.mode = mode, .rdev = rdev});
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	create_name(req, parent, name, &(struct creation){.mode = (mode & 07777) | S_IFDIR});
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	create_name(req, parent, name,
		    &(struct creation){.mode = S_IFLNK | 0777, .target = target});
}

static void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	struct fs *fs = fs_of(req);
	const struct fs_inode *inode = fs_inode_find(fs, ino);
	bool had_none = inode && atomic_load(&inode->nameless_fd) >= 0;
	_cleanup_ref_ struct fs_ref file = FS_REF_INIT, dir = FS_REF_INIT;
	struct fuse_entry_param entry;
	int r;

	r = fs_inode_ref(fs, ino, &file);
	if (!r)
		r = fs_inode_ref_dir(fs, parent, &dir);
	if (!r) {
		pthread_rwlock_rdlock(&fs->names_lock);
		r = linkat(file.fd, "", dir.fd, name, AT_EMPTY_PATH) < 0 ? -errno : 0;
		if (!r)
			fs_change_name(fs, parent, name);
		/* A flush may have left it out: a picture with the name must know that. */
		if (!r && had_none)
			fs_touch(fs, ino);
		pthread_rwlock_unlock(&fs->names_lock);
	}
	if (!r) {
		fs_symlink_touched(fs, file.fd, "");
		r = fs_entry_of_fd(fs, file.fd, &entry);
		if (!r && entry.attr.st_nlink == 1)
			fs_inode_named(fs, ino, dir.fd, name);
	}
	fs_reply_entry(req, r, &entry);
}

/* unlink and rmdir: a file that loses its last name while in use is kept by descriptor. */
static void remove_name(fuse_req_t req, fuse_ino_t parent, const char *name, int flags)
{
	struct fs *fs = fs_of(req);
	_cleanup_ref_ struct fs_ref dir = FS_REF_INIT;
	_cleanup_close_ int victim = -1;
	int r;

	fs_inode_wait_for_forgets(fs);
	r = fs_inode_ref_dir(fs, parent, &dir);
	if (!r) {
		pthread_rwlock_rdlock(&fs->names_lock);
		victim = openat(dir.fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		if (victim < 0 || unlinkat(dir.fd, name, flags) < 0)
			r = -errno;
		if (!r) {
			fs_change_name(fs, parent, name);
			fs_change_fd(fs, victim);
		}
		pthread_rwlock_unlock(&fs->names_lock);
	}
	if (!r)
		fs_inode_unlinked(fs, steal_fd(&victim));
	fuse_reply_err(req, -r);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	remove_name(req, parent, name, 0);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	remove_name(req, parent, name, AT_REMOVEDIR);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
		      const char *newname, unsigned int flags)
{
	struct fs *fs = fs_of(req);
	struct creds_caller caller = fs_caller(req);
	_cleanup_ref_ struct fs_ref from = FS_REF_INIT, to = FS_REF_INIT;
	_cleanup_close_ int victim = -1;
	int r;

	fs_inode_wait_for_forgets(fs);
	r = fs_inode_ref_dir(fs, parent, &from);
	if (!r)
		r = fs_inode_ref_dir(fs, newparent, &to);
	if (!r && !(flags & (RENAME_EXCHANGE | RENAME_NOREPLACE))) {
		victim = openat(to.fd, newname, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		r = victim < 0 && errno != ENOENT ? -errno : 0;
	}
	if (!r && (flags & RENAME_WHITEOUT))
		r = creds_become(&caller, false); /* the whiteout belongs to the caller */
	if (!r) {
		pthread_rwlock_rdlock(&fs->names_lock);
		if (renameat2(from.fd, name, to.fd, newname, flags) < 0)
			r = -errno;
		if (!r) {
			fs_change_name(fs, parent, name);
			fs_change_name(fs, newparent, newname);
			if (victim >= 0)
				fs_change_fd(fs, victim);
		}
		pthread_rwlock_unlock(&fs->names_lock);
		if (flags & RENAME_WHITEOUT)
			creds_restore();
	}
	if (!r)
		fs_symlink_touched(fs, to.fd, newname);
	if (!r && (flags & RENAME_EXCHANGE))
		fs_symlink_touched(fs, from.fd, name);
	if (!r && victim >= 0)
		fs_inode_unlinked(fs, steal_fd(&victim));
	fuse_reply_err(req, -r);
}

static void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	char target[PATH_MAX + 1];
	ssize_t n = -1;
	int r;

	r = fs_inode_ref(fs_of(req), ino, &ref);
	if (!r) {
		n = readlinkat(ref.fd, "", target, sizeof(target) - 1);
		if (n < 0)
			r = -errno;
	}
	if (r) {
		fuse_reply_err(req, -r);
		return;
	}
	target[n] = '\0';
	fuse_reply_readlink(req, target);
}

void fs_ops_names(struct fuse_lowlevel_ops *ops)
{
	ops->lookup = op_lookup;
	ops->forget = op_forget;
	ops->forget_multi = op_forget_multi;
	ops->mknod = op_mknod;
	ops->mkdir = op_mkdir;
	ops->symlink = op_symlink;
	ops->link = op_link;
	ops->unlink = op_unlink;
	ops->rmdir = op_rmdir;
	ops->rename = op_rename;
	ops->readlink = op_readlink;
}
