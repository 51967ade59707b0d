/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clang-format off */
/*
 * `beside FILE HOW [ARG...]`: maps 64 pages of FILE and then stores to page 7 of it in a way that is
 * none of mmap, munmap and mremap of a thread of its own. Prints "mapped", reads a line, stores,
 * prints "stored", and waits for another line.
 *
 *   file_pages [keep]     remap_file_pages(2): page 0 of the mapping shows page 7 for a moment
 *   scan                  and lets PAGEMAP_SCAN mark again what was written
 *   vm                    a child made with CLONE_VM doubles the mapping with mremap(2)
 *   reopen                through /proc/self/fd
 *   grow                  a thread stores where the mapping is about to grow to, and stops then
 *   failed                by a raw system call, right after a mmap of the same that failed
 *   alone                 its first thread has ended: the second one stores
 *   alone_uffd            likewise, and it protects the mapping with a userfaultfd first: the store
 *                         of a third one waits, and nobody reads of it
 *   survivor GO DONE END  a child made with CLONE_VM outlives the program: it stores when somebody
 *                         opens the fifo GO, tells DONE, and ends when END is opened
 */
/* clang-format on */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
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
#define TO    7ul /* the page that is stored to */

static int fd;
static char *mapping;
static char **args;
static char stack[65536] __attribute__((aligned(16)));

static void check(int ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	_exit(1);
}

static char *map(void)
{
	char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	check(at != MAP_FAILED, "mmap");
	return at;
}

static void say(const char *line)
{
	char answer[16];

	puts(line);
	fflush(stdout);
	if (!fgets(answer, sizeof(answer), stdin))
		_exit(0);
}

static void by_file_pages(void)
{
	check(remap_file_pages(mapping, PAGE, 0, TO, 0) == 0, "remap_file_pages");
	mapping[0] = 1;
	if (!args[0])
		check(remap_file_pages(mapping, PAGE, 0, 0, 0) == 0, "remap_file_pages");
}

static void by_scan(void)
{
	struct page_region found[8];
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = PM_SCAN_WP_MATCHING,
		.start = (uintptr_t)mapping,
		.end = (uintptr_t)mapping + PAGES * PAGE,
		.vec = (uintptr_t)found,
		.vec_len = 8,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	mapping[TO * PAGE] = 1;
	check(ioctl(pagemap, PAGEMAP_SCAN, &scan) == 1, "PAGEMAP_SCAN");
	close(pagemap);
}

static int doubler(void *arg)
{
	char *twin = mremap(mapping, 0, PAGES * PAGE, MREMAP_MAYMOVE);

	if (twin == MAP_FAILED)
		_exit(1);
	twin[TO * PAGE] = 1;
	munmap(twin, PAGES * PAGE);
	_exit(0);
}

static void by_vm_child(void)
{
	pid_t pid = clone(doubler, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	int status;

	check(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "clone");
}

static void by_reopened(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	check(fd >= 0, path);
	map()[TO * PAGE] = 1;
}

/* Until it is the file that is stored to. */
static void *store_early(void *at)
{
	while (!((volatile char *)mapping)[TO * PAGE])
		((volatile char *)at)[TO * PAGE] = 1;
	return NULL;
}

static void by_growing(void)
{
	char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
			0);
	char *part = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	pthread_t thread;

	check(at != MAP_FAILED && part != MAP_FAILED, "mmap");
	check(pthread_create(&thread, NULL, store_early, at) == 0, "pthread_create");
	check(mremap(part, PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at, "mremap");
	pthread_join(thread, NULL);
}

static void by_failed(void)
{
	int read_only = open(args[0], O_RDONLY | O_CLOEXEC);
	char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, read_only, 0);

	check(read_only >= 0 && at == MAP_FAILED, "mmap");
	at = (char *)syscall(SYS_mmap, NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			     0);
	check(at != MAP_FAILED, "mmap");
	at[TO * PAGE] = 1;
}

static void *second(void *first)
{
	pthread_join(*(pthread_t *)first, NULL);
	mapping[TO * PAGE] = 1;
	say("stored");
	exit(0);
}

static void *store(void *arg)
{
	mapping[TO * PAGE] = 1;
	return NULL;
}

static void *second_uffd(void *first)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED,
	};
	struct uffdio_register reg = {
		.range = {(uintptr_t)mapping, PAGES * PAGE},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect protect = {reg.range, UFFDIO_WRITEPROTECT_MODE_WP};
	struct pollfd pending = {.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK),
				 .events = POLLIN};
	pthread_t thread;

	pthread_join(*(pthread_t *)first, NULL);
	check(ioctl(pending.fd, UFFDIO_API, &api) == 0, "UFFDIO_API");
	check(ioctl(pending.fd, UFFDIO_REGISTER, &reg) == 0, "UFFDIO_REGISTER");
	check(ioctl(pending.fd, UFFDIO_WRITEPROTECT, &protect) == 0, "UFFDIO_WRITEPROTECT");
	check(pthread_create(&thread, NULL, store, NULL) == 0, "pthread_create");
	check(poll(&pending, 1, -1) == 1, "poll");
	say("stored");
	exit(0);
}

static void leave_to(void *(*other)(void *first))
{
	static pthread_t first;
	pthread_t thread;

	first = pthread_self();
	check(pthread_create(&thread, NULL, other, &first) == 0, "pthread_create");
	pthread_exit(NULL);
}

static void by_second_thread(void)
{
	leave_to(second);
}

static void by_its_uffd(void)
{
	leave_to(second_uffd);
}

static int survivor(void *arg)
{
	const int how[] = {O_RDONLY, O_WRONLY, O_RDONLY};

	for (int i = 0; i < 3; i++) {
		close(open(args[i], how[i] | O_CLOEXEC));
		if (i == 0)
			mapping[TO * PAGE] = 1;
	}
	_exit(0);
}

static void by_survivor(void)
{
	check(clone(survivor, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL) > 0, "clone");
}

static const struct {
	const char *name;
	void (*store)(void);
} ways[] = {
	{"file_pages", by_file_pages}, {"scan", by_scan},	    {"vm", by_vm_child},
	{"reopen", by_reopened},       {"grow", by_growing},	    {"survivor", by_survivor},
	{"failed", by_failed},	       {"alone", by_second_thread}, {"alone_uffd", by_its_uffd},
};

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	args = argv + 3;
	fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	check(fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0, argv[1]);
	mapping = map();
	say("mapped");
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		if (strcmp(ways[i].name, argv[2]))
			continue;
		ways[i].store();
		say("stored");
		return 0;
	}
	return 2;
}
