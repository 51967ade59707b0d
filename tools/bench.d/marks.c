/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The cost of the first write to a protected page, by every way there is, in one process and
 * interleaved: each round visits all ways, so that noise of the machine falls on all alike.
 *
 *	bench-marks WPFS_FILE TMPFS_DIR MIB ROUNDS PROTECT_COMMAND
 *
 * Runs under `wpctl run --name N`; PROTECT_COMMAND is run through sh(1) to have the mapping of
 * WPFS_FILE armed. Prints one line per way and round: "way round ns_per_page".
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/compat.h"

#define PAGE 4096UL

static size_t bench_pages;

static void die(const char *what)
{
	fprintf(stderr, "bench-marks: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static char *map_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	char *p;

	if (fd < 0 || ftruncate(fd, (off_t)(bench_pages * PAGE)) < 0)
		die(path);
	p = mmap(NULL, bench_pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	close(fd);
	for (size_t i = 0; i < bench_pages; i++)
		p[i * PAGE] = 1;
	return p;
}

/* One byte into each page: nanoseconds per page. */
static double write_all(char *p)
{
	uint64_t start = now_ns();

	for (size_t i = 0; i < bench_pages; i++)
		((volatile char *)p)[i * PAGE]++;
	return (double)(now_ns() - start) / (double)bench_pages;
}

/* ---- the ways ---- */

static int raw_uffd(char *p, uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = features | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					     UFFD_FEATURE_WP_UNPOPULATED};
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)p, .len = bench_pages * PAGE},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		die("userfaultfd");
	close(dev);
	return fd;
}

static void raw_protect(int uffd, char *p)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = (uintptr_t)p, .len = bench_pages * PAGE},
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
		die("UFFDIO_WRITEPROTECT");
}

static void *serve_sync(void *arg)
{
	int uffd = *(int *)arg;
	struct pollfd pfd = {.fd = uffd, .events = POLLIN};

	while (poll(&pfd, 1, -1) >= 0) {
		struct uffd_msg msg;
		struct uffdio_writeprotect wp;

		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		wp = (struct uffdio_writeprotect){
			.range = {.start = msg.arg.pagefault.address & ~(PAGE - 1), .len = PAGE}};
		if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
			die("UFFDIO_WRITEPROTECT");
	}
	return NULL;
}

static void on_segv(int sig, siginfo_t *info, void *ctx)
{
	char *page = (char *)((uintptr_t)info->si_addr & ~(PAGE - 1));

	if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) < 0)
		_exit(2);
}

int main(int argc, char **argv)
{
	const struct sigaction segv = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
	enum { PLAIN, ASYNC, WPFS, SYNC, PROT, WAYS };
	static const char *const name[WAYS] = {
		[PLAIN] = "plain",    [ASYNC] = "raw-async",	[WPFS] = "wpfs",
		[SYNC] = "sync-uffd", [PROT] = "mprotect-segv",
	};
	char *map[WAYS];
	int async_fd, sync_fd;
	pthread_t thread;

	if (argc != 6) {
		fprintf(stderr, "usage: bench-marks WPFS_FILE TMPFS_DIR MIB ROUNDS PROTECT\n");
		return 2;
	}
	bench_pages = strtoul(argv[3], NULL, 10) * 256;
	for (int way = 0; way < WAYS; way++) {
		char path[4096];

		/* A file for each: pages that another way has just written are warm in the cache.
		 */
		snprintf(path, sizeof(path), "%s/%s", argv[2], name[way]);
		map[way] = map_file(way == WPFS ? argv[1] : path);
	}
	async_fd = raw_uffd(map[ASYNC], UFFD_FEATURE_WP_ASYNC);
	sync_fd = raw_uffd(map[SYNC], 0);
	sigaction(SIGSEGV, &segv, NULL);
	if (pthread_create(&thread, NULL, serve_sync, &sync_fd))
		die("pthread_create");

	for (int round = 0; round < atoi(argv[4]); round++) {
		if (system(argv[5]) != 0)
			die("the protect command failed");
		raw_protect(async_fd, map[ASYNC]);
		raw_protect(sync_fd, map[SYNC]);
		mprotect(map[PROT], bench_pages * PAGE, PROT_READ);
		for (int i = 0; i < WAYS; i++) {
			int way = (i + round) % WAYS; /* nobody always comes first */

			printf("%s %d %.1f\n", name[way], round, write_all(map[way]));
		}
	}
	fflush(stdout);
	_exit(0); /* the server thread never ends by itself */
}
