/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A capped mount's residency: which page of which file is in the lower tmpfs and which in the
 * store, how it goes and how it comes back. Made before tracking starts and freed after the last
 * flush, which reads through it.
 *
 * Threads: the fault thread serves the uffds; FUSE threads bracket every access to contents; the
 * track thread evicts. One lock (capped_internal.h) keeps them apart; it is held while pages are
 * read from the store, and never while waiting for a program or for another thread.
 */
#ifndef WPFS_TRACK_CAPPED_H
#define WPFS_TRACK_CAPPED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "spill/io.h"
#include "wpfs.h"

struct capped;
struct fs;
struct fs_handle;

struct capped_config {
	struct fs *fs;	    /* borrowed until capped_free, which comes before fs_free */
	int lower_fd;	    /* root of the lower tmpfs, like the next two borrowed as long */
	int private_fd;	    /* the private run directory: "spilled/" in it is ours */
	int spill_fd;	    /* STORE/spill */
	bool adopted;	    /* pages are spilled already: a killed daemon's, or stashed ones */
	uint64_t resident;  /* bytes of page contents that may be in memory */
	uint64_t size;	    /* bytes that may be in memory and in the store together; 0: no limit */
	unsigned settle_ms; /* how long direct I/O into a mapping may take */
	bool sigbus;	    /* a page that cannot be had: SIGBUS instead of waiting */
	enum spill_path path;
};

/* Does this private run directory belong to a capped mount? */
bool capped_was(int private_fd);

/* Finds what a killed daemon left, or begins anew; starts the fault thread. 0 or -errno, logged. */
int capped_new(const struct capped_config *config, struct capped **capped);

/* No request and no mm is left. `flushed`: what is spilled is nowhere needed any more. */
void capped_free(struct capped *capped, bool flushed);

/*
 * Contents that are restored when a store is mounted: what does not fit into `room` is put where
 * pages out of memory are. Before capped_new, with a lower that is new.
 */
struct capped_stash {
	int private_fd, spill_fd;
	uint64_t room; /* bytes that may still go into memory */
	bool begun;    /* out: something was put there; it is an adopted mount's then */
};

/* 1: done; 0: it fits, the caller puts it into memory. -errno. `data_fd` is the data file. */
int capped_stash_file(void *stash, uint64_t ino, const struct fs_handle *handle, int data_fd,
		      uint64_t size);

/* How a file is about to be used. Pages that are read or written come back from the store first. */
enum capped_io {
	CAPPED_READ,
	CAPPED_WRITE, /* or allocated */
	CAPPED_DROP,  /* punched or truncated: only pages it covers in part come back */
};

/*
 * Around each access to [off, off + len) of file `ino` by a FUSE thread; len 0: to the end. Waits
 * for an eviction of the file to end. 0 or -errno: a page cannot be read from the store, and then
 * capped_io_end is not called. `done` (of a DROP): it was, and stored copies go too. Between a
 * begin and its end nothing of the track room may be called, and not another begin.
 */
int capped_io_begin(struct capped *c, uint64_t ino, uint64_t off, uint64_t len, enum capped_io io);
void capped_io_end(struct capped *c, uint64_t ino, uint64_t off, uint64_t len, enum capped_io io,
		   bool done);

/* Would a begin wait for the store or for room, or a whole open (len 0)? A guess. */
bool capped_would_wait(struct capped *c, uint64_t ino, uint64_t off, uint64_t len);

/*
 * Reads [off, off + len) of a lower file as its user would see it, without bringing anything back;
 * what lies behind its end is zeros. `off` is a multiple of the page size. 0 or -errno.
 */
int capped_read_through(struct capped *c, uint64_t ino, int lower_fd, void *buf, size_t len,
			uint64_t off);

/* lseek(2) of the lower file with SEEK_DATA or SEEK_HOLE, as its user would see it. -errno. */
int64_t capped_seek(struct capped *c, uint64_t ino, int lower_fd, uint64_t off, int whence);

/* The first offset at or after `off` whose page is spilled, or UINT64_MAX. */
uint64_t capped_next_spilled(struct capped *c, uint64_t ino, uint64_t off);

/*
 * A FUSE thread is about to answer an open that could map the file. 1: all of it is in memory and
 * stays until capped_released, and as long as somebody maps it; 0: that cannot be, or `opener` has
 * the shim and will ask for a ticket. `must`: it has to be, whoever it is; then -errno instead of
 * 0.
 */
int capped_opened(struct capped *c, uint64_t ino, pid_t opener, bool must);
void capped_released(struct capped *c, uint64_t ino);

/* Does size= leave no room for `len` bytes more? */
bool capped_is_short(struct capped *c, uint64_t len);

/*
 * Is there something to be let go of (by track_settle): contents of files without a name, and not
 * open? The kernel takes a moment to say that it has forgotten them.
 */
bool capped_has_removed(struct capped *c);

/* From what the lower tmpfs says of its space to what the mount shows. */
struct statvfs;
void capped_space(struct capped *c, struct statvfs *st);

/* Adds its spilled pages to *set. 0 or -ENOMEM. */
struct mm_set;
int capped_spilled(struct capped *c, uint64_t ino, struct mm_set *set);

/* utimensat(2) of a lower file; 0 or -errno. */
int capped_set_times(struct capped *c, uint64_t ino, int fd, const struct timespec times[2]);

/*
 * Calls fn while no page of the file is being moved: what that changes of the file for a moment
 * (file capabilities) is as its user knows it. fn calls nothing of this room. Its result.
 */
int capped_still(struct capped *c, uint64_t ino, int (*fn)(void *arg), void *arg);

/*
 * fstatat(2) of a lower file (name "": `fd` itself; a symbolic link is not followed), with the
 * times that its user gave it. 0 or -errno.
 */
struct stat;
int capped_stat(struct capped *c, uint64_t ino, int fd, const char *name, struct stat *st);

/* A ticket for a file that was opened with access mode `accmode` (O_RDONLY, ...). 0 or -errno. */
int capped_ticket(struct capped *c, uint64_t ino, int accmode, struct wpfs_ticket *ticket);

#endif
