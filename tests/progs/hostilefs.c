/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A FUSE file system with one file, f, that claims to be a wpfs mount: it answers
 * WPFS_IOC_MOUNT_INFO with whatever it is told. usage: hostilefs ID MOUNTPOINT; an empty ID is one
 * without an end, one that begins with "-" the error -ERRNO
 */
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "wpfs.h"

#define FILE_INO  2
#define FILE_SIZE 65536

static char contents[FILE_SIZE];
static struct wpfs_mount_info answer = {.version = 1};
static int error; /* > 0: says that instead */

static void fill(struct stat *st, fuse_ino_t ino)
{
	*st = (struct stat){.st_ino = ino, .st_nlink = 1};
	st->st_mode = ino == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0666;
	st->st_size = ino == FUSE_ROOT_ID ? 0 : FILE_SIZE;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = {.ino = FILE_INO, .attr_timeout = 1, .entry_timeout = 1};

	if (parent != FUSE_ROOT_ID || strcmp(name, "f") != 0) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	fill(&entry.attr, FILE_INO);
	fuse_reply_entry(req, &entry);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;

	fill(&st, ino);
	fuse_reply_attr(req, &st, 1);
}

static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int valid,
		       struct fuse_file_info *fi)
{
	do_getattr(req, ino, fi);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
		    struct fuse_file_info *fi)
{
	size_t left = off < FILE_SIZE ? FILE_SIZE - (size_t)off : 0;

	fuse_reply_buf(req, contents + off, size < left ? size : left);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
		     struct fuse_file_info *fi)
{
	if (off < 0 || off > FILE_SIZE || size > FILE_SIZE - (size_t)off) {
		fuse_reply_err(req, EFBIG);
		return;
	}
	memcpy(contents + off, buf, size);
	fuse_reply_write(req, size);
}

static void do_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg,
		     struct fuse_file_info *fi, unsigned flags, const void *in, size_t in_size,
		     size_t out_size)
{
	if (cmd == (unsigned)WPFS_IOC_MOUNT_INFO && out_size >= sizeof(answer)) {
		fprintf(stderr, "asked\n");
		if (error)
			fuse_reply_err(req, error);
		else
			fuse_reply_ioctl(req, 0, &answer, sizeof(answer));
	} else {
		fuse_reply_err(req, ENOTTY);
	}
}

static const struct fuse_lowlevel_ops ops = {
	.lookup = do_lookup,
	.getattr = do_getattr,
	.setattr = do_setattr,
	.open = do_open,
	.read = do_read,
	.write = do_write,
	.ioctl = do_ioctl,
};

/* libfuse keeps the options of a mount that it makes itself until the process ends. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

int main(int argc, char **argv)
{
	char name[] = "hostilefs", opt[] = "-osubtype=wpfs,fsname=hostile,default_permissions";
	char *args_v[] = {name, opt, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(2, args_v);
	struct fuse_session *session;
	int err;

	if (argc != 3)
		return 2;
	if (argv[1][0] == '-')
		error = atoi(argv[1] + 1);
	memset(answer.id, 'a', sizeof(answer.id));
	if (argv[1][0])
		memcpy(answer.id, argv[1],
		       strlen(argv[1]) < WPFS_ID_MAX ? strlen(argv[1]) + 1 : WPFS_ID_MAX);
	session = fuse_session_new(&args, &ops, sizeof(ops), NULL);
	if (!session || fuse_session_mount(session, argv[2]) != 0)
		return 1;
	puts("mounted");
	fflush(stdout);
	err = fuse_session_loop(session);
	fuse_session_unmount(session);
	fuse_session_destroy(session);
	fuse_opt_free_args(&args);
	return err != 0;
}
