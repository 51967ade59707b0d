/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The shim as libwpfs uses it. libwpfs.so contains the same code as the preloaded library, without
 * the hooks; but a process must attach once only, so where libwpfs_preload.so is loaded, libwpfs
 * finds its table with dlsym(3), wpfs_preload_core(), and leaves its own copy alone.
 *
 * Results are those of system calls: >= 0 or an address, or -errno; errno stays as it is. Addresses
 * and lengths in bytes. Any thread. -EPERM: not in a vfork(2) child or one of a raw clone(2), not
 * behind a seccomp filter that came through the hooks.
 */
#ifndef WPFS_PRELOAD_CORE_H
#define WPFS_PRELOAD_CORE_H

#include <stdbool.h>
#include <stdint.h>

#define CORE_VERSION 1

struct core {
	uint32_t version; /* CORE_VERSION: of all that follows */
	uint32_t reserved;

	/*
	 * Attaches to the mount with this id, by this name (NULL: that of WPFS_NAME, if any); gives
	 * an index for the others. -EINVAL: no such id or name; -EEXIST: attached by another name,
	 * or by another copy of this code; -ENOENT, -ECONNREFUSED: no daemon; -EPERM: also: no
	 * userfaultfd for this user; -EACCES: given up before, for the life of this process;
	 * -ENOSPC: too many mounts; -ETIMEDOUT, -EPROTO, -EPROTONOSUPPORT, -EMFILE, -ENFILE,
	 * -ENOMEM.
	 */
	int (*attach)(const char *id, const char *name);

	/* Connects anew if the daemon was started again since; attaches anew if that one does not
	 * know this process and nothing is mapped. -ESRCH, or as attach. */
	int (*revive)(int mount);

	/* The st_ino of an open regular file of that mount. -EXDEV: it is none; -ENOTCONN: it may
	 * be, its daemon is not there to say so. */
	int (*file)(int mount, int fd, uint64_t *ino);

	/* mmap(2) of a file of a mount, MAP_SHARED, tracked or refused: -ECONNREFUSED. */
	long (*map)(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off);
	long (*unmap)(uint64_t addr, uint64_t len);
	long (*remap)(uint64_t old, uint64_t old_len, uint64_t new_len, int flags,
		      uint64_t new_addr);
	long (*remove)(uint64_t addr, uint64_t len); /* madvise(MADV_REMOVE) */

	/* Is all of [addr, addr + len) mapped to files of that mount, as far as is known? */
	bool (*covers)(int mount, uint64_t addr, uint64_t len);

	/* A new userfaultfd, its API not done, that sees the kernel's faults too. */
	int (*new_uffd)(int mount);
	long (*uffd_register)(int fd, void *arg);
	long (*uffd_unregister)(int fd, void *arg);
	long (*close)(int fd);
};

/* The table of this copy. */
extern const struct core core;

/* Exported by libwpfs_preload.so alone. */
const struct core *wpfs_preload_core(void);

#endif
