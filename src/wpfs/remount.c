/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/remount.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/mountinfo.h"
#include "base/units.h"
#include "ipc/wire.h"
#include "wpfs.h"
#include "wpfs/mountpoint.h"
#include "wpfs/rundir.h"

static int find_lower(const char *mountpoint, char path[PATH_MAX], bool *capped)
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
	if (!rundir_id_is_valid(info.id)) {
		log_err("cannot remount %s: it is none of ours", mountpoint);
		return -EINVAL;
	}
	*capped = info.kind == WPFS_KIND_CAPPED;
	snprintf(path, PATH_MAX, "%s/%s/private/lower", WPFS_RUN_DIR, info.id);
	return 0;
}

static int lower_resize(const char *lower, uint64_t size)
{
	char text[32];

	snprintf(text, sizeof(text), "size=%" PRIu64, size);
	return mount(NULL, lower, NULL, MS_REMOUNT, text) < 0 ? -errno : 0;
}

/*
 * The daemon of a capped mount sets the size of its lower tmpfs to what the store leaves of size=.
 * It takes another value than it had set for a new size=, when somebody asks for the free space; so
 * one that is the same by chance has to be another one first.
 */
static int resize_capped(const char *mountpoint, const char *lower, uint64_t size)
{
	struct statvfs st;
	int r;

	size = (size + WPFS_PAGE_SIZE - 1) & ~(uint64_t)(WPFS_PAGE_SIZE - 1);
	for (uint64_t i = 1; i < 8; i++) {
		r = lower_resize(lower, size);
		if (!r && statvfs(mountpoint, &st) < 0)
			r = -errno;
		if (r || (uint64_t)st.f_blocks * st.f_frsize == size)
			return r;
		r = lower_resize(lower, size + i * WPFS_PAGE_SIZE);
		if (!r && statvfs(mountpoint, &st) < 0)
			r = -errno;
		if (r)
			return r;
	}
	return -EAGAIN;
}

static int check_used(const char *mountpoint, uint64_t size)
{
	struct statvfs st;

	if (statvfs(mountpoint, &st) < 0)
		return -errno;
	return (uint64_t)(st.f_blocks - st.f_bfree) * st.f_frsize > size ? -EINVAL : 0;
}

int remount_run(const struct options *options)
{
	char mountpoint[PATH_MAX], lower[PATH_MAX];
	unsigned long flags = options->mount_flags & RUNDIR_LOWER_FLAGS;
	bool capped = false;
	int r;

	r = mountpoint_resolve(options->mountpoint, mountpoint);
	if (!r)
		r = find_lower(mountpoint, lower, &capped);
	if (r)
		return r;
	if (capped && options->size)
		r = check_used(mountpoint, options->size);
	if (!r && mount(NULL, lower, NULL, MS_REMOUNT | flags, options->lower) < 0)
		r = -errno;
	if (!r && capped && options->size)
		r = resize_capped(mountpoint, lower, options->size);
	if (r) {
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
