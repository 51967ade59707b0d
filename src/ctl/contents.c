/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/contents.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "ctl/ctl.h"
#include "ctl/say.h"
#include "ctl/store.h"

static int fail(const struct target *target, const char *path, const char *words)
{
	ctl_say("%s: %s: %s: %s", target->command, target->arg, path, words);
	return CTL_FAILED;
}

/* The directory of the mount, also of a store that was given: its daemon says where it is. */
static int open_root(struct target *target)
{
	struct wpfs_status status;
	const char *path = target->arg;
	int fd;

	if (target->store_fd >= 0) {
		int r = target_call(target, WPFS_OP_STATUS, NULL, &status, NULL, NULL);

		if (r)
			return -1;
		status.mountpoint[sizeof(status.mountpoint) - 1] = '\0';
		path = status.mountpoint;
	}
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		fail(target, path, target_errstr(-errno));
	return fd;
}

static int open_mounted(struct contents *contents, struct target *target, const char *path)
{
	/* Not to be led out of the mount, nor to what is mounted over a directory of it. */
	struct open_how how = {
		.flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV,
	};
	_cleanup_close_ int root = open_root(target);
	struct statx stx;

	if (root < 0)
		return CTL_FAILED;
	contents->fd = (int)syscall(SYS_openat2, root, path + 1, &how, sizeof(how));
	if (contents->fd < 0)
		return fail(target, path, target_errstr(-errno));
	if (statx(contents->fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC,
		  STATX_TYPE | STATX_SIZE | STATX_INO, &stx))
		return fail(target, path, target_errstr(-errno));
	if (!S_ISREG(stx.stx_mode))
		return fail(target, path, "not a regular file");
	contents->id = stx.stx_ino;
	contents->size = stx.stx_size;
	return 0;
}

static int open_stored(struct contents *contents, const struct target *target, const char *path)
{
	char why[STORE_WHY_SIZE] = "", name[64];
	int r = store_stat(target->arg, path, &contents->id, &contents->size, why);

	if (r)
		return fail(target, path,
			    why[0]		? why
			    : r == -EMEDIUMTYPE ? "not a regular file"
						: log_errstr(r));
	snprintf(name, sizeof(name), "data/%02x/%" PRIu64, (unsigned)(contents->id & 0xff),
		 contents->id);
	contents->fd = openat(target->store_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (contents->fd < 0 && errno != ENOENT)
		return fail(target, path, log_errstr(errno));
	return 0;
}

int contents_open(struct contents *contents, struct target *target, const char *path)
{
	*contents = (struct contents){.fd = -1};
	return target->mounted ? open_mounted(contents, target, path)
			       : open_stored(contents, target, path);
}

uint64_t contents_next_data(const struct contents *contents, uint64_t at)
{
	off_t data = contents->fd < 0 ? -1 : lseek(contents->fd, (off_t)at, SEEK_DATA);

	if (data < 0 && contents->fd >= 0 && errno != ENXIO)
		return at; /* it cannot tell: read it */
	return data < 0 || (uint64_t)data > contents->size ? contents->size : (uint64_t)data;
}
