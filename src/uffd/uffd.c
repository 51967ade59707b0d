/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "uffd/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/fdio.h"
#include "base/units.h"

bool uffd_is_uffd(int fd)
{
	char path[64], target[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = '\0';
	return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

int uffd_features(int fd, uint64_t *features)
{
	_cleanup_free_ char *text = NULL;
	unsigned long long seen;
	const char *at;
	char path[64];
	int r;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	r = fdio_read_file(AT_FDCWD, path, &text, NULL);
	if (r < 0)
		return r;
	at = strstr(text, "\nAPI:");
	if (!at || sscanf(at + 5, " %*x:%llx:", &seen) != 1)
		return -ENODATA;
	*features = seen & ~((uint64_t)1 << 31); /* that its API was done, no feature */
	return 0;
}

#define INIT_SYNC_FEATURES                                                                         \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM |                             \
	 UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_EVENT_FORK | \
	 UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_THREAD_ID)

bool uffd_is_inited_sync(int fd)
{
	uint64_t features;

	return uffd_is_uffd(fd) && uffd_features(fd, &features) == 0 &&
	       features == INIT_SYNC_FEATURES;
}

int uffd_init_async(int uffd, bool events)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC,
	};

	if (events)
		api.features |= UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP;
	return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

int uffd_init_sync(int uffd)
{
	struct uffdio_api api = {.api = UFFD_API, .features = INIT_SYNC_FEATURES};

	return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

/* One ioctl, repeated while an event of the mm is unread. */
static int uffd_ioctl_retry(int uffd, unsigned long op, void *arg)
{
	const struct timespec pause = {.tv_nsec = 200000};
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (;;) {
		if (ioctl(uffd, op, arg) == 0)
			return 0;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 >
		    UFFD_RETRY_MS)
			return -EAGAIN;
		nanosleep(&pause, NULL);
	}
}

static int uffd_register(int uffd, uint64_t start, uint64_t end, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = {.start = start, .len = end - start},
		.mode = mode,
	};

	return uffd_ioctl_retry(uffd, UFFDIO_REGISTER, &reg);
}

int uffd_register_wp(int uffd, uint64_t start, uint64_t end)
{
	return uffd_register(uffd, start, end, UFFDIO_REGISTER_MODE_WP);
}

int uffd_register_missing(int uffd, uint64_t start, uint64_t end)
{
	return uffd_register(uffd, start, end,
			     UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING);
}

int uffd_unregister(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_range range = {.start = start, .len = end - start};

	return uffd_ioctl_retry(uffd, UFFDIO_UNREGISTER, &range);
}

int uffd_writeprotect(int uffd, uint64_t start, uint64_t end, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = start, .len = end - start},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return uffd_ioctl_retry(uffd, UFFDIO_WRITEPROTECT, &wp);
}

int uffd_writeprotect_once(int uffd, uint64_t start, uint64_t end, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = start, .len = end - start},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

int uffd_wake(int uffd, uint64_t start, uint64_t end)
{
	struct uffdio_range range = {.start = start, .len = end - start};

	return ioctl(uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int uffd_wake_all(int uffd)
{
	/* All user addresses with four levels of page tables; the kernel gives no others unasked.
	 */
	return uffd_wake(uffd, 1 << 16, ((uint64_t)1 << 47) - WPFS_PAGE_SIZE);
}

static void *nowhere;
static pthread_once_t nowhere_once = PTHREAD_ONCE_INIT;

static void nowhere_make(void)
{
	nowhere = mmap(NULL, WPFS_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/*
 * A copy from where nothing can be read comes to nothing. But the kernel looks at the target first:
 * ENOENT if it is not registered at all, EINVAL if not for write protection.
 */
int uffd_is_registered_wp(int uffd, uint64_t addr)
{
	struct uffdio_copy copy = {
		.dst = addr,
		.len = WPFS_PAGE_SIZE,
		.mode = UFFDIO_COPY_MODE_WP | UFFDIO_COPY_MODE_DONTWAKE,
	};

	pthread_once(&nowhere_once, nowhere_make);
	if (nowhere == MAP_FAILED)
		return -ENOMEM;
	copy.src = (uintptr_t)nowhere;
	if (ioctl(uffd, UFFDIO_COPY, &copy) == 0)
		return -EIO; /* it cannot */
	return errno == EFAULT ? 1 : errno == ENOENT || errno == EINVAL ? 0 : -errno;
}
