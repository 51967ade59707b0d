/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Extended attributes and ACLs, by "/proc/self/fd/N", which reaches a symbolic link itself too; of
 * an open file by its descriptor, for each first write asks whether there is security.capability.
 * The VFS checks who may read and write which; only the list of names is filtered here.
 */
#include <errno.h>
#include <linux/capability.h>
#include <linux/xattr.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "base/cleanup.h"
#include "fs/priv.h"

#define ACL_ACCESS "system.posix_acl_access"

static void reply_value(fuse_req_t req, ssize_t n, const char *buf, size_t size)
{
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else if (size == 0)
		fuse_reply_xattr(req, (size_t)n);
	else
		fuse_reply_buf(req, buf, (size_t)n);
}

/* A call about attributes of a file; the value of one that sets is only read. */
struct call {
	fuse_req_t req;
	fuse_ino_t ino;
	const struct fs_ref *ref;
	const char *name; /* NULL: the list of names, into room for XATTR_LIST_MAX */
	char *value;	  /* of one that sets: NULL: remove it */
	size_t size;
	int flags;
};

/*
 * On a capped mount moving pages takes capabilities away and puts them back: nobody gets to see
 * that.
 */
static int call_still(int (*fn)(void *arg), struct call *call)
{
	bool caps = !call->name || strcmp(call->name, XATTR_NAME_CAPS) == 0;

	return caps ? fs_hook_still(fs_of(call->req), call->ino, fn, call) : fn(call);
}

/* getxattr(2); of a file whose contents come as it was and will be. -errno. */
static ssize_t get_value(struct fs *fs, uint64_t ino, const struct fs_ref *ref, const char *name,
			 char *buf, size_t size)
{
	char caps[XATTR_CAPS_SZ];
	ssize_t n;

	if (strcmp(name, XATTR_NAME_CAPS) == 0 && fs_absent_is(fs->absent, ino)) {
		n = fs_absent_caps(fs->absent, ino, ref->fd, caps, sizeof(caps));
		if (n > 0 && size && (size_t)n > size)
			return -ERANGE;
		if (n > 0 && size)
			memcpy(buf, caps, (size_t)n);
		return n;
	}
	n = ref->backing ? fgetxattr(ref->fd, name, buf, size)
			 : getxattr(fs_proc_path(ref->fd).s, name, buf, size);
	return n < 0 ? -errno : n;
}

static int call_get(void *arg)
{
	const struct call *call = arg;

	return (int)get_value(fs_of(call->req), call->ino, call->ref, call->name, call->value,
			      call->size);
}

static void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	_cleanup_free_ char *buf = size ? malloc(size) : NULL;
	ssize_t n = size && !buf ? -ENOMEM : fs_inode_ref(fs_of(req), ino, &ref);
	struct call call = {req, ino, &ref, name, buf, size, 0};

	if (!n)
		n = call_still(call_get, &call);
	reply_value(req, n, buf, size);
}

/* A name that begins with this. */
static bool list_has(const char *list, size_t len, const char *prefix)
{
	for (size_t at = 0; at < len; at += strlen(list + at) + 1) {
		if (strncmp(list + at, prefix, strlen(prefix)) == 0)
			return true;
	}
	return false;
}

static size_t list_hide_trusted(char *list, size_t len)
{
	size_t kept = 0;

	for (size_t at = 0, n; at < len; at += n) {
		n = strlen(list + at) + 1;
		if (strncmp(list + at, XATTR_TRUSTED_PREFIX, XATTR_TRUSTED_PREFIX_LEN) == 0)
			continue;
		memmove(list + kept, list + at, n);
		kept += n;
	}
	return kept;
}

/* All names, into room for XATTR_LIST_MAX, with that of capabilities that are away. -errno. */
static ssize_t list_names(struct fs *fs, uint64_t ino, int fd, char *list)
{
	char caps[XATTR_CAPS_SZ];
	ssize_t n;

	/* In this order: they may be put back meanwhile, and the name must not be there twice. */
	if (fs_absent_is(fs->absent, ino) &&
	    fs_absent_caps(fs->absent, ino, fd, caps, sizeof(caps)) > 0) {
		n = listxattr(fs_proc_path(fd).s, list, XATTR_LIST_MAX - sizeof(XATTR_NAME_CAPS));
		if (n >= 0 && !list_has(list, (size_t)n, XATTR_NAME_CAPS)) {
			memcpy(list + n, XATTR_NAME_CAPS, sizeof(XATTR_NAME_CAPS));
			n += (ssize_t)sizeof(XATTR_NAME_CAPS);
		}
	} else {
		n = listxattr(fs_proc_path(fd).s, list, XATTR_LIST_MAX);
	}
	return n < 0 ? -errno : n;
}

static int call_list(void *arg)
{
	const struct call *call = arg;

	return (int)list_names(fs_of(call->req), call->ino, call->ref->fd, call->value);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	_cleanup_free_ char *list = malloc(XATTR_LIST_MAX);
	ssize_t n = !list ? -ENOMEM : fs_inode_ref(fs_of(req), ino, &ref);
	struct call call = {.req = req, .ino = ino, .ref = &ref, .value = list};

	if (!n)
		n = call_still(call_list, &call);
	if (n > 0 && list_has(list, (size_t)n, XATTR_TRUSTED_PREFIX) &&
	    !creds_caller_capable(fuse_req_ctx(req)->pid, CAP_SYS_ADMIN))
		n = (ssize_t)list_hide_trusted(list, (size_t)n);
	if (n > 0 && size && (size_t)n > size)
		n = -ERANGE;
	reply_value(req, n, list, size);
}

/*
 * Setting an access ACL can change the mode, and clears a set-group-id bit unless the caller is in
 * the group: the kernel has to see whose groups they are. No value: removes it.
 */
static int set_acl(fuse_req_t req, int fd, const char *value, size_t size, int flags)
{
	struct creds_caller caller = fs_caller(req);
	struct stat st;
	bool as_caller;
	int r = 0;

	if (fstat(fd, &st) < 0)
		return -errno;
	as_caller = (st.st_mode & S_ISGID) != 0;
	if (as_caller)
		r = creds_become(&caller, true);
	else
		creds_take_fsetid(); /* a bit that comes just now is not this one's to clear */
	if (!r && value)
		r = setxattr(fs_proc_path(fd).s, ACL_ACCESS, value, size, flags) < 0 ? -errno : 0;
	else if (!r)
		r = removexattr(fs_proc_path(fd).s, ACL_ACCESS) < 0 ? -errno : 0;
	if (as_caller)
		creds_restore();
	else
		creds_back_fsetid();
	return r;
}

/* Contents that come take capabilities away and put them back: not while they are changed. */
static bool hold_caps(struct fs *fs, uint64_t ino, const char *name)
{
	return strcmp(name, XATTR_NAME_CAPS) == 0 && fs_absent_hold(fs->absent, ino);
}

static int call_set(void *arg)
{
	const struct call *call = arg;
	struct fs_proc_path path = fs_proc_path(call->ref->fd);
	int r;

	if (strcmp(call->name, ACL_ACCESS) == 0)
		return set_acl(call->req, call->ref->fd, call->value, call->size, call->flags);
	r = call->value ? setxattr(path.s, call->name, call->value, call->size, call->flags)
			: removexattr(path.s, call->name);
	return r < 0 ? -errno : 0;
}

static void set(struct call *call)
{
	_cleanup_ref_ struct fs_ref ref = FS_REF_INIT;
	struct fs *fs = fs_of(call->req);
	bool held = hold_caps(fs, call->ino, call->name);
	int r = fs_inode_ref(fs, call->ino, &ref);

	call->ref = &ref;
	if (!r)
		r = call_still(call_set, call);
	if (held)
		fs_absent_release(fs->absent, call->ino);
	if (!r)
		fs_symlink_touched(fs, ref.fd, "");
	fs_change_inode(fs, call->ino);
	fuse_reply_err(call->req, -r);
}

static void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
			size_t size, int flags)
{
	set(&(struct call){req, ino, NULL, name, (char *)value, size, flags});
}

static void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	set(&(struct call){.req = req, .ino = ino, .name = name});
}

void fs_ops_xattrs(struct fuse_lowlevel_ops *ops)
{
	ops->getxattr = op_getxattr;
	ops->setxattr = op_setxattr;
	ops->listxattr = op_listxattr;
	ops->removexattr = op_removexattr;
}
