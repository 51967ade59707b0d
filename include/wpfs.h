/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * wpfs for programs: write-protection marks of shared mappings that outlive the process.
 *
 * Two layers. The ioctls at the end need no library. The functions are in libwpfs (pkg-config
 * wpfs); wpfs(7) tells what a mark is and what it cannot see, and each function has a page.
 *
 * Errors. Functions that return int give 0 or, where said, a number >= 0; or a negative errno
 * value, -EINVAL for example. errno itself means nothing afterwards. Beside those named with a
 * function, all that take a handle can give
 *	-ECONNREFUSED	the mount's daemon is not running
 *	-ECONNRESET	the daemon went away during the call, and is not back; whether it did what
 *			was asked is not known. Everything may be asked again
 *	-ETIMEDOUT	it does not answer
 *	-EPROTO		it is of another version
 *	-EPERM		this process may not ask: it is a vfork(2) child or one of a raw clone(2),
 *			or has a seccomp filter that came after libwpfs_preload.so
 *	-ESRCH		the daemon does not know this process (any more): its marks may be dirty
 *	-ENOMEM, -EMFILE, -ENFILE, and -EIO, -ENOSPC when the store cannot be written
 *
 * Units. Addresses, lengths and offsets in bytes, multiples of WPFS_PAGE; epochs are numbers.
 *
 * Threads. Any thread may call anything at any time; a handle is freed by wpfs_detach alone, after
 * which nobody may use it. None is async-signal-safe, and none is a cancellation point that leaves
 * things whole: do not cancel a thread in one.
 *
 * What a program must and must not do:
 *  - It maps with wpfs_map and unmaps with wpfs_unmap, or runs under libwpfs_preload.so, where
 *    mmap(2), munmap(2) and the others do that too. A raw munmap(2) of a wpfs_map mapping costs
 *    precision: what was protected there and written since the last question, or could have been,
 *    counts as dirty. A raw shared mmap(2) of a file of which pages are protected is seen while it
 *    is there (and makes its unprotected pages dirty), but not if it is gone again before the next
 *    question: do not do that without the preloaded library.
 *  - MADV_REMOVE on such a mapping goes through wpfs_remove; fallocate(2) needs no help.
 *  - fork(2) is allowed at any time. The child has a copy of the marks and is tracked under the
 *    same name (wpctl shows it as NAME/PID); handles work in it and speak of the child. Watches
 *    (wpfs_watch) stay with the parent. In a child of vfork(2) or of a raw clone(2) call nothing
 *    here.
 *  - execve(2) ends what the process was to wpfs; its marks are kept under its name.
 *  - A userfaultfd of the program's own on a mapping that wpfs protects works under the preloaded
 *    library only; without it UFFDIO_REGISTER gives EBUSY there.
 *  - Descriptors that it did not open stay open: libwpfs has a socket for each mount and, for
 *    watches, a userfaultfd. After closefrom(2) and the like the socket is made again, but watches
 *    have ended, and a store to a watched page may take two seconds.
 *  - A seccomp filter must allow what libwpfs does (sockets, poll, futex, mmap, mprotect, munmap,
 *    ioctl, clone3 for a watch), or come after the last call.
 */
#ifndef WPFS_H
#define WPFS_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WPFS_PAGE     4096 /* bytes */
#define WPFS_ID_MAX   40   /* bytes of a mount id with its NUL: [0-9a-f-] only */
#define WPFS_NAME_MAX 64   /* bytes of a name without its NUL: [A-Za-z0-9._-], at least one */

/* ---- attach ---------------------------------------------------------------------------------- */

/* This process on one mount. */
struct wpfs;

/*
 * Makes this process a tracked one on the mount that `path` is on (its mountpoint, or any file or
 * directory there), by a name: what an earlier run of that name and user left is continued. NULL:
 * the name of $WPFS_NAME if that is set, else none, and then the marks end with the process.
 * *handle is the caller's, to be given to wpfs_detach. It may be called again for the same mount:
 * another handle of the same.
 *
 * While another process of that name runs, this one is a second instance, NAME/2.
 *
 * errno values of open(2) for path; -ENOTTY: it is not on a wpfs mount; -EINVAL: no name as above;
 * -EEXIST: attached to this mount already, by another name; -EPERM: also: this user gets no
 * userfaultfd from the daemon (wpfs(8), -o uffd=), or the daemon is not root's; -EACCES: a seccomp
 * filter was there before, or an earlier attempt was given up for good; -ENOSPC: more than 4 mounts
 * in one process. A first call in a process takes about a millisecond; later ones less.
 */
int wpfs_attach(const char *path, const char *name, struct wpfs **handle);

/*
 * Ends the watches of this handle (as wpfs_unwatch) and frees it. The process remains tracked to
 * its end, and its mappings protected. NULL does nothing. Not in a callback of wpfs_watch.
 */
void wpfs_detach(struct wpfs *handle);

/*
 * A line for people about the last call in this thread that failed: what, why and, where that is
 * known, what to do. "" if there was none. It stays until the next call in this thread.
 */
const char *wpfs_error(void);

/* ---- mappings -------------------------------------------------------------------------------- */

/*
 * mmap(2) of a regular file of the mount, tracked: when it returns, what an earlier run of the same
 * name had protected and not written is protected in it. *addr is the hint or, with MAP_FIXED, the
 * place; then the mapping's address. `flags` must have MAP_SHARED or MAP_SHARED_VALIDATE. Unmap it
 * with wpfs_unmap; it needs neither the handle nor the descriptor to live.
 *
 * errno values of mmap(2); -EXDEV: not a regular file of this mount; -ENOTCONN: opened before the
 * daemon was started again: open it anew; -ECONNREFUSED: it could not be tracked, nothing is
 * mapped.
 */
int wpfs_map(struct wpfs *handle, void **addr, size_t len, int prot, int flags, int fd,
	     uint64_t offset);

/*
 * munmap(2), of anything: parts of wpfs_map mappings too. What is protected and unwritten in it is
 * remembered by file and offset, and protected again where this name maps it again. -EBUSY: a watch
 * is in it; else errno values of munmap(2).
 */
int wpfs_unmap(struct wpfs *handle, void *addr, size_t len);

/*
 * mremap(2): marks move with the pages. *addr is the old address, then the new one; `new_addr` is
 * used with MREMAP_FIXED. -EBUSY: a watch is in the old or new range; else errno values of
 * mremap(2).
 */
int wpfs_remap(struct wpfs *handle, void **addr, size_t len, size_t new_len, int flags,
	       void *new_addr);

/* madvise(MADV_REMOVE): the contents go, what was protected there is dirty. errno values of that.
 */
int wpfs_remove(struct wpfs *handle, void *addr, size_t len);

/* ---- protect --------------------------------------------------------------------------------- */

/*
 * Begins an epoch: pages [offset, offset + len) of a file (len 0: from offset on), in all mappings
 * that this process has of it, are protected and count as unwritten from now on. `fd` is any open
 * descriptor of the file; fd -1 with offset 0 and len 0 means all files of the mount that it maps.
 * *epoch (may be NULL) gets the number of the epoch; they ascend, also from run to run.
 *
 * The epoch before it ends, and wpfs_dirty still tells what was written in it (the last 64 of each
 * file are kept). Every store is in an epoch: if one is being done by another thread just now, it
 * may be in both. Pages outside of the range go on as they were, and what was dirty there is dirty
 * in the new epoch too. Pages in no mapping are not protected, but if the whole file was, then what
 * this process maps of it later is. A watched range (wpfs_watch) cannot be protected: if it was,
 * and in every epoch that begins with it, its pages are dirty.
 *
 * -EXDEV, -ENOTCONN as wpfs_map; -EINVAL: not whole pages. On other errors what could not be
 * protected is dirty.
 */
int wpfs_protect(struct wpfs *handle, int fd, uint64_t offset, uint64_t len, uint64_t *epoch);

/*
 * Ends the protection of the pages: they are neither dirty nor clean from now on, and what is
 * mapped later is not protected. Arguments and errors as for wpfs_protect.
 */
int wpfs_unprotect(struct wpfs *handle, int fd, uint64_t offset, uint64_t len);

/* ---- questions ------------------------------------------------------------------------------- */

/* Pages [offset, offset + len) of a file. */
struct wpfs_run {
	uint64_t offset, len;
};

/* Ascending, disjoint, not touching each other. */
struct wpfs_runs {
	size_t nr;
	struct wpfs_run *run; /* the caller's: wpfs_runs_free */
};

/*
 * The pages of [offset, offset + len) (len 0: from offset on) that were written in epochs `from`
 * to `to`, of what was protected in them: through mappings of this process, or by taking their
 * contents away (punch, truncate). from 0: in the present epoch; to 0: until now. Read from the
 * page tables now: a store that was done before the call is in it. When unsure a page is in it.
 * A backup that copies dirty(E, E2 - 1) after E2 = protect() misses nothing, whatever came between.
 *
 * *runs is filled; on an error it is empty. More than 2^20 runs are read in several steps, each as
 * of its time. -ENOENT: epoch `from` of this file is not kept; -EXDEV, -ENOTCONN, -EINVAL as
 * wpfs_protect.
 */
int wpfs_dirty(struct wpfs *handle, int fd, uint64_t offset, uint64_t len, uint64_t from,
	       uint64_t to, struct wpfs_runs *runs);

/* Likewise the pages that are protected and were not written in the present epoch. */
int wpfs_clean(struct wpfs *handle, int fd, uint64_t offset, uint64_t len, struct wpfs_runs *runs);

/* Likewise the watched pages (wpfs_watch) of which no callback has returned yet. */
int wpfs_watched(struct wpfs *handle, int fd, uint64_t offset, uint64_t len,
		 struct wpfs_runs *runs);

/* Frees runs->run and empties *runs. May be called again. */
void wpfs_runs_free(struct wpfs_runs *runs);

/*
 * Returns when the marks of this process are on the store's disk, and with an fd the contents of
 * that file as well (fsync(2)); with -1 the marks only, of all its files. With store "none" there
 * is nothing to wait for. -EXDEV; errno values of fsync(2), -ENOTCONN as wpfs_map.
 */
int wpfs_sync(struct wpfs *handle, int fd);

/* ---- watch ----------------------------------------------------------------------------------- */

/*
 * Is called before the first store to a watched page, with the page's address. The page still has
 * its old contents and can be read; who stores waits until this returns, and no store to the page
 * is visible before. Called in the one thread that libwpfs makes for all watches of the process,
 * one page at a time, in no special order, with all signals blocked. It must not store to watched
 * pages, wait for a thread that may be storing to one, or call wpfs_detach; it may call the rest,
 * wpfs_unwatch of its own range too.
 */
typedef void (*wpfs_write_fn)(void *page, void *arg);

/* Only what an earlier run of this name had watched and not written; nothing else is protected. */
#define WPFS_WATCH_RESUME 1u

/*
 * Watches [addr, addr + len), which must lie within mappings of this mount: before the first store
 * to each page fn(page, arg) is called, once. Stores by the kernel (read(2) into the page) count.
 * Watched again, whole or in part and from the same handle with the same fn and arg, pages get
 * another call each.
 *
 * The marks are the program's own (owner "program" in wpctl), apart from those of wpfs_protect:
 * they are held by a userfaultfd of this process, cost a message per first store (5 to 7 us), and
 * need no daemon while the process lives. Killed at any moment, the next run of the same name goes
 * on with WPFS_WATCH_RESUME: pages whose callback had returned are not called for, the others are,
 * so that a callback that was interrupted is done again. The same after exit(3). Where a watch was
 * ended with wpfs_unwatch or wpfs_detach nothing is left to resume.
 *
 * -EINVAL: not whole pages, unknown flags, no fn, or not all mapped by wpfs_map; -EEXIST: part of
 * it is watched from another handle, or with another fn or arg; -EBUSY: a userfaultfd has it.
 */
int wpfs_watch(struct wpfs *handle, void *addr, size_t len, unsigned flags, wpfs_write_fn fn,
	       void *arg);

/*
 * Ends the watches in [addr, addr + len); a watch that reaches out of it is shortened. Threads that
 * wait go on. When it returns, no callback runs or comes for these pages (in a callback: but this
 * one). 0 if nothing was watched there. -EINVAL: not whole pages.
 */
int wpfs_unwatch(struct wpfs *handle, void *addr, size_t len);

/* ---- without the library --------------------------------------------------------------------- */

enum wpfs_kind {
	WPFS_KIND_NATIVE = 0, /* every open is passthrough; the kernel evicts */
	WPFS_KIND_CAPPED = 1, /* -o resident=SIZE: wpfs evicts; mappings go through a ticket */
};

struct wpfs_mount_info {
	__u32 version; /* of this struct: 1 */
	__u32 kind;    /* enum wpfs_kind */
	char id[WPFS_ID_MAX];
};

/* On any open file or directory. Fills *arg. ENOTTY: not a file of a wpfs mount. */
#define WPFS_IOC_MOUNT_INFO _IOR('W', 0x70, struct wpfs_mount_info)

/*
 * Capped mounts: a one-time ticket for the open file it is asked on, bound to its inode and its
 * access mode; exchanged on the daemon's socket for a descriptor that can be mapped.
 */
struct wpfs_ticket {
	__u64 token[2];
};

#define WPFS_IOC_TICKET _IOR('W', 0x71, struct wpfs_ticket)

#ifdef __cplusplus
}
#endif

#endif
