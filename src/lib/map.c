/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Mappings: what the preloaded library's hooks do, called by name. */
#include "lib/handle.h"

#include <errno.h>
#include <linux/mman.h>
#include <string.h>

#ifndef MAP_TYPE
#define MAP_TYPE 0x0f
#endif

static bool failed(long ret)
{
	return (unsigned long)ret >= (unsigned long)-4095L;
}

/* What a system call gave, as 0 or -errno. */
static int result(long ret, const char *what)
{
	if (!failed(ret))
		return 0;
	if (ret == -ECONNREFUSED)
		return lib_fail_errno((int)ret, what);
	return lib_fail((int)ret, what, "%s", strerror((int)-ret));
}

int wpfs_map(struct wpfs *handle, void **addr, size_t len, int prot, int flags, int fd,
	     uint64_t offset)
{
	int type = flags & MAP_TYPE, err;
	uint64_t ino;
	long at;

	if ((type != MAP_SHARED && type != MAP_SHARED_VALIDATE) || (flags & MAP_ANONYMOUS))
		return lib_fail(-EINVAL, "wpfs_map", "only MAP_SHARED of a file has marks");
	err = lib_file(handle, "wpfs_map", fd, &ino);
	if (err)
		return err;
	if ((flags & MAP_FIXED) && watch_overlaps((uint64_t)*addr, len))
		return lib_fail(-EBUSY, "wpfs_map", "part of it is watched: wpfs_unwatch first");
	at = handle->core->map((uint64_t)*addr, len, prot, flags, fd, offset);
	err = result(at, "wpfs_map");
	if (!err)
		*addr = (void *)at;
	return err;
}

int wpfs_unmap(struct wpfs *handle, void *addr, size_t len)
{
	if (watch_overlaps((uint64_t)addr, len))
		return lib_fail(-EBUSY, "wpfs_unmap", "part of it is watched: wpfs_unwatch first");
	return result(handle->core->unmap((uint64_t)addr, len), "wpfs_unmap");
}

int wpfs_remap(struct wpfs *handle, void **addr, size_t len, size_t new_len, int flags,
	       void *new_addr)
{
	long at;
	int err;

	if (watch_overlaps((uint64_t)*addr, len) ||
	    ((flags & MREMAP_FIXED) && watch_overlaps((uint64_t)new_addr, new_len)))
		return lib_fail(-EBUSY, "wpfs_remap", "part of it is watched: wpfs_unwatch first");
	at = handle->core->remap((uint64_t)*addr, len, new_len, flags, (uint64_t)new_addr);
	err = result(at, "wpfs_remap");
	if (!err)
		*addr = (void *)at;
	return err;
}

int wpfs_remove(struct wpfs *handle, void *addr, size_t len)
{
	return result(handle->core->remove((uint64_t)addr, len), "wpfs_remove");
}
