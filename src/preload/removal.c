/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * MADV_REMOVE: contents that go while their mapping and its marks stay. No page table tells of it,
 * and of a capped mount's pages the kernel knows only those that are in memory.
 */
#include "preload/map.h"

#include <errno.h>
#include <limits.h>
#include <linux/mman.h>

#include "preload/attach.h"
#include "preload/mapping.h"
#include "preload/untold.h"

#define UNASKED_BYTES  ((uint64_t)1 << 20)
/* More than that process_madvise(2) does not do at once, without a word. */
#define MAX_RW_COUNT   ((uint64_t)INT_MAX & ~(uint64_t)(SHIM_PAGE_SIZE - 1))
#define LIST_KEPT      64
#define MADV_NONE_SUCH (-1)

/*
 * Contents that go keep their marks: the daemons are asked first, and may make an epoch end between
 * that and the call. Each counts what was to go as changed in the next one too, until it hears of
 * something else; one that was started meanwhile has to be asked again.
 */
struct removal {
	uint64_t cookies[SHIM_MOUNTS]; /* of the daemons that were asked; 0: none was */
	bool untold;
};

/* Asks one of the mounts. False: it does not know now. */
static bool removal_ask(struct removal *removal, uint32_t mount, uint64_t addr, uint64_t len)
{
	struct wpfs_range body = {.addr = addr, .len = len};
	int status = 0;

	if (mount_call(&shim.mounts[mount], WPFS_OP_REMOVE, &body, sizeof(body), NULL, &status,
		       NULL, 0, NULL) != 0 ||
	    status < 0) {
		removal->untold = true;
		return false;
	}
	/* Another daemon than the one that was asked of the piece before: it has not heard of that.
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
 * Before the call, under the lock. Of all of it each mount is asked: what is not known here may be
 * a mapping that was made past us.
 */
static void removal_begin(struct removal *removal, uint64_t addr, uint64_t len)
{
	uint64_t end = addr + page_align_up(len);

	if (!mapping_span_valid(addr, len))
		return; /* nor does the kernel take it */
	for (uint32_t i = 0; i < SHIM_MOUNTS && shim.mounts[i].state != MOUNT_NONE; i++) {
		if ((mount_is_there(&shim.mounts[i]) || removal_knows(i, addr, end)) &&
		    !removal_ask(removal, i, addr, end - addr))
			removal_untold(i, addr, end);
	}
}

/* The call has been made. False: not all that were asked know that it was to come. */
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

static bool capped_is_there(void)
{
	for (uint32_t i = 0; i < SHIM_MOUNTS; i++) {
		if (mount_is_there(&shim.mounts[i]) && shim.mounts[i].kind == WPFS_KIND_CAPPED)
			return true;
	}
	return false;
}

/*
 * The daemon of a capped mount takes out what it is asked about, in the store too. So it may only
 * be asked of what the kernel takes out for sure: nothing that is not writable now, nor locked, nor
 * beside something else, which may be refused. Of a locked mapping MADV_COLD says EINVAL, and does
 * nothing else that matters to pages that go.
 */
static bool removal_is_sure(uint64_t addr, uint64_t len)
{
	uint64_t at = addr, end = addr + page_align_up(len);
	struct range piece;
	long ret;

	if (!mapping_span_valid(addr, len) || !capped_is_there())
		return true; /* nothing is asked, or nothing is taken out */
	if (ranges_overlap(addr, end - addr) && !ranges_whole(addr, end))
		return false;
	for (; at < end && ranges_next(at, end, &piece); at = piece.end) {
		if (!(piece.prot & PROT_WRITE))
			return false;
	}
	ret = raw(madvise, addr, len, MADV_COLD);
	return ret == 0 || ret == -ENOMEM;
}

/* Before and after it where nothing may be asked: it is found out at the next look. */
static void count_removed(uint64_t addr, uint64_t len)
{
	uint64_t end = addr + page_align_up(len);
	struct range piece;
	bool whole = true;

	if (!mapping_span_valid(addr, len))
		return;
	while (addr < end && ranges_peek(addr, end, &piece) > 0) {
		untold_count(&shim.mounts[piece.mount], piece.ino | WPFS_UNTOLD_DROPPED);
		whole &= piece.start == addr;
		addr = piece.end;
	}
	if (!whole || addr < end)
		untold_count_unknown_drop();
}

/* ENOMEM says that there are holes in it; what is around them went all the same. */
static bool removal_was_done(long ret)
{
	return ret == 0 || ret == -ENOMEM;
}

/*
 * What is mapped without access cannot be brought back through that mapping: the daemon takes it
 * out of the store. That may be asked now, as the kernel has taken it out.
 */
static void remove_unreadable(uint64_t addr, uint64_t end)
{
	struct removal removal = {0};
	struct shim_guard guard;
	struct range piece;

	if (!shim_lock(&guard))
		return;
	for (; addr < end && ranges_next(addr, end, &piece); addr = piece.end) {
		if (shim.mounts[piece.mount].kind == WPFS_KIND_CAPPED &&
		    !(piece.prot & (PROT_READ | PROT_WRITE)))
			removal_ask(&removal, piece.mount, piece.start, piece.end - piece.start);
	}
	removal_over(&removal);
	shim_unlock(&guard);
}

/*
 * Of a capped mount pages may be in the store, which nobody can be told of here: they come back,
 * and go as the others did. Twice, should one leave just then. A page behind the end of the file
 * cannot come, nor those after it. After the call itself: `ret` says whether the kernel took all of
 * it out, and what it refuses must not go.
 */
static void remove_unasked(uint64_t addr, uint64_t len, long ret)
{
	uint64_t first = addr, end = addr + page_align_up(len);
	bool unreadable = false;
	struct range piece;

	if (!removal_was_done(ret) || !mapping_span_valid(addr, len))
		return;
	for (; addr < end && ranges_peek(addr, end, &piece) > 0; addr = piece.end) {
		int bring = piece.prot & PROT_READ ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;

		if (shim.mounts[piece.mount].kind != WPFS_KIND_CAPPED)
			continue;
		if (!(piece.prot & (PROT_READ | PROT_WRITE))) {
			unreadable = true;
			continue;
		}
		for (uint64_t at = piece.start, nr; at < piece.end; at += nr) {
			nr = piece.end - at < UNASKED_BYTES ? piece.end - at : UNASKED_BYTES;
			for (int i = 0; i < 2; i++) {
				raw(madvise, at, nr, bring);
				raw(madvise, at, nr, MADV_REMOVE);
			}
		}
	}
	if (unreadable)
		remove_unreadable(first, end);
}

static long remove_untold(uint64_t addr, uint64_t len)
{
	long ret;

	count_removed(addr, len);
	ret = raw(madvise, addr, len, MADV_REMOVE);
	remove_unasked(addr, len, ret);
	count_removed(addr, len);
	return ret;
}

long map_remove(uint64_t addr, uint64_t len)
{
	struct removal removal = {0};
	struct shim_guard guard;
	bool known;
	long ret;

	if (!shim_lock(&guard))
		return remove_untold(addr, len);
	if (!removal_is_sure(addr, len)) {
		shim_unlock(&guard);
		return remove_untold(addr, len);
	}
	removal_begin(&removal, addr, len);
	shim_lock_waits(true);
	ret = raw(madvise, addr, len, MADV_REMOVE);
	shim_lock_waits(false);
	known = removal_over(&removal);
	if (!known && removal_was_done(ret)) {
		removal = (struct removal){0};
		removal_begin(&removal, addr, len);
		known = removal_over(&removal);
	}
	shim_unlock(&guard);
	if (!known) {
		/* Waits for the next daemon, as a touch would; which has had the count, and may
		 * have begun an epoch since. */
		remove_unasked(addr, len, ret);
		count_removed(addr, len);
	}
	return ret;
}

/* What process_madvise(2) was given: it may be in the memory that goes. */
struct removal_list {
	const struct iovec *vec;
	size_t nr, nr_kept;
	struct iovec kept[LIST_KEPT]; /* the first ones */
};

/*
 * Before the call. Under a filter no other call may be made to see whether the list can be read:
 * for advice that there is not the kernel reads it, and says EINVAL.
 */
static void list_keep(struct removal_list *list, int pidfd, const struct iovec *vec, size_t nr,
		      unsigned flags)
{
	list->vec = vec;
	list->nr = nr;
	list->nr_kept = 0;
	if (nr > IOV_MAX || flags ||
	    raw(process_madvise, pidfd, vec, nr, MADV_NONE_SUCH, flags) != -EINVAL)
		return;
	for (; list->nr_kept < nr && list->nr_kept < LIST_KEPT; list->nr_kept++) {
		if ((ssize_t)vec[list->nr_kept].iov_len < 0) /* it has read no further */
			break;
		list->kept[list->nr_kept] = vec[list->nr_kept];
	}
}

/* Of the first `removed` bytes of the list, which the kernel has just read. */
static void remove_unasked_all(const struct removal_list *list, long removed)
{
	for (size_t i = 0; i < list->nr && removed > 0; i++) {
		const struct iovec one = i < list->nr_kept ? list->kept[i] : list->vec[i];
		size_t len = one.iov_len < (size_t)removed ? one.iov_len : (size_t)removed;

		remove_unasked((uint64_t)one.iov_base, len, 0);
		removed -= (long)len;
	}
}

static long remove_untold_all(int pidfd, const struct iovec *vec, size_t nr, unsigned flags)
{
	struct removal_list list;
	long ret;

	list_keep(&list, pidfd, vec, nr, flags);
	untold_count_unknown_drop(); /* the list is in memory that may not be read */
	ret = raw(process_madvise, pidfd, vec, nr, MADV_REMOVE, flags);
	remove_unasked_all(&list, ret);
	untold_count_unknown_drop();
	return ret;
}

/*
 * As removal_is_sure(), of all: nothing of it goes if the kernel refuses the list. Of that it reads
 * nothing after it has taken the first one out of the memory that the list is in.
 */
static bool removal_is_sure_all(const struct iovec *vec, size_t nr)
{
	bool whole = true, ours = false;
	uint64_t total = 0;
	struct iovec one;

	if (!capped_is_there())
		return true;
	if (nr > IOV_MAX || ranges_overlap((uint64_t)vec, nr * sizeof(*vec)))
		return false;
	for (size_t i = 0; i < nr; i++) {
		uint64_t addr;

		if (!raw_peek(&vec[i], &one, sizeof(one)) || one.iov_len > MAX_RW_COUNT - total)
			return false;
		total += one.iov_len;
		addr = (uint64_t)one.iov_base;
		if (one.iov_len && !mapping_span_valid(addr, one.iov_len))
			return false;
		if (!removal_is_sure(addr, one.iov_len))
			return false;
		ours |= one.iov_len && ranges_overlap(addr, page_align_up(one.iov_len));
		whole &= one.iov_len && ranges_whole(addr, addr + page_align_up(one.iov_len));
	}
	return whole || !ours;
}

long map_remove_all(int pidfd, const struct iovec *vec, size_t nr, unsigned flags)
{
	struct removal removal = {0};
	struct removal_list list;
	struct shim_guard guard;
	struct iovec one;
	bool known;
	long ret;

	if (!shim_lock(&guard))
		return remove_untold_all(pidfd, vec, nr, flags);
	/* Of another process's memory, or by an old kernel, nothing goes: that it says at once. */
	if (raw(process_madvise, pidfd, vec, 0, MADV_REMOVE, flags) != 0 ||
	    !removal_is_sure_all(vec, nr)) {
		shim_unlock(&guard);
		return remove_untold_all(pidfd, vec, nr, flags);
	}
	for (size_t i = 0; i < nr && i < IOV_MAX; i++) {
		if (!raw_peek(&vec[i], &one, sizeof(one))) {
			removal.untold = true;
			untold_count_unknown_drop();
			break;
		}
		removal_begin(&removal, (uint64_t)one.iov_base, one.iov_len);
	}
	list_keep(&list, pidfd, vec, nr, flags);
	shim_lock_waits(true);
	ret = raw(process_madvise, pidfd, vec, nr, MADV_REMOVE, flags);
	shim_lock_waits(false);
	known = removal_over(&removal);
	shim_unlock(&guard);
	if (!known) {
		remove_unasked_all(&list, ret);
		untold_count_unknown_drop(); /* the list may have been in what went */
	}
	return ret;
}
