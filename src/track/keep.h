/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors of a capped mount that outlive the daemon: in the witnesses. Track thread. */
#ifndef WPFS_TRACK_KEEP_H
#define WPFS_TRACK_KEEP_H

#include "track/internal.h"

/* The mm maps this file: its witness holds it from now on. */
void keep_file(struct track *t, struct tmm *tm, uint64_t file);

/* A new daemon, before anybody uses a file: what the witness holds is what is used. */
void keep_take_back(struct track *t, struct tmm *tm);

/* Once a second: files that are mapped without having been told of, and that are not any more. */
void keep_sweep(struct track *t);

/* ---- keep_children.c: the uffds of fork children that have no witness of their own ---- */

/* The mm has a witness, or another one: it is given them from now on. */
void keep_children(struct track *t, struct tmm *tm);

/*
 * A new daemon: whose uffd the witness holds is served again, as a child that has not come, and is
 * in doubt. 0 or -errno.
 */
int keep_children_take_back(struct track *t, struct tmm *tm);

/* Once a second, when the witness has read all that it was told. */
void keep_children_sweep(struct track *t, struct tmm *tm);

#endif
