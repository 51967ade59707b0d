/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program with userfaultfds of its own that takes orders, one a line, and answers each with one:
 * "ok VALUE" or "ERRNO". Pages are counted from the start of its one mapping. A thread reads every
 * uffd and lets each store through; two more write to the last pages all the time, with `writers`.
 *
 *	map FILE PAGES		over FIRST N anon|private|shared [FILE]	uffd
 *	register FIRST N	raw_register FIRST N		unregister FIRST N
 *	protect FIRST N		marks (gives them as 0 and 1)	store PAGE (gives its messages)
 *	close			fork (the child takes orders)	confine (a seccomp filter)
 *	writers
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/compat.h"

#define PAGE	  4096ul
#define PAGES_MAX 1024

static char *map;
static unsigned long pages;
static _Atomic int uffd = -1;
static _Atomic unsigned messages;
static sem_t runs; /* a thread has done what it does, once: its start makes no page faults later */

static void *handle(void *arg)
{
	bool told = false;

	for (;;) {
		struct pollfd pfd = {.fd = uffd, .events = POLLIN};
		struct uffdio_writeprotect w = {0};
		struct uffd_msg msg;
		unsigned long page;

		int nr = poll(&pfd, 1, 2);

		if (!told) {
			told = true;
			sem_post(&runs);
		}
		if (nr <= 0 || read(pfd.fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
			continue;
		page = (msg.arg.pagefault.address - (uintptr_t)map) / PAGE;
		messages += page < pages - 2;
		w.range = (struct uffdio_range){(uintptr_t)(map + page * PAGE), PAGE};
		ioctl(pfd.fd, UFFDIO_WRITEPROTECT, &w);
	}
	return NULL;
}

static void *write_always(void *arg)
{
	volatile uint32_t *at = (void *)(map + (uintptr_t)arg * PAGE);

	bool told = false;

	for (uint32_t count = *at;;) {
		if (*at != count)
			abort(); /* a store was lost */
		*at = ++count;
		usleep(20);
		if (!told) {
			told = true;
			sem_post(&runs);
		}
	}
	return NULL;
}

static void start(void *(*fn)(void *), void *arg)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, fn, arg))
		exit(1);
	while (sem_wait(&runs) < 0)
		;
}

static long new_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					     UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl((int)fd, UFFDIO_API, &api) < 0)
		return -1;
	uffd = (int)fd;
	return 0;
}

static long do_ioctl(unsigned long request, unsigned long first, unsigned long nr, int raw)
{
	struct uffdio_register reg = {.range = {(uintptr_t)(map + first * PAGE), nr * PAGE},
				      .mode = UFFDIO_REGISTER_MODE_WP};
	struct uffdio_writeprotect w = {.range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	void *arg = request == UFFDIO_WRITEPROTECT ? (void *)&w : (void *)&reg;

	if (raw) {
		/* Past the shim, which stands in front of ioctl(3) only. */
		return syscall(SYS_ioctl, uffd, request, arg);
	}
	return ioctl(uffd, request, arg);
}

static long map_file(const char *path, unsigned long nr)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0 || nr > PAGES_MAX || ftruncate(fd, (off_t)(nr * PAGE)) < 0)
		return -1;
	map = mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pages = nr;
	close(fd);
	return map == MAP_FAILED ? -1 : 0;
}

/* `what`: anon, or private or shared of a file, at the same offset. */
static long map_over(unsigned long first, unsigned long nr, const char *what, const char *path)
{
	int flags = MAP_FIXED | (strcmp(what, "shared") ? MAP_PRIVATE : MAP_SHARED), fd = -1;
	void *p;

	if (strcmp(what, "anon") == 0)
		flags |= MAP_ANONYMOUS;
	else
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0 && ftruncate(fd, (off_t)(pages * PAGE)) < 0)
		return -1;
	p = mmap(map + first * PAGE, nr * PAGE, PROT_READ | PROT_WRITE, flags, fd,
		 fd < 0 ? 0 : (off_t)(first * PAGE));
	if (fd >= 0)
		close(fd);
	return p == MAP_FAILED ? -1 : 0;
}

static void show_marks(void)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry[PAGES_MAX];

	if (pread(fd, entry, pages * 8, (off_t)((uintptr_t)map / PAGE * 8)) != (ssize_t)(pages * 8))
		exit(1);
	close(fd);
	printf("ok ");
	for (unsigned long page = 0; page < pages; page++)
		putchar(entry[page] >> 57 & 1 ? '1' : '0');
	putchar('\n');
}

static long store(unsigned long page)
{
	unsigned before = messages;

	((volatile char *)map)[page * PAGE + 1]++;
	return (long)(messages - before);
}

static long confine(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendmsg, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog prog = {sizeof(filter) / sizeof(filter[0]), filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
}

static long forked(void)
{
	pid_t pid = fork();

	if (pid > 0) {
		waitpid(pid, NULL, 0);
		exit(0);
	}
	if (pid == 0)
		start(handle, NULL);
	return pid < 0 ? -1 : getpid();
}

static long obey(char *line)
{
	char verb[32] = "", what[32] = "", path[512] = "";
	unsigned long first = 0, nr = 0;

	if (sscanf(line, "map %511s %lu", path, &nr) == 2)
		return map_file(path, nr);
	if (sscanf(line, "over %lu %lu %31s %511s", &first, &nr, what, path) >= 3)
		return map_over(first, nr, what, path);
	sscanf(line, "%31s %lu %lu", verb, &first, &nr);
	if (strcmp(verb, "uffd") == 0)
		return new_uffd();
	if (strcmp(verb, "register") == 0 || strcmp(verb, "raw_register") == 0)
		return do_ioctl(UFFDIO_REGISTER, first, nr, verb[0] == 'r' && verb[1] == 'a');
	if (strcmp(verb, "unregister") == 0)
		return do_ioctl(UFFDIO_UNREGISTER, first, nr, 0);
	if (strcmp(verb, "protect") == 0)
		return do_ioctl(UFFDIO_WRITEPROTECT, first, nr, 0);
	if (strcmp(verb, "store") == 0)
		return store(first);
	if (strcmp(verb, "close") == 0)
		return close(atomic_exchange(&uffd, -1));
	if (strcmp(verb, "confine") == 0)
		return confine();
	if (strcmp(verb, "fork") == 0)
		return forked();
	if (strcmp(verb, "writers") == 0) {
		start(write_always, (void *)(pages - 1));
		start(write_always, (void *)(pages - 2));
		return 0;
	}
	errno = ENOSYS;
	return -1;
}

int main(void)
{
	char line[600];

	alarm(120);
	start(handle, NULL);
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "marks", 5) == 0) {
			show_marks();
		} else {
			long ret = obey(line);

			if (ret < 0)
				puts(strerrorname_np(errno));
			else
				printf("ok %ld\n", ret);
		}
		fflush(stdout);
	}
	return 0;
}
