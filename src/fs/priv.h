/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of this room share.
 *
 * An inode is in the table while the kernel holds lookups of it (or a function of files.c uses
 * it). While a request names an inode the kernel holds a lookup, so request handlers use the
 * pointer without a lock. It has no descriptor of its own: a handler opens one by file handle,
 * except when the file has lost its last name (then nothing else might keep it alive) or is open.
 *
 * Locks: names_lock outside the others; then shard.backing, then shard.lock, idle_lock,
 * changes_lock and parents[].lock, which are leaves.
 */
#ifndef WPFS_FS_PRIV_H
#define WPFS_FS_PRIV_H

#include <fuse_lowlevel.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <unistd.h>
#include <uthash.h>

#include "fs/absent.h"
#include "fs/creds.h"
#include "fs/fs.h"
#include "fs/ids.h"

/*
 * Seconds. Nobody changes the lower tree behind the kernel's back, so names stay true for ever.
 * So do attributes, except of a file that somebody may write: a store through a mapping moves its
 * times and blocks and a passthrough write its suid bits, and no request tells of either. A load
 * through a mapping fills a hole, so who has a file with holes open may change its blocks.
 */
#define FS_LONG_TIMEOUT 1e8

/*
 * What an inode has while, and for some time after, it is open. All: shard.backing of `ino`. Each
 * open holds it by its file handle: a RELEASE may come when the kernel has forgotten the inode, and
 * looked it up again; and a request until after its answer.
 */
struct fs_backing {
	struct fs_backing *prev, *next;		/* fs.idle; fs.idle_lock */
	struct fs_backing *all_prev, *all_next; /* fs.backings; fs.idle_lock */
	uint64_t ino;				/* constant, like the next two */
	int fd; /* O_RDONLY, -1 when descriptors are scarce; capped mounts: O_RDWR */
	int id; /* of the kernel; capped mounts: 0 until an open is to map it; shard.backing */
	_Atomic unsigned refs;	 /* the inode's, of opens, and of requests that use fd */
	unsigned opens, writers; /* opens that were not released; of them for writing */
	unsigned through;	 /* capped mounts: of the opens those that map the lower file */
	uint64_t direct_ms; /* capped mounts: when an open was answered that cannot; 0: never */
	bool attached;	    /* it is its inode\'s; else only unreleased opens have it */
	bool astray;	    /* the name that fd was opened by is gone: not kept when idle */
	bool idle;	    /* in fs.idle; fs.idle_lock */
};

/* A file handle: a backing file, and in the bits that its address leaves, how it was opened. */
#define FS_FH_ACCESS 3 /* O_ACCMODE */
#define FS_FH_DIRECT 4 /* we do its reads and writes */
#define FS_FH_MAPS   8 /* capped mounts: mappings are of the lower file, which stays in memory */
#define FS_FH_BITS   15

/* A million of these are nothing unusual: 112 bytes with malloc's. */
struct fs_inode {
	UT_hash_handle hh;
	uint64_t ino;
	uint64_t lookups;	    /* shard.lock */
	struct fs_backing *backing; /* shard.backing */
	_Atomic int nameless_fd;    /* set once when the last name goes; else -1 */
	bool used;	   /* attributes may move without a request; shard.backing, like the next */
	bool mappable;	   /* while used: it was opened so that a mapping may write to it */
	bool sizing;	   /* a size is being set, which may make holes: `used` stays */
	bool attrs_cached; /* the kernel may have attributes for a long time */
	uint8_t handle_type, handle_len; /* constant */
	uint8_t handle[12];
};

/*
 * What the store has not been told yet. Only that something changed is noted, not how: what is
 * there now is read when it is told (store_delta.c).
 */
struct fs_change {
	UT_hash_handle hh;
	uint64_t ino;
	struct fs_handle handle;
	bool fresh; /* of a touched file: touched since the last copy */
};

struct fs_change_name {
	UT_hash_handle hh;
	struct fs_handle parent_handle;
	uint64_t parent; /* with the name behind it the key */
	char name[];	 /* NUL-terminated */
};

struct fs_changes {
	struct fs_change *inodes;     /* attributes, xattrs */
	struct fs_change_name *names; /* made, moved, removed */
	size_t nr;
};

#define FS_SHARDS  64
#define FS_THREADS 32 /* one may sleep in a hook (a harvest, a commit); the others must go on */

/* Bytes that take about as long to move, or to give back, as it takes to wake another thread. */
#define FS_MUCH	   131072

#define FS_PARENTS 32

/* A directory that was used lately (parents.c). */
struct fs_parent_place {
	pthread_mutex_t lock;
	struct fs_parent *parent; /* or NULL */
};

struct fs_shard {
	pthread_mutex_t lock;
	struct fs_inode *inodes; /* shard.lock */
	pthread_mutex_t backing; /* backing files and who uses them */
};

struct fs_wait_request;

/* Requests that wait for a disk (waits.c). All: lock. */
struct fs_waits {
	pthread_mutex_t lock;
	pthread_cond_t more, fewer;    /* requests; threads */
	struct fs_wait_request *queue; /* not begun */
	unsigned here;		       /* FUSE threads that may wait */
	unsigned threads, idle, queued;
	bool over;
};

struct fs_inval_request;

/* What the kernel is to forget (inval.c). All: lock, but thread, which is who ends it. */
struct fs_invals {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct fs_inval_request *queue;
	unsigned here; /* threads that wait for the kernel themselves */
	pthread_t thread;
	bool started, over;
};

struct fs {
	/* constant after fs_new */
	int lower_fd;
	const struct fs_ids *ids;
	struct fs_absent *absent; /* or NULL */
	char id[WPFS_ID_MAX];
	enum wpfs_kind kind;
	uint32_t generation; /* struct fs_config */
	bool adopted, uring_wanted, debug;
	char lower_path[PATH_MAX]; /* of the lower's root, as readlink shows it */
	size_t lower_path_len;
	/* constant after fs_mount */
	struct fuse_session *session;
	int dev_fd;		   /* /dev/fuse; owned by the session once that exists */
	unsigned long mount_flags; /* MS_* */
	/* constant after fs_serve */
	pthread_t thread;
	bool thread_started;
	bool init_seen;
	int init_error;	    /* these two are written before `ready` is posted */
	_Atomic bool uring; /* set by the handshake, asked by status meanwhile */
	sem_t ready;

	_Atomic bool behind_end; /* a file may have blocks behind its end; never false again */

	int done_fd;	   /* eventfd: the session has ended */
	int session_error; /* written by the session thread before done_fd */
	/*
	 * Read: while a request makes, moves or removes a name. Write: while the flush takes its
	 * picture of the tree, so that it is that of one moment. Held over no hook.
	 */
	pthread_rwlock_t names_lock;
	struct fs_store *store; /* constant after fs_store_attach; NULL: nothing is kept */
	pthread_mutex_t changes_lock;
	struct fs_changes changes; /* changes_lock, like the next */
	struct fs_change *touched; /* contents may have changed */
	int changes_fd;		   /* eventfd: there are many; constant after fs_new */

	pthread_mutex_t idle_lock;
	struct fs_backing *backings; /* all; idle_lock */
	struct fs_backing *idle; /* backing files that nobody has open, oldest first; idle_lock */
	unsigned nr_idle;	 /* idle_lock */
	_Atomic unsigned nr_backing_fds;
	unsigned max_idle, max_backing_fds; /* constant */

	pthread_mutex_t nameless_lock; /* the next three */
	pthread_cond_t nameless_fewer;
	unsigned nr_nameless, nr_waiting;
	unsigned max_nameless; /* constant */

	struct fs_waits waits;
	struct fs_invals invals;

	pthread_mutex_t dirs_lock;
	struct fs_dir *dirs; /* open directories (dirs.c); dirs_lock */

	_Atomic unsigned nr_forgotten; /* inodes that were freed since memory was returned */

	pthread_rwlock_t hooks_lock;
	const struct fs_hooks *hooks; /* hooks_lock */
	struct fs_shard shards[FS_SHARDS];
	struct fs_parent_place parents[FS_PARENTS];
};

/* A descriptor for one request: borrowed from the inode or its own. */
struct fs_ref {
	int fd;
	bool owned;
	struct fs *fs;
	struct fs_backing *backing; /* whose descriptor it is: one for reading; else O_PATH */
	struct fs_parent *parent;   /* or this one's */
};

void fs_backing_put(struct fs *fs, struct fs_backing *backing);
void fs_parent_put(struct fs_parent *parent);

static inline void fs_ref_put(struct fs_ref *ref)
{
	if (ref->owned && ref->fd >= 0)
		close(ref->fd);
	if (ref->backing)
		fs_backing_put(ref->fs, ref->backing);
	if (ref->parent)
		fs_parent_put(ref->parent);
}

#define FS_REF_INIT                                                                                \
	{                                                                                          \
		.fd = -1, .owned = false, .backing = NULL                                          \
	}
#define _cleanup_ref_ __attribute__((cleanup(fs_ref_put)))

/* "/proc/self/fd/N": acts on the file itself where a call wants a path. */
struct fs_proc_path {
	char s[40];
};
struct fs_proc_path fs_proc_path(int fd);

static inline struct fs *fs_of(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

static inline struct creds_caller fs_caller(fuse_req_t req)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	return (struct creds_caller){
		.uid = ctx->uid, .gid = ctx->gid, .pid = ctx->pid, .umask = ctx->umask};
}

/* ---- inode.c ---------------------------------------------------------------------------- */

/* An empty table, with the root in it for ever. 0 or -errno. */
int fs_inodes_init(struct fs *fs);
void fs_inodes_free(struct fs *fs);

/* The inode of a node id; NULL when the table has none. No lookup is counted. */
struct fs_inode *fs_inode_find(struct fs *fs, uint64_t ino);

/* The same with one lookup counted, to be given back with fs_inode_forget. */
struct fs_inode *fs_inode_get(struct fs *fs, uint64_t ino);

/* How many are counted now. */
uint64_t fs_inode_lookups(struct fs *fs, struct fs_inode *inode);

/*
 * Counts a lookup of the file behind `fd` (any kind of descriptor), entering it into the table if
 * need be. `st` is its lower stat. 0 or -errno.
 */
int fs_inode_lookup(struct fs *fs, int fd, const struct stat *st, struct fs_inode **inode);

/* Gives back lookups; with the last one the inode is freed. */
void fs_inode_forget(struct fs *fs, uint64_t ino, uint64_t lookups);

/* With no lock held, after inodes were: when they were many their memory goes to the kernel. */
void fs_inodes_forgotten(struct fs *fs);

/* A descriptor of the file, at least O_PATH. -ESTALE: no such inode, or the file is gone. */
int fs_inode_ref(struct fs *fs, uint64_t ino, struct fs_ref *ref);

/* The same of a directory that is likely to be asked for again. */
int fs_inode_ref_dir(struct fs *fs, uint64_t ino, struct fs_ref *ref);

/* One of a regular file with these flags of open(2): O_RDONLY or O_RDWR, and O_NOATIME. */
int fs_inode_ref_contents(struct fs *fs, uint64_t ino, int flags, struct fs_ref *ref);

/* The handle of an inode, as the rooms above know it. */
struct fs_handle fs_inode_handle(const struct fs_inode *inode);

struct fs_shard *fs_shard_of(struct fs *fs, uint64_t ino);

/*
 * After a name of the file behind `fd` (O_PATH) was removed: if it was the last one and the kernel
 * still knows the inode, the table keeps the descriptor; a descriptor that was opened by another
 * one is not kept for later. Takes fd over either way.
 */
void fs_inode_unlinked(struct fs *fs, int fd);

/*
 * A file that had none has got this name: the descriptor that the table keeps of it becomes one by
 * that name, and lets go of the directory where it was before.
 */
void fs_inode_named(struct fs *fs, uint64_t ino, int dir_fd, const char *name);

/*
 * Before one more file may lose its last name: waits until not too many descriptors of such files
 * are kept, for the kernel forgets them in its own time. For a second, and not in all threads.
 */
void fs_inode_wait_for_forgets(struct fs *fs);

/* The handle of an open file, or of a name in an open directory. 0 or -errno. */
int fs_handle_of(int fd, struct fs_handle *handle);
int fs_handle_of_at(int fd, const char *name, struct fs_handle *handle);

/* Opens a file of that lower by handle, O_CLOEXEC added. -ESTALE: gone. */
int fs_handle_open_at(int lower_fd, const struct fs_handle *handle, int flags);

/* ---- waits.c ---------------------------------------------------------------------------- */

/* What a request asks for; zeros where it says nothing. */
struct fs_wait {
	fuse_ino_t ino;
	struct fuse_file_info fi;
	bool by_fd;	  /* there is one */
	struct stat attr; /* setattr, with the next */
	int to_set;
	int mode; /* fallocate, with the next, which read and write have too */
	off_t off, len;
	char *data; /* to be written; who answers the request frees it */
};

typedef void (*fs_wait_fn)(fuse_req_t req, struct fs_wait *wait);

/*
 * Calls `fn`, which answers the request and may wait for a disk or for tracking: in this thread, or
 * later in another one, if too many wait already. `wait` is copied.
 */
void fs_wait_in(fuse_req_t req, const struct fs_wait *wait, fs_wait_fn fn);

void fs_waits_init(struct fs *fs);
void fs_waits_end(struct fs *fs); /* no request comes any more: returns when all are answered */
void fs_waits_free(struct fs *fs);

/* ---- inval.c ---------------------------------------------------------------------------- */

/*
 * The kernel forgets what it keeps of [off, off + len) of a file, len 0: to the end: when this
 * returns, or soon after if very many are at it.
 */
void fs_inval(struct fs *fs, uint64_t ino, off_t off, off_t len);

void fs_inval_init(struct fs *fs);
void fs_inval_end(struct fs *fs); /* no request comes any more */
void fs_inval_free(struct fs *fs);

/* ---- backing.c -------------------------------------------------------------------------- */

/*
 * One more open of a regular file, with what it answers in `fi`: that reads, writes and mappings
 * go to the backing file, or what of these comes to us. `fd`, when not -1, is an
 * open descriptor of the file that may become the backing file (taken over), and `made` tells its
 * attributes: it was just made. Contents that are only
 * in the store come first, but not for an O_TRUNC, which the caller sees to. 0 or -errno; after
 * success fs_backing_release follows once.
 */
int fs_backing_open(struct fs *fs, struct fs_inode *inode, int fd, const struct stat *made,
		    pid_t opener, struct fuse_file_info *fi);
void fs_backing_release(struct fs *fs, uint64_t ino, const struct fuse_file_info *fi);

/* An open with O_TRUNC has taken its suid bits, it may be: then there is none to watch over. */
void fs_backing_truncated(struct fs *fs, struct fuse_file_info *fi, mode_t mode);

/*
 * Makes a file empty by a descriptor that is open for writing, as whoever this thread is. What the
 * store has of it need not come any more. 0 or -errno.
 */
int fs_backing_empty(struct fs *fs, uint64_t ino, int fd);

/* Capped mounts: the one struct file of a regular file, made if need be. Borrowed, or -errno. */
int fs_backing_hold(struct fs *fs, struct fs_inode *inode);

/*
 * A name of the inode is gone and others are left, or it began without one. A descriptor that was
 * opened by that name keeps the directory that it was in, also when that is removed: so it is not
 * kept for later opens.
 */
void fs_backing_astray(struct fs *fs, struct fs_inode *inode);

/* One that is held and not open gets another struct file, `fd` duplicated. 0 or -errno. */
int fs_backing_replace(struct fs *fs, struct fs_inode *inode, int fd);

/* A duplicate of its descriptor, if there is one; else -1. */
int fs_backing_dup(struct fs *fs, uint64_t ino);

/* What is left when no request comes any more: the kernel may drop the last releases. */
void fs_backings_free(struct fs *fs);

/* The inode has it no more: with shard.backing held. */
void fs_backing_free(struct fs *fs, struct fs_inode *inode);

/*
 * Seconds the attributes may be cached by the kernel. To be asked before they are read: an open
 * for writing that comes later takes the answer back.
 */
double fs_backing_attr_timeout(struct fs *fs, struct fs_inode *inode);

/*
 * The same in the answer to the open that made the file, though it be for writing: the kernel would
 * ask at once, to see whether the open is allowed. The file is empty, and nobody else knows it: it
 * gets its first byte by a write(2), a truncate or a fallocate, after each of which the kernel asks
 * anew (and then is told not to keep the answer), or by somebody else's open, which takes it back.
 * So no store through a mapping comes before. `st` is as it was made.
 */
double fs_backing_made_timeout(struct fs *fs, struct fs_inode *inode, const struct stat *st);

/* A size is going to be set by name, or was: who maps it for reading can fill the new holes. */
void fs_backing_sizing(struct fs *fs, uint64_t ino, bool begins);

/* Is it open for writing, as far as requests told? */
bool fs_backing_has_writers(struct fs *fs, uint64_t ino);

/*
 * Might somebody write to the file without a request? Surely not: never again without an open. `fd`
 * is the lower file, opened by the caller for reading. Leases tell, each given back at once: an
 * open just then would wait for that, or with O_NONBLOCK fail with EWOULDBLOCK, so they are asked
 * for only while no such open is answered.
 */
bool fs_backing_may_be_written(struct fs *fs, uint64_t ino, int fd);

/* ---- changes.c: without a store nothing is noted ------------------------------------------ */

/*
 * A name was made, moved or removed: called with names_lock held for reading since before the
 * change, so that a picture of the tree has both or neither. The inode of the parent is known.
 */
void fs_change_name(struct fs *fs, uint64_t parent, const char *name);

/* Attributes or xattrs of a known inode, or of the file behind `fd`, changed: before the answer. */
void fs_change_inode(struct fs *fs, uint64_t ino);
void fs_change_fd(struct fs *fs, int fd);
void fs_change_handle(struct fs *fs, uint64_t ino, const struct fs_handle *handle);

/* The contents of a known inode may change from now on without a request. */
void fs_touch(struct fs *fs, uint64_t ino);
void fs_touch_handle(struct fs *fs, uint64_t ino, const struct fs_handle *handle);
bool fs_is_touched(struct fs *fs, uint64_t ino);
bool fs_touched_handle(struct fs *fs, uint64_t ino, struct fs_handle *handle);

/*
 * The touched files now, for the caller to free; each stays touched until it is said that its
 * contents are stored and nobody has it, unless it was touched again since the copy.
 */
struct fs_change *fs_touched_copy(struct fs *fs);
void fs_untouch(struct fs *fs, uint64_t ino);

/* Take what was noted since the last call, and give it back when it could not be stored. */
struct fs_changes fs_changes_take(struct fs *fs);
void fs_changes_return(struct fs *fs, struct fs_changes *changes);

void fs_changes_free(struct fs_changes *changes);
void fs_change_set_free(struct fs_change **set);

/* ---- parents.c -------------------------------------------------------------------------- */

void fs_parents_init(struct fs *fs);
void fs_parents_free(struct fs *fs);

/* The descriptor of a directory that is kept; false: it is not, and *ref untouched. */
bool fs_parent_ref(struct fs *fs, uint64_t ino, struct fs_ref *ref);

/* Keeps the descriptor that a request has opened for itself. */
void fs_parent_keep(struct fs *fs, uint64_t ino, struct fs_ref *ref);

/* The directory is gone: nothing of it may be kept. */
void fs_parent_drop(struct fs *fs, uint64_t ino);

/* ---- dirs.c ----------------------------------------------------------------------------- */

/* Closes the directories that are still open, at the end. */
void fs_dirs_free(struct fs *fs);

/* ---- session.c -------------------------------------------------------------------------- */

/* Around a drop; neither between fs_hook_io_begin and fs_hook_io_end. */
void fs_hook_drop_begin(struct fs *fs, struct fs_drop *drop);
void fs_hook_drop_end(struct fs *fs, struct fs_drop *drop);
void fs_hook_settle(struct fs *fs);
int fs_hook_sync_file(struct fs *fs, uint64_t ino);
void fs_hook_contents_begin(struct fs *fs, uint64_t ino);
void fs_hook_contents_durable(struct fs *fs, uint64_t ino);

/* ---- through.c -------------------------------------------------------------------------- */

/* Nothing on native mounts. A begin that fails has no end. */
int fs_hook_io_begin(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io);
void fs_hook_io_end(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len, enum fs_io io,
		    bool done);
/* Would that wait? len 0: to the end. Native: no. */
bool fs_hook_would_wait(struct fs *fs, uint64_t ino, uint64_t off, uint64_t len);
off_t fs_hook_seek(struct fs *fs, uint64_t ino, int fd, off_t off, int whence);
int fs_hook_set_times(struct fs *fs, uint64_t ino, int fd, const struct timespec times[2]);
/* fn looks at file capabilities, or changes them; its result. */
int fs_hook_still(struct fs *fs, uint64_t ino, int (*fn)(void *arg), void *arg);
/* What a user is told of a file: of `fd` with name "", or of that name in a directory. */
int fs_hook_stat(struct fs *fs, uint64_t ino, int fd, const char *name, struct stat *st);
/* The same of a file whose contents may be still to come (fs_absent_stat). */
int fs_stat_of(struct fs *fs, uint64_t ino, int fd, bool exactly, struct stat *st);
int fs_hook_opened(struct fs *fs, uint64_t ino, pid_t opener, bool must); /* native: 0 */
void fs_hook_released(struct fs *fs, uint64_t ino);
void fs_hook_space(struct fs *fs, struct statvfs *st);

/* -ENOTTY on native mounts. */
int fs_hook_read_through(struct fs *fs, uint64_t ino, int lower_fd, void *buf, size_t len,
			 uint64_t off);
uint64_t fs_hook_next_through(struct fs *fs, uint64_t ino, uint64_t off); /* there: UINT64_MAX */
int fs_hook_ticket(struct fs *fs, uint64_t ino, int accmode, struct wpfs_ticket *ticket);

/* ---- operations, each file fills in its own --------------------------------------------- */

void fs_ops_names(struct fuse_lowlevel_ops *ops);
void fs_ops_dirs(struct fuse_lowlevel_ops *ops);
void fs_ops_attrs(struct fuse_lowlevel_ops *ops);
void fs_ops_xattrs(struct fuse_lowlevel_ops *ops);
void fs_ops_files(struct fuse_lowlevel_ops *ops);
void fs_ops_io(struct fuse_lowlevel_ops *ops);

/*
 * Counts a lookup of `name` in the directory behind `dir_fd` and fills in `entry`. -ENOENT when
 * there is none.
 */
int fs_entry_lookup(struct fs *fs, int dir_fd, const char *name, struct fuse_entry_param *entry);

/* The same of a name that was just read from the directory, with the lower number that it had. */
int fs_entry_listed(struct fs *fs, int dir_fd, const char *name, uint64_t lower_ino,
		    struct fuse_entry_param *entry);

/* The same for an open file. */
int fs_entry_of_fd(struct fs *fs, int fd, struct fuse_entry_param *entry);

/*
 * After a change of times: a symbolic link whose text the kernel keeps would not be seen used, so
 * it has to ask for it once more. `name` is "" for the file behind `fd`, of any kind, or is in it.
 */
void fs_symlink_touched(struct fs *fs, int fd, const char *name);

/* The same by its lower stat: nothing if it is no symbolic link. */
void fs_symlink_changed(struct fs *fs, const struct stat *st);

/* Answers with an entry or an error; a lookup whose answer did not arrive is given back. */
void fs_reply_entry(fuse_req_t req, int r, const struct fuse_entry_param *entry);

/* Writes the lower stat's numbers as the mount shows them. */
static inline void fs_stat_show(const struct fs *fs, struct stat *st)
{
	st->st_ino = fs_ids_get(fs->ids, st->st_ino);
}

#endif
