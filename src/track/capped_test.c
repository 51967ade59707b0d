/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "track/capped_test.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "spill/io.h"

#define PAUSE_TRIES 60000 /* of a millisecond: a test that was killed must not stop the mount */

static const char *dir;

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
	FILE *file;

	if (!dir)
		return 0;
	snprintf(path, sizeof(path), "%s/fail-%s", dir, step);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0)
		return 0;
	err = strtol(text, &after, 10);
	if (*after != ' ')
		return (int)-err;
	left = strtol(after, NULL, 10);
	if (left == 0) {
		unlink(path);
		return (int)-err;
	}
	file = fopen(path, "we");
	if (file) {
		fprintf(file, "%ld %ld", err, left - 1);
		fclose(file);
	}
	return 0;
}

/* Has who comes here to wait? A number in the file: not yet, so many come before. */
static bool pauses(const char *path)
{
	_cleanup_free_ char *text = NULL;
	FILE *file;
	long left;

	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0)
		return false;
	left = strtol(text, NULL, 10);
	if (left <= 0)
		return true;
	file = fopen(path, "we");
	if (file) {
		fprintf(file, "%ld", left - 1);
		fclose(file);
	}
	return false;
}

void capped_test_point(const char *step)
{
	char pause[512], at[512], slow[512];
	int fd;

	if (!dir)
		return;
	snprintf(slow, sizeof(slow), "%s/slow-%s", dir, step);
	if (access(slow, F_OK) == 0)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	snprintf(pause, sizeof(pause), "%s/pause-%s", dir, step);
	snprintf(at, sizeof(at), "%s/at-%s", dir, step);
	if (!pauses(pause))
		return;
	fd = open(at, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0)
		close(fd);
	for (int tries = 0; access(pause, F_OK) == 0 && tries < PAUSE_TRIES; tries++)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	unlink(at);
}
