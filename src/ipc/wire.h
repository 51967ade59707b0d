/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The protocol between the daemon and its clients (the shim, wpctl, the umount helper).
 *
 * Transport: SOCK_SEQPACKET on /run/wpfs/<id>/sock; one packet is one message: struct wpfs_hdr and
 * the fixed-layout body of its op, native byte order (both ends are one machine). Descriptors
 * travel as SCM_RIGHTS of the same packet, in the order the body names them.
 *
 * Dialogue: a client sends a request and reads until the reply with the same seq; one request is
 * outstanding at a time on a connection. The first request is HELLO. ANNOUNCE has no reply. Report
 * ops answer with any number of RECORD packets, then the reply. A packet of the wrong length,
 * version or op gets a reply with status -EPROTO and the connection is closed. status is 0 or
 * -errno; with a negative status the body of a reply is absent or a struct wpfs_error with a text
 * for people.
 *
 * There is one version, and no other is spoken: a mount's daemon and what talks to it are of one
 * wpfs, but for a daemon that was not ended when another wpfs was installed, and a program that
 * lives on from before. struct wpfs_hdr, REPLY and struct wpfs_error are the same in all versions,
 * so that either end can tell that the other one is of another.
 *
 *   1  the first
 *   2  ANNOUNCE, WATCH and TOP; reports of kind MAP; events; a witness that is dead
 *
 * The server believes nothing: identity is SO_PEERCRED, a pidfd is compared with kcmp(2), a
 * descriptor is looked at before use, an address is only ever used on the peer's own mm.
 */
#ifndef WPFS_IPC_WIRE_H
#define WPFS_IPC_WIRE_H

#include <stdint.h>

#include "wpfs.h"

#define WPFS_RUN_DIR	  "/run/wpfs"
#define WPFS_WIRE_VERSION 2
#define WPFS_WIRE_MAX	  65536 /* bytes of the longest packet */
#define WPFS_PATH_MAX	  4096	/* a path inside the mount, with its NUL */

enum wpfs_op {
	/* any client */
	WPFS_OP_HELLO = 1, /* wpfs_hello -> wpfs_hello_reply [+ devuffd, life] */
	/* the shim */
	WPFS_OP_ATTACH = 16, /* wpfs_attach + uffd, witness pidfd, chan -> wpfs_attach_reply */
	WPFS_OP_FORKED, /* wpfs_forked -> wpfs_forked_reply [+ uffd]; before ATTACH, in a child */
	WPFS_OP_MAP,	/* wpfs_map -> wpfs_map_reply */
	WPFS_OP_UNMAP,	/* wpfs_range -> status; the range is read-only already */
	WPFS_OP_REMOVE, /* wpfs_range -> status (capped), 1: it is done, as MADV_REMOVE would; 2: as
			 * REMOVING, and none of it is in the store until then; 0: as REMOVING */
	WPFS_OP_MSYNC,	/* wpfs_range -> status; the marks of this mm are durable, and contents of
			 * what it maps there. Also on a CTL connection that it made; then of
			 * one that is not tracked the contents */
	WPFS_OP_UFFD_PRE,   /* wpfs_uffd_range -> status; UFFDIO_REGISTER of any mode follows */
	WPFS_OP_UFFD_POST,  /* wpfs_uffd_range + the program's uffd -> status; mode has WP */
	WPFS_OP_UFFD_UNREG, /* wpfs_uffd_range -> status; UFFDIO_UNREGISTER was done, mode 0; or
			     * the REGISTER of this mode after a PRE failed */
	WPFS_OP_UFFD_CLOSE, /* wpfs_uffd_close -> status; before the program closes a uffd. Status
			     * n > 0: it stays open in the program as descriptor n - 1 */
	WPFS_OP_TICKET,	    /* wpfs_ticket_request -> status + descriptor (capped) */
	WPFS_OP_ANNOUNCE,   /* wpfs_map of a mapping that comes; no answer: MAP follows */
	WPFS_OP_REMOVING,   /* wpfs_range -> status; MADV_REMOVE follows */
	/* wpctl and helpers */
	WPFS_OP_STATUS = 64, /* no body -> wpfs_status */
	WPFS_OP_REPORT,	     /* wpfs_report -> RECORDs, status */
	WPFS_OP_PROTECT,     /* wpfs_select -> wpfs_protect_reply */
	WPFS_OP_UNPROTECT,   /* wpfs_select -> wpfs_protect_reply */
	WPFS_OP_SYNC,	     /* wpfs_select -> status */
	WPFS_OP_FORGET,	     /* wpfs_select -> status */
	WPFS_OP_EVICT,	     /* wpfs_select -> PROGRESSes, wpfs_evict_reply (capped) */
	WPFS_OP_LOAD,	     /* wpfs_select -> PROGRESSes, wpfs_evict_reply (capped) */
	WPFS_OP_SETTLE,	     /* no body -> status, when the harvests of the dead are done */
	WPFS_OP_WATCH,	     /* no body -> EVENTs, status: what has happened since the last
			      * one on this connection; waits for something to, WPFS_WATCH_WAIT_S at most
			      */
	WPFS_OP_TOP,	     /* no body -> TOPs, wpfs_status: as of now, and nothing is committed */
	/* a program about its own mm (libwpfs), on a CTL connection that it made itself */
	WPFS_OP_SELF_PROTECT = 96, /* wpfs_self -> wpfs_protect_reply */
	WPFS_OP_SELF_UNPROTECT,	   /* wpfs_self -> wpfs_protect_reply */
	WPFS_OP_SELF_SYNC,	   /* no body -> status; all marks of this mm are durable */
	WPFS_OP_SELF_RUNS, /* wpfs_self -> RECORDs of RUNs, ascending; status, 1: cut, ask for what
			    * comes after the last one */
	/* the server */
	WPFS_OP_REPLY = 128,
	WPFS_OP_RECORD,
};

struct wpfs_hdr {
	uint32_t len; /* of the packet, header included */
	uint16_t version;
	uint16_t op;
	uint32_t seq;
	int32_t status;
};

/* Body of a negative reply, when the server has more to say than an errno. */
struct wpfs_error {
	char text[512]; /* one line, NUL-terminated */
};

#define WPFS_HELLO_PROTECT (1u << 0) /* arm every shared mapping as it is made */
#define WPFS_HELLO_CTL	   (1u << 1) /* not a tracked program: only the ops of wpctl */

struct wpfs_hello {
	uint32_t flags;
	uint32_t reserved;
	char name[WPFS_NAME_MAX + 8]; /* NUL-terminated; empty = unnamed */
};

/*
 * With it: [0] an open /dev/userfaultfd, [1] the read end of a pipe whose write end only the
 * daemon holds (POLLHUP: the daemon is gone). A CTL client gets none.
 */
struct wpfs_hello_reply {
	uint64_t cookie; /* names this client to FORKED of a child; random, secret */
	uint32_t kind;	 /* enum wpfs_kind */
	uint32_t nr_fds; /* 2, or 0: no devuffd for this uid (-o uffd=), do not attach */
};

/*
 * With it: [0] the uffd (UFFDIO_API not done: the daemon does it; after FORKED it is the uffd that
 * the daemon gave, with its API done), [1] a pidfd of the witness, absent when nr_fds is 1: there
 * is no witness. uffd_fd and chan_fd are numbers in the witness's own fd table (-1: no witness).
 * chan_fd is the end of a seqpacket socketpair whose other end the witness reads.
 *
 * nr_fds 0, nothing with it: attached before, to a daemon that is gone; the witness and its numbers
 * are as they were. A negative status: this daemon knows of none; the client goes on untracked.
 *
 * nr_fds 2 and `again`, and the witness is dead: this is another one. With a new uffd on a native
 * mount; on a capped one it is the same as before, its API done.
 *
 * Not `again` from a process that was attached: it has executed another image, which is a mm of its
 * own. -EEXIST if the connection of the one before is still open.
 */
struct wpfs_attach {
	uint32_t nr_fds;
	int32_t uffd_fd;
	int32_t chan_fd;
	uint32_t again;	 /* 1: this image of the program was attached before */
	uint64_t untold; /* address of the struct wpfs_untold of this mount in the program */
};

/*
 * What the program could not tell: a shared mapping made (or grown) while the daemon did not
 * answer, or where asking was not allowed. The daemon reads it in the mm itself at every harvest,
 * so that such a mapping counts although it is gone again by then. Written by the shim: the slot
 * first, then the count. The witness counts children in it.
 */
#define WPFS_UNTOLD_FILES    15
#define WPFS_UNTOLD_DROPPED  ((uint64_t)1 << 63) /* with a file: contents of it were removed */
#define WPFS_UNTOLD_CHILD    ((uint64_t)1 << 48) /* added for each child */
#define WPFS_UNTOLD_CHILDREN ((uint64_t)0x7fff << 48)
#define WPFS_UNTOLD_COUNT    (WPFS_UNTOLD_CHILD - 1)

struct wpfs_untold {
	/*
	 * Mappings so far; 0 at the first ATTACH. In WPFS_UNTOLD_CHILDREN how many fork children
	 * there were (modulo 32768) whose uffd the witness had no room for. With
	 * WPFS_UNTOLD_DROPPED once contents were removed.
	 */
	uint64_t count;
	uint64_t file[WPFS_UNTOLD_FILES]; /* [n % 15]: st_ino of mapping n; 0: not known which */
};

struct wpfs_attach_reply {
	uint64_t mm; /* row id of the mm, 0 until its first mapping */
};

/* In a fork child, before ATTACH. scratch: a private anonymous page of the child's own. */
struct wpfs_forked {
	uint64_t cookie; /* of the parent's HELLO reply */
	uint64_t scratch;
};

struct wpfs_forked_reply {
	uint32_t
		nr_fds; /* 1: the child's uffd, already registered and with its API done; 0: none */
	uint32_t reserved;
};

/*
 * uid and gid of the witness of a root program: not nobody, because any other process of that uid
 * could ptrace the witness and through it write the program's memory. Outside of every range that
 * is given out (systemd's UIDS-GIDS).
 */
#define WPFS_WITNESS_UID   0x7ffe0000u

/*
 * What the daemon sends the witness through chan_fd (borrowed with pidfd_getfd, as the uffds are).
 * LIST is answered with one struct wpfs_witness_fds, in a packet on chan_fd, ALONE with a struct
 * wpfs_witness_alone; the others with nothing.
 *
 * The witness of a native mount reads the events of its uffd and of all uffds of children that it
 * keeps; that of a capped mount reads none: the daemon serves the faults and so reads everything.
 */
#define WPFS_WITNESS_FDS   64 /* uffds of fork children that a witness keeps at most */
#define WPFS_WITNESS_FILES 64 /* and files, on a capped mount */

enum wpfs_witness_op {
	WPFS_WITNESS_LIST = 1,
	WPFS_WITNESS_CLOSE, /* fd: a number of the last LIST; others are left alone */
	WPFS_WITNESS_START, /* from the shim: the uffd has its API, read it from now on */
	WPFS_WITNESS_LIFE,  /* with a descriptor: the life pipe of a daemon started again */
	WPFS_WITNESS_KEEP,  /* with a descriptor: it stays open until CLOSE (capped mounts) */
	WPFS_WITNESS_ALONE, /* fd: a number for the answer; has no other task this memory? */
};

struct wpfs_witness_cmd {
	uint32_t op; /* enum wpfs_witness_op */
	int32_t fd;  /* in the witness's fd table */
};

struct wpfs_witness_alone {
	int32_t question; /* cmd.fd */
	int32_t alone;	  /* 1: yes; 0: no, or it cannot tell */
};

struct wpfs_witness_fds {
	uint32_t nr; /* of fd[] that count; the packet is cut after them */
	int32_t fd[WPFS_WITNESS_FDS];
};

struct wpfs_map {
	uint64_t addr, len;   /* bytes; where it is mapped now */
	uint64_t final;	      /* where the shim will move it with mremap, or addr */
	uint64_t offset;      /* bytes in the file */
	uint64_t dev, ino;    /* of fstat(2) */
	uint32_t prot, flags; /* of mmap(2), as the program asked */
	uint32_t query;	      /* 1: nothing is mapped yet, only say whether it would be armed */
	uint32_t unwitnessed; /* 0: -EOWNERDEAD if the witness is dead, and nothing is done */
};

struct wpfs_map_reply {
	uint64_t mm;
	uint64_t armed_pages; /* armed by this call (query: would be) */
};

struct wpfs_range {
	uint64_t addr, len; /* bytes */
};

/* The ticket is what WPFS_IOC_TICKET gave. */
struct wpfs_ticket_request {
	struct wpfs_ticket ticket;
};

struct wpfs_uffd_range {
	uint64_t addr, len; /* bytes */
	uint64_t mode;	    /* UFFDIO_REGISTER_MODE_* */
	int32_t fd;	    /* the uffd's number in the program */
	uint32_t again;	    /* PRE: 1: the kernel says that another uffd has the range. Copies of
			     * those that nobody else has are let go; status 1: there were some */
};

/* [first, last]: numbers that the same call closes. */
struct wpfs_uffd_close {
	int32_t fd;
	uint32_t first, last;
	uint32_t reserved;
};

enum wpfs_report_kind {
	WPFS_REPORT_PS = 1,
	WPFS_REPORT_MARKS,
	WPFS_REPORT_DIRTY,
	/*
	 * What `wpctl map` draws, of one moment: the records of MARKS, of DIRTY and of SPILLED,
	 * each after a PART that says which come.
	 */
	WPFS_REPORT_MAP,
	WPFS_REPORT_SPILLED, /* only as a part: UNIONs of files, and RUNs of what is not in memory
			      */
};

#define WPFS_SELECT_NAME  (1u << 0)
#define WPFS_SELECT_FILE  (1u << 1)
#define WPFS_SELECT_RANGE (1u << 2)
#define WPFS_SELECT_EPOCH (1u << 3)

/* What a wpctl command is about. */
struct wpfs_select {
	uint32_t set;	      /* WPFS_SELECT_*: which of these the user gave */
	uint32_t kind;	      /* enum wpfs_report_kind, for REPORT */
	uint64_t offset, len; /* bytes in the file, page-aligned */
	uint64_t epoch;
	char name[WPFS_NAME_MAX + 16];
	char file[WPFS_PATH_MAX]; /* path inside the mount, with leading '/' */
};

#define WPFS_SELF_RUNS_MAX (1u << 20) /* in one answer */

enum wpfs_self_runs {
	WPFS_SELF_DIRTY = 1, /* armed by wpfs and not proven unwritten, in these epochs */
	WPFS_SELF_CLEAN,     /* armed by wpfs and not written, in the open epoch */
	WPFS_SELF_WATCHED,   /* marked through a userfaultfd of the program's own */
};

/*
 * The mm is that of the process that connected. Epochs from .. to of the file; from 0: only the
 * open one, to 0: up to and with the open one.
 */
struct wpfs_self {
	uint32_t runs; /* enum wpfs_self_runs, for RUNS; else 0 */
	uint32_t reserved;
	uint64_t file; /* file id (st_ino); 0: all that the mm has to do with, not for RUNS */
	uint64_t offset, len; /* bytes in the file, page-aligned; len 0: all of it */
	uint64_t from, to;    /* DIRTY: epochs */
};

struct wpfs_protect_reply {
	uint64_t epoch; /* the one that began */
	uint64_t mms, files, pages;
	char note[512]; /* PROTECT of one file and of no name: who has it and is not tracked; or ""
			 */
};

struct wpfs_evict_reply {
	uint64_t pages;
};

struct wpfs_status {
	char store[WPFS_PATH_MAX];
	char mountpoint[WPFS_PATH_MAX];
	char id[WPFS_ID_MAX];
	uint32_t kind;
	int32_t pid; /* of the daemon */
	uint32_t passthrough, uring;
	uint64_t size, used, inodes, inodes_used; /* of the lower tmpfs: bytes, bytes, counts */
	uint64_t resident, spilled;		  /* capped: bytes */
	uint64_t faults, refaults, evictions;	  /* capped: counts */
	/* capped: the cap in bytes; counts; time; pieces of I/O in flight now and most ever */
	uint64_t cap, failing, ahead, probes, throttled, zeros, store_errors;
	uint64_t fences, fence_ns, io_depth, io_depth_max;
	uint64_t pinned; /* capped: bytes of files that stay, since somebody untracked may map them
			  */
	uint64_t store_uring; /* capped: pages go to the store through io_uring */
	uint64_t clients, mms_live, mms_detached;
	uint64_t last_commit; /* seconds since the epoch, 0 = never */
	uint64_t harvests,
		conservative; /* counts: harvests; pages called dirty for want of proof */
	uint64_t unsaved;     /* mms of which the database has an older state */
	uint64_t db_since;    /* seconds since 1970: since when it cannot be written; 0: it can */
	int32_t db_error;     /* and why: an errno */
	int32_t store_error;  /* an errno: contents or names that could not be stored; 0: none */
	uint64_t
		store_files; /* of which the contents could not be stored, when it was tried last */
};

/*
 * WATCH. The first one on a connection begins it: what happened before is not told. The daemon
 * keeps the last WPFS_WATCH_KEPT events; a client that asks too rarely loses the oldest, and is
 * told how many. One of uid 0 is told of all programs, others of those of their uid.
 */
#define WPFS_WATCH_WAIT_S 10
#define WPFS_WATCH_KEPT	  4096

/* RECORD bodies: a packet holds a run of records, each a wpfs_rec and its body, 8-byte aligned. */
enum wpfs_rec_type {
	WPFS_REC_MM = 1, /* wpfs_rec_mm; then its MAPs and NOTEs */
	WPFS_REC_MAP,	 /* wpfs_rec_map; then its RUNs */
	WPFS_REC_RUN,	 /* wpfs_rec_run */
	WPFS_REC_NOTE,	 /* wpfs_rec_note: a line for people, about the mm before it or all */
	WPFS_REC_UNION, /* wpfs_rec_map: a file over all mms before it; then its RUNs, and no MMs */
	WPFS_REC_EVENT, /* wpfs_rec_event, of WATCH */
	WPFS_REC_TOP,	/* wpfs_rec_top, of TOP: a live mm */
	WPFS_REC_PART,	/* wpfs_rec_part, of a report of kind MAP */
	WPFS_REC_PROGRESS, /* wpfs_rec_progress, of EVICT and LOAD, now and then */
};

struct wpfs_rec {
	uint32_t len; /* of the record with this header, a multiple of 8 */
	uint32_t type;
};

enum wpfs_mm_state {
	WPFS_MM_LIVE = 1,     /* its page tables are the truth */
	WPFS_MM_DETACHED = 2, /* the database is */
};

/* Of DIRTY: did write(2), or a call like it, change the file in the epoch? */
enum wpfs_written {
	WPFS_WRITTEN_NONE, /* no epoch of wpfs's: not looked at */
	WPFS_WRITTEN_NO,
	WPFS_WRITTEN_YES,
	WPFS_WRITTEN_UNKNOWN, /* nobody looked for a part of the time */
};

enum wpfs_owner {
	WPFS_OWNER_WPFS = 1,
	WPFS_OWNER_PROGRAM = 2, /* armed through the program's own uffd */
};

struct wpfs_rec_mm {
	uint64_t id;
	uint32_t uid;
	int32_t pid; /* in the daemon's pid namespace; 0 when detached */
	uint32_t state;
	uint32_t files;
	uint64_t epoch;
	uint64_t armed, marked, dirty; /* pages, over all its files */
	char name[WPFS_NAME_MAX + 16]; /* empty = unnamed */
	char comm[16];
};

struct wpfs_rec_map {
	uint64_t start, end; /* addresses; 0, 0: not mapped now (parked by file and offset) */
	uint64_t pgoff;	     /* page of the file at start */
	uint64_t pages;
	uint64_t armed, marked, dirty; /* pages */
	uint64_t file;		       /* file id */
	uint32_t owner;		       /* enum wpfs_owner */
	uint32_t written;	       /* enum wpfs_written */
	uint32_t prot;		       /* PROT_* of the mapping */
	uint32_t reserved;
	char path[WPFS_PATH_MAX]; /* inside the mount; the record is cut after its NUL */
};

/* A run of marked (marks) or dirty (dirty) pages of the map before it. */
struct wpfs_rec_run {
	uint64_t pgoff, pages;
	uint64_t vaddr; /* 0: not mapped */
};

enum wpfs_note {
	WPFS_NOTE_PLAIN,
	WPFS_NOTE_GAP, /* of DIRTY: pages may have been written that are not in the answer */
};

struct wpfs_rec_note {
	uint32_t kind; /* enum wpfs_note */
	uint32_t reserved;
	char text[512];
};

enum wpfs_event {
	WPFS_EVENT_ATTACH =
		1,	    /* a program is tracked: it has mapped its first file, or is a child */
	WPFS_EVENT_DETACH,  /* it has ended, or left its mm */
	WPFS_EVENT_HARVEST, /* its marks were read out of its page tables */
	WPFS_EVENT_COMMIT,  /* marks went into the database, or could not */
	WPFS_EVENT_EVICT,   /* capped: pages left memory, within a second */
	WPFS_EVENT_END,	    /* the mount ends: the last event */
	WPFS_EVENT_LOST,    /* `pages` events before the next one come no more */
};

#define WPFS_EVENT_ALL	0xffffffffu /* uid: for everybody */
#define WPFS_EVENT_KEPT (1u << 0)   /* DETACH: its marks are kept, for the next of its name */
#define WPFS_EVENT_LAZY (1u << 1)   /* COMMIT: a loss of power may take it back */

struct wpfs_rec_event {
	uint64_t time_ns; /* since 1970 */
	uint32_t kind;	  /* enum wpfs_event */
	uint32_t uid;	  /* of the program */
	uint64_t mm;	  /* ATTACH, DETACH, HARVEST: row id */
	int32_t pid;	  /* of the program, likewise */
	int32_t error;	  /* COMMIT: why it failed, an errno; 0: it did not */
	uint32_t flags;	  /* WPFS_EVENT_* */
	uint32_t reserved;
	uint64_t programs;	       /* COMMIT: mms of this uid in it */
	uint64_t pages, zeros;	       /* EVICT: that left, of them of nothing but zeros; LOST */
	uint64_t armed, marked, dirty; /* HARVEST, DETACH: pages, over all files, as of then */
	uint64_t doubted; /* DETACH: pages called dirty for want of proof, in its life */
	char name[WPFS_NAME_MAX + 16]; /* empty = unnamed */
	char comm[16];
};

struct wpfs_rec_progress {
	uint64_t done, total; /* pages; total: about, or 0 */
};

struct wpfs_rec_part {
	uint32_t kind; /* enum wpfs_report_kind of what follows */
	uint32_t reserved;
};

struct wpfs_rec_top {
	struct wpfs_rec_mm mm;
	uint64_t mapped; /* pages in its shared mappings of the mount's files */
	uint64_t faults; /* of the process in its life, of all its memory, as the kernel counts */
};

_Static_assert(sizeof(struct wpfs_hdr) == 16, "wire layout");
_Static_assert(sizeof(struct wpfs_hello) == 80, "wire layout");
_Static_assert(sizeof(struct wpfs_hello_reply) == 16, "wire layout");
_Static_assert(sizeof(struct wpfs_attach) == 24, "wire layout");
_Static_assert(sizeof(struct wpfs_untold) == 128, "wire layout");
_Static_assert(sizeof(struct wpfs_witness_cmd) == 8, "wire layout");
_Static_assert(sizeof(struct wpfs_witness_alone) == 8, "wire layout");
_Static_assert(sizeof(struct wpfs_witness_fds) == 260, "wire layout");
_Static_assert(sizeof(struct wpfs_map) == 64, "wire layout");
_Static_assert(sizeof(struct wpfs_uffd_range) == 32, "wire layout");
_Static_assert(sizeof(struct wpfs_select) == 32 + 80 + 4096, "wire layout");
_Static_assert(sizeof(struct wpfs_self) == 48, "wire layout");
_Static_assert(sizeof(struct wpfs_rec_run) == 24, "wire layout");
_Static_assert(sizeof(struct wpfs_rec_event) == 192, "wire layout");
_Static_assert(sizeof(struct wpfs_rec_top) == sizeof(struct wpfs_rec_mm) + 16, "wire layout");

#endif
