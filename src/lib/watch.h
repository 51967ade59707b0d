/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The table of watches. watch.c has the rules: who changes it has `setup` too, so that is enough to
 * read it; else watch_table guards it. Addresses in bytes.
 */
#ifndef WPFS_LIB_WATCH_H
#define WPFS_LIB_WATCH_H

#include <pthread.h>

#include "lib/handle.h"

struct watch {
	uint64_t start, end; /* bytes; disjoint from all others */
	struct wpfs *handle;
	wpfs_write_fn fn;
	void *arg;
	struct watch *prev, *next;
	uint64_t called[]; /* a bit per page: not protected any more */
};

extern pthread_mutex_t watch_table;

/* A watch of [start, end) like another one, in no table, nothing called for; NULL: no memory. */
struct watch *watch_new(uint64_t start, uint64_t end, const struct watch *like);

/* Puts it into the table, which then owns it. Nothing of it may be watched. */
void watch_append(struct watch *w);

/* Takes [start, end) out of the table. 0, or -ENOMEM and nothing is changed. */
int watch_cut(uint64_t start, uint64_t end);

/* The watch that has the page at this address, or NULL. */
struct watch *watch_at(uint64_t addr);

/* Was this page called for since it was last protected? */
bool watch_test_called(const struct watch *w, uint64_t page);
void watch_set_called(struct watch *w, uint64_t page);

/* What is watched in the place of w, which is in no table, was called for: so it was for w. */
void watch_keep_called(struct watch *w);

/* Is some page watched by somebody else? */
bool watch_by_others(uint64_t start, uint64_t end, const struct watch *mine);

/* Is all of it watched? Then it is registered. */
bool watch_covers(uint64_t start, uint64_t end);

/* The range of some watch of this handle; false: there is none. Takes watch_table. */
bool watch_any_of(const struct wpfs *handle, uint64_t *start, uint64_t *len);

/* Ends all; the second one takes watch_table. */
void watch_table_empty(void);
void watch_table_forget(void);

#endif
