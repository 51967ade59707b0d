/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A new mapping is armed before mmap() returns: until then nobody knows its address. With MAP_FIXED
 * everybody may, so such a mapping is made elsewhere without any access, armed there, and moved
 * into place; no writable unarmed page is ever visible.
 *
 * A mapping that goes away is made read-only and harvested first, so that no store falls between
 * the last look and its end. What could make the call itself fail is tried before that.
 */
#include "preload/map.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <sys/stat.h>

#include "base/compat.h"
#include "preload/attach.h"
#include "preload/discover.h"
#include "preload/lower.h"
#include "preload/mapping.h"
#include "preload/untold.h"

static long plain_map(const struct mapping *r)
{
	return raw(mmap, r->addr, r->len, r->prot, r->flags, r->fd, r->off);
}

/* The mapping stands at `at`: tracked from now on, or refused if it must be and cannot. */
static long mapped(const struct mapping *r, long at)
{
	uint64_t armed;
	int err;

	if (raw_failed(at))
		return at;
	err = mapping_tell(r, (uint64_t)at, (uint64_t)at, false, &armed);
	if (!err) {
		mapping_remember(r, (uint64_t)at);
	} else if (r->require) {
		raw(munmap, at, r->len);
		ranges_cut((uint64_t)at, page_align_up(r->len));
		return -ECONNREFUSED;
	} else {
		mapping_untold(r, (uint64_t)at, err);
	}
	return at;
}

/*
 * Would the kernel make this mapping at all? Asked with the same arguments at another place: a call
 * that fails must leave what was at its target as it was.
 */
static long try_elsewhere(const struct mapping *r)
{
	long err = mapping_may_lock(r), at;

	if (err)
		return err;
	at = raw(mmap, NULL, r->len, r->prot, r->flags & ~(MAP_ANY_FIXED | MAP_TOUCHES), r->fd,
		 r->off);
	if (raw_failed(at))
		return at;
	raw(munmap, at, r->len);
	return 0;
}

/* Ends what MAP_FIXED replaces. 0 or the -errno of the call. */
static long make_room(const struct mapping *r)
{
	uint64_t len = page_align_up(r->len);
	long err;

	if ((r->flags & MAP_FIXED_NOREPLACE) || len == 0 || (r->addr & (SHIM_PAGE_SIZE - 1)) ||
	    !ranges_overlap(r->addr, len))
		return 0;
	err = try_elsewhere(r);
	if (err && err != -ENOMEM) /* in place of something else there may be room for it */
		return err;
	mapping_retire(r->addr, len);
	return 0;
}

static long fixed_plain(const struct mapping *r)
{
	long err = make_room(r), at;

	if (err)
		return err;
	shim_lock_waits(true);
	at = plain_map(r);
	shim_lock_waits(false);
	if (!raw_failed(at))
		ranges_cut((uint64_t)at, page_align_up(r->len));
	else if (r->flags & MAP_FIXED)
		mapping_bring_back(r->addr, page_align_up(r->len));
	return at;
}

/* The daemon cannot be told of it, or did not take it: `err`. Refused if it must be tracked. */
static long untold_plain(const struct mapping *r, int err)
{
	long at;

	if (r->require)
		return -ECONNREFUSED;
	/* With MAP_FIXED another thread may use it at once, and the kernel may not return. */
	if ((r->flags & MAP_ANY_FIXED) && err != -EINVAL)
		untold_count(&shim.mounts[r->mount], r->ino);
	at = r->flags & MAP_ANY_FIXED ? fixed_plain(r) : plain_map(r);
	if (!raw_failed(at))
		mapping_untold(r, (uint64_t)at, err);
	return at;
}

/* MAP_FIXED_NOREPLACE: takes the place, so that the move below replaces only this. */
static long reserve_place(const struct mapping *r)
{
	long at = raw(mmap, r->addr, r->len, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	return raw_failed(at) ? at : 0;
}

/* It would be armed: made elsewhere, armed, moved. -ENOMEM: there may be no room but in place. */
static long fixed_armed(const struct mapping *r)
{
	bool no_replace = r->flags & MAP_FIXED_NOREPLACE;
	uint64_t armed;
	long err, at;
	int told;

	/* With the final rights once, for the errors they may give. */
	err = try_elsewhere(r);
	if (!err && no_replace)
		err = reserve_place(r);
	if (err) {
		mapping_call_off(r);
		return err;
	}
	/* Before there is anything of what comes: the harvest would find it, and nobody watching
	 * it. */
	if (!no_replace)
		mapping_retire(r->addr, page_align_up(r->len));
	at = mapping_make_elsewhere(r, r->fd);
	if (raw_failed(at)) {
		if (no_replace)
			raw(munmap, r->addr, r->len);
		else
			mapping_bring_back(r->addr, page_align_up(r->len));
		return at;
	}
	told = mapping_tell(r, (uint64_t)at, r->addr, false, &armed);
	err = told;
	shim_lock_waits(true);
	if (!err)
		err = raw(mremap, at, page_align_up(r->len), page_align_up(r->len),
			  MREMAP_MAYMOVE | MREMAP_FIXED, r->addr);
	shim_lock_waits(false);
	if (raw_failed(err)) {
		raw(munmap, at, r->len);
		if (no_replace)
			raw(munmap, r->addr, r->len);
		if (!no_replace)
			mapping_bring_back(r->addr, page_align_up(r->len));
		return untold_plain(r, told ? told : -EIO);
	}
	mapping_remember(r, r->addr);
	raw(mprotect, r->addr, r->len, r->prot);
	if (r->flags & MAP_LOCKED)
		raw(mlock, r->addr, r->len);
	else if (r->flags & MAP_POPULATE)
		raw(madvise, r->addr, page_align_up(r->len), MADV_POPULATE_READ);
	return (long)r->addr;
}

static long map_fixed(const struct mapping *r)
{
	struct mapping told = *r;
	uint64_t armed = 0;
	long at;
	int err;

	if (r->len == 0 || (r->addr & (SHIM_PAGE_SIZE - 1)) || (r->off & (SHIM_PAGE_SIZE - 1)))
		return plain_map(r); /* for its error */
	err = mapping_tell(r, r->addr, r->addr, true, &armed);
	if (err)
		return untold_plain(r, err);
	at = armed ? fixed_armed(r) : -ENOMEM;
	if (at != -ENOMEM)
		return at;
	at = fixed_plain(r);
	if (raw_failed(at))
		mapping_call_off(r);
	/* Others may have stored there by now, which this flag says. */
	told.flags |= MAP_FIXED;
	return mapped(&told, at);
}

static long map_tracked(struct mapping *r)
{
	struct mount *mount = &shim.mounts[r->mount];
	long at;
	int err;

	if (shim.bad_name)
		shim_say("WPFS_NAME is not 1-64 of A-Z a-z 0-9 . _ -: this program has no name, "
			 "its marks end with it",
			 "", "");
	shim.bad_name = false;
	err = mount_ready(mount);
	if (err)
		return untold_plain(r, mapping_refused(err));
	if (mount->kind == WPFS_KIND_CAPPED)
		return lower_map(r);
	if (r->flags & MAP_ANY_FIXED)
		return map_fixed(r);
	/* A harvest between the call and its report would find it, and nobody watching. */
	mapping_announce(r);
	at = plain_map(r);
	if (raw_failed(at))
		mapping_call_off(r);
	return mapped(r, at);
}

static long map_locked(struct mapping *r)
{
	int mount = discover_fd(r->fd, r->dev, r->mnt);
	long ret;

	if (mount == DISCOVER_UNKNOWN)
		mount = discover_dead(r);
	if (mount >= 0) {
		r->mount = (uint32_t)mount;
		return map_tracked(r);
	}
	if (mount == DISCOVER_UNKNOWN && r->require && discover_may_be_wpfs(r->dev, r->mnt))
		return -ECONNREFUSED;
	if (mount != DISCOVER_UNKNOWN)
		return r->flags & MAP_ANY_FIXED ? fixed_plain(r) : plain_map(r);
	untold_count_unknown(); /* it may be, and its daemon is not there to say so */
	ret = r->flags & MAP_ANY_FIXED ? fixed_plain(r) : plain_map(r);
	untold_count_unknown();
	return ret;
}

/*
 * Of a mapping that nobody may be asked about. Before the call, since with MAP_FIXED another thread
 * may use it at once; and after it, since an epoch may have begun between the two.
 */
static void count_unasked(const struct mapping *r)
{
	if (discover_cached(r->dev) >= 0)
		untold_count(&shim.mounts[discover_cached(r->dev)], r->ino);
	else
		untold_count_unknown();
}

static long map_any(struct mapping *r)
{
	struct shim_guard guard;
	long ret;

	if (!shim_lock(&guard)) {
		if (r->require && !shim.require)
			return -EPERM;
		/* A vfork child's mappings are this program's too. */
		count_unasked(r);
		ret = plain_map(r);
		count_unasked(r);
		return ret;
	}
	ret = map_locked(r);
	shim_unlock(&guard);
	return ret;
}

bool map_identify(int fd, struct mapping *r)
{
	struct statx stx;

	if (raw(statx, fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC,
		STATX_TYPE | STATX_INO | STATX_MNT_ID_UNIQUE, &stx) != 0)
		return false;
	r->dev = shim_makedev(stx.stx_dev_major, stx.stx_dev_minor);
	r->ino = stx.stx_ino;
	r->mnt = stx.stx_mnt_id;
	return S_ISREG(stx.stx_mode);
}

long map_shared(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off,
		bool require)
{
	struct mapping r = {addr, len, prot, flags, fd, off, 0, 0, 0, 0, require || shim.require};

	if (!map_identify(fd, &r) || discover_is_other(r.dev, r.mnt))
		return map_over(addr, len, prot, flags, fd, off);
	return map_any(&r);
}

long map_over(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	struct mapping r = {addr, len, prot, flags, fd, off, 0, 0, 0, 0, shim.require};
	struct shim_guard guard;
	long ret;

	if (!(flags & MAP_FIXED) || (flags & MAP_FIXED_NOREPLACE) || !ranges_any() ||
	    !ranges_overlap(addr, page_align_up(len)) || !shim_lock(&guard))
		return plain_map(&r);
	ret = fixed_plain(&r);
	shim_unlock(&guard);
	return ret;
}

long map_unmap(uint64_t addr, uint64_t len)
{
	struct shim_guard guard;
	long ret;

	if (!mapping_span_valid(addr, len) || !ranges_overlap(addr, page_align_up(len)) ||
	    !shim_lock(&guard))
		return raw(munmap, addr, len);
	mapping_retire(addr, page_align_up(len));
	shim_lock_waits(true);
	ret = raw(munmap, addr, len);
	shim_lock_waits(false);
	if (ret)
		mapping_bring_back(addr, page_align_up(len));
	else
		ranges_cut(addr, page_align_up(len));
	shim_unlock(&guard);
	return ret;
}
