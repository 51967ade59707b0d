/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/fdio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/compat.h"

int fdio_pread_full(int fd, void *buf, size_t len, off_t off)
{
	char *p = buf;

	while (len) {
		ssize_t n = pread(fd, p, len, off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
		p += n;
		off += n;
		len -= (size_t)n;
	}
	return 0;
}

int fdio_pread_zeros(int fd, void *buf, size_t len, uint64_t off)
{
	char *p = buf;
	size_t got = 0;

	while (fd >= 0 && got < len) {
		ssize_t n = pread(fd, p + got, len - got, (off_t)(off + got));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	memset(p + got, 0, len - got);
	return 0;
}

static int write_all(int fd, const char *p, size_t len, off_t off, bool no_append)
{
	while (len) {
		const struct iovec iov = {(void *)p, len};
		ssize_t n = no_append ? pwritev2(fd, &iov, 1, off, RWF_NOAPPEND)
				      : pwrite(fd, p, len, off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENOSPC;
		p += n;
		off += n;
		len -= (size_t)n;
	}
	return 0;
}

int fdio_pwrite_full(int fd, const void *buf, size_t len, off_t off)
{
	return write_all(fd, buf, len, off, false);
}

int fdio_put_full(int fd, const void *buf, size_t len, off_t off)
{
	return write_all(fd, buf, len, off, true);
}

int fdio_read_file(int dirfd, const char *path, char **text, size_t *len)
{
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *buf = NULL;
	size_t size = 0, room = 0;

	fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	for (;;) {
		ssize_t n;

		if (room - size < 4096) {
			char *bigger;

			room = room ? room * 2 : 16384;
			bigger = realloc(buf, room + 1);
			if (!bigger)
				return -ENOMEM;
			buf = bigger;
		}
		n = read(fd, buf + size, room - size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		size += (size_t)n;
	}
	buf[size] = '\0';
	*text = steal_ptr(buf);
	if (len)
		*len = size;
	return 0;
}
