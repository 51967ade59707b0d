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
#include <linux/mman.h>
#include <sys/stat.h>

#include "preload/attach.h"
#include "preload/discover.h"
#include "preload/ranges.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#define MAP_ANY_FIXED (MAP_FIXED | MAP_FIXED_NOREPLACE)
/* What is done to the pages, not to the mapping: only once it is in place. */
#define MAP_TOUCHES   (MAP_POPULATE | MAP_LOCKED)

/* One mmap(2) call of a wpfs file. */
struct request {
	uint64_t addr, len;
	int prot, flags, fd;
	uint64_t off;
	uint64_t dev, ino; /* of the program's descriptor */
	uint32_t mount;	   /* index */
};

static long plain_map(const struct request *r)
{
	return raw(mmap, r->addr, r->len, r->prot, r->flags, r->fd, r->off);
}

/*
 * What is known in [addr, addr + len) becomes read-only and is harvested. A piece for which that
 * fails is left as it is: its end is like one behind the shim's back.
 */
static void retire(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len;
	struct range piece;

	while (addr < end && ranges_next(addr, end, &piece)) {
		struct wpfs_range body = {.addr = piece.start, .len = piece.end - piece.start};
		struct mount *mount = &shim.mounts[piece.mount];
		int status;

		if (mount_ready(mount) == 0 && raw(mprotect, body.addr, body.len, PROT_READ) == 0)
			mount_call(mount, WPFS_OP_UNMAP, &body, sizeof(body), NULL, &status, NULL,
				   0, NULL);
		addr = piece.end;
	}
}

/* The call that [addr, addr + len) was retired for has failed: it is as it was. */
static void reinstate(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len;
	struct range piece;

	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end)
		raw(mprotect, piece.start, piece.end - piece.start, piece.prot);
}

/* Tells the daemon of [at, at + len), which will be at `final`. 0, or -errno: it is not tracked. */
static int tell(const struct request *r, uint64_t at, uint64_t final, bool query, uint64_t *armed)
{
	struct wpfs_map body = {
		.addr = at,
		.len = page_align_up(r->len),
		.final = final,
		.offset = r->off,
		.dev = r->dev,
		.ino = r->ino,
		.prot = (uint32_t)r->prot,
		.flags = (uint32_t)r->flags,
		.query = query,
	};
	struct wpfs_map_reply reply = {0};
	int status, err;

	err = mount_call(&shim.mounts[r->mount], WPFS_OP_MAP, &body, sizeof(body), NULL, &status,
			 &reply, sizeof(reply), NULL);
	if (err)
		return err;
	if (status < 0)
		return status;
	*armed = reply.armed_pages;
	return 0;
}

static void range_request(const struct range *range, struct request *r)
{
	*r = (struct request){
		.addr = range->start,
		.len = range->end - range->start,
		.prot = (int)range->prot,
		.flags = (int)range->flags & ~MAP_ANY_FIXED,
		.off = range->offset,
		.dev = range->dev,
		.ino = range->ino,
		.mount = range->mount,
	};
}

/* After all the call failed for which a span was retired: as it was, as far as is known. */
static void bring_back(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len, armed;
	struct range piece;
	struct request r;

	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end) {
		range_request(&piece, &r);
		tell(&r, piece.start, piece.start, false, &armed);
		raw(mprotect, piece.start, r.len, piece.prot);
	}
}

static void remember(const struct request *r, uint64_t at)
{
	struct range range = {
		.start = at,
		.end = at + page_align_up(r->len),
		.offset = r->off,
		.dev = r->dev,
		.ino = r->ino,
		.mount = r->mount,
		.prot = (uint32_t)r->prot,
		.flags = (uint32_t)r->flags,
	};

	ranges_add(&range);
}

/* The mapping stands at `at`: tracked from now on, or refused if it must be and cannot. */
static long mapped(const struct request *r, long at)
{
	uint64_t armed;
	int err;

	if (raw_failed(at))
		return at;
	err = tell(r, (uint64_t)at, (uint64_t)at, false, &armed);
	if (!err) {
		remember(r, (uint64_t)at);
	} else {
		ranges_cut((uint64_t)at, page_align_up(r->len));
		if (shim.require) {
			raw(munmap, at, r->len);
			return -ECONNREFUSED;
		}
	}
	return at;
}

/*
 * Would the kernel make this mapping at all? Asked with the same arguments at another place: a call
 * that fails must leave what was at its target as it was.
 */
static long try_elsewhere(const struct request *r)
{
	long at = raw(mmap, NULL, r->len, r->prot, r->flags & ~(MAP_ANY_FIXED | MAP_TOUCHES), r->fd,
		      r->off);

	if (raw_failed(at))
		return at;
	raw(munmap, at, r->len);
	return 0;
}

/* Ends what MAP_FIXED replaces. 0 or the -errno of the call. */
static long make_room(const struct request *r)
{
	uint64_t len = page_align_up(r->len);
	long err;

	if ((r->flags & MAP_FIXED_NOREPLACE) || len == 0 || (r->addr & (SHIM_PAGE_SIZE - 1)) ||
	    !ranges_overlap(r->addr, len))
		return 0;
	err = try_elsewhere(r);
	if (err)
		return err;
	retire(r->addr, len);
	return 0;
}

static long fixed_plain(const struct request *r)
{
	long err = make_room(r), at;

	if (err)
		return err;
	at = plain_map(r);
	if (!raw_failed(at))
		ranges_cut((uint64_t)at, page_align_up(r->len));
	return at;
}

/* MAP_FIXED_NOREPLACE: takes the place, so that the move below replaces only this. */
static long reserve_place(const struct request *r)
{
	long at = raw(mmap, r->addr, r->len, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	return raw_failed(at) ? at : 0;
}

/* It would be armed: made elsewhere, armed, moved. */
static long fixed_armed(const struct request *r)
{
	bool no_replace = r->flags & MAP_FIXED_NOREPLACE;
	uint64_t armed;
	long err, at;

	/* With the final rights once, for the errors they may give. */
	err = try_elsewhere(r);
	if (!err && no_replace)
		err = reserve_place(r);
	if (err)
		return err;
	at = raw(mmap, NULL, r->len, PROT_NONE, r->flags & ~(MAP_ANY_FIXED | MAP_TOUCHES), r->fd,
		 r->off);
	if (raw_failed(at)) {
		if (no_replace)
			raw(munmap, r->addr, r->len);
		return at;
	}
	/* Before the daemon hears of what comes, or what goes would count as gone unseen. */
	if (!no_replace)
		retire(r->addr, page_align_up(r->len));
	err = tell(r, (uint64_t)at, r->addr, false, &armed);
	if (!err) {
		err = raw(mremap, at, page_align_up(r->len), page_align_up(r->len),
			  MREMAP_MAYMOVE | MREMAP_FIXED, r->addr);
	}
	if (raw_failed(err)) {
		raw(munmap, at, r->len);
		if (no_replace)
			raw(munmap, r->addr, r->len);
		if (!shim.require)
			return plain_map(r);
		reinstate(r->addr, page_align_up(r->len));
		return -ECONNREFUSED;
	}
	remember(r, r->addr);
	raw(mprotect, r->addr, r->len, r->prot);
	if (r->flags & MAP_LOCKED)
		raw(mlock, r->addr, r->len);
	else if (r->flags & MAP_POPULATE)
		raw(madvise, r->addr, page_align_up(r->len), MADV_POPULATE_READ);
	return (long)r->addr;
}

static long map_fixed(const struct request *r)
{
	uint64_t armed = 0;
	int err;

	if (r->len == 0 || (r->addr & (SHIM_PAGE_SIZE - 1)) || (r->off & (SHIM_PAGE_SIZE - 1)))
		return plain_map(r); /* for its error */
	err = tell(r, r->addr, r->addr, true, &armed);
	if (err)
		return shim.require ? -ECONNREFUSED : fixed_plain(r);
	return armed ? fixed_armed(r) : mapped(r, fixed_plain(r));
}

/* On a capped mount the program's own descriptor cannot be mapped; the daemon's can. */
static int exchange_ticket(const struct request *r)
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

static long map_tracked(struct request *r)
{
	struct mount *mount = &shim.mounts[r->mount];
	int ticket_fd = -1;
	long ret;

	if (shim.bad_name)
		shim_say("WPFS_NAME is not 1-64 of A-Z a-z 0-9 . _ -: this program has no name, "
			 "its marks end with it",
			 "", "");
	shim.bad_name = false;
	if (mount_ready(mount) != 0)
		return shim.require ? -ECONNREFUSED : fixed_plain(r);
	if (mount->kind == WPFS_KIND_CAPPED) {
		ticket_fd = exchange_ticket(r);
		if (ticket_fd >= 0)
			r->fd = ticket_fd;
	}
	if (r->flags & MAP_ANY_FIXED)
		ret = map_fixed(r);
	else
		ret = mapped(r, plain_map(r));
	if (ticket_fd >= 0)
		raw(close, ticket_fd);
	return ret;
}

static long map_locked(struct request *r)
{
	int mount = discover_fd(r->fd, r->dev);

	if (mount >= 0) {
		r->mount = (uint32_t)mount;
		return map_tracked(r);
	}
	return r->flags & MAP_ANY_FIXED ? fixed_plain(r) : plain_map(r);
}

static long map_any(struct request *r)
{
	struct shim_guard guard;
	long ret;

	if (!shim_lock(&guard))
		return plain_map(r);
	ret = map_locked(r);
	shim_unlock(&guard);
	return ret;
}

long map_shared(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	struct request r = {addr, len, prot, flags, fd, off, 0, 0, 0};
	struct stat st;

	if (raw(fstat, fd, &st) != 0 || !S_ISREG(st.st_mode) ||
	    discover_cached(st.st_dev) == DISCOVER_OTHER)
		return map_over(addr, len, prot, flags, fd, off);
	r.dev = st.st_dev;
	r.ino = st.st_ino;
	return map_any(&r);
}

long map_over(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	struct request r = {addr, len, prot, flags, fd, off, 0, 0, 0};
	struct shim_guard guard;
	long ret;

	if (!(flags & MAP_FIXED) || (flags & MAP_FIXED_NOREPLACE) || !ranges_any() ||
	    !ranges_overlap(addr, page_align_up(len)) || !shim_lock(&guard))
		return plain_map(&r);
	ret = fixed_plain(&r);
	shim_unlock(&guard);
	return ret;
}

/* Would munmap(2) take these? */
static bool span_valid(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + page_align_up(len);

	return len > 0 && page_align_up(len) >= len && end > addr &&
	       (addr & (SHIM_PAGE_SIZE - 1)) == 0;
}

long map_unmap(uint64_t addr, uint64_t len)
{
	struct shim_guard guard;
	long ret;

	if (!span_valid(addr, len) || !ranges_overlap(addr, page_align_up(len)) ||
	    !shim_lock(&guard))
		return raw(munmap, addr, len);
	retire(addr, page_align_up(len));
	ret = raw(munmap, addr, len);
	if (ret)
		bring_back(addr, page_align_up(len));
	else
		ranges_cut(addr, page_align_up(len));
	shim_unlock(&guard);
	return ret;
}

/* [start, start + len) of what `from` was is new: grown, or a second mapping of the same. */
static void remap_grown(const struct range *from, uint64_t offset, uint64_t start, uint64_t len)
{
	struct request r;
	uint64_t armed;

	range_request(from, &r);
	r.addr = start;
	r.len = len;
	r.off = offset;
	if (tell(&r, start, start, false, &armed) == 0)
		remember(&r, start);
}

/* The table after a remap that went well; `piece` is what is known at `old`, one mapping. */
static void remap_done(const struct range *piece, uint64_t old, uint64_t old_len, uint64_t new_len,
		       int flags, uint64_t at)
{
	uint64_t kept = old_len < new_len ? old_len : new_len;

	if (old_len > 0 && !(flags & MREMAP_DONTUNMAP))
		ranges_cut(old, old_len);
	ranges_cut(at, new_len);
	if (kept > 0) {
		struct range moved = *piece;

		moved.start = at;
		moved.end = at + kept;
		ranges_add(&moved);
	}
	if (new_len > kept)
		remap_grown(piece, piece->offset + kept, at + kept, new_len - kept);
}

/* Would mremap(2) refuse these for themselves? What it replaces must then stay as it is. */
static bool remap_valid(uint64_t old, uint64_t old_len, uint64_t new_len, int flags,
			uint64_t new_addr)
{
	bool fixed = flags & MREMAP_FIXED, keep = flags & MREMAP_DONTUNMAP;
	uint64_t span = page_align_up(old_len);

	if (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) ||
	    ((fixed || keep) && !(flags & MREMAP_MAYMOVE)) || (keep && old_len != new_len) ||
	    !span_valid(old, span ? span : SHIM_PAGE_SIZE) || !span_valid(old, new_len))
		return false;
	if (!fixed)
		return true;
	return span_valid(new_addr, new_len) &&
	       (old + span <= new_addr || new_addr + page_align_up(new_len) <= old) &&
	       raw(msync, old, span, MS_ASYNC) == 0; /* ENOMEM: not mapped */
}

long map_remap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t new_addr)
{
	uint64_t old_span = page_align_up(old_len), new_span = page_align_up(new_len);
	bool fixed = flags & MREMAP_FIXED, known, valid;
	struct shim_guard guard;
	struct range piece;
	long ret;

	if (!(ranges_overlap(old, old_span ? old_span : SHIM_PAGE_SIZE) ||
	      (fixed && ranges_overlap(new_addr, new_span))) ||
	    !shim_lock(&guard))
		return raw(mremap, old, old_len, new_len, flags, new_addr);
	known = ranges_next(old, old + (old_span ? old_span : SHIM_PAGE_SIZE), &piece) &&
		piece.start == old;
	valid = remap_valid(old, old_len, new_len, flags, new_addr);
	if (valid && fixed)
		retire(new_addr, new_span);
	if (valid && known && old_span > new_span)
		retire(old + new_span, old_span - new_span);
	ret = raw(mremap, old, old_len, new_len, flags, new_addr);
	if (!raw_failed(ret)) {
		if (known)
			remap_done(&piece, old, old_span, new_span, flags, (uint64_t)ret);
		else
			ranges_cut((uint64_t)ret, new_span);
	} else if (valid) {
		if (fixed)
			bring_back(new_addr, new_span);
		if (known && old_span > new_span)
			bring_back(old + new_span, old_span - new_span);
	}
	shim_unlock(&guard);
	return ret;
}

/* Tells each mount with a mapping in [addr, addr + len). 0, or the first -errno. */
static int tell_pieces(enum wpfs_op op, uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len;
	struct range piece;
	int first = 0;

	while (addr < end && ranges_next(addr, end, &piece)) {
		struct wpfs_range body = {.addr = piece.start, .len = piece.end - piece.start};
		int status = 0;
		int err = mount_call(&shim.mounts[piece.mount], op, &body, sizeof(body), NULL,
				     &status, NULL, 0, NULL);

		if (!first)
			first = err ? err : status < 0 ? status : 0;
		addr = piece.end;
	}
	return first;
}

long map_remove(uint64_t addr, uint64_t len)
{
	struct shim_guard guard;
	long ret;

	if (!span_valid(addr, len) || !ranges_overlap(addr, page_align_up(len)) ||
	    !shim_lock(&guard))
		return raw(madvise, addr, len, MADV_REMOVE);
	tell_pieces(WPFS_OP_REMOVE, addr, page_align_up(len));
	ret = raw(madvise, addr, len, MADV_REMOVE);
	shim_unlock(&guard);
	return ret;
}

long map_msync(uint64_t addr, uint64_t len, int flags)
{
	long ret = raw(msync, addr, len, flags);
	struct shim_guard guard;

	if (ret || !span_valid(addr, len) || !ranges_overlap(addr, page_align_up(len)) ||
	    !shim_lock(&guard))
		return ret;
	/* Whoever asks for durable must not be told so when it is not. */
	if (tell_pieces(WPFS_OP_MSYNC, addr, page_align_up(len)) != 0)
		ret = -EIO;
	shim_unlock(&guard);
	return ret;
}
