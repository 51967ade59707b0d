/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A page of the lower file that is not in memory looks like zeros to whoever touches it before the
 * daemon watches the mapping, and would stay zeros for all. So every such mapping is made without
 * any access (which also keeps MAP_POPULATE and mlockall(2) from touching it), told to the daemon,
 * and only then given its rights; one that the daemon does not take does not stay.
 */
#include "preload/lower.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <sys/stat.h>

#include "preload/attach.h"
#include "preload/discover.h"

/* The program's own descriptor cannot be mapped; the daemon's can. It is the caller's; -errno. */
static int exchange_ticket(const struct mapping *r)
{
	struct wpfs_ticket_request body;
	struct stat st;
	int status, fd, err;

	err = (int)raw(ioctl, r->fd, WPFS_IOC_TICKET, &body.ticket);
	if (err)
		return err;
	err = mount_call(&shim.mounts[r->mount], WPFS_OP_TICKET, &body, sizeof(body), NULL, &status,
			 NULL, 0, &fd);
	if (err)
		return err;
	if (status < 0 || fd < 0)
		return status < 0 ? status : -EPROTO;
	if (raw(fstat, fd, &st) == 0)
		discover_add(st.st_dev, (int)r->mount);
	return fd;
}

/* What mmap(2) would say before it does anything. */
static int check(const struct mapping *r)
{
	long flags = raw(fcntl, r->fd, F_GETFL);

	if (flags < 0)
		return (int)flags;
	if ((flags & O_ACCMODE) == O_WRONLY ||
	    ((r->prot & PROT_WRITE) && (flags & O_ACCMODE) != O_RDWR))
		return -EACCES;
	if (r->len == 0 || (r->off & (SHIM_PAGE_SIZE - 1)))
		return -EINVAL;
	if ((r->flags & MAP_ANY_FIXED) &&
	    ((r->addr & (SHIM_PAGE_SIZE - 1)) || !mapping_span_valid(r->addr, r->len)))
		return -EINVAL;
	return (int)mapping_may_lock(r);
}

/* It has its rights; what the program wanted done to its pages is done now. */
static long finish(const struct mapping *r, uint64_t at)
{
	long err = r->prot == PROT_NONE ? 0 : raw(mprotect, at, r->len, r->prot);

	if (err)
		return err;
	mapping_remember(r, at);
	if (r->flags & MAP_LOCKED)
		raw(mlock, at, r->len);
	else if ((r->flags & MAP_POPULATE) && !(r->flags & MAP_NONBLOCK))
		raw(madvise, at, page_align_up(r->len), MADV_POPULATE_READ);
	return 0;
}

/* Without access at `at`, told to be at `final`. 0 or -errno, and then it is gone again. */
static long tell(const struct mapping *r, uint64_t at, uint64_t final)
{
	uint64_t armed;

	if (mapping_tell(r, at, final, false, &armed) == 0)
		return 0;
	raw(munmap, at, r->len);
	return r->require ? -ECONNREFUSED : -ENODEV;
}

static long map_anywhere(const struct mapping *r, int fd)
{
	long at = raw(mmap, r->addr, r->len, PROT_NONE, r->flags & ~MAP_TOUCHES, fd, r->off);
	long err;

	if (raw_failed(at))
		return at;
	err = tell(r, (uint64_t)at, (uint64_t)at);
	if (!err)
		err = finish(r, (uint64_t)at);
	if (err) {
		raw(munmap, at, r->len);
		return err;
	}
	return at;
}

/* In two steps, as an armed mapping with MAP_FIXED on a native mount. */
static long map_fixed(const struct mapping *r, int fd)
{
	uint64_t span = page_align_up(r->len);
	long err, at;

	mapping_retire(r->addr, span);
	at = mapping_make_elsewhere(r, fd);
	err = raw_failed(at) ? at : tell(r, (uint64_t)at, r->addr);
	if (!err) {
		shim_lock_waits(true);
		err = raw(mremap, at, span, span, MREMAP_MAYMOVE | MREMAP_FIXED, r->addr);
		shim_lock_waits(false);
		if (!raw_failed(err))
			err = finish(r, r->addr);
		else
			raw(munmap, at, r->len);
	}
	if (raw_failed(err)) {
		mapping_bring_back(r->addr, span);
		return err;
	}
	return (long)r->addr;
}

/* MAP_FIXED_NOREPLACE: the kernel looks for the place, and the mapping is ours from the start. */
static long map_place(const struct mapping *r, int fd)
{
	return r->flags & MAP_FIXED_NOREPLACE || !(r->flags & MAP_FIXED) ? map_anywhere(r, fd)
									 : map_fixed(r, fd);
}

long lower_map(struct mapping *r)
{
	int fd, err = check(r);
	long ret;

	if (err)
		return err;
	fd = exchange_ticket(r);
	if (fd < 0)
		return r->require ? -ECONNREFUSED : -ENODEV;
	/* A harvest between the call and its report would find it, and nobody watching. */
	mapping_announce(r);
	ret = map_place(r, fd);
	if (raw_failed(ret))
		mapping_call_off(r);
	raw(close, fd);
	return ret;
}
