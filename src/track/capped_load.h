/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How pages of a capped mount come back, and who is at them without the lock. */
#ifndef WPFS_TRACK_CAPPED_LOAD_H
#define WPFS_TRACK_CAPPED_LOAD_H

#include "track/capped_internal.h"

/* ---- capped_load.c: pages come back ---- */

/* Engines with a buffer of CAPPED_CLUSTER pages. Lock not held. NULL: out of memory. */
struct spill_io *capped_engine_take(struct capped *c);
void capped_engine_give(struct capped *c, struct spill_io *io);

/* Is somebody at pages [first, end) of the file? `kinds`: bits 1 << enum capped_use_kind. */
bool capped_used(const struct capped *c, uint64_t ino, uint64_t first, uint64_t end,
		 unsigned kinds);
/* Does a drop of the file wait? Who is about to read pages of it in lets it go first. */
bool capped_drop_comes(const struct capped *c, uint64_t ino);
void capped_use_begin(struct capped *c, struct capped_use *use);
/* Whoever waits for it looks again. */
void capped_use_end(struct capped *c, struct capped_use *use);

/*
 * Brings spilled pages of [first, first + nr) back. The lock is let go meanwhile, and so is
 * whatever the caller knew. Waits for who is at them. `loaded` (may be NULL) counts. 0 or -errno:
 * -EIO: what is stored cannot be read or is not there.
 */
int capped_load(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr,
		uint64_t *loaded);

/* The same for a drop that is coming, which others wait for. */
int capped_load_for_drop(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr);

/* The same at once, of pages that are all spilled and that nobody is at. */
int capped_load_run(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr);

/* The run of spilled pages at `first` that nobody is at, at most `max` and before `end`. */
uint64_t capped_free_run(const struct capped *c, const struct capped_file *f, uint64_t first,
			 uint64_t end, uint64_t max);

/* Pages on their way from the store. */
struct capped_load {
	struct capped_file *file;
	struct capped_use use;
	struct spill_run run;
	struct spill_io *io; /* the caller's, with its buffer, which `run` is to be read into */
	int fd;		     /* of the store; -errno: there is none */
};

/*
 * The same in two steps, with the read in between, the lock not held meanwhile. It is at the pages
 * of `load`, which stays where it is, from the one to the other.
 */
void capped_load_begin(struct capped *c, struct capped_file *f, struct capped_load *load,
		       uint64_t first, uint64_t nr);
/* `r` is what came of the read. Takes the lock and keeps it. 0 or -errno, as capped_load. */
int capped_load_end(struct capped *c, struct capped_load *load, int r);

/* ---- capped_ahead.c: before anybody asks; lock held, let go meanwhile ---- */

/* Was a killed daemon putting the page into the lower file? Lock held, like the next one. */
bool capped_load_is_noted(const struct capped_file *f, uint64_t page);
void capped_load_notes_clear(struct capped_file *f);

/*
 * For a fault: brings one page in, and those behind it if somebody reads on. Waits for nobody:
 * -EAGAIN.
 */
int capped_load_fault(struct capped *c, struct capped_file *f, uint64_t page);
/* The same of a page of zeros. The lock is not let go. */
int capped_zero_fault(struct capped *c, struct capped_file *f, uint64_t page);

/*
 * Reads ahead what is asked for, until there is nothing more. One thread at a time. False: out of
 * memory for it.
 */
bool capped_ahead_run(struct capped *c);
void capped_ahead_forget(struct capped *c, uint64_t ino);

/* ---- capped_io.c: what reads ---- */

/*
 * Since when the oldest read(2) is under way: it writes right into pages that the program may map,
 * which it has pinned before, past every protection. UINT64_MAX: there is none. CLOCK_MONOTONIC;
 * lock not held, like the next one.
 */
uint64_t capped_reading_since(struct capped *c);

/* Waits a while for those to end that began before `ns`. 0, or -EBUSY. */
int capped_wait_readings(struct capped *c, uint64_t ns);

/* ---- capped_times.c: nobody sees that pages are moved; lock held ---- */

/* Around work that moves that time of the lower file, during which the file stays known. */
void capped_time_begin(struct capped *c, struct capped_file *f, enum capped_time which);
/* `st`: what the lower file says, looked at under this same lock. */
void capped_time_begin_at(struct capped *c, struct capped_file *f, enum capped_time which,
			  const struct stat *st);
void capped_time_end(struct capped_file *f, enum capped_time which);

/* Before work that lets go of the lock: waits for those in capped_still. */
void capped_time_wait(struct capped *c, const struct capped_file *f);

/* A use has begun, or has ended (`done`: and did what it was for). `f` may be NULL. */
void capped_times_used(struct capped *c, struct capped_file *f, const struct capped_use *use,
		       bool done);

#endif
