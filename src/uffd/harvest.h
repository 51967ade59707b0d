/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the kernel says about one mm: its shared mappings of the mount and their marks. */
#ifndef WPFS_UFFD_HARVEST_H
#define WPFS_UFFD_HARVEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "mm/model.h"

struct harvest_request {
	pid_t pid;	      /* any task of the mm */
	const uint64_t *devs; /* st_dev numbers the mount has had */
	size_t nr_devs;
	bool own_uffds; /* look for synchronous registrations too, the program's own and others */
	/*
	 * A userfaultfd of the mm that may be asked for them; NULL: there is none. Without it they
	 * are read from smaps, for which the kernel looks at each page of the mm.
	 */
	const int *uffd;
	/* Addresses to leave out: a mapping that is just being made there. Empty: none. */
	uint64_t skip_start, skip_end;
};

struct harvest {
	struct mm_vma *vmas; /* for mm_observe, which takes them over */
	size_t nr;
	bool private_maps; /* it also maps files of the mount MAP_PRIVATE: not tracked */
};

/*
 * Reads the mappings, scans their marks, reads the mappings again, until both readings agree: a
 * mapping that changed under the scan would give marks of one and addresses of the other. After
 * HARVEST_TRIES the mappings that still differ are given as not registered, which makes what is
 * armed there dirty. 0 or -errno; -ESRCH: the mm is gone.
 */
int harvest_mm(const struct harvest_request *req, struct harvest *harvest);

#define HARVEST_TRIES 32

/*
 * For tests: called between the scan and the second reading, so that a change under the scan can
 * be forced. NULL outside of tests.
 */
extern void (*harvest_test_hook)(pid_t pid);

#endif
