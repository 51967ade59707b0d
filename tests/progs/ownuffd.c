/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program with a userfaultfd of its own: synchronous write-protection, a handler thread. It
 * prints each message it gets and what each call returns, in pages instead of addresses, so that
 * two runs on different file systems can be compared.
 *
 *	ownuffd script block|nonblock FILE	everything below, then ends
 *	ownuffd neighbours FILE			one page read amid 64 others
 *	ownuffd hold FILE			protects pages 0 to 31, writes 3 and 5, waits
 *	ownuffd again FILE			registers, protects nothing, writes all 64 pages
 *	ownuffd stale FILE			pages 0 to 15 keep bits that are no marks, waits
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/compat.h"

#define PAGE  4096ul
#define PAGES 64ul

static int file = -1;
static int uffd = -1, handler_fd = -1; /* two descriptors of one userfaultfd */
static bool nonblock;
static char *map;
static pthread_t handler;
static _Atomic bool stop;
static _Atomic unsigned messages;

/* One whole line at once: both threads print, never at the same time by the order of things. */
static void say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

static long said(const char *what, long ret)
{
	say("%s: %s", what, ret < 0 ? strerrorname_np(errno) : "0");
	return ret;
}

/* ---- userfaultfd ---- */

static int new_uffd(int flags)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);

	if (said("userfaultfd", fd) < 0)
		exit(1);
	said("api", ioctl(fd, UFFDIO_API, &api));
	say("features %llx ioctls %llx", api.features, api.ioctls);
	return fd;
}

static int register_mode(int fd, void *at, unsigned long pages, unsigned long long mode)
{
	struct uffdio_register reg = {.range = {(uintptr_t)at, pages * PAGE}, .mode = mode};
	long ret = said("register", ioctl(fd, UFFDIO_REGISTER, &reg));

	if (ret == 0)
		say("ioctls %llx", (unsigned long long)reg.ioctls);
	return (int)ret;
}

static int register_wp(int fd, void *at, unsigned long pages)
{
	return register_mode(fd, at, pages, UFFDIO_REGISTER_MODE_WP);
}

static long write_protect(unsigned long page, unsigned long pages, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {(uintptr_t)(map + page * PAGE), pages * PAGE},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(uffd >= 0 ? uffd : handler_fd, UFFDIO_WRITEPROTECT, &wp);
}

/* Prints a message and lets the thread go on that caused it. */
static void answer(const struct uffd_msg *msg)
{
	unsigned long page = (msg->arg.pagefault.address - (uintptr_t)map) / PAGE;

	messages++;
	if (msg->event != UFFD_EVENT_PAGEFAULT) {
		say("event %x", msg->event);
		return;
	}
	say("fault %lu flags %llx", page, (unsigned long long)msg->arg.pagefault.flags);
	if (write_protect(page, 1, false) < 0)
		said("unprotect", -1);
}

static void *handle(void *arg)
{
	struct pollfd pfd = {.fd = handler_fd, .events = POLLIN};
	struct uffd_msg msg;

	while (!stop) {
		ssize_t n;

		if (nonblock && poll(&pfd, 1, -1) < 0)
			continue;
		n = read(handler_fd, &msg, sizeof(msg));
		if (n == (ssize_t)sizeof(msg))
			answer(&msg);
		else if (n >= 0 || (errno != EAGAIN && errno != EINTR))
			said("read", n);
	}
	return NULL;
}

static void interrupt(int sig)
{
}

/* The handler is woken by a signal; it may be just before the call that the signal ends. */
static void stop_handler(void)
{
	stop = true;
	while (pthread_kill(handler, SIGUSR1) == 0 && pthread_tryjoin_np(handler, NULL) == EBUSY)
		usleep(1000);
}

/* ---- what is done to pages ---- */

static void store(unsigned long page)
{
	unsigned before = messages;

	((volatile char *)map)[page * PAGE + 1]++;
	say("stored %lu, messages %u", page, messages - before);
}

static void load(unsigned long page)
{
	unsigned before = messages;
	int value = ((volatile char *)map)[page * PAGE + 1];

	say("loaded %lu = %d, messages %u", page, value, messages - before);
}

/* Is it there, in swap, marked. Not where: the kernel may move a page in memory at any time. */
static void entries(uint64_t entry[PAGES])
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (pread(fd, entry, PAGES * 8, (off_t)((uintptr_t)map / PAGE * 8)) != (ssize_t)(PAGES * 8))
		said("pagemap", -1);
	close(fd);
	for (unsigned long page = 0; page < PAGES; page++)
		entry[page] &= 7ull << 61 | 1ull << 57;
}

static void show_entry(unsigned long page)
{
	uint64_t entry[PAGES];

	entries(entry);
	say("entry %lu present %d swap %d mark %d", page, (int)(entry[page] >> 63 & 1),
	    (int)(entry[page] >> 62 & 1), (int)(entry[page] >> 57 & 1));
}

static void open_and_map(const char *path)
{
	struct sigaction act = {.sa_handler = interrupt};

	file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (file < 0 || ftruncate(file, PAGES * PAGE) < 0)
		exit(1);
	map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (map == MAP_FAILED || sigaction(SIGUSR1, &act, NULL) < 0)
		exit(1);
}

static void start_handler(void)
{
	uffd = new_uffd(nonblock ? O_NONBLOCK : 0);
	handler_fd = dup(uffd);
	if (pthread_create(&handler, NULL, handle, NULL))
		exit(1);
}

/* ---- the script ---- */

static void refusals(void)
{
	struct uffdio_register odd = {.range = {(uintptr_t)map + 1, PAGE},
				      .mode = UFFDIO_REGISTER_MODE_WP};
	int other = new_uffd(O_NONBLOCK);

	said("protect before register", write_protect(0, 1, true));
	register_wp(uffd, map, PAGES);
	register_wp(uffd, map, PAGES);
	register_wp(other, map, 4);
	said("register unaligned", ioctl(uffd, UFFDIO_REGISTER, &odd));
	said("register nothing", ioctl(uffd, UFFDIO_REGISTER, NULL));
	register_mode(uffd, map, 4, 0);
	register_wp(uffd, (void *)PAGE, 1);
	said("close", close(other));
}

static void faults(void)
{
	said("protect", write_protect(0, PAGES, true));
	store(5);
	store(1);
	store(9);
	store(5);
	load(7);
	said("dontneed", madvise(map + 11 * PAGE, PAGE, MADV_DONTNEED));
	show_entry(11);
	load(11);
	show_entry(11);
	store(11);
	store(11);
	said("punch", fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 12 * PAGE, PAGE));
	load(12);
	show_entry(12);
	store(12);
	said("mprotect", mprotect(map + 14 * PAGE, PAGE, PROT_READ));
	said("mprotect", mprotect(map + 14 * PAGE, PAGE, PROT_READ | PROT_WRITE));
	store(14);
}

/* The kernel itself writes to a marked page. */
static void kernel_fault(void)
{
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	say("read %zd", read(zero, map + 13 * PAGE, PAGE));
	close(zero);
	store(13);
}

static void forks(void)
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0) {
		((volatile char *)map)[21 * PAGE + 1]++;
		_exit(messages & 0x7f);
	}
	waitpid(pid, &status, 0);
	say("child: %s", WIFEXITED(status) ? "ended" : "killed");
	store(21);
}

static void reregister(void)
{
	struct uffdio_range range = {(uintptr_t)(map + 32 * PAGE), 8 * PAGE};

	said("unregister", ioctl(uffd, UFFDIO_UNREGISTER, &range));
	store(33);
	register_wp(uffd, map + 32 * PAGE, 8);
	store(34);
	said("protect", write_protect(32, 8, true));
	store(35);
	/* WP -> MISSING leaves the bits where they are, and they stop no store. */
	for (unsigned long page = 48; page < 56; page++)
		store(page);
	said("protect", write_protect(48, 8, true));
	register_mode(uffd, map + 48 * PAGE, 8, UFFDIO_REGISTER_MODE_MISSING);
	store(50);
	show_entry(51);
	register_wp(uffd, map + 48 * PAGE, 8);
	store(50);
	store(51);
}

static void moves(void)
{
	char *moved;

	said("munmap", munmap(map + 60 * PAGE, 4 * PAGE));
	moved = mremap(map + 56 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       map + 60 * PAGE);
	said("mremap", moved == map + 60 * PAGE ? 0 : -1);
	store(61);
	register_wp(uffd, moved, 4);
	said("protect", write_protect(60, 4, true));
	store(62);
}

static void ends(void)
{
	struct pollfd pfd = {.fd = uffd, .events = POLLIN};
	struct uffd_msg msg;

	poll(&pfd, 1, 0);
	say("poll %x", pfd.revents);
	if (nonblock)
		said("read", read(uffd, &msg, sizeof(msg)));
	if (nonblock) {
		said("close", close(uffd));
		uffd = -1;
	}
	store(22);
	stop_handler();
	said("close", close(handler_fd));
	if (uffd >= 0)
		said("close", close(uffd));
	store(23); /* protected, and nobody reads any more */
	said("munmap", munmap(map, 56 * PAGE));
}

static void script(void)
{
	start_handler();
	refusals();
	faults();
	kernel_fault();
	forks();
	reregister();
	moves();
	ends();
}

static void neighbours(void)
{
	uint64_t before[PAGES], after[PAGES];
	unsigned changed = 0;

	start_handler();
	register_wp(uffd, map, PAGES);
	memset(map, 0, PAGES * PAGE);
	said("protect", write_protect(0, PAGES, true));
	for (unsigned long page = 0; page < PAGES; page += 3)
		store(page);
	madvise(map + 32 * PAGE, PAGE, MADV_DONTNEED);
	for (unsigned long page = 0; page < PAGES; page++)
		if (page != 32)
			load(page);
	entries(before);
	load(32);
	entries(after);
	for (unsigned long page = 0; page < PAGES; page++)
		changed += page != 32 && before[page] != after[page];
	say("neighbours changed: %u", changed);
	show_entry(32);
	store(32);
}

static void stale(void)
{
	start_handler();
	register_wp(uffd, map, 16);
	for (unsigned long page = 0; page < 16; page++)
		store(page);
	said("protect", write_protect(0, 16, true));
	register_mode(uffd, map, 16, UFFDIO_REGISTER_MODE_MISSING);
	show_entry(7);
}

static void wait_for_line(void)
{
	char line[16];

	say("ready");
	if (!fgets(line, sizeof(line), stdin))
		exit(0);
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	if (argc < 3)
		return 2;
	alarm(120);
	nonblock = strcmp(verb, "script") != 0 || strcmp(argv[2], "nonblock") == 0;
	open_and_map(argv[argc - 1]);
	if (strcmp(verb, "script") == 0) {
		script();
	} else if (strcmp(verb, "neighbours") == 0) {
		neighbours();
	} else if (strcmp(verb, "hold") == 0) {
		start_handler();
		register_wp(uffd, map, PAGES);
		said("protect", write_protect(0, 32, true));
		store(3);
		store(5);
		wait_for_line();
	} else if (strcmp(verb, "again") == 0) {
		start_handler();
		register_wp(uffd, map, PAGES);
		wait_for_line();
		for (unsigned long page = 0; page < PAGES; page++)
			store(page);
		wait_for_line();
	} else if (strcmp(verb, "stale") == 0) {
		stale();
		wait_for_line();
		store(7);
		wait_for_line();
	} else {
		return 2;
	}
	return 0;
}
