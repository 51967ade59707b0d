/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/compat.h"

void die(const char *what)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

double median(double *values, size_t nr)
{
	qsort(values, nr, sizeof(*values), ascending);
	return values[nr / 2];
}

bool dice_half(struct dice *dice)
{
	/* Knuth's MMIX; its upper bits are good enough to choose pages */
	dice->state = dice->state * 6364136223846793005u + 1442695040888963407u;
	return dice->state >> 63;
}

int raw_uffd(char *addr, uint64_t len, uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = features | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
					     UFFD_FEATURE_WP_UNPOPULATED};
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)addr, .len = len},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		die("userfaultfd");
	close(dev);
	return fd;
}

void raw_protect(int uffd, const char *addr, uint64_t len, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = (uintptr_t)addr, .len = len},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
		die("UFFDIO_WRITEPROTECT");
}

void raw_alternate(int uffd, const char *addr, uint64_t len)
{
	for (uint64_t at = 0; at < len; at += 2 * PAGE)
		raw_protect(uffd, addr + at, PAGE, true);
}

uint64_t number(const struct order *o, int i)
{
	return strtoull(o->word[i], NULL, 0);
}

void orders_serve(void (*fn)(const struct order *o))
{
	char line[4096];

	while (fgets(line, sizeof(line), stdin)) {
		struct order o;
		char *rest = line;

		for (int i = 0; i < ORDER_MAX; i++) {
			char *word = strtok_r(rest, " \n", &rest);

			o.word[i] = word ? word : "";
		}
		fn(&o);
		putchar('\n');
		fflush(stdout);
	}
}
