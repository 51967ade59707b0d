/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A kernel in plain arrays, the daemon's moves on it (as src/track makes them), and a reference
 * that knows every store: for model_random_test.c.
 */
#ifndef WPFS_TESTS_MODEL_SIM_H
#define WPFS_TESTS_MODEL_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "mm/model.h"

#define SIM_FILES 2
#define SIM_PAGES 24  /* of a file */
#define SIM_SPACE 120 /* pages of the address space */

/* One page of the address space. */
struct sim_page {
	bool mapped;
	int file, pgoff;
	bool sealed;	 /* mapped from a descriptor that cannot write */
	int prot;	 /* only to have the kernel split mappings */
	bool registered; /* write-protect, with the uffd of `owner` */
	enum mm_owner owner;
	bool marked;
	bool known;   /* the daemon was told of this mapping, or has seen it */
	bool pending; /* stored to while armed, but before it was known */
};

/* What is true of one page of a file. */
struct sim_ref {
	bool armed;
	bool stored;  /* while armed, in this epoch: must be dirty */
	bool tainted; /* something unseen may have been done to it: may be dirty */
};

struct sim {
	struct mm mm;
	uint64_t rng;
	struct sim_page space[SIM_SPACE];
	struct sim_ref ref[SIM_FILES][SIM_PAGES];
	bool own_async, own_remap; /* features of the program's own uffd */
	char failure[200];	   /* "" = none */
};

/* A range of addresses, in pages. */
struct sim_range {
	int at, nr;
};

void sim_init(struct sim *s, uint64_t seed);
void sim_free(struct sim *s);
uint32_t sim_rng(struct sim *s, uint32_t below);

/* Does one thing out of all that can happen; gives its name. */
const char *sim_step(struct sim *s);

/* Harvest, and everything that must hold after one: s->failure if not. */
void sim_harvest(struct sim *s);

/* ---- model_sim_kernel.c: what the program does, of which the daemon knows nothing ---- */
bool sim_pick(struct sim *s, struct sim_range *r); /* a part of one mapping */
bool sim_pick_free(struct sim *s, int nr, int *at);
void sim_store(struct sim *s);
void sim_raw_unmap(struct sim *s, struct sim_range r);
void sim_raw_map(struct sim *s);
void sim_move(struct sim *s, bool plain);
void sim_grow(struct sim *s);
void sim_mprotect(struct sim *s);
void sim_own_writeprotect(struct sim *s);
void sim_taint(struct sim *s, int file, int pgoff);
int sim_view(const struct sim *s, struct mm_vma **vmas, size_t *nr);

#endif
