/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What epochwriter notes about its stores and epochcheck holds against `dirty`: a file that both
 * map, outside of the mount.
 *
 * Time is a count of phases: 2k while protect number k is being done, 2k + 1 after it. A store
 * lasts from the phase before it to the phase after it.
 */
#ifndef TESTS_EPOCHS_H
#define TESTS_EPOCHS_H

#include <stdatomic.h>
#include <stdint.h>

#define EPOCHS_LOG     16	  /* last records kept of a page: those of the last epochs */
#define EPOCHS_ONGOING UINT32_MAX /* `last` of a store that is not done */

struct epochs_record {
	_Atomic uint32_t first, last; /* phases */
	_Atomic uint32_t stores;      /* as many with just these */
};

struct epochs_page {
	_Atomic uint32_t count; /* records so far; record n is in log[n % EPOCHS_LOG] */
	struct epochs_record log[EPOCHS_LOG];
};

struct epochs_shared {
	_Atomic uint32_t phase, stop;
	uint32_t pages, threads;
	_Atomic uint64_t stores;
	struct epochs_page page[];
};

#endif
