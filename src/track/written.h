/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which files write(2), or a call like it, changed since their epochs began (struct
 * mm_file.written). All of it belongs to the track thread.
 */
#ifndef WPFS_TRACK_WRITTEN_H
#define WPFS_TRACK_WRITTEN_H

#include "track/internal.h"

/* Makes the watch. Without inotify everything stays UNKNOWN, which is said. 0 or -errno. */
int written_open(struct track *t);
void written_close(struct track *t);

/*
 * When the rows are loaded: what they say is believed after an ordered end only. 0 or -errno.
 */
int written_begin(struct track *t);

/*
 * When the mount answers: looks for writes to the files with an open epoch. What changed between
 * the two is not known.
 */
void written_serve(struct track *t);

/* The mount is gone and no write can come any more: the next written_begin may believe the rows. */
void written_end(struct track *t);

/*
 * Takes what has been seen until now: a write that had returned before is in the models and
 * committed. 0 or -errno of the database.
 */
int written_update(struct track *t);

/*
 * An epoch of the file is about to begin, and nothing is marked yet: looks for writes from now on.
 * Gives what is to be kept of the epoch that ends. Not `whole`: a part of the file stays in it.
 */
enum mm_written written_turn(struct track *t, struct mm_file *f, bool whole);

/* Looks for writes to the file; UNKNOWN in every mm if that is not possible. */
void written_look_for(struct track *t, uint64_t ino);

#endif
