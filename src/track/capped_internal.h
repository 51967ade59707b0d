/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Shared by the files of capped mounts. What is not marked otherwise is guarded by capped.lock.
 *
 * Invariant, whenever the lock is free: a page is in the lower file, or its spilled bit is set, or
 * it is zeros. Both only inside of an eviction's batch, where nobody can change the page. A daemon
 * killed at any moment therefore leaves a state in which "in the lower file" wins; but see
 * capped_lower_has.
 */
#ifndef WPFS_TRACK_CAPPED_INTERNAL_H
#define WPFS_TRACK_CAPPED_INTERNAL_H

#include <linux/capability.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <uthash.h>

#include "fs/fs.h"
#include "mm/set.h"
#include "spill/bits.h"
#include "spill/policy.h"
#include "spill/store.h"
#include "track/capped.h"
#include "uffd/maps.h"

#define CAPPED_BATCH	1024 /* runs of pages evicted at once; pages in its buffer: 4 MiB */
#define CAPPED_CHUNK	128  /* of them, on their way to the store together */
#define CAPPED_TURN	512  /* pages whose turn it is; fewer stand under a fence for less long */
#define CAPPED_CLUSTER	48u  /* pages read from the store at once: 192 KiB */
#define CAPPED_ENGINES	16   /* reads from the store at once */
#define CAPPED_WORKERS	5    /* threads that serve faults */
#define CAPPED_LOADERS	4    /* of them, that wait for the store: one has time for the others */
#define CAPPED_STREAMS	4    /* sequential readers of a file that are followed */
#define CAPPED_TICKETS	256
#define CAPPED_TRIES	2000 /* naps until an unread event counts as a hang */
#define CAPPED_TICKET_S 30

/* Somebody who goes through a file page by page. */
struct capped_stream {
	uint64_t next;	 /* the page where it is expected */
	uint64_t ahead;	 /* up to here has been asked for */
	uint32_t window; /* pages to read ahead; 0: not proven yet */
	uint32_t used;	 /* faults ago; the oldest gives way */
};

enum capped_time { CAPPED_ATIME, CAPPED_MTIME, CAPPED_TIMES };

/* A time of a file whose pages are being moved: capped_times.c. */
struct capped_moving {
	unsigned inside;     /* pieces of such work */
	struct timespec was; /* what the user sees meanwhile */
	bool changing;	     /* somebody else is at it: the lower file's own is as good */
};

/* A file that a descriptor was handed out of, or that has or had spilled pages. */
struct capped_file {
	uint64_t ino; /* constant, like the next three */
	uint64_t lower_ino;
	struct fs_handle handle;
	int fd;	      /* the one struct file of the lower file, O_RDWR; fs keeps the inode for us */
	bool missing; /* its mappings are registered for missing faults; bits is open; never undone
		       */
	struct spill_bits bits;
	bool taken;    /* fd is a killed daemon's struct file */
	int spill_fd;  /* its pages in the store; -1: not open */
	uint32_t slot; /* its name in the policy */
	bool has_slot;
	bool idle;	    /* within capped_sweep */
	uint64_t looked;    /* capped_now before the last look at who maps it */
	bool unseen;	    /* pages may have come that nobody told of: capped_learn_unseen */
	bool pinned;	    /* it is all in memory and stays: capped_pin.c */
	unsigned opens;	    /* that map the lower file, not released */
	uint64_t pin_pages; /* it counts for while it is pinned */
	struct capped_stream streams[CAPPED_STREAMS];
	uint32_t stream_clock;
	struct capped_moving times[CAPPED_TIMES];
	unsigned changers;	  /* wait for the end of such work, of which none begins before */
	char caps[XATTR_CAPS_SZ]; /* its security.capability while what takes it away is done */
	ssize_t caps_size;	  /* at most 0: it has none */
	UT_hash_handle hh;
};

/*
 * Pages that somebody is at while the lock is not held. An ACCESS keeps them in memory, a LOAD is
 * bringing them in, under a DROP nothing of the file comes or goes.
 */
enum capped_use_kind { CAPPED_USE_ACCESS, CAPPED_USE_LOAD, CAPPED_USE_DROP };

struct capped_use {
	uint64_t ino, first, end;
	enum capped_use_kind kind;
	bool reads, writes; /* through the mount, which changes the times */
	uint64_t since_ns;  /* of one that reads: when its request came */
	struct capped_use *prev, *next;
	struct capped_use *reading_prev, *reading_next;
};

/* Pages to be brought in before anybody asks. */
struct capped_ahead {
	uint64_t ino, first, nr;
	struct capped_ahead *prev, *next;
};

/* A tracked address space whose faults are served. */
struct capped_mm {
	uint64_t id; /* constant; what epoll gives back */
	int uffd;
	uint32_t thread; /* the fault thread that reads it; 0: the next message wakes one */
	uint32_t lent;	 /* then: the one that has it back unless somebody is woken before */
	int maps_fd, pagemap_fd; /* -1: a fork child that has not come to us yet */
	pid_t pid;		 /* of a task of the mm when it came; 0 as above */
	uint64_t said_addr;	 /* a page that could not be had, and was told of; 0: none */
	uint64_t said_ms;	 /* when */
	bool left;		 /* its program has ended, and somebody may have it still */
	uint64_t since;		 /* id of the next one when it became nobody's: see capped_now */
	uint64_t root;		 /* of a fork child: id of what it descends from, that came to us */
	uint64_t born_ms;	 /* then: when */
	unsigned lost;		 /* descendants that have ended and never came to us */
	int keeper;		 /* the socket of its witness; -1: nobody is given what follows */
	unsigned kept;		 /* uffds of descendants that its witness has */
	bool found;		 /* a fork child of an earlier daemon: `inherited` may be wrong */
	struct maps_list
		inherited; /* the mappings of its parent at the fork, while maps_fd is -1 */
	struct capped_mm *prev, *next;
};

/* A fault that could not be served at once. */
struct capped_wait {
	uint64_t mm; /* id */
	uint64_t addr;
	uint64_t due_ms, delay_ms; /* of a store that fails: when it is tried again */
	int err;
	uint32_t ptid; /* who waits */
	bool wp, said, full;
	bool refused;	    /* the thread was sent a signal, which does not reach all that wait */
	uint64_t ino, page; /* what is there, as far as it was looked up; ino 0: it was not */
	struct capped_wait *prev, *next;
};

struct capped_run {
	uint64_t first, nr; /* pages */
};

/* A part of a mapping that shows pages of the batch, while they are fenced. */
struct capped_piece {
	struct capped_mm *mm; /* NULL: gone */
	uint64_t start, end, pgoff;
	size_t at; /* runs before this one are done, in the fence and then in the un-fence */
	bool fenced, unfenced;
	struct mm_set unmarked; /* page offsets in the file: what the fence has to come off again */
};

struct capped_batch {
	struct capped_file *file;
	const struct capped_run *runs; /* ascending, apart from each other */
	size_t nr_runs;
	uint64_t pages, since_ns;
	struct capped_piece *pieces;
	size_t nr_pieces, room;
	struct mm_set used; /* page offsets: mapped under the fence, so they stay */
};

/* What survives the daemon while a batch is under way: private/spilled/evicting. */
struct capped_record {
	uint64_t ino, nr; /* runs; 0: none */
	struct capped_run runs[CAPPED_BATCH];
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
	uint64_t ahead;			      /* pages brought back unasked, of the refaults */
	uint64_t probes;		      /* pages unmapped to see whether they are used */
	uint64_t throttled;		      /* faults and requests that waited for room */
	uint64_t fences, fence_ns;	      /* batches, and how long their fences stood */
	uint64_t zeros;			      /* pages of zeros that left without I/O */
	uint64_t errors;		      /* of the store */
};

/* capped_awake.c. Atomic, or constant after capped_awake_start. */
struct capped_awake {
	pthread_t thread;
	bool runs;
	sem_t wanted;
	_Atomic bool sleeps, stop;
	_Atomic int cpu;	/* of who waits */
	_Atomic uint64_t until; /* ns */
};

struct capped {
	struct capped_config config; /* constant, like all up to the lock */
	uint64_t lower_dev;
	uint64_t low, high, full; /* bytes: evict down to, evict from, let nobody add from */
	int bits_fd;		  /* private/spilled */
	struct spill_store *store;
	int epoll_fd, stop_fd, retry_fd;
	int evict_fd; /* eventfd: there is something to evict */
	pthread_t workers[CAPPED_WORKERS];
	unsigned nr_workers;
	bool spins; /* there is another processor for those who are served */
	struct capped_awake awake;

	/* Outermost of this room and of spill; fs may be called under it, but no hook is. */
	pthread_mutex_t lock;
	pthread_cond_t cond; /* a batch or a use ended, there is room again */
	struct capped_file *files;
	struct capped_mm *mms;
	uint64_t next_mm;
	struct capped_wait *waits;
	uint64_t retry_ms; /* by then they are looked at again, whatever else comes */
	uint64_t trying;   /* faults that failed, and are not in it as they are served again */
	struct capped_ahead *aheads;
	struct capped_use *uses;
	struct capped_use *coming; /* drops that wait: of their files no use begins that they wait
				      for */
	struct capped_use
		*readings;	    /* requests under way, the oldest first; some wait to be uses */
	struct capped_batch *batch; /* set and cleared by the track thread */
	struct policy *policy;
	uint64_t pinned;  /* pages of pinned files */
	uint64_t size;	  /* config.size, or what a remount made of it; bytes */
	uint64_t limit;	  /* of the lower tmpfs, as it was set last; bytes */
	uint64_t loading; /* pages that are coming back: in the store, and in memory soon */
	uint64_t guess;	  /* bytes in memory: what the tmpfs said last, and what was added since */
	unsigned nr_unseen;   /* files that are `unseen` */
	bool asked;	      /* evict_fd was written and the track thread has not looked yet */
	bool stuck;	      /* nothing can be evicted: what does not fit is let in */
	bool held_up;	      /* nothing can be before a read ends: the oldest one is let in */
	bool unsettled;	      /* pages may be twice: capped_lower_has */
	uint32_t next_worker; /* the last number given to a fault thread */
	bool reading_ahead;   /* a fault thread does */
	unsigned loaders;     /* fault threads that wait for the store */
	bool spinning;	      /* a fault thread looks for messages before it sleeps */
	unsigned spin_credit, spin_skipped; /* how often that was of use lately; tries left out */
	struct spill_io *engines[CAPPED_ENGINES]; /* free ones */
	unsigned nr_engines, made_engines;
	pthread_cond_t engine_cond;
	struct capped_ticket tickets[CAPPED_TICKETS];
	struct capped_record left; /* of the killed daemon; nr 0: none. Track thread only */
	struct spill_io *evict_io; /* track thread only */
	unsigned vain_turns;	   /* one after the other; track thread only */
	int64_t found_nothing;	   /* when capped_find did; seconds; track thread only */
	struct capped_find *find;  /* a look that is under way; track thread only */
	struct capped_counts counts;
	void (*progress)(void *ctx); /* capped_set_progress; track thread, as ctx */
	void *progress_ctx;
};

/* A moment for the fault thread to read an event; the lock is not held. */
static inline void capped_nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
}

/* ---- capped.c: files ---- */

/* All with the lock held, but for what is said. */
struct capped_file *capped_file_find(struct capped *c, uint64_t ino);

/* The file's entry, made if need be. 0 or -errno. */
int capped_file_get(struct capped *c, const struct fs_handle *handle, uint64_t ino,
		    struct capped_file **file);

/* It is about to be mapped: pages may come that nobody tells of. */
void capped_file_unseen(struct capped *c, struct capped_file *f);

/* From now on pages of it may be spilled: opens its bits with room for `pages`. 0 or -errno. */
int capped_file_prepare(struct capped *c, struct capped_file *f, uint64_t pages);

/* Removes the file of the store if nothing in it is needed any more. */
void capped_tidy(struct capped *c, struct capped_file *f);

/* Forgets stored copies. */
void capped_forget(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr);

/* Its descriptor in the store, borrowed; -errno. */
int capped_spill_fd(struct capped *c, struct capped_file *f, bool create);

/* What its bits are called in bits_fd. */
struct capped_bits_name {
	char s[24];
};
struct capped_bits_name capped_bits_name(uint64_t ino);

/* ---- capped_adopt.c ---- */

/* What the last daemon knew. With a new lower there is nothing, and the store is emptied. */
int capped_adopt(struct capped *c);

#endif
