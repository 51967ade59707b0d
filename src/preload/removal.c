/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * MADV_REMOVE: contents that go while their mapping and its marks stay. No page table tells of it,
 * so the daemons are told before, and may make an epoch end between that and the call. Each counts
 * what was to go as changed in the next one too, until it hears of something else; one that was
 * started meanwhile has to be told again.
 *
 * Of a capped mount's pages the kernel knows only those that are in memory. What it would not
 * refuse the daemon takes out in its place, from memory and store at once: two who do it one after
 * the other would take out what another thread has stored in between. Where it may refuse, or
 * nobody can be asked, it comes first, and then what is in the store is brought back and taken out
 * too. Both part by part, as it is mapped: the kernel takes out what comes before that which it
 * refuses.
 */
#include "preload/map.h"

#include <errno.h>
#include <limits.h>
#include <linux/mman.h>
#include <linux/time_types.h>

#include "base/compat.h"
#include "preload/attach.h"
#include "preload/filter.h"
#include "preload/mapping.h"
#include "preload/untold.h"

#define CHUNK_BYTES    ((uint64_t)1 << 20)
/* More than that process_madvise(2) does not do at once, without a word. */
#define MAX_RW_COUNT   ((uint64_t)INT_MAX & ~(uint64_t)(SHIM_PAGE_SIZE - 1))
#define LIST_KEPT      64
#define MADV_NONE_SUCH (-1)
#define AGAIN_NS       20000000

struct removal {
	uint64_t cookies[SHIM_MOUNTS]; /* of the daemons that were told; 0: none was */
	bool untold;
};

/* 0 or more: the daemon's status. */
static int removal_ask(uint32_t mount, enum wpfs_op op, uint64_t addr, uint64_t len)
{
	struct wpfs_range body = {.addr = addr, .len = len};
	int status = 0, err;

	err = mount_call(&shim.mounts[mount], op, &body, sizeof(body), NULL, &status, NULL, 0,
			 NULL);
	return err ? err : status;
}

/* Tells one of the mounts. False: it does not know now. */
static bool removal_tell(struct removal *removal, uint32_t mount, uint64_t addr, uint64_t len)
{
	if (removal_ask(mount, WPFS_OP_REMOVING, addr, len) < 0) {
		removal->untold = true;
		return false;
	}
	/* Another daemon than the one that was told of the piece before: it has not heard of that.
	 */
	if (removal->cookies[mount] && removal->cookies[mount] != shim.mounts[mount].cookie)
		removal->untold = true;
	removal->cookies[mount] = shim.mounts[mount].cookie;
	return true;
}

/* What is known there of the mount that does not answer, or which files these may be. */
static void removal_untold(uint32_t mount, uint64_t addr, uint64_t end)
{
	struct range piece;

	if (!ranges_whole(addr, end))
		untold_count_unknown_drop();
	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end) {
		if (piece.mount == mount)
			untold_count(&shim.mounts[mount], piece.ino | WPFS_UNTOLD_DROPPED);
	}
}

static bool removal_knows(uint32_t mount, uint64_t addr, uint64_t end)
{
	struct range piece;

	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end) {
		if (piece.mount == mount)
			return true;
	}
	return false;
}

static bool mount_is_there(const struct mount *mount)
{
	return mount->state == MOUNT_ATTACHED || mount->state == MOUNT_FORKED;
}

/*
 * Before the call, under the lock. Of all of it each mount is told: what is not known here may be
 * a mapping that was made past us.
 */
static void removal_begin(struct removal *removal, uint64_t addr, uint64_t len)
{
	uint64_t end = addr + page_align_up(len);

	if (!mapping_span_valid(addr, len))
		return; /* nor does the kernel take it */
	for (uint32_t i = 0; i < SHIM_MOUNTS && shim.mounts[i].state != MOUNT_NONE; i++) {
		if ((mount_is_there(&shim.mounts[i]) || removal_knows(i, addr, end)) &&
		    !removal_tell(removal, i, addr, end - addr))
			removal_untold(i, addr, end);
	}
}

/* The call has been made. False: not all that were told know that it was to come. */
static bool removal_over(const struct removal *removal)
{
	const struct wpfs_map nothing = {0};
	bool known = !removal->untold;

	for (uint32_t i = 0; i < SHIM_MOUNTS; i++) {
		if (!removal->cookies[i])
			continue;
		mount_tell(&shim.mounts[i], WPFS_OP_ANNOUNCE, &nothing, sizeof(nothing));
		known &= shim.mounts[i].cookie == removal->cookies[i] &&
			 atomic_load(&shim.mounts[i].sock) >= 0;
	}
	return known;
}

/* All at once: of what has been done. */
static bool removal_told(uint64_t addr, uint64_t len)
{
	struct removal removal = {0};

	removal_begin(&removal, addr, len);
	return removal_over(&removal);
}

/* ENOMEM says that there are holes in it; what is around them went all the same. */
static bool removal_was_done(long ret)
{
	return ret == 0 || ret == -ENOMEM;
}

/* Before and after it where nobody knows: it is found out at the next look. */
static void count_removed(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + page_align_up(len);
	struct range piece;
	bool whole = true;

	while (addr < end && ranges_peek(addr, end, &piece) > 0) {
		untold_count(&shim.mounts[piece.mount], piece.ino | WPFS_UNTOLD_DROPPED);
		whole &= piece.start == addr;
		addr = piece.end;
	}
	if (!whole || addr < end)
		untold_count_unknown_drop();
}

/* What the kernel alone does. The lock is taken over. */
static long remove_told(uint64_t addr, uint64_t len, const struct shim_guard *guard)
{
	struct removal removal = {0};
	bool known;
	long ret;

	removal_begin(&removal, addr, len);
	shim_lock_waits(true);
	ret = raw(madvise, addr, len, MADV_REMOVE);
	shim_lock_waits(false);
	known = removal_over(&removal);
	if (!known && removal_was_done(ret))
		known = removal_told(addr, len);
	shim_unlock(guard);
	if (!known) /* the next daemon has had the count, and may have begun an epoch since */
		count_removed(addr, len);
	return ret;
}

/* ---- capped mounts ---- */

static bool is_capped(uint32_t mount)
{
	return shim.mounts[mount].kind == WPFS_KIND_CAPPED &&
	       atomic_load(&shim.mounts[mount].was_attached);
}

static bool capped_any(void)
{
	bool any = false;

	for (uint32_t i = 0; i < SHIM_MOUNTS; i++)
		any |= is_capped(i);
	return any;
}

/* Of one range that is known, or nothing is known of it. */
struct part {
	uint64_t start, end;
	bool known;
	struct range range;
};

static struct part part_next(uint64_t at, uint64_t end)
{
	struct part part = {.start = at, .end = end};

	if (ranges_peek(at, end, &part.range) <= 0)
		return part;
	part.known = part.range.start == at;
	part.end = part.known ? part.range.end : part.range.start;
	return part;
}

/* May there be pages of it in the store? While a uffd of the program has it there are none. */
static bool part_is_stored(const struct part *part)
{
	return part->known && is_capped(part->range.mount) && !part->range.own;
}

/* MADV_COLD says EINVAL of a locked mapping, and does nothing that matters to pages that go. */
static bool part_is_locked(const struct part *part)
{
	long ret = raw(madvise, part->start, part->end - part->start, MADV_COLD);

	return !removal_was_done(ret);
}

/* What a daemon says to REMOVE; 0 also if none is to be asked, or none answers. Under the lock. */
static int part_ask(const struct part *part)
{
	uint64_t len = part->end - part->start;

	if ((part->known && !is_capped(part->range.mount)) || part_is_locked(part))
		return 0;
	for (uint32_t i = 0; i < SHIM_MOUNTS; i++) {
		int status = 0;

		if (is_capped(i) &&
		    (part->known ? part->range.mount == i : mount_is_there(&shim.mounts[i])))
			status = removal_ask(i, WPFS_OP_REMOVE, part->start, len);
		if (status > 0)
			return status;
	}
	return 0;
}

/* `bring` is the advice that brings pages back, 0: none does. Twice, should one leave just then. */
static long chunk_remove(uint64_t at, uint64_t len, int bring)
{
	long ret = raw(madvise, at, len, MADV_REMOVE);

	for (int i = 0; ret == 0 && bring && i < 2; i++) {
		raw(madvise, at, len, bring);
		raw(madvise, at, len, MADV_REMOVE);
	}
	return ret;
}

/* Where the kernel stops in a chunk is found page by page. */
static long chunk_remove_some(uint64_t at, uint64_t len, int bring)
{
	long ret = chunk_remove(at, len, bring), all = 0;

	if (ret == 0)
		return 0;
	for (uint64_t end = at + len; at < end; at += SHIM_PAGE_SIZE) {
		ret = chunk_remove(at, SHIM_PAGE_SIZE, bring);
		if (!removal_was_done(ret))
			return ret;
		all = ret ? ret : all;
	}
	return all;
}

/*
 * What is mapped without access cannot be brought back through that mapping: the daemon takes it
 * out, which may be asked now, as the kernel has. If there is none, the next one, as a touch would
 * wait for it.
 */
static void part_remove_unreadable(const struct part *part)
{
	const struct __kernel_timespec nap = {.tv_nsec = AGAIN_NS};
	struct mount *mount = &shim.mounts[part->range.mount];
	struct shim_guard guard;
	bool again = true;

	while (again && shim_lock(&guard)) {
		int ret = removal_ask(part->range.mount, WPFS_OP_REMOVE, part->start,
				      part->end - part->start);

		again = ret < 0 && mount_is_there(mount) && mount_err_passes(mount, ret);
		shim_unlock(&guard);
		if (again)
			raw(nanosleep, &nap, NULL);
	}
}

/* By the kernel, and then what was in the store. No lock: it may wait for the daemon. */
static long part_remove(const struct part *part)
{
	const uint32_t prot = part->range.prot;
	const int bring = prot & PROT_READ    ? MADV_POPULATE_READ
			  : prot & PROT_WRITE ? MADV_POPULATE_WRITE
					      : 0;
	long ret = 0, all = 0;

	if (!part_is_stored(part))
		return raw(madvise, part->start, part->end - part->start, MADV_REMOVE);
	for (uint64_t at = part->start, len; at < part->end; at += len) {
		len = part->end - at < CHUNK_BYTES ? part->end - at : CHUNK_BYTES;
		ret = chunk_remove_some(at, len, bring);
		if (!removal_was_done(ret))
			return ret;
		all = ret ? ret : all;
	}
	if (!bring)
		part_remove_unreadable(part);
	return all;
}

/* Nobody can be told. */
static long remove_untold(uint64_t addr, uint64_t len)
{
	uint64_t at = addr, end = addr + page_align_up(len);
	long ret = 0, all = 0;

	count_removed(addr, len);
	while (at < end && removal_was_done(ret)) {
		struct part part = part_next(at, end);

		if (!capped_any())
			part = (struct part){.start = at, .end = end};
		ret = part_remove(&part);
		all = ret ? ret : all;
		at = part.end;
	}
	count_removed(addr, len);
	return all;
}

/* One part, and in any case some of [addr, end): *stop. */
static long remove_next(uint64_t addr, uint64_t end, uint64_t *stop)
{
	struct removal removal = {0};
	struct shim_guard guard;
	struct part part;
	int status;
	bool known;
	long ret;

	*stop = end;
	if (!shim_lock(&guard))
		return remove_untold(addr, end - addr);
	part = part_next(addr, end);
	*stop = part.end;
	status = part_ask(&part);
	if (status == 1) {
		shim_unlock(&guard);
		return 0;
	}
	if (status == 2 || !part_is_stored(&part))
		return remove_told(part.start, part.end - part.start, &guard);
	removal_begin(&removal, part.start, part.end - part.start);
	shim_unlock(&guard);
	ret = part_remove(&part);
	/* Other threads may have said something meanwhile, and an epoch have begun. */
	known = shim_lock(&guard);
	if (known) {
		known = removal_told(part.start, part.end - part.start);
		shim_unlock(&guard);
	}
	if (!known)
		count_removed(part.start, part.end - part.start);
	return ret;
}

long map_remove(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + page_align_up(len);
	struct shim_guard guard;
	long ret = 0, all = 0;

	if (!mapping_span_valid(addr, len))
		return raw(madvise, addr, len, MADV_REMOVE);
	if (!capped_any())
		return shim_lock(&guard) ? remove_told(addr, len, &guard)
					 : remove_untold(addr, len);
	while (addr < end && removal_was_done(ret)) {
		ret = remove_next(addr, end, &addr);
		all = ret ? ret : all;
	}
	return all;
}

/* ---- process_madvise(2) ---- */

/* What it was given: that may be in the memory that goes. */
struct removal_list {
	const struct iovec *vec;
	size_t nr, nr_kept;
	struct iovec *kept; /* the first ones */
	struct iovec few[LIST_KEPT];
};

static void list_free(struct removal_list *list)
{
	if (list->kept != list->few)
		raw(munmap, list->kept, list->nr * sizeof(*list->kept));
}

/*
 * False: the kernel refuses it as a whole, and may say so itself. Whether it can be read the kernel
 * says of advice that there is not, with EINVAL. Under a filter no memory may be asked for.
 */
static bool list_read(struct removal_list *list, int pidfd, const struct iovec *vec, size_t nr)
{
	long mem;

	list->vec = vec;
	list->nr = nr;
	list->nr_kept = nr < LIST_KEPT ? nr : LIST_KEPT;
	list->kept = list->few;
	if (nr > IOV_MAX || raw(process_madvise, pidfd, vec, nr, MADV_NONE_SUCH, 0) != -EINVAL)
		return false;
	for (size_t i = 0; i < nr; i++) {
		if ((ssize_t)vec[i].iov_len < 0)
			return false;
	}
	if (nr > LIST_KEPT && !filtered()) {
		mem = raw(mmap, NULL, nr * sizeof(*vec), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (!raw_failed(mem)) {
			list->kept = (struct iovec *)mem;
			list->nr_kept = nr;
		}
	}
	for (size_t i = 0; i < list->nr_kept; i++)
		list->kept[i] = vec[i];
	return true;
}

/* One by one, as the kernel would: how many bytes, or why not one of them. */
static long list_remove(const struct removal_list *list)
{
	uint64_t total = 0;

	for (size_t i = 0; i < list->nr; i++) {
		const struct iovec one = i < list->nr_kept ? list->kept[i] : list->vec[i];
		uint64_t len =
			one.iov_len < MAX_RW_COUNT - total ? one.iov_len : MAX_RW_COUNT - total;
		long ret = len ? map_remove((uint64_t)one.iov_base, len) : 0;

		if (ret)
			return total ? (long)total : ret;
		total += len;
	}
	return (long)total;
}

static long remove_untold_all(int pidfd, const struct iovec *vec, size_t nr)
{
	long ret;

	untold_count_unknown_drop(); /* the list is in memory that may not be read */
	ret = raw(process_madvise, pidfd, vec, nr, MADV_REMOVE, 0);
	untold_count_unknown_drop();
	return ret;
}

long map_remove_all(int pidfd, const struct iovec *vec, size_t nr, unsigned flags)
{
	struct removal removal = {0};
	struct removal_list list;
	struct shim_guard guard;
	struct iovec one;
	bool known;
	long ret;

	/* Of another process's memory, or by an old kernel, nothing goes: that it says at once. */
	if (flags || raw(process_madvise, pidfd, vec, 0, MADV_REMOVE, 0) != 0)
		return raw(process_madvise, pidfd, vec, nr, MADV_REMOVE, flags);
	if (capped_any() && list_read(&list, pidfd, vec, nr)) {
		ret = list_remove(&list);
		list_free(&list);
		return ret;
	}
	if (!shim_lock(&guard))
		return remove_untold_all(pidfd, vec, nr);
	for (size_t i = 0; i < nr && i < IOV_MAX; i++) {
		if (!raw_peek(&vec[i], &one, sizeof(one))) {
			removal.untold = true;
			untold_count_unknown_drop();
			break;
		}
		removal_begin(&removal, (uint64_t)one.iov_base, one.iov_len);
	}
	shim_lock_waits(true);
	ret = raw(process_madvise, pidfd, vec, nr, MADV_REMOVE, 0);
	shim_lock_waits(false);
	known = removal_over(&removal);
	shim_unlock(&guard);
	if (!known)
		untold_count_unknown_drop(); /* the list may have been in what went */
	return ret;
}
