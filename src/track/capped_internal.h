/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Shared by the files of capped mounts. What is not marked otherwise is guarded by capped.lock.
 *
 * Invariant, whenever the lock is free: a page is in the lower file, or its spilled bit is set, or
 * it is zeros. Both only inside of an eviction's batch, where nobody can change the page. A daemon
 * killed at any moment therefore leaves a state in which "in the lower file" wins.
 */
#ifndef WPFS_TRACK_CAPPED_INTERNAL_H
#define WPFS_TRACK_CAPPED_INTERNAL_H

#include <pthread.h>
#include <time.h>
#include <uthash.h>

#include "fs/fs.h"
#include "mm/set.h"
#include "spill/bits.h"
#include "spill/store.h"
#include "track/capped.h"
#include "uffd/maps.h"

#define CAPPED_BATCH	4096 /* pages evicted at once: 16 MiB */
#define CAPPED_CLUSTER	64   /* pages read from the store at once */
#define CAPPED_SHARDS	64
#define CAPPED_TICKETS	256
#define CAPPED_TRIES	2000 /* naps until an unread event counts as a hang */
#define CAPPED_TICKET_S 30

/* A file that a descriptor was handed out of, or that has or had spilled pages. */
struct capped_file {
	uint64_t ino; /* constant, like the next three */
	uint64_t lower_ino;
	struct fs_handle handle;
	int fd;	      /* the one struct file of the lower file, O_RDWR; fs keeps the inode for us */
	bool missing; /* its mappings are registered for missing faults; bits is open; never undone
		       */
	struct spill_bits bits;
	UT_hash_handle hh;
};

/* A tracked address space whose faults are served. */
struct capped_mm {
	uint64_t id; /* constant; what epoll gives back */
	int uffd;
	int maps_fd, pagemap_fd; /* -1: a fork child that has not come to us yet */
	pid_t pid;		 /* of a task of the mm when it came; 0 as above */
	struct maps_list
		inherited; /* the mappings of its parent at the fork, while maps_fd is -1 */
	struct capped_mm *prev, *next;
};

/* A fault that could not be served at once. */
struct capped_wait {
	uint64_t mm; /* id */
	uint64_t addr;
	bool wp, said;
	struct capped_wait *prev, *next;
};

/* A part of a mapping that shows pages of the batch, while they are fenced. */
struct capped_piece {
	struct capped_mm *mm; /* NULL: gone */
	uint64_t start, end, pgoff;
	bool fenced, unfenced;
	struct mm_set unmarked; /* page offsets in the file: what the fence has to come off again */
};

struct capped_batch {
	struct capped_file *file;
	uint64_t first, nr; /* pages */
	struct capped_piece *pieces;
	size_t nr_pieces, room;
};

/* What survives the daemon while a batch is under way: private/spilled/evicting. */
struct capped_record {
	uint64_t ino, first, nr;
};

struct capped_ticket {
	struct wpfs_ticket ticket;
	uint64_t ino;
	int accmode;
	int64_t expires; /* CLOCK_MONOTONIC seconds; 0: free */
};

struct capped_counts {
	uint64_t faults, refaults, evictions; /* messages; pages brought back; pages evicted */
	uint64_t spilled;		      /* pages in the store now */
};

struct capped {
	struct capped_config config; /* constant, like all up to the lock */
	uint64_t lower_dev;
	int bits_fd; /* private/spilled */
	struct spill_store *store;
	int epoll_fd, stop_fd;
	pthread_t thread;
	bool thread_started;

	/* Outermost of this room and of spill; fs may be called under it, but no hook is. */
	pthread_mutex_t lock;
	pthread_cond_t cond; /* a batch, an access or a drop ended */
	struct capped_file *files;
	struct capped_mm *mms;
	uint64_t next_mm;
	struct capped_wait *waits;
	struct capped_batch *batch;	  /* set and cleared by the track thread */
	unsigned accesses[CAPPED_SHARDS]; /* FUSE requests under way, by file */
	bool drops[CAPPED_SHARDS];	  /* one of them is a drop: nothing is brought back */
	struct capped_ticket tickets[CAPPED_TICKETS];
	struct capped_record left; /* of the killed daemon; nr 0: none. Track thread only */
	void *buf;		   /* CAPPED_CLUSTER pages */
	struct capped_counts counts;
};

/* A moment for the fault thread to read an event; the lock is not held. */
static inline void capped_nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
}

/* ---- capped.c: files and their pages ---- */

/* Waits, with the lock let go meanwhile, until no drop of a file is under way. Lock held. */
static inline void capped_wait_drop(struct capped *c, uint64_t ino)
{
	while (c->drops[ino % CAPPED_SHARDS])
		pthread_cond_wait(&c->cond, &c->lock);
}

/* All with the lock held, but for what is said. */
struct capped_file *capped_file_find(struct capped *c, uint64_t ino);

/* The file's entry, made if need be. 0 or -errno. */
int capped_file_get(struct capped *c, const struct fs_handle *handle, uint64_t ino,
		    struct capped_file **file);

/* From now on pages of it may be spilled: opens its bits with room for `pages`. 0 or -errno. */
int capped_file_prepare(struct capped *c, struct capped_file *f, uint64_t pages);

/*
 * Brings spilled pages of [first, first + nr) back. `loaded` (may be NULL) counts. 0 or -errno:
 * -EIO: what is stored cannot be read or is not there.
 */
int capped_load(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr,
		uint64_t *loaded);

/* Removes the file of the store if nothing in it is needed any more. */
void capped_tidy(struct capped *c, struct capped_file *f);

/* Forgets stored copies. */
void capped_forget(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr);

/* ---- for the track room, track thread, lock not held ---- */

/* Brings the whole file back. 0 or -errno. */
int capped_load_file(struct capped *c, uint64_t ino, uint64_t *loaded);

/*
 * The file's entry, and capped_file_prepare. It stays until the next sweep at least. `lower_ino`
 * is its inode number in the lower. 0 or -errno.
 */
int capped_file_open(struct capped *c, const struct fs_handle *handle, uint64_t ino, uint64_t pages,
		     struct capped_file **file, uint64_t *lower_ino);

/* Have the mappings of this file to be registered for missing faults too? */
bool capped_is_missing(struct capped *c, uint64_t ino);

/* Punches pages of the lower file and forgets their stored copies: MADV_REMOVE. 0 or -errno. */
int capped_remove(struct capped *c, uint64_t ino, uint64_t first, uint64_t nr);

/* Lets go of files that nobody uses; is_mapped says which some mm maps. */
void capped_sweep(struct capped *c, bool (*is_mapped)(void *ctx, uint64_t ino), void *ctx);

struct capped_counts capped_counts(struct capped *c);
bool capped_is_uring(struct capped *c);
uint64_t capped_lower_dev(const struct capped *c);

/* Redeems a ticket: a descriptor the caller closes, or -errno (-ESTALE: no such ticket). */
int capped_redeem(struct capped *c, const struct wpfs_ticket *ticket, uint64_t *ino);

/* ---- capped_fault.c: mms ---- */

/* The fault thread: arg is the struct capped. */
void *capped_fault_main(void *arg);

/* Serves the faults of an mm; `uffd` is duplicated, `pid` is a task of the mm. 0 or -errno. */
int capped_mm_add(struct capped *c, pid_t pid, int uffd, struct capped_mm **mm);
void capped_mm_remove(struct capped *c, struct capped_mm *mm);

/*
 * Finds the fork child `pid`, of which `is_of` says that this uffd is its, and gives a duplicate of
 * the uffd: capped_mm_add for the child follows and replaces what was inherited. -ENOENT: none.
 */
int capped_mm_find_child(struct capped *c, pid_t pid, bool (*is_of)(void *ctx, int uffd),
			 void *ctx);

/* Is there a fork child that has not come to us, alive? Lock held. */
bool capped_mm_orphans(struct capped *c);

/* Lock held. */
struct capped_mm *capped_mm_find(struct capped *c, uint64_t id);

/* Scans, then write-protects [start, end) with no fault served in between. 0 or -errno. */
int capped_protect(struct capped *c, struct capped_mm *mm, uint64_t start, uint64_t end,
		   struct mm_set *written);

/* ---- capped_evict.c ---- */

struct capped_mapping {
	struct capped_mm *mm;
	uint64_t start, end, pgoff;
};

/*
 * Evicts all resident pages of a file whose every mapping is in `maps`, registered for missing
 * faults. Counts pages that left. 0 or -errno with a reason in `why`: what was evicted by then
 * stays so, everything else is as it was.
 */
int capped_evict(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		 size_t nr, uint64_t *pages, char *why, size_t why_size);

/* Fork and mremap events of an mm, as they concern the batch. Lock held. */
void capped_batch_forked(struct capped *c, struct capped_mm *parent, struct capped_mm *child);
void capped_batch_moved(struct capped *c, struct capped_mm *mm, uint64_t from, uint64_t to,
			uint64_t len);
void capped_batch_gone(struct capped *c, struct capped_mm *mm);
/* Is this address under the fence? Lock held. */
bool capped_batch_fences(struct capped *c, const struct capped_mm *mm, uint64_t addr);

/* What a killed daemon was evicting; nr 0: nothing. Track thread. */
struct capped_record capped_record_left(const struct capped *c);

/* It is dealt with. */
void capped_record_clear(struct capped *c);

#endif
