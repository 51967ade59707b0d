/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "track/capped_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "spill/io.h"

#define PAUSE_TRIES 60000 /* of a millisecond: a test that was killed must not stop the mount */

static const char *dir;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* innermost: what the files hold */

/* Into a file that is there; the test may remove it at any moment. */
__attribute__((format(printf, 2, 3))) static void put(const char *path, const char *fmt, ...)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	va_list ap;

	if (fd < 0)
		return;
	va_start(ap, fmt);
	vdprintf(fd, fmt, ap);
	va_end(ap);
	close(fd);
}

static int fail_io(bool write, uint64_t off)
{
	return capped_test_fail(write ? "io-write" : "io-read");
}

void capped_test_init(void)
{
	dir = getenv("WPFS_TEST_DIR");
	if (dir)
		spill_io_test_fail = fail_io;
}

int capped_test_fail(const char *step)
{
	_cleanup_free_ char *text = NULL;
	char path[512], *after;
	long err, left;

	if (!dir)
		return 0;
	snprintf(path, sizeof(path), "%s/fail-%s", dir, step);
	pthread_mutex_lock(&lock);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0) {
		pthread_mutex_unlock(&lock);
		return 0;
	}
	err = strtol(text, &after, 10);
	left = *after == ' ' ? strtol(after, NULL, 10) : -1;
	if (left > 0) {
		put(path, "%ld %ld", err, left - 1);
		err = 0;
	} else if (left == 0) {
		unlink(path);
	}
	pthread_mutex_unlock(&lock);
	return (int)-err;
}

/*
 * Has who comes here to wait? Then a descriptor of the file, which says so from now on; else -1. A
 * number in it: not yet, so many come before.
 */
static int pauses(const char *path)
{
	_cleanup_free_ char *text = NULL;
	int fd = -1;

	pthread_mutex_lock(&lock);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) == 0) {
		long left = strtol(text, NULL, 10);

		if (left > 0)
			put(path, "%ld", left - 1);
		else
			fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd >= 0 && pwrite(fd, "at", 2, 0) < 0)
			close_fd(&fd);
	}
	pthread_mutex_unlock(&lock);
	return fd;
}

void capped_test_point(const char *step)
{
	char path[512];
	struct stat st;
	int fd;

	if (!dir)
		return;
	snprintf(path, sizeof(path), "%s/slow-%s", dir, step);
	if (access(path, F_OK) == 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	snprintf(path, sizeof(path), "%s/pause-%s", dir, step);
	fd = pauses(path);
	/* Until just this file is gone: there may be another one of its name by then. */
	for (int tries = 0; fd >= 0 && fstat(fd, &st) == 0 && st.st_nlink && tries < PAUSE_TRIES;
	     tries++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	close_fd(&fd);
}
