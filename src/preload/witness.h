/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The witness: a task that shares this process's memory map, and nothing else of it, so that its
 * page tables and wpfs's own userfaultfds outlive it until the daemon has read the marks. The
 * program can write everything the witness executes and reads; therefore it holds no power.
 */
#ifndef WPFS_PRELOAD_WITNESS_H
#define WPFS_PRELOAD_WITNESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ipc/wire.h"

enum witness_state {
	WITNESS_STARTING = 0,
	WITNESS_READY,	   /* all power given up; it holds its descriptors */
	WITNESS_FAILED,	   /* it could not, and exits */
	WITNESS_ABANDONED, /* it took too long: it is to exit */
};

/* Stands at the top of the witness's stack. */
struct witness_boot {
	_Atomic uint32_t state;			      /* enum witness_state; a futex */
	int32_t uffd, chan, chan_peer, life, program; /* descriptors it keeps, in both tables */
	int32_t maps;				      /* its own, /proc/self/maps */
	struct wpfs_untold *untold;		      /* where children are counted, or NULL */
	bool started;	   /* the uffd has its API already: read its events from the start */
	bool reads_events; /* a native mount's */
};

#define WITNESS_MAX 8 /* in one mm: one for each mount, and some that never got ready */

/*
 * Stacks of all witnesses of this mm, 0 = a free slot: none may take away another's. Written
 * under the shim's lock.
 */
extern _Atomic uint64_t witness_stacks[WITNESS_MAX];

#define WITNESS_STACK_BYTES (64ull * 1024)

/* In a fork child: it has none (their stacks are not copied). */
void witness_forget(void);

/* What the shim has to give to start one; all stay the caller's. */
struct witness_args {
	int uffd;
	int chan[2]; /* seqpacket socketpair: [0] is read by the witness, [1] is for the daemon */
	int life;    /* read end of the daemon's pipe */
	struct wpfs_untold *untold; /* of the mount, in this library; NULL: nothing is counted */
	bool started, reads_events; /* as in witness_boot */
};

/*
 * Makes a witness and waits until it has given up all power. Gives its pid and in *pidfd a
 * descriptor of it (the caller's); or -errno: there is none. All signals must be blocked.
 */
int witness_start(const struct witness_args *args, int *pidfd);

/*
 * Ends the witness with this pid and takes its stack away: nothing is left of it. Its descriptors
 * are closed, so what only they kept armed is armed no more.
 */
void witness_end(int pid);

/* The rest is inside the witness. */

/* Does what stands above; 0, or -errno: exit. */
int witness_give_up_power(struct witness_boot *boot);

/* Lives until it is killed, or told to, or nobody is left to tell it. Never returns. */
_Noreturn void witness_loop(struct witness_boot *boot);

/* Unmaps everything but wpfs mappings, this library's image and the stacks of witnesses. */
void witness_unmap_rest(const struct witness_boot *boot);

#endif
