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
#define CAPPED_CHUNK	256  /* of them, on their way to the store together */
#define CAPPED_TURN	512  /* pages whose turn it is; fewer stand under a fence for less long */
#define CAPPED_CLUSTER	64u  /* pages read from the store at once: 256 KiB */
#define CAPPED_ENGINES	16   /* reads from the store at once */
#define CAPPED_WORKERS	4    /* threads that serve faults */
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
	bool left;		 /* its program has ended, and somebody may have it still */
	uint64_t since;		 /* id of the next one when it became nobody's: see capped_now */
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
	uint32_t next_worker; /* the last number given to a fault thread */
	bool reading_ahead;   /* a fault thread does */
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

/* A use has begun, or has ended. `f` may be NULL. */
void capped_times_used(struct capped *c, struct capped_file *f, const struct capped_use *use);

/* ---- capped_budget.c: how much is in memory ---- */

/* Bytes of page contents in the lower tmpfs. Any thread, no lock. */
uint64_t capped_resident(const struct capped *c);

/* Pages of [first, first + nr) of a lower file that are in memory (or in swap); no lock. */
uint64_t capped_in_memory(int fd, uint64_t first, uint64_t nr);

/*
 * So many pages were added after capped_is_full was asked: has the track thread evict if there is
 * too much. Lock held.
 */
void capped_added(struct capped *c, uint64_t pages);

/* May nothing be added now? Asks for an eviction then. Lock held. */
bool capped_is_full(struct capped *c);

/* Waits, with the lock let go, until something may be added. */
void capped_wait_room(struct capped *c);

/* Pages were used that are in memory, as far as they are: the policy gets to know. Lock held. */
void capped_know(struct capped *c, struct capped_file *f, uint64_t first, uint64_t nr);

/*
 * The same of all pages of the file that are in memory, of which some may be known; they are not
 * used by this. Lock held.
 */
void capped_learn(struct capped *c, struct capped_file *f);

/* What programs have stored through mappings of which no fault tells. Lock not held. */
void capped_learn_unseen(struct capped *c);

/*
 * Pages of [0, pages) of a file that programs which map it could add without a word: none if its
 * mappings are registered for missing faults. Lock not held.
 */
uint64_t capped_could_come(struct capped *c, uint64_t ino, uint64_t pages);

/* For the track thread, lock not held: evict down to this; the cap. */
uint64_t capped_low(const struct capped *c);
uint64_t capped_cap(const struct capped *c);
/* The wish for room is being looked at. */
void capped_evict_asked(struct capped *c);
/* Nothing can be evicted, although there is too much: then the cap does not hold. */
void capped_set_stuck(struct capped *c, bool stuck);

/* Faults that wait are looked at again. Lock held. */
void capped_retry(struct capped *c);

#define CAPPED_WHY_PINNED "a program that only reads it or is not tracked has it open or mapped"

/* ---- capped_pin.c: files that somebody maps who is not tracked; lock held ---- */

/* Are its pages to be chosen from? */
static inline bool capped_is_chosen(const struct capped_file *f)
{
	return f->has_slot && !f->pinned;
}

/* It is pinned, if it is not: somebody has it who was not seen to open it. */
void capped_pin(struct capped *c, struct capped_file *f);

/* Ends that if nobody has it any more. True: it is pinned still. */
bool capped_still_pinned(struct capped *c, struct capped_file *f);

/* Why a file has to be in memory, and what of it has to fit: */
enum capped_hold {
	CAPPED_HOLD_ASKED, /* somebody would like it: what there is of it */
	CAPPED_HOLD_WHOLE, /* somebody maps it: holes can be touched too */
	CAPPED_HOLD_MUST,  /* nothing, it has to be */
};

/*
 * None of its pages leaves until capped_unhold. 1; 0: nothing of it is in the store, and nothing is
 * held; -EFBIG. Lock not held, like the next one.
 */
int capped_hold(struct capped *c, uint64_t ino, enum capped_hold how);
/* Nor afterwards, if somebody has it who is not told of its faults. */
void capped_unhold(struct capped *c, uint64_t ino);

/* Its size changed. */
void capped_pin_resize(struct capped *c, struct capped_file *f);

/* The same for the track thread, lock not held; `patient`: waits a moment for the end of it. */
bool capped_wait_unpinned(struct capped *c, struct capped_file *f, bool patient);

/* Bytes. Lock not held. */
uint64_t capped_pinned(struct capped *c);

/* ---- capped_limit.c: size=; lock held ---- */

void capped_limit_begin(struct capped *c);

/* What is in the store changed. `exact`: to the byte, even if there is much room. */
void capped_limit_set(struct capped *c, bool exact);

/* The same, and somebody else may have changed it. */
void capped_limit_look(struct capped *c);

/* Bytes; 0: no limit. Lock not held. */
uint64_t capped_size(struct capped *c);
bool capped_has_limit(struct capped *c);

/* Is there no room for a page more? */
bool capped_is_exhausted(struct capped *c);

/*
 * A write to pages [first, first + nr) must not take the room of those that are coming back: waits,
 * with the lock let go, until none are, if it could.
 */
void capped_wait_loads(struct capped *c, uint64_t ino, uint64_t first, uint64_t nr);

/* ---- for the track room, track thread, lock not held ---- */

/* Brings the first of its pages that are in the store back, at most `nr`. 0 or -errno. */
int capped_load_some(struct capped *c, uint64_t ino, uint64_t nr, uint64_t *loaded);

/* Brings the whole file back, whether it fits or not. 0 or -errno. */
int capped_load_file(struct capped *c, uint64_t ino, uint64_t *loaded);

/*
 * The file's entry, and capped_file_prepare. It stays until the next sweep at least. `lower_ino`
 * is its inode number in the lower. 0 or -errno.
 */
int capped_file_open(struct capped *c, const struct fs_handle *handle, uint64_t ino, uint64_t pages,
		     struct capped_file **file, uint64_t *lower_ino);

/* A descriptor of its struct file, the caller's; -errno. */
int capped_file_dup(struct capped *c, uint64_t ino);

/*
 * `fd` (duplicated) is its struct file from now on, unless another mm's witness had it already.
 * Before the faults of the mm that had it are served. Waits for who is at its pages.
 */
void capped_file_take(struct capped *c, uint64_t ino, int fd);

/* Have the mappings of this file to be registered for missing faults too? */
bool capped_is_missing(struct capped *c, uint64_t ino);

/*
 * What a new daemon does about pages that the last one left in the lower file and in the store,
 * before any fault is served. The lower file wins: it is the same or the newer. But first, for
 * files that somebody has mapped whose faults nobody could hold: zeros, which are never stored,
 * came there when a hole was touched, and are given back.
 */
void capped_drop_zeros(struct capped *c, uint64_t ino);
void capped_lower_wins(struct capped *c);

/* Punches pages of the lower file and forgets their stored copies: MADV_REMOVE. 0 or -errno. */
int capped_remove(struct capped *c, uint64_t ino, uint64_t first, uint64_t nr);

/*
 * Who maps what, for capped_sweep; with the lock held. look is called once, when it is known which
 * files nobody uses: a program that closes one while it maps it has said before that it will.
 */
struct capped_mapped {
	uint64_t now; /* capped_now before it was looked at what orphans map */
	void (*look)(void *ctx);
	bool (*is_mapped)(void *ctx, uint64_t ino);
	void *ctx;
};

/* Lets go of files that nobody uses. */
void capped_sweep(struct capped *c, const struct capped_mapped *mapped);

struct capped_counts capped_counts(struct capped *c);
/*
 * While it is set (fn not NULL) fn is called for each batch of a capped_load with `loaded` or a
 * capped_evict, perhaps with the lock held: it may call nothing of this room.
 */
void capped_set_progress(struct capped *c, void (*fn)(void *ctx), void *ctx);
/* Pages of the file that are spilled. */
uint64_t capped_nr_spilled(struct capped *c, uint64_t ino);
struct spill_stats *capped_io_stats(struct capped *c);
bool capped_is_uring(struct capped *c);
/* How many faults wait for a store that fails. */
uint64_t capped_failing(struct capped *c);
/* Readable when something is to be evicted; the reader reads it. */
int capped_evict_fd(const struct capped *c);
uint64_t capped_lower_dev(const struct capped *c);

/* Redeems a ticket: a descriptor the caller closes, or -errno (-ESTALE: no such ticket). */
int capped_redeem(struct capped *c, const struct wpfs_ticket *ticket, uint64_t *ino);

/* ---- capped_threads.c ---- */

/* 0 or -errno; capped_threads_stop follows either way. */
int capped_threads_start(struct capped *c);
void capped_threads_stop(struct capped *c);

/* All with the lock held. A new mm's messages wake the threads. 0 or -errno. */
int capped_mm_watch(struct capped *c, struct capped_mm *mm);
/* Has the calling thread to read its messages? */
bool capped_mm_is_mine(const struct capped_mm *mm);
/* Around a wait, if it is the calling thread's: another may have it meanwhile, and keep it. */
void capped_mm_lend(struct capped *c, struct capped_mm *mm);
void capped_mm_reclaim(struct capped *c, struct capped_mm *mm);

/* ---- capped_awake.c ---- */

/* Nobody is kept awake if it cannot be done; capped_awake_stop follows either way. */
void capped_awake_start(struct capped_awake *a);
void capped_awake_stop(struct capped_awake *a);

/* The calling thread is going to wake somebody soon. Any thread, no lock. */
void capped_stay_awake(struct capped_awake *a);

/* ---- capped_fault.c: mms ---- */

/*
 * Reads one message and serves it, if the mm is the calling thread's. One at a time: what one does
 * can concern the next. False: there is none. Lock not held.
 */
bool capped_fault_read(struct capped *c, uint64_t id);

/* Looks once at what waits and is due. Lock not held. */
void capped_fault_retry(struct capped *c);

/* Pages are in the lower file: whoever waits for one of them is woken. Lock held. */
void capped_fault_arrived(struct capped *c, const struct capped_file *f, uint64_t first,
			  uint64_t nr);

/*
 * Serves the faults of the mm of process `pid`; `uffd` is duplicated, `task` is one of the mm's
 * that has not ended (the first thread of the process may have). 0 or -errno.
 */
int capped_mm_add(struct capped *c, pid_t pid, pid_t task, int uffd, struct capped_mm **mm);
void capped_mm_remove(struct capped *c, struct capped_mm *mm);

/* The mm is that of process `pid` now; `task` as above. */
void capped_mm_moved(struct capped *c, struct capped_mm *mm, pid_t pid, pid_t task);

/*
 * capped_mm_remove when nobody has it any more; until then its faults are served, and it counts as
 * an orphan.
 */
void capped_mm_leave(struct capped *c, struct capped_mm *mm);

/*
 * Finds the fork child `pid`, of which `is_of` says that this uffd is its, and gives a duplicate of
 * the uffd: capped_mm_add for the child follows and replaces what was inherited. -ENOENT: none.
 */
int capped_mm_find_child(struct capped *c, pid_t pid, bool (*is_of)(void *ctx, int uffd),
			 void *ctx);

/*
 * Orphans are fork children that have not come to us, and mms that were left: what they map is not
 * in any list. It is seen in /proc: an orphan that was one before capped_now (lock not held) gave
 * this number can be found there. capped_mm_orphan: the number of the youngest that is alive; 0:
 * there is none. Lock held.
 */
uint64_t capped_now(struct capped *c);
uint64_t capped_mm_orphan(struct capped *c);
/* Is there one that became so since `now`, and was not looked for therefore? Lock held. */
bool capped_mm_orphan_since(struct capped *c, uint64_t now);
/* Is there any? Lock not held. */
bool capped_has_orphans(struct capped *c);

/* Track thread, lock not held: in that look none of them was seen to map the file. */
void capped_looked(struct capped *c, struct capped_file *f, uint64_t now);

/* Lock held. */
struct capped_mm *capped_mm_find(struct capped *c, uint64_t id);

/* Scans, then write-protects [start, end) with no fault served in between. 0 or -errno. */
int capped_protect(struct capped *c, struct capped_mm *mm, uint64_t start, uint64_t end,
		   struct mm_set *written);

/* ---- capped_batch.c: the fence. Track thread; lock held where it is said ---- */

struct capped_mapping {
	struct capped_mm *mm;
	int pidfd; /* of a task of the mm, borrowed */
	uint64_t start, end, pgoff;
};

/* Is a page in the batch? Lock held. */
bool capped_batch_has(const struct capped *c, const struct capped_file *f, uint64_t first,
		      uint64_t end);

/*
 * Begins a batch: waits for who is at its pages, and write-protects them in every mapping. 0 or
 * -errno (-ETXTBSY: it is pinned) with `why`; capped_batch_end follows either way.
 */
int capped_batch_begin(struct capped *c, struct capped_batch *b, const struct capped_mapping *maps,
		       size_t nr, char *why, size_t why_size);

/* Un-fences at today's addresses and has everybody try again who waits there. */
void capped_batch_end(struct capped *c, struct capped_batch *b);

/* Adds the pages that are mapped somewhere, by offset in the file. Lock held. 0 or -errno. */
int capped_batch_mapped(const struct capped_batch *b, struct mm_set *mapped);

/* Fork and mremap events of an mm, as they concern the batch. Lock held. */
void capped_batch_forked(struct capped *c, struct capped_mm *parent, struct capped_mm *child);
void capped_batch_moved(struct capped *c, struct capped_mm *mm, uint64_t from, uint64_t to,
			uint64_t len);
void capped_batch_gone(struct capped *c, struct capped_mm *mm);

/* ---- capped_evict.c: save and punch ---- */

/*
 * Evicts all resident pages of a file whose every mapping is in `maps`, registered for missing
 * faults. Counts pages that left. 0 or -errno with a reason in `why` (-ETXTBSY: it was pinned
 * meanwhile): what was evicted by then stays so, everything else is as it was.
 */
int capped_evict(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		 size_t nr, uint64_t *pages, char *why, size_t why_size);

/*
 * The same of some runs, at most CAPPED_BATCH. `settle`: they may have been mapped
 * until now, so direct I/O into them is waited for; else those that are mapped now stay, and are
 * added to `used` by offset in the file.
 */
int capped_evict_runs(struct capped *c, struct capped_file *f, const struct capped_mapping *maps,
		      size_t nr, const struct capped_run *runs, size_t nr_runs, bool settle,
		      struct mm_set *used, uint64_t *pages, char *why, size_t why_size);

/* ---- capped_unmap.c: out of the page tables, and still in memory; no lock ---- */

/* False: it would cost more than it tells. */
bool capped_can_unmap(void);

/* Unmaps ranges of a process, if they are there, with its marks kept. */
void capped_unmap(int pidfd, const struct iovec *iov, size_t nr);

/*
 * Unmaps pages [0, pages) of a file in the background, in its order, in all its mappings, which are
 * borrowed until capped_unmap_end. NULL: it cannot be done, or there are none.
 */
struct capped_unmapper;
struct capped_unmapper *capped_unmap_begin(const struct capped_mapping *maps, size_t nr,
					   uint64_t pages);
/* Waits until `settle_ms` have gone by since what is before page `end` was unmapped: then. */
uint64_t capped_unmap_wait(struct capped_unmapper *u, uint64_t end, unsigned settle_ms);
/* Stops it. May be NULL. */
void capped_unmap_end(struct capped_unmapper *u);

/* ---- capped_turn.c: whose turn it is ---- */

/* Pages of one file, in the order of the file. */
struct capped_turn {
	struct capped_file *file;
	struct policy_page pages[CAPPED_TURN];
	size_t nr;
};

/* Takes up to `max` pages whose turn has come, all of one file. nr 0: there are none. */
void capped_turn_take(struct capped *c, struct capped_turn *turn);

/* Nothing can be done about them now: they have another turn. */
void capped_turn_back(struct capped *c, struct capped_turn *turn);

/* Unmaps the new ones, keeps the used ones and evicts the rest. `pages` counts those. */
int capped_turn_run(struct capped *c, struct capped_turn *turn, const struct capped_mapping *maps,
		    size_t nr, uint64_t *pages, char *why, size_t why_size);

/*
 * Looks for files of which nothing is known: at some names of the lower tree, the next ones in the
 * next turn, until it knows of as many pages more. False: all was looked at, and nothing found.
 * Track thread.
 */
bool capped_find(struct capped *c, uint64_t want);
void capped_find_free(struct capped *c);

/* What a killed daemon was evicting; nr 0: nothing. Track thread. */
const struct capped_record *capped_record_left(const struct capped *c);

/* It is dealt with. */
void capped_record_clear(struct capped *c);

#endif
