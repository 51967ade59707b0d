/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The FUSE file system over the lower tmpfs, and what the other rooms may ask it.
 *
 * A file's id is its st_ino on the mount, its FUSE node id and its key in the store: one 64-bit
 * number, never used again after the file is gone. The root directory has FS_ROOT_ID.
 *
 * Life: fs_new, fs_mount, fs_serve (the mount works now), fs_set_hooks, ... fs_wait or fs_wait_fd,
 * fs_set_hooks(NULL), fs_free. Everything that takes a struct fs may be called from any thread
 * between fs_new and fs_free, except where said. No function here calls a hook.
 */
#ifndef WPFS_FS_FS_H
#define WPFS_FS_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "wpfs.h"

#define FS_ROOT_ID 1

struct fs;
struct fs_absent;
struct fs_ids;
struct statvfs;

/*
 * Names a file of the lower tmpfs for as long as both exist, across renames and restarts of the
 * daemon. Plain bytes without pointers: may be stored and compared with memcmp.
 */
struct fs_handle {
	uint8_t type;
	uint8_t len; /* bytes of data in use; the rest is 0 */
	uint8_t data[30];
};

_Static_assert(sizeof(struct fs_handle) == 32, "stored in the database");

enum fs_io {
	FS_IO_READ,
	FS_IO_WRITE, /* also fallocate: afterwards every page of it is in the lower file */
	FS_IO_DROP,  /* punched or truncated */
};

/*
 * Contents [off, off + len) of file `ino` that are about to go (punch, zero, truncate, shift); len
 * 0: to the end. On the stack of whoever drops them, zeroed else; the links belong to who is told.
 */
struct fs_drop {
	uint64_t ino, off, len;
	struct fs_drop *prev, *next;
};

/*
 * What the rooms above want to know. Called from FUSE threads, several at once, with no lock of
 * this room held; the request is answered when the hook has returned. Any may be NULL.
 */
struct fs_hooks {
	void *ctx;
	/* before contents are dropped, which then may fail, and when that is over (or was not
	 * begun) */
	void (*drop_begin)(void *ctx, struct fs_drop *drop);
	void (*drop_end)(void *ctx, struct fs_drop *drop);
	/* a statfs is about to be answered: umount(8) makes one first */
	void (*settle)(void *ctx);
	void *io_ctx;
	/*
	 * Capped mounts, before an open by process `opener` is answered that could map the file: 1:
	 * all of it is in memory and stays there until `released`, so it can be mapped; 0: it
	 * cannot. `must`: somebody else has it open like that, so this open cannot be another one.
	 * 0 also in place of an error, but with `must`: -errno.
	 */
	int (*opened)(void *ctx, uint64_t ino, pid_t opener, bool must);
	void (*released)(void *ctx, uint64_t ino);
	/*
	 * Capped mounts: around each access to [off, off + len) of the contents (a drop's len 0: to
	 * the end); `done` says that it was done. A begin that fails with -errno has no end;
	 * between the two no other hook is called. io_ctx is the ctx of these thirteen.
	 */
	int (*io_begin)(void *ctx, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io);
	void (*io_end)(void *ctx, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io,
		       bool done);
	/* would a begin of this have to wait for the store, or for room? A guess */
	bool (*would_wait)(void *ctx, uint64_t ino, uint64_t off, uint64_t len);
	/* lseek(2) with SEEK_DATA or SEEK_HOLE, `fd` being of the lower file; -errno */
	int64_t (*seek)(void *ctx, uint64_t ino, int fd, uint64_t off, int whence);
	/*
	 * utimensat(2), and fstatat(2) with AT_EMPTY_PATH (name "": `fd` itself), of a lower file
	 * as its user would see it; 0 or -errno
	 */
	int (*set_times)(void *ctx, uint64_t ino, int fd, const struct timespec times[2]);
	int (*stat)(void *ctx, uint64_t ino, int fd, const char *name, struct stat *st);
	/* calls fn while file capabilities of the lower file are as its user knows them */
	int (*still)(void *ctx, uint64_t ino, int (*fn)(void *arg), void *arg);
	/* a ticket for a file that was opened with O_RDONLY, O_WRONLY or O_RDWR; 0 or -errno */
	int (*ticket)(void *ctx, uint64_t ino, int accmode, struct wpfs_ticket *ticket);
	/* for the flush: contents that need not be in the lower file; behind the end is zeros */
	int (*read_through)(void *ctx, uint64_t ino, int lower_fd, void *buf, size_t len,
			    uint64_t off);
	/* the first offset at or after `off` that only read_through knows, or UINT64_MAX */
	uint64_t (*next_through)(void *ctx, uint64_t ino, uint64_t off);
	/* from what statfs says of the lower to what the mount shows */
	void (*space)(void *ctx, struct statvfs *st);
	/* contents of `ino` are about to be read for the store; they are durable as they were read
	 */
	void (*contents_begin)(void *ctx, uint64_t ino);
	void (*contents_durable)(void *ctx, uint64_t ino);
	/* fsync of file `ino`: makes its marks durable; 0 or -errno, which the caller gets */
	int (*sync_file)(void *ctx, uint64_t ino);
};

struct fs_config {
	int lower_fd;		  /* root of the lower tmpfs, O_RDONLY; borrowed until fs_free */
	const struct fs_ids *ids; /* which lower file has which id; borrowed until fs_free */
	struct fs_absent *absent; /* contents still in the store; borrowed as long, or NULL */
	const char *id;		  /* mount id, shorter than WPFS_ID_MAX; copied */
	uint32_t generation;	  /* of all its files: the lower's own, not 0 */
	enum wpfs_kind kind;
	bool adopted; /* the lower was in use before: files may be mapped that nobody opened */
	bool uring;   /* ask for FUSE over io_uring */
	bool debug;   /* log every request */
};

/* -EMFILE, -ENOMEM, ... */
int fs_new(const struct fs_config *config, struct fs **fs);

/*
 * Mounts on `mountpoint` (an existing directory). `source` is what mountinfo shows, `flags` are
 * MS_* of mount(2). Gives back -errno of open("/dev/fuse") or mount(2); `what` gets which of them.
 */
int fs_mount(struct fs *fs, const char *source, const char *mountpoint, unsigned long flags,
	     const char **what);

/*
 * Starts the FUSE threads and waits for the handshake with the kernel. -EOPNOTSUPP: the kernel
 * has no passthrough; the caller unmounts. Afterwards the mount works.
 */
int fs_serve(struct fs *fs);

/* What every file of this lower has in its handle (name_to_handle_at(2)), with any daemon. */
uint32_t fs_generation(const struct fs *fs);

/* True when the kernel took FUSE over io_uring. After fs_serve. */
bool fs_uring(const struct fs *fs);

/* Readable when the mount is gone (unmounted or aborted) and no request runs any more. */
int fs_wait_fd(const struct fs *fs);

/* Waits until fs_wait_fd is readable and joins the FUSE threads. 0 or -errno of the session. */
int fs_wait(struct fs *fs);

/*
 * `hooks` is borrowed until replaced; NULL = none. Returns when no hook of the old set runs any
 * more, so that its owner can be freed. Not to be called from a hook.
 */
void fs_set_hooks(struct fs *fs, const struct fs_hooks *hooks);

/*
 * In a thread that serves a request: it is about to wait, or to take long, and others are read
 * meanwhile by another thread. In any other thread, and a second time, nothing. Locks may be held.
 */
void fs_request_may_wait(void);

/* After fs_wait, or when fs_serve was never called or failed and nothing is mounted. */
void fs_free(struct fs *fs);

/* ---- for the rooms above: files by path, id and handle ---------------------------------- */

struct fs_file {
	uint64_t ino;  /* file id */
	uint64_t size; /* bytes */
	mode_t mode;
	uid_t uid;
	gid_t gid;
	uint32_t nlink;
	struct fs_handle handle;
};

/*
 * `path` is inside the mount with leading '/'; no component may be a symbolic link or "..".
 * 0 or -errno: -ENOENT, -ENOTDIR, -ELOOP, ...
 */
int fs_file_by_path(struct fs *fs, const char *path, struct fs_file *file);

/*
 * The file the kernel knows by this id: in use, or not yet forgotten by its caches; a file that
 * someone has open or mapped always is. -ESTALE: not known.
 */
int fs_file_by_ino(struct fs *fs, uint64_t ino, struct fs_file *file);

/* -ESTALE: the file is gone. One that is open but has no name left has nlink 0. */
int fs_file_by_handle(struct fs *fs, const struct fs_handle *handle, struct fs_file *file);

/*
 * The path inside the mount where the file is now (one of them), with leading '/'.
 * -ESTALE: gone, or without a name; -ERANGE: longer than `size`.
 */
int fs_handle_path(struct fs *fs, const struct fs_handle *handle, char *buf, size_t size);

/*
 * Opens the lower file itself with `flags` of open(2) (O_CLOEXEC is added). Gives a descriptor
 * the caller closes, or -errno; -ESTALE as above. Not for O_TRUNC.
 */
int fs_handle_open(struct fs *fs, const struct fs_handle *handle, int flags);
int fs_file_open(struct fs *fs, uint64_t ino, int flags);

/*
 * Capped mounts: keeps a regular file with its one read-write struct file, which every open of it
 * shares; *fd is a duplicate that the caller closes. As often as it is called with success
 * fs_file_unhold follows.
 */
int fs_file_hold(struct fs *fs, const struct fs_handle *handle, int *fd);
void fs_file_unhold(struct fs *fs, uint64_t ino);

/*
 * Capped mounts, for a file that is held and that nobody uses yet: `fd` (duplicated) is its one
 * struct file from now on. 0 or -errno.
 */
int fs_file_replace(struct fs *fs, uint64_t ino, int fd);

/* The handle of an open file of the lower. 0 or -errno. */
int fs_handle_of_fd(int fd, struct fs_handle *handle);

/* Is it open on the mount? Not if its id is not known. */
bool fs_file_is_open(struct fs *fs, uint64_t ino);

/* Nobody but one holder has it: not open on the mount, and not in the kernel's caches. */
bool fs_file_held_alone(struct fs *fs, uint64_t ino);

/* Space and inodes of the lower tmpfs, as statvfs(3) gives them. 0 or -errno. */
int fs_statvfs(struct fs *fs, struct statvfs *st);

/* The id of the lower file behind a descriptor or a stat of the lower tmpfs. */
uint64_t fs_ino_of_lower(const struct fs *fs, uint64_t lower_ino);

#endif
