/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which files of other processes are of this lower tmpfs. A mount whose daemon was killed goes on
 * in who maps its files, so its st_dev number counts as long as the lower does. But the kernel
 * gives the number to another mount when nobody has such a file any more, and a file there may have
 * the inode number of one of ours. What tells them apart is in the file's handle, which the kernel
 * makes without a request: every file of this lower has fs_generation(). Not mountinfo: it shows
 * one mount namespace, and no detached mounts.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "track/capped_track.h"
#include "track/internal.h"
#include "uffd/maps.h"

/* What fuse_encode_fh() of the kernel gives: node id (high, low), generation, maybe the parent's.
 */
#define DEVS_FUSE_HANDLE	0x81
#define DEVS_FUSE_HANDLE_PARENT 0x82
#define DEVS_GENERATION_AT	8

static bool devs_handle_is_ours(const struct track *t, int dir_fd, const char *path)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = MAX_HANDLE_SZ};
	uint32_t generation;
	int mount_id;

	if (name_to_handle_at(dir_fd, path, &u.h, &mount_id, AT_SYMLINK_FOLLOW) < 0)
		return true; /* for all one knows */
	if (u.h.handle_type != DEVS_FUSE_HANDLE && u.h.handle_type != DEVS_FUSE_HANDLE_PARENT)
		return false;
	if (u.h.handle_bytes < DEVS_GENERATION_AT + sizeof(generation))
		return true;
	memcpy(&generation, u.h.f_handle + DEVS_GENERATION_AT, sizeof(generation));
	/* 0: a daemon that gave none, maybe of this lower. */
	return generation == 0 || generation == fs_generation(t->config.fs);
}

/* 1: a mount that is there now has it; 0: one that was there had; -1: none had. */
static int devs_find(const struct track *t, uint64_t dev)
{
	if (dev == t->config.dev || (t->config.capped && dev == capped_lower_dev(t->config.capped)))
		return 1;
	for (size_t i = 0; i < t->nr_devs; i++) {
		if (t->devs[i] == dev)
			return 0;
	}
	return -1;
}

bool devs_file_is_ours(const struct track *t, uint64_t dev, int dir_fd, const char *path)
{
	int found = devs_find(t, dev);

	return found > 0 || (found == 0 && devs_handle_is_ours(t, dir_fd, path));
}

int devs_maps_read(const struct track *t, pid_t pid, struct maps_list *maps)
{
	int r = maps_read(pid, t->devs, t->nr_devs, maps);
	size_t nr = 0;

	for (size_t i = 0; r == 0 && i < maps->nr; i++) {
		const struct maps_vma *vma = &maps->vmas[i];
		char path[96];

		snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", pid,
			 (unsigned long long)vma->start, (unsigned long long)vma->end);
		if (devs_file_is_ours(t, vma->dev, AT_FDCWD, path))
			maps->vmas[nr++] = *vma;
	}
	if (r == 0)
		maps->nr = nr;
	return r;
}
