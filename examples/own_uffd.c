/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program with a userfaultfd of its own, as any is: it knows nothing of wpfs. It protects the
 * pages of a file the first time only; run again under wpfs, it finds them protected, but for
 * those written.
 *
 * It protects all pages and stores to page 3; then it stores to 3, which is free, and to 4, of
 * which it is told:
 *
 *	cc own_uffd.c -o own_uffd
 *	wpctl run --name own MNT -- ./own_uffd MNT/file protect 3
 *	wpctl run --name own MNT -- ./own_uffd MNT/file again 3 4
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif

static const unsigned long page = 4096;
static char *map;
static int uffd;

static void check(int bad, const char *what)
{
	if (!bad)
		return;
	fprintf(stderr, "own_uffd: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void protect(unsigned long start, unsigned long len, unsigned long mode)
{
	struct uffdio_writeprotect wp = {.range = {start, len}, .mode = mode};

	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
		check(errno != EAGAIN, "UFFDIO_WRITEPROTECT"); /* an event has to be read first */
}

/* Told of each first store to a protected page, before it is made. */
static void *handler(void *arg)
{
	struct uffd_msg msg;

	while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		unsigned long at = msg.arg.pagefault.address & ~(page - 1);

		printf("page %lu is about to be written\n", (at - (unsigned long)map) / page);
		protect(at, page, 0);
	}
	return arg;
}

int main(int argc, char **argv)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					     UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_WP};
	pthread_t thread;
	struct stat st;
	int fd;

	if (argc < 3) {
		fprintf(stderr, "usage: own_uffd FILE protect|again [PAGE...]\n");
		return 2;
	}
	fd = open(argv[1], O_RDWR | O_CLOEXEC);
	check(fd < 0 || fstat(fd, &st) < 0, argv[1]);
	map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(map == MAP_FAILED, "mmap");

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	check(uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0, "userfaultfd");
	reg.range.start = (unsigned long)map;
	reg.range.len = ((unsigned long)st.st_size + page - 1) & ~(page - 1);
	check(ioctl(uffd, UFFDIO_REGISTER, &reg) < 0,
	      "UFFDIO_REGISTER"); /* marks of before are back */
	if (!strcmp(argv[2], "protect"))
		protect(reg.range.start, reg.range.len, UFFDIO_WRITEPROTECT_MODE_WP);
	check(pthread_create(&thread, NULL, handler, NULL) != 0, "thread");

	for (int i = 3; i < argc; i++)
		((volatile char *)map)[strtoul(argv[i], NULL, 0) * page]++;
	return 0;
}
