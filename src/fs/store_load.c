/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Restores a tree. The database gives inodes first, then names breadth first, then xattrs: a file
 * is made at its first name and linked at its others. A mount waits for this, so a file costs as
 * few calls as there can be: seven for a regular one.
 */
#include "fs/store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "db/tree.h"
#include "fs/priv.h"
#include "fs/store_data.h"

/* Ids a mount may give out before its end; those it did not use are given back by a clean one. */
#define IDS_RESERVED ((uint64_t)1 << 40)

struct node {
	UT_hash_handle hh;
	uint64_t id;
	bool made;
	struct fs_handle handle; /* valid when made */
	struct db_inode inode;
	char target[]; /* NUL-terminated */
};

struct load {
	const struct fs_store_elsewhere *elsewhere; /* or NULL */
	int data_fd, lower_fd;
	bool keep_root;
	bool clean; /* the mount before has ended in order */
	struct fs_ids *ids;
	struct node *nodes;
	uint64_t max_id;
	int parent_fd; /* the directory whose names are being made; -1 */
	uint64_t parent;
};

static int on_inode(void *ctx, const struct db_inode *inode)
{
	struct load *load = ctx;
	struct node *node = calloc(1, sizeof(*node) + inode->target_len + 1);

	if (!node)
		return -ENOMEM;
	node->id = inode->id;
	node->inode = *inode;
	if (inode->target_len)
		memcpy(node->target, inode->target, inode->target_len);
	if (inode->id > load->max_id)
		load->max_id = inode->id;
	HASH_ADD(hh, load->nodes, id, sizeof(node->id), node);
	return 0;
}

static struct node *node_find(const struct load *load, uint64_t id)
{
	struct node *node;

	HASH_FIND(hh, load->nodes, &id, sizeof(id), node);
	return node;
}

/* A file that was just made: by descriptor, or by its name, which does not follow a link. */
struct made {
	int fd;
	const char *name;
	int flags; /* of the *at() calls */
};

/* Owner before mode: a chown clears suid bits. What it was made with already is not set again. */
static int set_attrs(const struct made *made, const struct stat *st, const struct db_inode *inode)
{
	bool other = st->st_uid != inode->uid || st->st_gid != inode->gid;
	mode_t mode = inode->mode & 07777;
	int r = 0;

	if (other)
		r = fchownat(made->fd, made->name, inode->uid, inode->gid, made->flags);
	if (!r && !S_ISLNK(inode->mode) &&
	    ((st->st_mode & 07777) != mode || (other && (mode & (S_ISUID | S_ISGID)))))
		r = made->name[0] ? fchmodat(made->fd, made->name, mode, 0)
				  : fchmod(made->fd, mode);
	return r < 0 ? -errno : 0;
}

static struct timespec from_ns(int64_t ns)
{
	struct timespec ts = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

	if (ts.tv_nsec < 0) {
		ts.tv_nsec += 1000000000;
		ts.tv_sec--;
	}
	return ts;
}

static int set_times(const struct made *made, const struct db_inode *inode)
{
	struct timespec times[2] = {from_ns(inode->atime_ns), from_ns(inode->mtime_ns)};

	int r = made->name[0] ? utimensat(made->fd, made->name, times, made->flags)
			      : futimens(made->fd, times);

	return r < 0 ? -errno : 0;
}

/* Notes a file that exists now, under its id. */
static int note_made(struct load *load, struct node *node, const struct made *made,
		     const struct stat *st)
{
	int r = fs_handle_of_at(made->fd, made->name, &node->handle);

	node->made = r == 0;
	return r || node->id == FS_ROOT_ID ? r : fs_ids_add(load->ids, st->st_ino, node->id);
}

/* Puts the contents of a file into the lower one, unless somebody else takes them. */
static int load_contents(struct load *load, const struct node *node, int fd)
{
	const struct fs_store_elsewhere *elsewhere = load->elsewhere;
	_cleanup_close_ int data_fd = -1;
	int r = 0;

	if (node->inode.size == 0)
		return 0;
	if (elsewhere && !elsewhere->unseen) {
		data_fd = store_data_open(load->data_fd, node->id);
		if (data_fd < 0)
			return data_fd == -ENOENT ? 0 : data_fd;
	}
	if (elsewhere)
		r = elsewhere->take(elsewhere->ctx, node->id, &node->handle, data_fd,
				    node->inode.size);
	if (r)
		return r < 0 ? r : 0;
	return store_data_read(load->data_fd, node->id, fd, node->inode.size, NULL);
}

/* Times last, since contents move them; nothing later does. */
static int complete(struct load *load, struct node *node, const struct made *made)
{
	struct stat st;
	int r = fstatat(made->fd, made->name, &st, made->flags) < 0 ? -errno : 0;

	if (!r)
		r = set_attrs(made, &st, &node->inode);
	if (!r)
		r = note_made(load, node, made, &st);
	if (!r && S_ISREG(node->inode.mode))
		r = load_contents(load, node, made->fd);
	return r || S_ISDIR(node->inode.mode) ? r : set_times(made, &node->inode);
}

static int make_file(struct load *load, int dir_fd, const char *name, struct node *node)
{
	_cleanup_close_ int fd =
		openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
		       node->inode.mode & 07777);

	if (fd < 0 || (node->inode.size && ftruncate(fd, (off_t)node->inode.size) < 0))
		return -errno;
	return complete(load, node, &(struct made){.fd = fd, .name = "", .flags = AT_EMPTY_PATH});
}

static int make_node(struct load *load, int dir_fd, const char *name, struct node *node)
{
	const struct db_inode *inode = &node->inode;
	int r;

	switch (inode->mode & S_IFMT) {
	case S_IFREG:
		return make_file(load, dir_fd, name, node);
	case S_IFDIR:
		r = mkdirat(dir_fd, name, inode->mode & 07777);
		break;
	case S_IFLNK:
		r = symlinkat(node->target, dir_fd, name);
		break;
	default:
		r = mknodat(dir_fd, name, inode->mode, inode->rdev);
		break;
	}
	if (r < 0)
		return -errno;
	return complete(load, node,
			&(struct made){.fd = dir_fd, .name = name, .flags = AT_SYMLINK_NOFOLLOW});
}

static int link_node(struct load *load, int dir_fd, const char *name, const struct node *node)
{
	_cleanup_close_ int fd =
		fs_handle_open_at(load->lower_fd, &node->handle, O_PATH | O_NOFOLLOW);

	if (fd < 0)
		return fd;
	return linkat(fd, "", dir_fd, name, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

static int open_parent(struct load *load, uint64_t parent)
{
	struct node *node;

	if (load->parent_fd >= 0 && load->parent == parent)
		return 0;
	node = node_find(load, parent);
	if (!node || !node->made)
		return -EUCLEAN;
	close_fd(&load->parent_fd);
	load->parent_fd = fs_handle_open_at(load->lower_fd, &node->handle, O_RDONLY | O_DIRECTORY);
	load->parent = parent;
	return load->parent_fd < 0 ? load->parent_fd : 0;
}

static int on_dirent(void *ctx, uint64_t parent, const char *name, size_t len, uint64_t id)
{
	struct load *load = ctx;
	struct node *node = node_find(load, id);
	int r;

	/* The database says what is in it; the name is used in system calls only as one component.
	 */
	if (!node || !len || strlen(name) != len || strchr(name, '/') || strcmp(name, ".") == 0 ||
	    strcmp(name, "..") == 0)
		return -EUCLEAN;
	r = open_parent(load, parent);
	if (!r)
		r = node->made ? link_node(load, load->parent_fd, name, node)
			       : make_node(load, load->parent_fd, name, node);
	if (r)
		log_err("cannot restore '%s' (file %" PRIu64 "): %s", name, id,
			r == -ENOSPC ? "no space: mount with a larger size= or nr_inodes="
				     : log_errstr(r));
	return r;
}

static int on_xattr(void *ctx, uint64_t id, const char *name, size_t name_len, const void *value,
		    size_t value_len)
{
	struct load *load = ctx;
	struct node *node = node_find(load, id);
	_cleanup_close_ int fd = -1;
	int r = 0;

	if (!node || !node->made)
		return -EUCLEAN;
	fd = fs_handle_open_at(load->lower_fd, &node->handle, O_PATH | O_NOFOLLOW);
	if (fd < 0)
		return fd;
	if (setxattr(fs_proc_path(fd).s, name, value, value_len, 0) < 0) {
		r = -errno;
		log_err("cannot restore attribute %s of file %" PRIu64 ": %s", name, id,
			log_errstr(r));
	}
	return r;
}

/* Of directories, which making names in them moves. */
static int set_dir_times(struct load *load)
{
	struct node *node, *next;

	HASH_ITER (hh, load->nodes, node, next) {
		struct made made = {.fd = -1, .name = "", .flags = AT_EMPTY_PATH};
		int r;

		/* Not made: has no name any more. */
		if (!S_ISDIR(node->inode.mode) || !node->made)
			continue;
		made.fd = fs_handle_open_at(load->lower_fd, &node->handle, O_RDONLY | O_DIRECTORY);
		if (made.fd < 0)
			return made.fd;
		r = set_times(&made, &node->inode);
		close(made.fd);
		if (r)
			return r;
	}
	return 0;
}

/* The root exists already; the stored one, if there is one, gives it its attributes. */
static int on_inode_root_last(void *ctx, const struct db_inode *inode)
{
	struct load *load = ctx;
	const struct made root = {.fd = load->lower_fd, .name = "", .flags = AT_EMPTY_PATH};
	int r = on_inode(ctx, inode);
	struct stat st;

	if (r || inode->id != FS_ROOT_ID)
		return r;
	if (!load->keep_root) {
		if (fchown(load->lower_fd, inode->uid, inode->gid) < 0 ||
		    fchmod(load->lower_fd, inode->mode & 07777) < 0)
			return -errno;
	}
	if (fstat(load->lower_fd, &st) < 0)
		return -errno;
	return note_made(load, node_find(load, FS_ROOT_ID), &root, &st);
}

static void load_free(struct load *load)
{
	struct node *node, *next;

	close_fd(&load->parent_fd);
	HASH_ITER (hh, load->nodes, node, next) {
		HASH_DEL(load->nodes, node);
		free(node);
	}
}

/*
 * From now on a crash can leave something. Nothing that was ever given out may come again, so the
 * reservation is durable first.
 */
static int begin_job(struct db_tx *tx, void *arg)
{
	struct load *load = arg;
	uint64_t base = 0, clean = 0;
	int r = db_tx_meta_get_u64(tx, DB_META_ID_BASE, &base);

	if (r && r != -ENODATA)
		return r;
	load->ids->base = base > load->max_id ? base : load->max_id;
	r = db_tx_meta_get_u64(tx, DB_META_CLEAN, &clean);
	if (r && r != -ENODATA)
		return r;
	load->clean = clean != 0;
	r = db_tx_meta_set_u64(tx, DB_META_CLEAN, 0);
	return r ? r : db_tx_meta_set_u64(tx, DB_META_ID_BASE, load->ids->base + IDS_RESERVED);
}

static bool keep_data(const void *ctx, uint64_t id)
{
	const struct load *load = ctx;
	const struct node *node = node_find(load, id);

	return node && S_ISREG(node->inode.mode);
}

/* Contents whose name was not stored before a crash, or had been removed: nobody can ask for them.
 */
static int remove_leftovers(struct load *load)
{
	return load->clean ? 0 : store_data_prune(load->data_fd, keep_data, load);
}

int fs_store_load(struct db *db, int data_fd, int lower_fd, bool keep_root, struct fs_ids *ids,
		  const struct fs_store_elsewhere *elsewhere)
{
	struct load load = {.data_fd = data_fd,
			    .lower_fd = lower_fd,
			    .keep_root = keep_root,
			    .elsewhere = elsewhere,
			    .ids = ids,
			    .parent_fd = -1};
	const struct db_tree_visitor visitor = {
		.ctx = &load, .inode = on_inode_root_last, .dirent = on_dirent, .xattr = on_xattr};
	int r;

	r = db_tree_load(db, &visitor);
	if (!r)
		r = set_dir_times(&load);
	if (!r)
		r = db_call(db, begin_job, &load);
	if (!r)
		r = remove_leftovers(&load);
	if (r)
		log_err("cannot restore the tree of the store: %s", log_errstr(r));
	load_free(&load);
	return r;
}
