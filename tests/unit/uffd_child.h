/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A process to be tracked: a fork of the test that does what it is told, one call at a time. Its
 * functions are the test's own, called by address with up to 6 arguments.
 */
#ifndef WPFS_TESTS_UFFD_CHILD_H
#define WPFS_TESTS_UFFD_CHILD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <cmocka.h>

#include "base/units.h"
#include "mm/set.h"
#include "uffd/harvest.h"

#define PAGES 1024 /* of the file */
#define BYTES (PAGES * WPFS_PAGE_SIZE)

typedef long (*child_fn)(long a, long b, long c, long d, long e, long f);

struct child {
	pid_t pid;
	int sock, pidfd;
	int file; /* a tmpfs file of BYTES, the same number in the child */
	uint64_t dev, ino;
	long at;  /* where it is mapped, all of it */
	int uffd; /* copy of the child's, -1: none */
	int uffd_in_child;
	volatile char *seen; /* the file as the test sees it */
};

/* cmocka group functions: *state is a struct child with the file mapped. */
int child_setup(void **state);
int child_teardown(void **state);

/* A reason why the kernel parts cannot be tested here, or NULL. */
const char *child_unfit(void);

/* Calls fn in the child and gives what it returns. */
long child_call(struct child *c, child_fn fn, long a, long b, long d, long e, long f, long g);

/* Starts a call; child_wait() gives what it returns. */
void child_start(struct child *c, child_fn fn, long a, long b);
long child_wait(struct child *c);

/* Functions for it. Each gives the syscall's result or -errno. */
long do_mmap(long at, long len, long prot, long flags, long fd, long pgoff);
long do_munmap(long at, long len, long, long, long, long);
long do_mprotect(long at, long len, long prot, long, long, long);
long do_madvise(long at, long len, long advice, long, long, long);
long do_mremap(long at, long len, long new_len, long flags, long to, long);
long do_store(long at, long stride, long n, long, long, long); /* n pages, stride apart */
long do_load(long at, long len, long, long, long, long);
long do_close(long fd, long, long, long, long, long);

/* A new uffd of the child's mm, not initialised; its number there. `flags`: as userfaultfd(2). */
long do_uffd(long flags, long, long, long, long, long);

/* Makes wpfs's uffd in the child and registers the whole mapping: nothing is marked. */
void child_register(struct child *c, bool events);

/* Marks pages of the mapping. */
void child_mark(struct child *c, uint64_t first, uint64_t nr);

/* A harvest of the child that must succeed. */
void child_harvest(struct child *c, bool own_uffds, struct harvest *h);

/* The VMA that holds an address, or NULL. */
struct mm_vma *harvest_find(struct harvest *h, long at);

/* All marks of the file by page offset, from every VMA of the harvest. Frees the harvest. */
void harvest_marks(struct harvest *h, struct mm_set *marks);

/* Harvests and sees that exactly the pages of *expected are marked. */
void child_expect(struct child *c, const struct mm_set *expected);

/* Small, fast, the same every time. */
uint32_t test_rng(uint64_t *state, uint32_t below);

#endif
