/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program that is measured: under `wpctl run` on a file of a wpfs mount, or without it on
 * tmpfs. It takes orders (raw.h) and answers with addresses, or nanoseconds:
 *
 *   map SLOT PATH LEN              open, extend, map shared -> ADDR NS
 *   touch SLOT                     a store into each page
 *   scribble SLOT SEED             a store into half of the pages, at random
 *   evens SLOT                     a store into every other page
 *   store SLOT PAGE                one store
 *   uffd SLOT async|sync           the kernel's own uffd on it; sync: a thread of ours answers
 *   segv SLOT                      mprotect and SIGSEGV answer for it
 *   protect SLOT                   by its uffd, or mprotect -> NS
 *   alternate SLOT                 every other page by its uffd -> NS
 *   writes SLOT...                 a store into each page, in this order -> NS per page, of each
 *   faults SLOT N                  N protected pages, a store into each -> median NS
 *   single SLOT N                  N times one page protected -> median NS
 *   mmaps PATH LEN N               N times mapped and unmapped -> median NS of mmap()
 *   pieces PATH N                  N mappings of one page each, none beside the next -> NS of all
 */
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/compat.h"

#define SLOTS 8

static struct slot {
	char *addr;
	uint64_t len;
	int uffd; /* 0: none */
} slots[SLOTS];

static struct slot *slot_at(const struct order *o, int i)
{
	return &slots[number(o, i) % SLOTS];
}

static void store(const struct slot *s, uint64_t page)
{
	((volatile char *)s->addr)[page * PAGE]++;
}

static int open_file(const char *path, uint64_t len)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)len) < 0)
		die(path);
	return fd;
}

static char *map_fd(int fd, uint64_t len, uint64_t off)
{
	char *addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)off);

	if (addr == MAP_FAILED)
		die("mmap");
	return addr;
}

static void do_map(const struct order *o)
{
	struct slot *s = slot_at(o, 1);
	uint64_t start;
	int fd;

	s->len = number(o, 3);
	fd = open_file(o->word[2], s->len);
	start = now_ns();
	s->addr = map_fd(fd, s->len, 0);
	printf("%lu %lu", (unsigned long)s->addr, now_ns() - start);
	close(fd);
}

/* ---- stores ---- */

static void do_touch(const struct order *o)
{
	const struct slot *s = slot_at(o, 1);

	for (uint64_t i = 0; i < s->len / PAGE; i++)
		store(s, i);
}

static void do_scribble(const struct order *o)
{
	const struct slot *s = slot_at(o, 1);
	struct dice dice = {number(o, 2)};

	for (uint64_t i = 0; i < s->len / PAGE; i++) {
		if (dice_half(&dice))
			store(s, i);
	}
}

static void do_evens(const struct order *o)
{
	const struct slot *s = slot_at(o, 1);

	for (uint64_t i = 0; i < s->len / PAGE; i += 2)
		store(s, i);
}

static void do_store(const struct order *o)
{
	store(slot_at(o, 1), number(o, 2));
}

/* Order of the words: nobody always comes first. */
static void do_writes(const struct order *o)
{
	for (int i = 1; i < ORDER_MAX && o->word[i][0]; i++) {
		const struct slot *s = slot_at(o, i);
		uint64_t nr = s->len / PAGE, start = now_ns();

		for (uint64_t page = 0; page < nr; page++)
			store(s, page);
		printf("%s%.1f", i > 1 ? " " : "", (double)(now_ns() - start) / (double)nr);
	}
}

/* ---- who answers a fault ---- */

/* All on one CPU: what waking another one costs is the machine's, and differs from call to call. */
static void pin(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		die("sched_setaffinity");
}

static void *serve_sync(void *arg)
{
	const struct slot *s = arg;
	struct pollfd pfd = {.fd = s->uffd, .events = POLLIN};

	pin();
	while (poll(&pfd, 1, -1) >= 0) {
		struct uffd_msg msg;
		uint64_t page;

		if (read(s->uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		page = msg.arg.pagefault.address & ~(PAGE - 1);
		raw_protect(s->uffd, (const char *)page, PAGE, false);
	}
	return NULL;
}

static void do_uffd(const struct order *o)
{
	struct slot *s = slot_at(o, 1);
	bool sync = strcmp(o->word[2], "sync") == 0;
	pthread_t thread;

	s->uffd = raw_uffd(s->addr, s->len, sync ? 0 : UFFD_FEATURE_WP_ASYNC);
	if (sync && pthread_create(&thread, NULL, serve_sync, s))
		die("pthread_create");
	if (sync)
		pin();
}

static void on_segv(int sig, siginfo_t *info, void *ctx)
{
	char *page = (char *)((uintptr_t)info->si_addr & ~(PAGE - 1));

	if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) < 0)
		_exit(2);
}

static void do_segv(const struct order *o)
{
	const struct sigaction segv = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};

	if (sigaction(SIGSEGV, &segv, NULL) < 0)
		die("sigaction");
}

static void do_protect(const struct order *o)
{
	const struct slot *s = slot_at(o, 1);
	uint64_t start = now_ns();

	if (s->uffd)
		raw_protect(s->uffd, s->addr, s->len, true);
	else if (mprotect(s->addr, s->len, PROT_READ) < 0)
		die("mprotect");
	printf("%lu", now_ns() - start);
}

static void do_alternate(const struct order *o)
{
	const struct slot *s = slot_at(o, 1);
	uint64_t start = now_ns();

	raw_alternate(s->uffd, s->addr, s->len);
	printf("%lu", now_ns() - start);
}

/* ---- single calls ---- */

static double *figures(uint64_t nr)
{
	double *values = calloc(nr + 1, sizeof(*values));

	if (!values)
		die("calloc");
	return values;
}

static void do_faults(const struct order *o)
{
	const struct slot *s = slot_at(o, 1);
	uint64_t nr = number(o, 2);
	double *ns = figures(nr);

	raw_protect(s->uffd, s->addr, nr * PAGE, true);
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t start = now_ns();

		store(s, i);
		ns[i] = (double)(now_ns() - start);
	}
	printf("%.0f", median(ns, nr));
	free(ns);
}

static void do_single(const struct order *o)
{
	const struct slot *s = slot_at(o, 1);
	uint64_t nr = number(o, 2);
	double *ns = figures(nr);

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t start;

		raw_protect(s->uffd, s->addr, PAGE, false);
		start = now_ns();
		raw_protect(s->uffd, s->addr, PAGE, true);
		ns[i] = (double)(now_ns() - start);
	}
	printf("%.0f", median(ns, nr));
	free(ns);
}

static void do_mmaps(const struct order *o)
{
	uint64_t len = number(o, 2), nr = number(o, 3);
	double *ns = figures(nr);
	int fd = open_file(o->word[1], len);

	for (uint64_t i = 0; i < nr; i++) {
		uint64_t start = now_ns();
		char *addr = map_fd(fd, len, 0);

		ns[i] = (double)(now_ns() - start);
		if (munmap(addr, len) < 0)
			die("munmap");
	}
	close(fd);
	printf("%.0f", median(ns, nr));
	free(ns);
}

static void do_pieces(const struct order *o)
{
	uint64_t nr = number(o, 2), start;
	int fd = open_file(o->word[1], 2 * nr * PAGE);

	start = now_ns();
	for (uint64_t i = 0; i < nr; i++)
		map_fd(fd, PAGE, 2 * i * PAGE);
	printf("%lu", now_ns() - start);
	close(fd);
}

static void obey(const struct order *o)
{
	static const struct {
		const char *word;
		void (*fn)(const struct order *o);
	} table[] = {
		{"map", do_map},	   {"touch", do_touch},
		{"scribble", do_scribble}, {"evens", do_evens},
		{"store", do_store},	   {"writes", do_writes},
		{"uffd", do_uffd},	   {"segv", do_segv},
		{"protect", do_protect},   {"alternate", do_alternate},
		{"faults", do_faults},	   {"single", do_single},
		{"mmaps", do_mmaps},	   {"pieces", do_pieces},
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (strcmp(o->word[0], table[i].word) == 0) {
			table[i].fn(o);
			return;
		}
	}
	errno = EINVAL;
	die(o->word[0]);
}

int main(void)
{
	orders_serve(obey);
	fflush(stdout);
	_exit(0); /* the server thread never ends by itself */
}
