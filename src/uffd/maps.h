/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mappings of a process, from /proc/PID/maps (proc(5)) and, for what only smaps tells, from
 * VmFlags. Passthrough mappings show the device and inode of the FUSE file, not of the lower one.
 */
#ifndef WPFS_UFFD_MAPS_H
#define WPFS_UFFD_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct maps_vma {
	uint64_t start, end; /* bytes */
	uint64_t pgoff;	     /* pages */
	uint64_t dev, ino;   /* dev as makedev(3) makes it: comparable with st_dev */
	uint32_t prot;	     /* PROT_* */
	bool shared;
};

struct maps_list {
	struct maps_vma *vmas; /* ascending by start */
	size_t nr, room;
};

/*
 * Reads the mappings of `pid` that belong to one of the nr_devs devices. The list may be reused:
 * its contents are replaced. 0 or -errno (-ESRCH: gone, or it has no mm any more: a kernel thread,
 * or one that is ending; another thread is looked at if only the first one has ended).
 */
int maps_read(pid_t pid, const uint64_t *devs, size_t nr_devs, struct maps_list *list);

/* Are both lists the same, entry by entry? */
bool maps_equal(const struct maps_list *a, const struct maps_list *b);

void maps_free(struct maps_list *list);

/* *to becomes a copy of *from. 0 or -ENOMEM. */
int maps_copy(struct maps_list *to, const struct maps_list *from);

/* What the list shows in [from, from + len) is at `to` now (mremap). 0 or -ENOMEM. */
int maps_move(struct maps_list *list, uint64_t from, uint64_t to, uint64_t len);

/* Opens /proc/PID/maps; it stays bound to the mm the process has now. -errno. */
int maps_open_fd(pid_t pid);

/*
 * The mapping at `addr`, by such a descriptor (PROCMAP_QUERY of Linux 6.11, else by reading all).
 * Any thread. 0 or -errno: -ENOENT: nothing is mapped there; -ESRCH: the mm is gone.
 */
int maps_at(int maps_fd, uint64_t addr, struct maps_vma *vma);
/* The same as an older kernel has it done. */
int maps_at_by_reading(int maps_fd, uint64_t addr, struct maps_vma *vma);

/*
 * As maps_read, by such a descriptor: also of an mm whose first process has ended while another
 * task has it. 0 or -errno: -ENOTTY: not before Linux 6.11.
 */
int maps_list(int maps_fd, const uint64_t *devs, size_t nr_devs, struct maps_list *list);

/* What VmFlags says: how a mapping is registered with some uffd ("uw", "um"), and its rights. */
enum maps_uffd {
	MAPS_UFFD_WP = 1,
	MAPS_UFFD_MISSING = 2,
	MAPS_MAY_WRITE = 4, /* "mw": it may be made writable */
};

/*
 * Fills modes[nr] for each entry of `list`. Reads smaps, which walks page tables: only for mms with
 * a synchronous uffd of their own, where PAGEMAP_SCAN cannot tell. An entry that smaps does not
 * show identically gets 0.
 */
int maps_read_uffd(pid_t pid, const struct maps_list *list, uint8_t *modes);

#endif
