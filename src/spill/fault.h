/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is done about a page fault that the kernel hands to the daemon: one table. Pure.
 *
 * The page's mark is not among its inputs, and that is the point: the daemon fills the lower file
 * and wakes the thread, which faults again; the kernel then maps the page itself and takes the mark
 * from the entry (or marker) that was there. Whether a page is marked is nowhere else but in page
 * tables, so no copy of it can be out of date at a fault.
 */
#ifndef WPFS_SPILL_FAULT_H
#define WPFS_SPILL_FAULT_H

#include <stdbool.h>

enum fault_kind {
	FAULT_MISSING, /* a read or write of a page that is not in the lower file */
	FAULT_WP,      /* a write to a write-protected page that is mapped */
	FAULT_NR_KINDS,
};

/* Of the page in the lower file, when the message is looked at (not when the fault happened). */
enum fault_residency {
	FAULT_RESIDENT,
	FAULT_ABSENT,  /* a hole, and zeros */
	FAULT_SPILLED, /* a hole, and its contents are in the store */
	FAULT_NR_RESIDENCIES,
};

enum fault_action {
	FAULT_HOLD,	 /* it is being evicted: the end of that wakes the thread */
	FAULT_WAKE,	 /* nothing is missing any more: fault again */
	FAULT_UNPROTECT, /* the mark goes, and the write proceeds */
	FAULT_ZERO,	 /* put a page of zeros there, wake */
	FAULT_LOAD,	 /* bring its contents back, wake */
};

enum fault_action fault_decide(enum fault_kind kind, enum fault_residency residency, bool fenced);

#endif
