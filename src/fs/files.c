/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files by path, id and handle, for the rooms above. Each holds what it uses only while it runs. */
#include <sys/statvfs.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fs/priv.h"

static int file_of_fd(struct fs *fs, int fd, struct fs_file *file)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	*file = (struct fs_file){
		.ino = fs_ids_get(fs->ids, st.st_ino),
		.size = (uint64_t)st.st_size,
		.mode = st.st_mode,
		.uid = st.st_uid,
		.gid = st.st_gid,
		.nlink = (uint32_t)st.st_nlink,
	};
	return fs_handle_of(fd, &file->handle);
}

int fs_file_by_path(struct fs *fs, const char *path, struct fs_file *file)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
			       .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS};
	_cleanup_close_ int fd = -1;

	while (*path == '/')
		path++;
	fd = (int)syscall(SYS_openat2, fs->lower_fd, *path ? path : ".", &how, sizeof(how));
	return fd < 0 ? -errno : file_of_fd(fs, fd, file);
}

int fs_file_by_ino(struct fs *fs, uint64_t ino, struct fs_file *file)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int r;

	if (!fs_inode_get(fs, ino))
		return -ESTALE;
	r = fs_inode_ref(fs, ino, &ref);
	if (!r)
		r = file_of_fd(fs, ref.fd, file);
	fs_ref_put(&ref);
	ref = (struct fs_ref)FS_REF_INIT;
	fs_inode_forget(fs, ino, 1);
	return r;
}

int fs_file_by_handle(struct fs *fs, const struct fs_handle *handle, struct fs_file *file)
{
	_cleanup_close_ int fd = fs_handle_open_at(fs->lower_fd, handle, O_PATH | O_NOFOLLOW);

	return fd < 0 ? fd : file_of_fd(fs, fd, file);
}

int fs_handle_path(struct fs *fs, const struct fs_handle *handle, char *buf, size_t size)
{
	_cleanup_close_ int fd = fs_handle_open_at(fs->lower_fd, handle, O_PATH | O_NOFOLLOW);
	char path[PATH_MAX * 2];
	struct stat st;
	ssize_t n;

	if (fd < 0)
		return fd;
	if (fstat(fd, &st) < 0)
		return -errno;
	n = readlink(fs_proc_path(fd).s, path, sizeof(path) - 1);
	if (n < 0)
		return -errno;
	path[n] = '\0';
	if (st.st_nlink == 0 || (size_t)n < fs->lower_path_len ||
	    memcmp(path, fs->lower_path, fs->lower_path_len) != 0)
		return -ESTALE;
	n -= (ssize_t)fs->lower_path_len;
	if ((size_t)n + 2 > size)
		return -ERANGE;
	strcpy(buf, n ? path + fs->lower_path_len : "/");
	return 0;
}

int fs_handle_open(struct fs *fs, const struct fs_handle *handle, int flags)
{
	return fs_handle_open_at(fs->lower_fd, handle, flags);
}

int fs_file_open(struct fs *fs, uint64_t ino, int flags)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	int fd, r;

	if (!fs_inode_get(fs, ino))
		return -ESTALE;
	r = fs_inode_ref(fs, ino, &ref);
	if (!r) {
		fd = open(fs_proc_path(ref.fd).s, flags | O_CLOEXEC);
		r = fd < 0 ? -errno : fd;
	}
	fs_ref_put(&ref);
	ref = (struct fs_ref)FS_REF_INIT;
	fs_inode_forget(fs, ino, 1);
	return r;
}

int fs_file_hold(struct fs *fs, const struct fs_handle *handle, int *fd)
{
	_cleanup_close_ int path_fd = fs_handle_open_at(fs->lower_fd, handle, O_PATH | O_NOFOLLOW);
	struct fs_inode *inode;
	struct stat st;
	int r;

	if (path_fd < 0)
		return path_fd;
	if (fstat(path_fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	r = fs_inode_lookup(fs, path_fd, &st, &inode);
	if (r)
		return r;
	r = fs_backing_hold(fs, inode);
	if (r >= 0) {
		*fd = fcntl(r, F_DUPFD_CLOEXEC, 0);
		r = *fd < 0 ? -errno : 0;
	}
	if (r)
		fs_inode_forget(fs, inode->ino, 1);
	return r;
}

void fs_file_unhold(struct fs *fs, uint64_t ino)
{
	fs_inode_forget(fs, ino, 1);
}

int fs_file_replace(struct fs *fs, uint64_t ino, int fd)
{
	struct fs_inode *inode = fs_inode_find(fs, ino);

	return inode ? fs_backing_replace(fs, inode, fd) : -ESTALE;
}

int fs_handle_of_fd(int fd, struct fs_handle *handle)
{
	return fs_handle_of(fd, handle);
}

bool fs_file_is_open(struct fs *fs, uint64_t ino)
{
	struct fs_shard *shard = fs_shard_of(fs, ino);
	struct fs_inode *inode = fs_inode_get(fs, ino);
	bool open;

	if (!inode)
		return false;
	pthread_mutex_lock(&shard->backing);
	open = inode->backing && inode->backing->opens;
	pthread_mutex_unlock(&shard->backing);
	fs_inode_forget(fs, ino, 1);
	return open;
}

bool fs_file_held_alone(struct fs *fs, uint64_t ino)
{
	struct fs_inode *inode = fs_inode_get(fs, ino);
	bool alone = inode && fs_inode_lookups(fs, inode) == 2; /* the holder's and this one */

	if (inode)
		fs_inode_forget(fs, ino, 1);
	return alone;
}

uint64_t fs_ino_of_lower(const struct fs *fs, uint64_t lower_ino)
{
	return fs_ids_get(fs->ids, lower_ino);
}

int fs_statvfs(struct fs *fs, struct statvfs *st)
{
	return fstatvfs(fs->lower_fd, st) < 0 ? -errno : 0;
}
