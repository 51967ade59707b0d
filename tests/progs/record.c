/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Preloaded before the shim: writes down what the calls give that the shim stands in front of, and
 * their arguments, but for addresses. Into one file per process image, in the directory RECORD; it
 * has none of the program's descriptors, and changes no errno.
 */
#undef _FILE_OFFSET_BITS /* or <sys/mman.h> would give mmap the name mmap64 */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))next(#name))

static void *next(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	if (!found)
		_exit(99);
	return found;
}

static void put(const char *line, size_t len)
{
	const char *dir = getenv("RECORD");
	char path[512];
	int fd;

	if (!dir)
		return;
	snprintf(path, sizeof(path), "%s/%d", dir, (int)syscall(SYS_getpid));
	fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
			  0666);
	if (fd < 0)
		return;
	syscall(SYS_write, fd, line, len);
	syscall(SYS_close, fd);
}

/* One line: what it says, and the result. Gives the result. */
__attribute__((format(printf, 2, 3))) static long noted(long ret, const char *fmt, ...)
{
	int err = errno, len;
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	len = vsnprintf(line, sizeof(line) - 40, fmt, ap);
	va_end(ap);
	if (ret == -1)
		len += snprintf(line + len, 40, " = %s\n", strerrorname_np(err));
	else if (ret > 1l << 32)
		len += snprintf(line + len, 40, " = address\n");
	else
		len += snprintf(line + len, 40, " = %ld\n", ret);
	put(line, (size_t)len);
	errno = err;
	return ret;
}

/* What may be told of an address. */
static const char *at(const void *addr)
{
	return !addr ? "0" : (uintptr_t)addr & 4095 ? "unaligned" : "address";
}

__attribute__((constructor)) static void begin(void)
{
	char line[256];
	int len = snprintf(line, sizeof(line), "%s\n", program_invocation_short_name);

	put(line, (size_t)len);
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return (void *)noted((long)NEXT(mmap)(addr, len, prot, flags, fd, off),
			     "mmap(%s, %zu, %d, %#x, %d, %lld)", at(addr), len, prot, flags, fd,
			     (long long)off);
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
	return (void *)noted((long)NEXT(mmap64)(addr, len, prot, flags, fd, off),
			     "mmap(%s, %zu, %d, %#x, %d, %lld)", at(addr), len, prot, flags, fd,
			     (long long)off);
}

int munmap(void *addr, size_t len)
{
	return (int)noted(NEXT(munmap)(addr, len), "munmap(%s, %zu)", at(addr), len);
}

void *mremap(void *old, size_t old_len, size_t new_len, int flags, ...)
{
	void *to;
	va_list ap;

	va_start(ap, flags);
	to = va_arg(ap, void *);
	va_end(ap);
	return (void *)noted((long)NEXT(mremap)(old, old_len, new_len, flags, to),
			     "mremap(%s, %zu, %zu, %d)", at(old), old_len, new_len, flags);
}

int mprotect(void *addr, size_t len, int prot)
{
	return (int)noted(NEXT(mprotect)(addr, len, prot), "mprotect(%s, %zu, %d)", at(addr), len,
			  prot);
}

int madvise(void *addr, size_t len, int advice)
{
	return (int)noted(NEXT(madvise)(addr, len, advice), "madvise(%s, %zu, %d)", at(addr), len,
			  advice);
}

ssize_t process_madvise(int pidfd, const struct iovec *vec, size_t nr, int advice, unsigned flags)
{
	return noted(NEXT(process_madvise)(pidfd, vec, nr, advice, flags),
		     "process_madvise(%zu, %d, %u)", nr, advice, flags);
}

int msync(void *addr, size_t len, int flags)
{
	return (int)noted(NEXT(msync)(addr, len, flags), "msync(%s, %zu, %d)", at(addr), len,
			  flags);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	return (int)noted(NEXT(ioctl)(fd, request, arg), "ioctl(%d, %#lx)", fd, request);
}

int close(int fd)
{
	return (int)noted(NEXT(close)(fd), "close(%d)", fd);
}

int dup2(int old, int fd)
{
	return (int)noted(NEXT(dup2)(old, fd), "dup2(%d, %d)", old, fd);
}

int dup3(int old, int fd, int flags)
{
	return (int)noted(NEXT(dup3)(old, fd, flags), "dup3(%d, %d, %#x)", old, fd, flags);
}

int close_range(unsigned first, unsigned last, int flags)
{
	return (int)noted(NEXT(close_range)(first, last, flags), "close_range(%u, %u, %d)", first,
			  last, flags);
}

void closefrom(int first)
{
	NEXT(closefrom)(first);
	noted(0, "closefrom(%d)", first);
}
