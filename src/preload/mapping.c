/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A mapping that goes away is made read-only and harvested first, so that no store falls between
 * the last look and its end. What could make the program's call itself fail is tried before that;
 * what fails all the same is put right again.
 */
#include "preload/mapping.h"

#include <errno.h>
#include <linux/mman.h>

#include "preload/attach.h"
#include "preload/untold.h"

bool mapping_span_valid(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + page_align_up(len);

	return len > 0 && page_align_up(len) >= len && end > addr &&
	       (addr & (SHIM_PAGE_SIZE - 1)) == 0;
}

void mapping_of_range(const struct range *range, struct mapping *r)
{
	*r = (struct mapping){
		.addr = range->start,
		.len = range->end - range->start,
		.prot = (int)range->prot,
		.flags = (int)range->flags & ~MAP_ANY_FIXED,
		.off = range->offset,
		.dev = range->dev,
		.ino = range->ino,
		.mount = range->mount,
		.require = shim.require,
	};
}

static struct wpfs_map map_body(const struct mapping *r, uint64_t at, uint64_t final)
{
	return (struct wpfs_map){
		.addr = at,
		.len = page_align_up(r->len),
		.final = final,
		.offset = r->off,
		.dev = r->dev,
		.ino = r->ino,
		.prot = (uint32_t)r->prot,
		.flags = (uint32_t)r->flags,
	};
}

void mapping_announce(const struct mapping *r)
{
	struct wpfs_map body = map_body(r, 0, 0);

	mount_tell(&shim.mounts[r->mount], WPFS_OP_ANNOUNCE, &body, sizeof(body));
}

int mapping_tell(const struct mapping *r, uint64_t at, uint64_t final, bool query, uint64_t *armed)
{
	struct wpfs_map body = map_body(r, at, final);
	struct mount *mount = &shim.mounts[r->mount];
	struct wpfs_map_reply reply = {0};
	int status, err;

	body.query = query;
	for (;;) {
		err = mount_call(mount, WPFS_OP_MAP, &body, sizeof(body), NULL, &status, &reply,
				 sizeof(reply), NULL);
		if (err)
			return mapping_refused(err);
		if (status != -EOWNERDEAD || body.unwitnessed)
			break;
		mount_renew(mount);
		body.unwitnessed = 1; /* if it has none now, it gets none */
	}
	if (status < 0)
		return status;
	*armed = reply.armed_pages;
	return 0;
}

void mapping_call_off(const struct mapping *r)
{
	struct mapping nothing = *r;
	uint64_t armed;

	nothing.len = 0;
	mapping_tell(&nothing, 0, 0, true, &armed);
}

static void remember(const struct mapping *r, uint64_t at, bool untold)
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
		.untold = untold,
	};

	ranges_add(&range);
}

void mapping_remember(const struct mapping *r, uint64_t at)
{
	remember(r, at, false);
}

void mapping_untold(const struct mapping *r, uint64_t at, int err)
{
	struct mount *mount = &shim.mounts[r->mount];

	if (err == -EINVAL || !atomic_load(&mount->was_attached)) {
		ranges_cut(at, page_align_up(r->len));
		return;
	}
	untold_count(mount, r->ino);
	/* So that its growth is seen, and its end while the daemon is there again. */
	remember(r, at, true);
}

static bool touches_target(const struct mapping *r, uint64_t at)
{
	uint64_t span = page_align_up(r->len);

	return at < r->addr + span && r->addr < at + span;
}

long mapping_make_elsewhere(const struct mapping *r, int fd)
{
	int flags = r->flags & ~(MAP_ANY_FIXED | MAP_TOUCHES);
	uint64_t span = page_align_up(r->len);
	long place, at = raw(mmap, NULL, r->len, PROT_NONE, flags, fd, r->off), ret;

	if (raw_failed(at) || !touches_target(r, (uint64_t)at))
		return at;
	/* Nothing was mapped at the target, and the kernel chose that. Of three places in a row it
	 * does not touch the first one, or not the last. */
	raw(munmap, at, r->len);
	place = raw(mmap, NULL, 3 * span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
	if (raw_failed(place))
		return place;
	at = touches_target(r, (uint64_t)place) ? place + 2 * (long)span : place;
	ret = raw(mmap, at, r->len, PROT_NONE, flags | MAP_FIXED, fd, r->off);
	if (raw_failed(ret))
		raw(munmap, place, 3 * span);
	else
		raw(munmap, at == place ? place + (long)span : place, 2 * span);
	return ret;
}

long mapping_may_lock(const struct mapping *r)
{
	long at;

	if (!(r->flags & MAP_LOCKED))
		return 0;
	at = raw(mmap, NULL, r->len, PROT_NONE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_LOCKED, -1, 0);
	if (raw_failed(at))
		return at == -ENOMEM ? 0 : at;
	raw(munmap, at, r->len);
	return 0;
}

void mapping_retire(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len;
	struct range piece;

	while (addr < end && ranges_next(addr, end, &piece)) {
		struct wpfs_range body = {.addr = piece.start, .len = piece.end - piece.start};
		struct mount *mount = &shim.mounts[piece.mount];
		int status;

		if (mount_ready(mount) == 0 &&
		    raw(mprotect, body.addr, body.len, piece.prot & ~PROT_WRITE) == 0)
			mount_call(mount, WPFS_OP_UNMAP, &body, sizeof(body), NULL, &status, NULL,
				   0, NULL);
		addr = piece.end;
	}
}

void mapping_bring_back(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len, armed;
	struct range piece;
	struct mapping r;

	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end) {
		int err;

		mapping_of_range(&piece, &r);
		err = mapping_tell(&r, piece.start, piece.start, false, &armed);
		if (err)
			mapping_untold(&r, piece.start, err);
		raw(mprotect, piece.start, r.len, piece.prot);
	}
}
