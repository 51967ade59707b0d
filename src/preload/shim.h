/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of the shim share: its state, its lock, its one line on stderr.
 *
 * Nothing here calls libc except for errno in hooks.c and pthread_atfork: the shim works before
 * main, from other libraries' constructors, in any thread and signal handler. Functions give
 * -errno.
 *
 * One lock guards all state. It blocks every signal while it is held (a handler that maps a file
 * would else wait for its own thread), and is refused to a thread that holds it already and to a
 * process that merely shares or copied this memory: a vfork child, a child of a raw clone. The
 * hooks then do the plain system call.
 */
#ifndef WPFS_PRELOAD_SHIM_H
#define WPFS_PRELOAD_SHIM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc/wire.h"
#include "preload/raw.h"

#define SHIM_MOUNTS    4 /* wpfs mounts that one process is tracked by */
#define SHIM_PAGE_SIZE ((uint64_t)4096)

#define likely(x)      __builtin_expect(!!(x), 1)
#define unlikely(x)    __builtin_expect(!!(x), 0)

/*
 * NONE -> KNOWN -> ATTACHED -> UNTRACKED; KNOWN -> UNTRACKED; ATTACHED -> KNOWN when a new daemon
 * does not know this mm and nothing of it is mapped. In a fork child ATTACHED -> KNOWN without
 * mappings of it, else -> FORKED -> ATTACHED or UNTRACKED.
 */
enum mount_state {
	MOUNT_NONE = 0,
	MOUNT_KNOWN,	 /* its id is known; attached at the first need */
	MOUNT_ATTACHED,	 /* the daemon knows this mm; sock may be -1: connect again at need */
	MOUNT_FORKED,	 /* mapped by a fork child that the daemon was not told of yet */
	MOUNT_UNTRACKED, /* refused or hung: never asked again by this mm and its fork children */
};

/* One wpfs mount. Guarded by the lock; sock is also read without it, see fds.c. */
struct mount {
	enum mount_state state;
	enum wpfs_kind kind;
	char id[WPFS_ID_MAX];
	char name[WPFS_NAME_MAX + 8]; /* what this program calls itself there; "" = nothing */
	_Atomic int sock;	      /* -1: not connected */
	uint64_t sock_dev, sock_ino;  /* of fstat: is the number still our socket? */
	uint64_t cookie;
	uint64_t parent_cookie; /* FORKED: of the parent, or of its parent if that never said so */
	uint32_t seq;
	bool said;			 /* the line about this mount was said */
	const char *why;		 /* UNTRACKED: that line */
	struct wpfs_untold untold;	 /* written as untold.h says, read by the daemon */
	_Atomic unsigned untold_writers; /* who may be at a slot of it */
	_Atomic bool
		was_attached; /* this mm, or the parent it has mappings from; no lock to read */

	/*
	 * Capped mounts: wpfs's own userfaultfd of this mm, or -1. With it the pages that are in
	 * the store stay behind faults, should daemon and witness both be killed; the next daemon
	 * takes it. On a native mount nobody reads it then, and a fork would wait for ever.
	 */
	_Atomic int keep;
	uint64_t keep_dev, keep_ino; /* as sock_dev */

	int witness_pid;		/* 0: none */
	int witness_uffd, witness_chan; /* numbers in the witness's table, -1 without one */
};

struct shim {
	/* constant after shim_init */
	bool protect, quiet, require;
	bool hooks;    /* this copy stands in front of libc: the preloaded one */
	bool bad_name; /* WPFS_NAME is no name; said at the first mapping, then false */
	char name[WPFS_NAME_MAX + 8];
	char mount_id[WPFS_ID_MAX]; /* WPFS_MOUNT, "" = not given */
	uint64_t stderr_dev, stderr_ino;

	/* guarded by the lock */
	bool initialised;
	int pid; /* whose state this is */
	struct mount mounts[SHIM_MOUNTS];
};

extern struct shim shim;

/* The program has registered a userfaultfd of its own, with any of its memory. */
extern _Atomic bool shim_own_uffds;

struct shim_guard {
	uint64_t mask; /* signals that were blocked before */
};

/* Takes the lock; false: not to be had (filter.h, too), do the plain system call. Initialises at
 * the first time. */
bool shim_lock(struct shim_guard *guard);
void shim_unlock(const struct shim_guard *guard);

/* 1 to WPFS_NAME_MAX of [A-Za-z0-9._-]. */
bool shim_name_valid(const char *name);

/*
 * The holder of the lock is about to make a system call that may not return before the program has
 * read a message of its own userfaultfd (an unmapping, a move, a fork); or is back. The thread that
 * reads may want the lock before it reads: it gets it refused after a moment.
 */
void shim_lock_waits(bool waits);

/*
 * The holder of the lock lets others have it for a while, its signals blocked and inside still.
 * Then it takes it again, or (it was refused: false, or it needs it no more) leaves without.
 */
void shim_lock_pause(void);
bool shim_lock_go_on(void);
void shim_leave(const struct shim_guard *guard);

/* Is this the process whose state this is, or one that shares or copied it? Once initialised. */
bool shim_is_owner(void);

/* Does another thread hold the lock or wait for it? */
bool shim_others_inside(void);

/* Did one give it back and is not quite out? Or was, and left by way of a signal handler. */
bool shim_others_leave(void);

/* In a fork child that has the lock: this process is the owner of the state now. */
void shim_adopt(void);

/* One line on stderr, "wpfs: " and the three texts; not with WPFS_QUIET=1. */
void shim_say(const char *a, const char *b, const char *c);

/* The same, once for each mount and mm. */
void shim_say_mount(struct mount *mount, const char *text);

/* fork.c: has the handlers of fork called from now on. */
void fork_watch(void);

static inline bool text_equal(const char *a, const char *b)
{
	for (; *a && *a == *b; a++, b++)
		;
	return *a == *b;
}

/* Copies a string, cut to `size` bytes with its NUL; gives its length. */
static inline size_t text_copy(char *to, const char *from, size_t size)
{
	size_t i = 0;

	for (; i + 1 < size && from[i]; i++)
		to[i] = from[i];
	to[i] = '\0';
	return i;
}

/* As in st_dev. */
static inline uint64_t shim_makedev(uint64_t major, uint64_t minor)
{
	return (minor & 0xff) | (major & 0xfff) << 8 | (minor & ~0xffull) << 12 |
	       (major & ~0xfffull) << 32;
}

static inline uint64_t page_align_up(uint64_t bytes)
{
	return (bytes + SHIM_PAGE_SIZE - 1) & ~(SHIM_PAGE_SIZE - 1);
}

#endif
