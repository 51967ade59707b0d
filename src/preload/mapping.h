/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the daemon is told of a mapping of a wpfs file, and what the shim itself keeps of it. All
 * under the shim's lock; addresses and lengths in bytes.
 */
#ifndef WPFS_PRELOAD_MAPPING_H
#define WPFS_PRELOAD_MAPPING_H

#include <errno.h>

#include "preload/ranges.h"
#include "preload/shim.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#define MAP_ANY_FIXED (MAP_FIXED | MAP_FIXED_NOREPLACE)
/* What is done to the pages, not to the mapping: only once it is in place. */
#define MAP_TOUCHES   (MAP_POPULATE | MAP_LOCKED)

/* One mmap(2) call. */
struct mapping {
	uint64_t addr, len;
	int prot, flags, fd;
	uint64_t off;
	uint64_t dev, ino; /* of the program's descriptor */
	uint64_t mnt;	   /* mount id of that, never used again */
	uint32_t mount;	   /* index */
	bool require;	   /* fails if it cannot be tracked */
};

/* Would munmap(2) take these? */
bool mapping_span_valid(uint64_t addr, uint64_t len);

/* The call that would make this range. */
void mapping_of_range(const struct range *range, struct mapping *r);

/*
 * Tells the daemon that this mapping is about to be made, at an address that nobody knows yet;
 * does not wait. mapping_tell() follows.
 */
void mapping_announce(const struct mapping *r);

/* It does not come: a mapping that looks like it is none that will be told of. */
void mapping_call_off(const struct mapping *r);

/*
 * Tells the daemon of a mapping at `at` that will be at `final`; it is armed when this returns, and
 * *armed says how many pages of it. query: nothing is mapped, only how many would be. 0, or -errno:
 * it is not tracked.
 */
int mapping_tell(const struct mapping *r, uint64_t at, uint64_t final, bool query, uint64_t *armed);

/* It is at `at`, and tracked. */
void mapping_remember(const struct mapping *r, uint64_t at);

/* Of what mount_ready() and mount_call() give: -EINVAL is the daemon's word about a file only. */
static inline int mapping_refused(int err)
{
	return err == -EINVAL ? -EIO : err;
}

/*
 * It is or will be at `at`, and mapping_tell() gave `err` or was not even called: counted as untold
 * unless the daemon said that it is none of its files, or never knew this program. Before the
 * program can use it.
 */
void mapping_untold(const struct mapping *r, uint64_t at, int err);

/*
 * What is to be moved to r->addr later: made without any access, and nowhere near that. Its
 * address, or -errno.
 */
long mapping_make_elsewhere(const struct mapping *r, int fd);

/*
 * What MAP_LOCKED in r->flags would be refused with, 0 if it is not there: a call that locks only
 * what it has made is not.
 */
long mapping_may_lock(const struct mapping *r);

/*
 * What is known in [addr, addr + len) becomes read-only and is harvested. A piece for which that
 * fails is left as it is: its end is like one behind the shim's back.
 */
void mapping_retire(uint64_t addr, uint64_t len);

/* After all the call failed for which a span was retired: as it was, as far as is known. */
void mapping_bring_back(uint64_t addr, uint64_t len);

#endif
