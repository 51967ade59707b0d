/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors of mapped files of a capped mount that outlive the daemon. Track thread. */
#ifndef WPFS_TRACK_KEEP_H
#define WPFS_TRACK_KEEP_H

#include "track/internal.h"

/* The mm maps this file: its witness holds it from now on. */
void keep_file(struct track *t, struct tmm *tm, uint64_t file);

/* A new daemon, before anybody uses a file: what the witness holds is what is used. */
void keep_take_back(struct track *t, struct tmm *tm);

/* Once a second: files that are mapped without having been told of, and that are not any more. */
void keep_sweep(struct track *t);

#endif
