// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Preloaded into a daemon under test: while the file that KILLAFTER names is there, the process is
 * killed right after a call that drops contents of a file has been done.
 */
/* Both names of a call that has two: with and without 64. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int done(int ret)
{
	const char *file = getenv("KILLAFTER");

	if (ret == 0 && file && access(file, F_OK) == 0)
		kill(getpid(), SIGKILL);
	return ret;
}

int truncate(const char *path, off_t size)
{
	return done(REAL(truncate)(path, size));
}

int truncate64(const char *path, off64_t size)
{
	return done(REAL(truncate64)(path, size));
}

int ftruncate(int fd, off_t size)
{
	return done(REAL(ftruncate)(fd, size));
}

int ftruncate64(int fd, off64_t size)
{
	return done(REAL(ftruncate64)(fd, size));
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	return done(REAL(fallocate)(fd, mode, off, len));
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	return done(REAL(fallocate64)(fd, mode, off, len));
}
