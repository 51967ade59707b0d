/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What evict.c tells evict_round.c. Track thread. */
#ifndef WPFS_TRACK_EVICT_INTERNAL_H
#define WPFS_TRACK_EVICT_INTERNAL_H

#include "track/capped_evict.h"
#include "track/evict.h"
#include "uffd/maps.h"

/* Everything that has to be known of a file's mappings before it can be evicted. */
struct evict {
	struct track *t;
	uint64_t ino, lower_ino;
	struct capped_file *file;
	struct capped_mapping *maps;
	size_t nr, room;
	struct tmm **mms; /* those that map it */
	size_t nr_mms;
	char why[EVICT_WHY_SIZE];
	/* All mms of the mount, and what they mapped of it then. */
	struct evict_seen {
		uint64_t mm; /* id of its struct capped_mm */
		struct maps_list list;
	} * seen;
	size_t nr_seen;
	struct evict *prev, *next;
};

/*
 * Makes a file ready for eviction; `patient`: waits a moment if somebody who is not tracked has it.
 * 0 or -errno (-ETXTBSY: it is pinned) with a reason in (*out)->why; *out may be NULL then.
 */
int evict_ready(struct track *t, const struct fs_file *file, bool patient, struct evict **out);

/* The next evict_ready looks at everything. */
void evict_unsee(struct evict *e);

#endif
