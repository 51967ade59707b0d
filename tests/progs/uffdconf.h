/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Shared by the files of uffdconf: one small program per behaviour of userfaultfd(2), each of which
 * prints one line. What it prints has no addresses, so that two runs on different file systems can
 * be compared.
 */
#ifndef TESTS_UFFDCONF_H
#define TESTS_UFFDCONF_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "base/compat.h"

#define PAGE	  4096ul
#define EXTRA	  4ul /* pages after those of the case, which other threads write to */
#define WRITERS	  2
/* Milliseconds: a busy machine needs long for little. Who asks a daemon that does not answer waits
 * 10 s. */
#define AT_ONCE	  8000
#define PATIENCE  60000 /* for what comes, or the case has failed */
#define MODE_WP	  UFFDIO_REGISTER_MODE_WP
#define MODE_MISS UFFDIO_REGISTER_MODE_MISSING
#define MODE_MIN  UFFDIO_REGISTER_MODE_MINOR
#define SHMEM_ALL                                                                                  \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |                        \
	 UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM)

#ifndef UFFDIO_POISON
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define _UFFDIO_POISON 0x08
#define UFFDIO_POISON  _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
#ifndef UFFDIO_MOVE
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define _UFFDIO_MOVE 0x05
#define UFFDIO_MOVE  _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* A file of its own for each case, mapped shared and writable. */
struct area {
	int file;
	unsigned long pages, all; /* all: with the EXTRA ones, if writers are wanted */
	char *map;
	char *alias; /* a second mapping, or NULL */
};

/* What is done about each fault; FORK events are followed. */
enum answer {
	ANSWER,		/* WP: un-protected; MISSING: a page of 'm'; MINOR: continued */
	ANSWER_ZERO,	/* MISSING: zeros */
	ANSWER_PROTECT, /* MISSING and MINOR: the page is put there protected */
	ANSWER_POISON,	/* MISSING */
	ANSWER_NOT,	/* the case does it */
};

/* A thread that reads and answers. Its messages are noted in the case's line, in order. */
struct handler {
	int uffd;
	struct area *area;
	enum answer answer;
	_Atomic int child_uffd; /* of the last FORK event, -1 */
	_Atomic unsigned faults, events;
	int stop[2];
	pthread_t thread;
};

/* ---- uffdconf.c: the frame ---- */

/* Adds a word to the line of the case. */
void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Adds "what: 0" or "what: ERRNO". Gives ret. */
long noted(const char *what, long ret);
/* The name of an errno. */
const char *name_of(int err);
/* The case cannot go on: ends the program. */
_Noreturn void die(const char *what);
unsigned long now_ms(void);

/* A file of so many pages of which `filled` hold their number + 1 in every byte; mapped. */
struct area *area_new(unsigned long pages, unsigned long filled);
void area_alias(struct area *a);
/* For cases that move or unmap all of it: no threads write to it. */
struct area *area_still(unsigned long pages, unsigned long filled);
/* Its mappings go, the file too. All areas of a case end with it if it did not do so. */
void area_free(struct area *a);
/* Writers of the area go, which are there if the program was started with them. */
void area_stop_writers(struct area *a);

/* A new userfaultfd with these features, or it dies. */
int uffd_new(int flags, uint64_t features);
/* Closes it: noted as "close: ...". */
void uffd_end(int fd);
long reg(int fd, const void *at, unsigned long len, uint64_t mode, uint64_t *ioctls);
/* Registers the whole area; dies if that fails. */
void reg_all(int fd, const struct area *a, uint64_t mode);
long unreg(int fd, const void *at, unsigned long len);
long wp(int fd, const struct area *a, unsigned long page, unsigned long pages, uint64_t mode);
/* Protects the whole area; dies if that fails. */
void wp_all(int fd, const struct area *a);
long copy(int fd, void *to, char value, uint64_t mode, int64_t *done);
long zero(int fd, void *to, uint64_t mode, int64_t *done);
long cont(int fd, void *to, uint64_t mode, int64_t *done);
long poison(int fd, void *to, uint64_t mode, int64_t *done);

/* Next message that is about the case and not about its writers', which are answered. 0 or -1. */
int next_message(int fd, struct area *a, struct uffd_msg *msg, int timeout_ms);
/* Notes "no message", or the message that is there. */
void note_silence(int fd, struct area *a);
void note_message(const struct uffd_msg *msg, const struct area *a);
/* Does what an answer says about one message. */
void answer_message(int fd, const struct area *a, const struct uffd_msg *msg, enum answer answer);

struct handler *handler_start(int fd, struct area *a, enum answer answer);
/* Waits until it has noted so many events since its start. Gives ret, errno as it was. */
long handler_saw(struct handler *h, unsigned events, long ret);
/* Gives how many faults it saw. */
unsigned handler_stop(struct handler *h);

/* Stores to, or loads from, byte 1 of a page; noted with what was there. */
void store(struct area *a, unsigned long page, char value);
void load(struct area *a, unsigned long page);
/* The same where a SIGBUS may come, which is noted. */
void store_or_bus(struct area *a, unsigned long page, char value);
void load_or_bus(struct area *a, unsigned long page);
/* Is the uffd-wp bit in the page's entry? */
bool has_mark(const void *at);
/* The same of the first six pages, a bit each: a child's status. */
int mark_bits(const struct area *a);
void note_marks(const struct area *a, unsigned long first, unsigned long nr);
/* A thread that stores to one page, which may have to wait. */
struct storer;
struct storer *storer_start(struct area *a, unsigned long page, char value);
bool storer_is_done(const struct storer *s);
/* Waits; notes "stored at once", or how it ended. */
void storer_join(struct storer *s);
/* Waits until the thread sleeps in a fault of this uffd (its message is there). */
void storer_waits(int fd);
/* SCM_RIGHTS. */
void send_fd(int sock, int fd);
int recv_fd(int sock);
/*
 * fork() of which the child runs fn() and ends with its result; noted as "child: N", after h has
 * noted the event of it (NULL: there is none).
 */
void child_do(int (*fn)(void *), void *arg, struct handler *h);

/* ---- the cases ---- */

struct conf_case {
	const char *name;
	void (*run)(void);
};

extern const struct conf_case conf_calls[], conf_faults[], conf_events[], conf_children[],
	conf_ways[], conf_load[];

#endif
