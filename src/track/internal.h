/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Shared by the files of this room. Everything here belongs to the track thread, but for what
 * track.c marks otherwise.
 */
#ifndef WPFS_TRACK_INTERNAL_H
#define WPFS_TRACK_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "fs/fs.h"
#include "ipc/server.h"
#include "mm/model.h"
#include "track/track.h"
#include "uffd/proc.h"

#define TRACK_NAME_SIZE (WPFS_NAME_MAX + 16) /* "name", "name/2", "name/PID" and NUL */
struct db_mm;

#define ANNOUNCED_GOING 8
#define TRACK_MAX_DEVS	2048 /* mounts of one lower of which somebody has files still */

/* What an epoll event is about: the first member of whatever is watched. */
enum watch_kind {
	WATCH_QUEUE,
	WATCH_TIMER,
	WATCH_OWN,
	WATCH_LISTEN,
	WATCH_CLIENT,
	WATCH_DEATHS,
	WATCH_PROGRAM,
	WATCH_WRITTEN,
	WATCH_EVICT
};

struct watch {
	enum watch_kind kind;
	int fd; /* registered with epoll while >= 0 */
};

/* A userfaultfd of the program's own, of which we hold a copy so that its marks outlive it. */
struct own_uffd {
	int copy;	 /* never read or polled */
	pid_t holder;	 /* who was last seen to have it, */
	int number;	 /* and under which number */
	bool events;	 /* the program asked for events: a fork or munmap may wait for a reader */
	unsigned missed; /* looks in a row at which nobody had it */
	struct own_uffd *prev, *next;
};

/*
 * How a file was just before wpfs let go of what the program carries in it, for its own userfaultfd
 * to have: nobody watches until that is marked.
 */
struct own_window {
	uint64_t file, since_ns;
	uint64_t faults; /* of the program */
	bool alone;	 /* it had one thread */
	struct timespec ctime;
	struct mm_set present; /* pages of the file that the mapping had, read-only */
};

#define OWN_WINDOWS 4 /* files that one REGISTER is about; what more it carries is lost */

/*
 * What the client is about to do, known so that a harvest between its request and its system call
 * is not misled. Over with its next request, or after a while: it may have been stopped.
 */
struct announced {
	uint64_t until_ns;				  /* CLOCK_MONOTONIC */
	uint64_t aside_start, aside_end;		  /* a REGISTER of its own uffd */
	uint64_t coming_file, coming_pgoff, coming_pages; /* a mapping, no address yet */
	struct {
		uint64_t start, end;
	} going[ANNOUNCED_GOING]; /* one munmap: read-only and harvested already; the last ones */
	unsigned nr_going;	  /* of all, the older ones are forgotten */
	struct {
		uint64_t start, end, file, pgoff;
	} onto; /* a mapping that was made elsewhere is moved over what is there, as before */
};

/* A child's uffd in the table of its parent's witness. */
struct stray {
	int fd;
	uint64_t claimer; /* mm id of the child that has come: the witness is to close it; or 0 */
	uint64_t told;	  /* which of its commands that was */
	uint64_t since_ms;
};

/*
 * A tracked mm. Moves: NEW (attached, nothing mapped, not in the database) or FORKED (has a row, in
 * which it is live without a witness, and is about to attach) -> LIVE (has a row) -> DETACHED (kept
 * in the database only; this struct stays while the mount does).
 */
enum tmm_state { TMM_NEW, TMM_FORKED, TMM_LIVE, TMM_DETACHED };

struct tmm {
	struct watch program_watch; /* pidfd of the program; readable when it has ended */
	struct mm mm;
	enum tmm_state state;
	uid_t uid;
	char name[TRACK_NAME_SIZE]; /* "" = unnamed */
	char comm[16];
	bool stale_row;	      /* the database still calls it live */
	struct db_mm *stored; /* its row as the database has it; NULL: not known */
	bool unsaved;	      /* the store's database has an older state of it: see aside.c */
	bool epoch_unsaved;   /* and does not know of an epoch that began */
	bool doomed;	   /* forgotten, and its row is still to be deleted; has no name any more */
	bool maybe_shared; /* another process may have the memory of one that has ended, of this
			      name */
	bool fork_child;   /* named by its parent: kept only if it wrote something */
	bool private_maps; /* seen mapping files of the mount MAP_PRIVATE */
	bool mapped_shared;  /* has mapped a file of the mount shared at some time */
	bool ending;	     /* nobody will look at its witness again */
	bool turning;	     /* an epoch of it ends with the look that is under way */
	bool doubt_unstored; /* strays_doubt: what it noted is neither in the database nor aside */
	bool epoch_turned;   /* protected or unprotected since: fork_dirty tells nothing any more */
	uint64_t fork_dirty; /* tmm_dirty() when it was forked */
	uint64_t fork_epoch; /* protect_last_epoch() then */
	uint64_t parent;     /* mm id of the one that it was forked from; 0: not known */
	struct proc_id program; /* pid 0 when detached */
	struct proc_id witness; /* pid 0: none */
	int witness_pidfd;
	int born_uffd; /* FORKED: what it has claimed, to be told by; -1: none, or it has attached
			*/
	int mm_fd;     /* a pagemap of it: whether it is gone; -1: not known */
	int uffd_fd;   /* of wpfs's uffd in the witness */
	int chan_fd;   /* of the command channel in the witness */
	int uffd_copy; /* ours, only when there is no witness (and no event to be read) */
	bool widowed; /* capped: the witness died before this daemon, and uffd_copy is the program's
		       */
	struct own_uffd *uffds;
	struct own_window windows[OWN_WINDOWS]; /* from a UFFD_PRE to the next message */
	size_t nr_windows;
	bool own_carries; /* something is carried in what the last UFFD_PRE was about */
	bool own_unsure;  /* a REGISTER is under way: a daemon after this one must doubt all marks
			   */
	struct stray strays[WPFS_WITNESS_FDS];
	size_t nr_strays;
	uint64_t told;		  /* commands that the witness was sent */
	uint64_t untold;	  /* address of its struct wpfs_untold; 0: it has none */
	uint64_t untold_seen;	  /* how much of that is accounted for */
	struct capped_mm *capped; /* capped mounts, while it lives: who serves its faults */
	uint64_t kept[WPFS_WITNESS_FILES]; /* files whose struct file the witness holds */
	size_t nr_kept;
	struct announced announced;
	struct removal *removals; /* of drops.c */
	struct client *client;	  /* may be NULL: the connection can be lost while the mm lives */
	struct tmm *prev, *next;
};

struct client {
	struct watch watch;
	uint64_t id_nr; /* never the same again in this daemon */
	struct ipc_peer peer;
	struct ipc_outq out;
	struct proc_id id; /* of the peer when it connected */
	uint64_t cookie;   /* 0 before HELLO */
	bool ctl;
	bool attached; /* tmm is set and complete */
	bool forked;   /* its uffd came from its parent: initialised and registered */
	bool closing;
	uint32_t hello_flags;
	char name[WPFS_NAME_MAX + 1];
	struct tmm *tmm;
	struct {
		bool on;	     /* it has asked for events */
		bool waiting;	     /* and its last request is not answered yet */
		uint32_t seq;	     /* of that one */
		uint64_t since_ms;   /* and when it came */
		uint64_t next, lost; /* number of the event it gets next; how many it missed */
	} events;
	struct client *prev, *next;
};

/* A file that marks refer to. */
struct track_file {
	uint64_t ino;
	struct fs_handle handle;       /* len 0: not known (yet) */
	char *path;		       /* as last seen, or NULL */
	int written_wd;		       /* the inotify watch on it, 0: none */
	struct timespec written_ctime; /* of the lower file when the daemon began */
	UT_hash_handle hh;
};

struct track {
	struct track_config config; /* strings are copies; constant after track_start */
	pthread_t thread;
	int epoll_fd;
	struct watch queue_watch, timer_watch, own_watch, listen_watch;
	struct watch deaths_watch;  /* an epoll of all WATCH_PROGRAM: who has ended, at one call */
	struct watch written_watch; /* inotify */
	struct watcher *watcher;    /* who adds to it; NULL: nobody looks for writes */
	pthread_mutex_t queue_lock; /* innermost: nothing is called under it */
	struct track_call *queue;   /* guarded by queue_lock */
	atomic_flag settling;	    /* any thread: one is in track_settle */
	_Atomic unsigned programs;  /* any thread: watched for their end */
	bool written_unsaved;	    /* some struct mm_file.written is not in the database */
	bool stop, stopping;	    /* track thread only; set by calls */
	bool unmounted;		    /* track thread only */
	pthread_mutex_t durable_lock; /* innermost */
	pthread_cond_t durable_done;
	unsigned nr_durable; /* durable_lock: requests that wait for a disk */

	pthread_mutex_t drops_lock; /* innermost */
	struct fs_drop *drops;	    /* drops_lock */

	struct client *clients;
	struct tmm *tmms;
	atomic_uint nr_tmms;	       /* of these; any thread may look whether there are some */
	struct track_file *files;      /* uthash by ino */
	uint64_t devs[TRACK_MAX_DEVS]; /* st_dev numbers of this lower's mounts */
	size_t nr_devs;
	uint64_t next_mm;    /* next row id */
	uint64_t last_epoch; /* the largest number that an mm had which is forgotten */
	uint64_t next_client;
	char boot_id[40];
	int busy_fd; /* capped mounts: of the mountpoint while somebody maps a file, or -1 */
	struct watch evict_watch, evict_timer;
	struct evict *evicts; /* capped mounts: files whose mappings are known */
	struct capped_turn *evict_turn;
	uint64_t evict_since_ms; /* nothing could be evicted since; 0: something could */
	uint64_t evict_pause_ms;
	bool evict_held_up;	  /* by a read(2): capped_is_held_up */
	uint64_t evict_looked_ms; /* for unasked pages */
	uint64_t let_go_ms;	  /* when /proc was looked through for it */
	size_t let_go_left;	  /* files that only a mapping keeps, then */
	int devuffd;		  /* open /dev/userfaultfd, -1: none */
	int life_pipe[2];	  /* clients hold copies of [0]; [1] says that this daemon lives */
	unsigned ticks;		  /* seconds since the last periodic harvest */
	unsigned own_looks;
	uint64_t harvests, conservative, last_commit;
	struct db *aside;      /* takes what the store's database cannot, while db_error; or NULL */
	int db_error;	       /* why that cannot be written; 0: it can */
	uint64_t db_since;     /* seconds since 1970: when that began */
	struct events *events; /* NULL: nobody watches */
};

/* ---- track.c ---- */
/* Runs fn in the track thread, and waits. */
int track_call(struct track *t, int (*fn)(struct track *, void *), void *arg);
int track_watch_add(struct track *t, struct watch *watch, uint32_t events);
void track_watch_remove(struct track *t, struct watch *watch);

/* ---- client.c ---- */
void client_accept(struct track *t);
void client_event(struct track *t, struct client *c, uint32_t events);
void client_free(struct track *t, struct client *c);
/*
 * The ANNOUNCE, or the MAP of what is mapped already, that the client has sent and nobody has read
 * yet, if that is its next message; in `packet` (aligned to 8). NULL: it is not.
 */
const struct wpfs_map *client_peek_map(const struct client *c, void *packet, size_t size);
/* Has its other end been closed, heard of or not? It waits for no answer then. */
bool client_is_hung_up(const struct client *c);
/* Frees the clients that closed during this round of events. */
void client_reap(struct track *t);

/* A request being handled: answered exactly once, by one of these. */
struct request {
	struct track *t;
	struct client *c;
	const struct wpfs_hdr *hdr;
	const void *body;
	struct ipc_fds *fds; /* what a handler wants to keep it steals */
};

void request_reply(struct request *rq, int status, const void *body, size_t len);
void request_reply_fds(struct request *rq, const void *body, size_t len, const int *fds, size_t n);
void request_error(struct request *rq, int status, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* -ENOENT: no program is selected, by this name or (NULL) at all. */
void request_none(struct request *rq, const char *name);

typedef void (*request_fn)(struct request *rq);

/* ---- attach.c ---- */
void attach_hello(struct request *rq);
void attach_attach(struct request *rq);

/* ---- fork.c ---- */
void fork_forked(struct request *rq);
/* Sends the witness a command, with a descriptor unless `fd` is -1. */
struct wpfs_witness_cmd;
void fork_witness_tell(struct tmm *tm, const struct wpfs_witness_cmd *cmd, int fd);
/* Tells the witness of an mm taken back that there is a daemon again: it waits for that one. */
void fork_new_life(struct track *t, struct tmm *tm);
/*
 * Adds a parent's armed pages to a child's, and what is known to be dirty of them; the epoch
 * becomes the later one of both. 0 or -ENOMEM.
 */
int fork_copy_model(struct mm *to, const struct mm *from);
/*
 * A child whose uffd is lost (its parent has no witness, or a witness with more children than it
 * keeps uffds of): nothing watches the mappings it was born with, so what is armed there is dirty.
 */
int fork_doubt_mapped(struct mm *child, const struct mm *parent);

/* ---- strays.c: children that nobody tracks ---- */
/* The child has come for what the parent's witness has under this number, which closes it. */
void strays_claim(struct tmm *parent, int fd, const struct tmm *child);
/* Has a child come for what was under this number? Then another look sorts out what is there now.
 */
bool strays_has_come(const struct tmm *parent, int fd);
/* The witness closes it when it reads the command. */
void strays_close(struct tmm *tm, int fd);
/* The same of one that was noted: the number may be another child's next. */
void strays_forget(struct tmm *tm, int fd);
/* Children of a live mm that nobody tracks get a row in which what is armed is dirty. -errno. */
int strays_look(struct track *t, struct tmm *tm);
/* That row, now. */
int strays_doubt(struct track *t, struct tmm *tm);
/* The witness had no room for the uffd of a child, and has closed it. */
int strays_lost(struct track *t, struct tmm *tm);
/* Children of before this daemon have had their time. */
void strays_resume(struct tmm *tm);

/* Has the witness not read all that it was told? */
bool strays_has_unread(const struct tmm *tm);
/*
 * The witness was dead, and what uffds of children it had: those that nobody came for, and whoever
 * was born since, are in doubt.
 */
int strays_lose(struct track *t, struct tmm *tm);
/* What the row of a program's children that nobody tracks is called, behind its name. */
#define STRAYS_NAME	"/untracked"
/* How long a child may take to claim its uffd before it counts as one that does not. */
#define STRAYS_CLAIM_MS 1000

/* ---- mapping.c ---- */
void mapping_map(struct request *rq);
void mapping_announce(struct request *rq);
/* A mapping like this is about to be made. */
void mapping_is_coming(struct announced *a, const struct wpfs_map *map);
void mapping_unmap(struct request *rq);
/* Whole pages of a user's address space, at least one. */
bool mapping_aligned(uint64_t addr, uint64_t len);

/* ---- drops.c: contents that go while their marks stay ---- */
/* Notes what is about to go; the two are the only ones here that any thread may call. */
void drops_add(struct track *t, struct fs_drop *drop);
/* It is over. Nothing if it was not noted. */
void drops_remove(struct track *t, struct fs_drop *drop);
/* Adds to *set what is about to go of these armed pages of the file: they are dirty. 0 or -ENOMEM.
 */
int drops_under_way(struct track *t, uint64_t ino, const struct mm_set *armed, struct mm_set *set);
/* [off, off + len) bytes of the file go (len 0: to the end): saves what is dirty. 0 or -errno. */
int drops_tell(struct track *t, uint64_t ino, uint64_t off, uint64_t len);
/* MADV_REMOVE is about to be done. */
void drops_request(struct request *rq);
/* Is somebody about to take contents of the file out? Its pages stay where they are until then. */
bool drops_come(struct track *t, uint64_t ino);
/* What the program was about to take out is gone, or stays. */
void drops_removed(struct track *t, struct tmm *tm);

/* ---- durable.c ---- */
void durable_msync(struct request *rq);
/* No thread of these is left, and none comes. Not from the track thread. */
void durable_wait(struct track *t);

/* ---- own.c: the program's own uffds ---- */
void own_pre(struct request *rq);
void own_post(struct request *rq);
void own_unreg(struct request *rq);
void own_close(struct request *rq);
void own_free_all(struct tmm *tm);
/*
 * Calls fn for each userfaultfd in the program's table, with its number there and a descriptor (-1:
 * it cannot be had) that is closed afterwards unless fn takes it over.
 */
typedef void (*own_fd_fn)(struct track *t, struct tmm *tm, int number, int *fd);
void own_for_each_fd(struct track *t, struct tmm *tm, own_fd_fn fn);
/* Takes back copies of the uffds of a program that was there before this daemon. */
void own_resume(struct track *t, struct tmm *tm);
/* Often, while there are any: lets go of uffds that the program has closed behind the shim's back.
 */
void own_look(struct track *t);

/* ---- carried.c: marks of an earlier run, until the program registers ---- */
/* It is about to register [start, end): before the last look at that. 0 or -errno. */
int carried_open(struct track *t, struct tmm *tm, uint64_t start, uint64_t end);
/* After that look, which counts what nobody watched as written: later ones leave that to
 * carried_rearm.
 */
void carried_aside(struct tmm *tm, uint64_t start, uint64_t end);
/* After that look: wpfs's uffd is about to let go of [from, to) of a mapping. */
int carried_note(struct tmm *tm, const struct mm_vma *vma, uint64_t from, uint64_t to);
/* It has registered [start, end) with `uffd`: what it carries there is marked before it is told. */
int carried_rearm(struct request *rq, int uffd, uint64_t start, uint64_t end);
void carried_forget(struct tmm *tm);

/* ---- tmm.c ---- */
struct tmm *tmm_new(struct track *t);
void tmm_free(struct track *t, struct tmm *tm);
struct tmm *tmm_by_name(struct track *t, uid_t uid, const char *name);
/* Is the mm one that `uid` may see and that --name `name` (NULL: any) means? */
bool tmm_selected(const struct tmm *tm, uid_t uid, const char *name);
/* wpfs's uffd of this mm for one operation; the caller closes it. -errno. */
int tmm_uffd(const struct tmm *tm);
/* Had it a witness, which is dead while it lives? The program can make another one. */
bool tmm_has_lost_witness(const struct tmm *tm);
/* Nobody has it any more, as far as one knows. */
bool tmm_is_gone(const struct tmm *tm);
/* A pid whose page tables are the mm's: the witness's, else the program's. 0: none. */
pid_t tmm_pid(const struct tmm *tm);
/* Pages that are dirty of what wpfs armed, over all files, as of the last harvest. */
uint64_t tmm_dirty(const struct tmm *tm);
/* What the kernel says of a live mm now, the model left as it is; vmas are the caller's to free. */
struct harvest;
int tmm_look(struct track *t, const struct tmm *tm, uint64_t skip_start, uint64_t skip_end,
	     struct harvest *h);
/* Reads the marks of a live mm into its model. 0 or -errno; -ESRCH: the mm is gone. */
int tmm_harvest(struct track *t, struct tmm *tm);
/* The same, as if nothing were mapped in [skip_start, skip_end): a mapping is being made there. */
int tmm_harvest_but(struct track *t, struct tmm *tm, uint64_t skip_start, uint64_t skip_end);
/* CLOCK_MONOTONIC */
uint64_t tmm_now_ns(void);
/* Something in it was set. */
void tmm_announce(struct announced *a);
/*
 * Mappings that the program could not tell of, and that may be gone again: their files' armed pages
 * are in doubt. The program writes that memory; all it can do with it is to make its own pages
 * dirty, or lie about itself. `pid`: any task of the mm. 0 or -errno.
 */
int tmm_untold(struct track *t, struct tmm *tm, pid_t pid);
/* Gives a NEW mm its row and its name; who has ended has given its name back before. 0 or -errno.
 */
int tmm_enlist(struct track *t, struct tmm *tm);
/* The same, and nobody's end is looked for. */
int tmm_take_name(struct track *t, struct tmm *tm);

/* ---- life.c ---- */
/* The program has ended or left its mm: last harvest, commit, witness let go. */
void life_end(struct track *t, struct tmm *tm);
/* Ends every mm whose program is dead. Costs what these do, however many others there are. */
void life_reap(struct track *t);
/* Also every mm whose program has another one by now (exec). */
void life_sweep(struct track *t);
/*
 * The same of what this process had, or of what has this name or is an instance of it; an mm that
 * is new (its first mapping is being made) has none.
 */
void life_sweep_pid(struct track *t, pid_t pid);
void life_sweep_name(struct track *t, uid_t uid, const char *name);
/*
 * Enlists the programs that have all protected and have mapped a file without telling: by a system
 * call of their own, or while there was no daemon. One that ends before anybody looks was never
 * tracked. 0 or the first -errno.
 */
int life_look(struct track *t);
/* Takes back what the database says was live when the last daemon went. */
int life_resume(struct track *t);
/* As tmm_harvest; what is armed in a live one that nobody can look at any more is dirty. */
int life_harvest(struct track *t, struct tmm *tm);
/* Harvests and commits all live mms. 0 or the first -errno. */
int life_sync_all(struct track *t);
/* The mount is gone: every mm ends. */
void life_end_all(struct track *t);

/* ---- shared.c ---- */
/*
 * The program has left this mm. Has another process it still? Then the mm goes on as that one's,
 * live and under the same name, and true is given. Not for an mm without a witness.
 */
bool shared_go_on(struct track *t, struct tmm *tm);

/* ---- arm.c ---- */
/*
 * Marks the pages *set (page offsets in the file) of the mapping [start, end) that shows the file
 * from pgoff on: arm_runs with a uffd it is registered with, arm_pages with wpfs's, after
 * registering it. The armed set must be committed before. Without `on` their marks go.
 * 0; -EPERM: can never be written (nothing to protect); -EBUSY: another uffd has it.
 */
int arm_runs(int uffd, uint64_t start, uint64_t end, uint64_t pgoff, const struct mm_set *set,
	     bool on);
int arm_pages(struct track *t, struct tmm *tm, uint64_t file, uint64_t start, uint64_t end,
	      uint64_t pgoff, const struct mm_set *set);

/* ---- files.c ---- */
struct db_file;
struct db_tx;
int files_load(struct track *t, const struct db_file *row, bool same_lower);
/* Inside a job: stores what finds the file again. */
int files_put(struct track *t, struct db_tx *tx, uint64_t ino);
/* Stores the present paths of all files; drops the marks of those that are gone. */
int files_refresh(struct track *t);
void files_free(struct track *t);
/* The file's entry, made when there is none. NULL: out of memory. */
struct track_file *files_get(struct track *t, uint64_t ino);
/* The ctime of the lower file, which nobody can set and each first store to a page moves. -errno.
 */
int files_ctime(struct track *t, struct track_file *file, struct timespec *ctime);
/* Learns the handle while the kernel knows the inode. True: the file can be found by it. */
bool files_learn(struct track *t, struct track_file *file);
/* The same while it is mapped, which may be the last time that anybody can tell its name. */
void files_learn_mapped(struct track *t, uint64_t ino);
/* Does any live mm map the file? */
bool files_is_mapped(struct track *t, uint64_t ino);

/* ---- epoch.c ---- */

/* What a protect or unprotect is about, in the daemon's terms. */
struct protect_selection {
	const char *name; /* NULL: any */
	uint64_t file;	  /* 0: any */
	bool ranged;
	uint64_t pgoff, nr; /* pages of the file; all of it unless ranged */
};

/* The part of a mapping that the selection covers. False: none. */
bool protect_part(const struct protect_selection *sel, const struct mm_vma *vma, uint64_t *start,
		  uint64_t *end, uint64_t *pgoff);
/* Numbers ascend over all mms that ever were: the same one means the same time, or a later one. */
uint64_t protect_last_epoch(const struct track *t);
/* One mm; what was done is added to *reply. 0 or -errno: what could not be marked is dirty. */
int protect_mm(struct track *t, struct tmm *tm, const struct protect_selection *sel,
	       struct wpfs_protect_reply *reply);
/* Opens the first epoch of a file of the mm, if none is open, and stores the mm. */
int protect_open_epoch(struct track *t, struct tmm *tm, uint64_t file);
/* Stores an mm that was born with armed pages, in the epoch that it was born in. */
int protect_store_born(struct track *t, struct tmm *tm);

/* ---- protect.c ---- */

/* As protect_mm. */
int unprotect_mm(struct track *t, struct tmm *tm, const struct protect_selection *sel,
		 struct wpfs_protect_reply *reply);

void protect_protect(struct request *rq);
void protect_unprotect(struct request *rq);
void protect_forget(struct request *rq);

/* ---- ended.c: fork children that ended ---- */

/* Is one that ended to be forgotten by a protect, since it has nothing dirty since the last one? */
bool ended_is_over(const struct tmm *tm, const struct protect_selection *sel);
/*
 * Forgets it when epoch `end` begins. What its closed epochs ended with goes to NAME/ended. 0 or
 * -errno of the database, and it stays.
 */
int ended_retire(struct track *t, struct tmm *tm, uint64_t end);

/* ---- answer.c ---- */
void answer_status(struct request *rq);
void answer_report(struct request *rq);
void answer_sync(struct request *rq);
void answer_settle(struct request *rq);

/* Everything that is told about the mount itself. */
void answer_fill_status(struct track *t, struct wpfs_status *status);

/* ---- top.c: what wpctl top asks, often ---- */

/*
 * How much of it is armed, marked and dirty, as `wpctl ps` counts it, from the model. Fills these,
 * and files, of *rec. 0 or -ENOMEM.
 */
int top_count(const struct tmm *tm, struct wpfs_rec_mm *rec);
void top_answer(struct request *rq);

/* ---- events.c: what wpctl watch is told. All of it does nothing while nobody watches ---- */
void events_watch(struct request *rq);
/* A client goes that may be watching. */
void events_leave(struct track *t, struct client *c);
/* Something happened to an mm: kind ATTACH, DETACH (with `kept`) or HARVEST. */
void events_mm(struct track *t, const struct tmm *tm, enum wpfs_event kind, bool kept);
/* One commit of the marks of these mms, which failed unless `error` is 0. */
void events_commit(struct track *t, struct tmm *const *tmms, size_t nr, bool lazy, int error);
/* Tells of evictions since it was called last. */
void events_evict(struct track *t);
/* The mount ends: everybody is told, and all of it freed. */
void events_end(struct track *t);
/* Answers those who wait and for whom there is something. After each round of the thread. */
void events_send(struct track *t);

/* ---- self.c: what a program asks about its own mm ---- */
/*
 * The mm of the process at the other end; answers with the error when there is none. One that has
 * mapped nothing yet gets its row and its name here: what an earlier run of that name left is its.
 */
struct tmm *self_mm(struct request *rq);
/* The same without an answer or a row. NULL: that process is not tracked. */
struct tmm *self_find(struct request *rq);
void self_protect(struct request *rq);
void self_unprotect(struct request *rq);
void self_sync(struct request *rq);
void self_runs(struct request *rq);

/* ---- devs.c ---- */

struct maps_list;

/*
 * Is the file behind `path` in dir_fd (a link of /proc/PID/fd or /proc/PID/map_files), whose st_dev
 * is `dev`, one of this lower's, be it on a mount that was? True also when that cannot be found
 * out. Asks no file system.
 */
bool devs_file_is_ours(const struct track *t, uint64_t dev, int dir_fd, const char *path);
/* maps_read, of such files. */
int devs_maps_read(const struct track *t, pid_t pid, struct maps_list *maps);

/* ---- unseen.c ---- */

/*
 * Emits a note for each attached program of `uid` (0: any) and name (NULL: any) that uses the
 * mount without a shared mapping. Gives how many, or -errno of `emit`.
 */
int unseen_report(struct track *t, uid_t uid, const char *name,
		  int (*emit)(void *ctx, uint32_t type, const void *body, size_t len), void *ctx);

/* Does a process map the file shared that is not tracked? Looks at every process. */
bool unseen_is_mapped(struct track *t, uint64_t ino);
/* The same of any file of which something is armed in the mm. */
bool unseen_has_armed(struct track *t, const struct mm *mm);
/*
 * Programs that had attached to the last daemon and mapped their first file when it was dead: this
 * one has never heard of them, but the witnesses of those that live are there. What they may have
 * stored to is in doubt under every name that nobody has now. 0 or -errno.
 */
int unseen_resume(struct track *t);

/*
 * A line about the processes that are not tracked and have the file (called `path`) open or mapped;
 * "" if there are none. True: one of them may store to it. Looks at every process.
 */
bool unseen_holders(struct track *t, uint64_t ino, const char *path, char *line, size_t size);

/* ---- persist.c: the database's view ---- */

/* An epoch that begins (number > 0) or only ends (0), with the dirty set that the last one had. */
struct persist_epoch {
	uint64_t file, number;
	const struct mm_set *last;
	enum mm_written written; /* in the last one */
};

int persist_load(struct track *t);
/* The contents of a file are durable as they were when pages of it were armed. */
void persist_settle(struct track *t, struct tmm *tm, struct mm_file *file);
/*
 * Stores one mm with its mappings and sets: when it returns 0 they outlive this daemon. While the
 * database cannot be written that is aside (aside.c), else committed.
 */
int persist_mm(struct track *t, struct tmm *tm);
/*
 * As persist_mm, but a loss of power may take it back with all that is committed later: enough for
 * what is only there in case that this daemon dies. Contents that became durable would have been
 * preceded by a commit that is (track_sync_file), and that makes this one durable too.
 */
int persist_mm_lazy(struct track *t, struct tmm *tm);
/* Into the database, not aside, and in the same commit what happens to epochs. */
int persist_mm_epochs(struct track *t, struct tmm *tm, const struct persist_epoch *epochs,
		      size_t nr);
/* The same as lazily as persist_mm_lazy. */
int persist_mm_epochs_lazy(struct track *t, struct tmm *tm, const struct persist_epoch *epochs,
			   size_t nr);
/* As persist_mm, all of these in one commit. 0 or the first -errno. */
int persist_all(struct track *t, struct tmm *const *tmms, size_t nr);
/*
 * Lazily, of an mm that is stored but for a new mapping of `file` in [start, end), and (`sets`)
 * that file's sets. `beside` (may be NULL) is called once with `arg` in any case, if possible while
 * that goes on: it must change nothing of what is stored.
 */
int persist_mapping(struct track *t, struct tmm *tm, uint64_t file, uint64_t start, uint64_t end,
		    bool sets, void (*beside)(void *), void *arg);
/* Stores one mm, in a job that is at it. */
int persist_mm_in(struct track *t, struct db_tx *tx, struct tmm *tm);
/* The two halves of persist_mm. */
int persist_mm_aside(struct track *t, struct tmm *tm);
int persist_mm_save(struct track *t, struct tmm *tm);
/* Deletes the row of an mm. Lazily: after a loss of power it may be there again. */
int persist_forget(struct track *t, struct tmm *tm);
int persist_forget_lazy(struct track *t, struct tmm *tm);

/* ---- aside.c: while the database cannot be written ---- */
struct db_marks_visitor;
/* Is this error one to put things aside for? */
bool aside_is_for(int error);
/* The database gave this error: says so once, and opens what takes its place. */
void aside_begin(struct track *t, int error);
/* The same when rows could not be read back: none of them is believed any more. */
void aside_distrust(struct track *t, int error);
/* Saves everything; then it is over, and 0. Else -errno, and all stays aside. */
int aside_retry(struct track *t);
/* Takes back what the last daemon had aside, over what is loaded already. */
int aside_load(struct track *t, const struct db_marks_visitor *visitor);
/* The mms of before are taken back: saves what was aside, if it can be. 0 or -errno. */
int aside_resumed(struct track *t);
/* Closes it; what is in it stays for the next daemon. */
void aside_close(struct track *t);

#endif
