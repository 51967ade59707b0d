/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The two files of an export: wpfs(5) tells the format. `pages` holds the contents of its
 * pages one after the other, `manifest` says what they are and is the last to get its name, so that
 * a directory with a manifest is a whole export.
 */
#ifndef WPFS_CTL_MANIFEST_H
#define WPFS_CTL_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "ipc/wire.h"
#include "mm/set.h"

#define MANIFEST_NAME	  "manifest"
#define MANIFEST_PAGES	  "pages"
#define MANIFEST_RUN_MAX  1024	  /* pages: what is held in memory, and checked by one checksum */
#define MANIFEST_PART	  ".part" /* while it is being written */
#define MANIFEST_WHY_SIZE 160

struct manifest_run {
	uint64_t first, nr; /* pages of the file */
	uint64_t hash;	    /* XXH3 (64 bits) of its contents; not of zeros */
	bool zero;	    /* nothing of it is in `pages` */
};

/* What stands in the head and the tail of a manifest. */
struct manifest {
	char store[WPFS_ID_MAX];
	char name[WPFS_NAME_MAX + 16]; /* of the program; "" = any */
	char *file;		       /* path inside the mount, escaped as by say_text; owned */
	uint64_t epoch;		       /* 0: none, with full */
	uint64_t size;		       /* of the file, bytes */
	bool full;		       /* all pages of the file, not only those that changed */
	bool complete;		       /* false: pages may be missing (--force) */
	uint64_t pages, zero_pages;    /* sums over the runs */
	struct manifest_run *runs;     /* reading: ascending, none overlaps; owned */
	size_t nr, room;
};

/* ---- writing ---- */

struct manifest_writer {
	FILE *f; /* owned */
	void *hash;
	int err;
};

/* Takes `f` and writes the head. 0 or -errno. */
int manifest_begin(struct manifest_writer *w, FILE *f, const struct manifest *m);

/* An error is kept for manifest_end. */
void manifest_add(struct manifest_writer *w, const struct manifest_run *run);

/* Writes the tail and makes all of it durable. Always releases f. 0 or -errno. */
int manifest_end(struct manifest_writer *w, const struct manifest *m);

/* Releases a writer without an end; a second time is harmless. */
void manifest_writer_drop(struct manifest_writer *w);

/* ---- reading ---- */

/*
 * Reads a manifest and checks all of it: its own checksum, the order of the runs, the sums. 0;
 * -EBADMSG with a reason in `why`, -EPROTONOSUPPORT: of a later version; -ENOMEM. To be freed in
 * any case. The text must not hold NULs at its end: `len` bytes, and a NUL behind.
 */
int manifest_parse(struct manifest *m, const char *text, size_t len, char why[MANIFEST_WHY_SIZE]);

void manifest_free(struct manifest *m);

/* Pages of a file of that size. */
uint64_t manifest_pages(uint64_t size);

#endif
