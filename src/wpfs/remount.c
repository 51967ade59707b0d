/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/remount.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/mountinfo.h"
#include "ipc/wire.h"
#include "wpfs.h"
#include "wpfs/mountpoint.h"
#include "wpfs/rundir.h"

static int find_lower(const char *mountpoint, char path[PATH_MAX])
{
	struct wpfs_mount_info info = {.version = 1};
	struct mountinfo mount;
	_cleanup_close_ int fd = -1;
	int r;

	r = mountinfo_find(mountpoint, &mount);
	if (!r && strcmp(mount.fstype, "fuse.wpfs") != 0)
		r = -EINVAL;
	if (r) {
		log_err("cannot remount %s: no wpfs is mounted there", mountpoint);
		return r;
	}
	fd = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, WPFS_IOC_MOUNT_INFO, &info) < 0) {
		r = -errno;
		log_err("cannot remount %s: its daemon does not answer (%s): unmount it, or start "
			"wpfs on it again",
			mountpoint, log_errstr(r));
		return r;
	}
	info.id[sizeof(info.id) - 1] = '\0';
	snprintf(path, PATH_MAX, "%s/%s/private/lower", WPFS_RUN_DIR, info.id);
	return 0;
}

int remount_run(const struct options *options)
{
	char mountpoint[PATH_MAX], lower[PATH_MAX];
	unsigned long atime = options->mount_flags & RUNDIR_LOWER_FLAGS;
	int r;

	r = mountpoint_resolve(options->mountpoint, mountpoint);
	if (!r)
		r = find_lower(mountpoint, lower);
	if (r)
		return r;
	if (mount(NULL, lower, NULL, MS_REMOUNT | atime, options->lower) < 0) {
		r = -errno;
		log_err("cannot remount %s with '%s': %s%s", mountpoint, options->lower,
			log_errstr(r),
			r == -EINVAL ? ": more is in use than these limits allow, it may be" : "");
		return r;
	}
	if (mount(NULL, mountpoint, NULL, MS_REMOUNT | options->mount_flags, NULL) < 0) {
		r = -errno;
		log_err("cannot remount %s: %s", mountpoint, log_errstr(r));
	}
	return r;
}
