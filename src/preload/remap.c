/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mappings that change: moved, grown, shrunk. Marks move with an mremap by themselves, the witness
 * reads its event; the shim only keeps its own notes right, tells of what is new, and ends what
 * goes away.
 */
#include "preload/map.h"

#include <errno.h>
#include <linux/mman.h>

#include "preload/attach.h"
#include "preload/mapping.h"
#include "preload/several.h"
#include "preload/untold.h"

/*
 * [start, start + len) of what `from` was is new: grown, or a second mapping of the same. `fixed`:
 * other threads may have stored there by now, which MAP_FIXED tells the daemon.
 */
static void remap_grown(const struct range *from, uint64_t offset, uint64_t start, uint64_t len,
			bool fixed)
{
	struct mapping r;
	uint64_t armed;
	int err;

	mapping_of_range(from, &r);
	r.addr = start;
	r.len = len;
	r.off = offset;
	if (fixed)
		r.flags |= MAP_FIXED;
	err = mapping_tell(&r, start, start, false, &armed);
	if (err)
		mapping_untold(&r, start, err);
	else
		mapping_remember(&r, start);
}

/*
 * What is known in [old, old + len) is at `at` too. Of a userfaultfd of the program that has it the
 * registration has moved along only if it asked for that, which nobody here knows.
 */
static void remap_copy(uint64_t old, uint64_t len, uint64_t at)
{
	uint64_t from = old, end = old + len;
	struct range piece;

	for (; from < end && ranges_next(from, end, &piece); from = piece.end) {
		struct range moved = piece;

		moved.start = at + (piece.start - old);
		moved.end = at + (piece.end - old);
		moved.own = 0;
		ranges_add(&moved);
	}
}

/*
 * The table after a remap that went well; `piece`, or NULL, is what is known at `old`. Only one
 * mapping can grow, several can be moved at once (Linux 6.17).
 */
static void remap_done(const struct range *piece, uint64_t old, uint64_t old_len, uint64_t new_len,
		       int flags, uint64_t at)
{
	uint64_t kept = old_len < new_len ? old_len : new_len;

	if (at != old) {
		ranges_cut(at, new_len);
		remap_copy(old, kept, at);
	}
	if (old_len && at != old && !(flags & MREMAP_DONTUNMAP))
		ranges_cut(old, old_len);
	else if (at == old && kept < old_len)
		ranges_cut(old + kept, old_len - kept);
	if (piece && new_len > kept)
		remap_grown(piece, piece->offset + kept, at + kept, new_len - kept,
			    flags & MREMAP_FIXED);
}

/* One that failed: of several mappings the first ones may have moved all the same. */
static void remap_failed(uint64_t old, uint64_t len, uint64_t at)
{
	uint64_t from = old, end = old + len;
	struct range piece;

	for (; from < end && ranges_next(from, end, &piece); from = piece.end) {
		if (raw(msync, piece.start, piece.end - piece.start, MS_ASYNC) != -ENOMEM)
			continue;
		remap_copy(piece.start, piece.end - piece.start, at + (piece.start - old));
		ranges_cut(piece.start, piece.end - piece.start);
	}
}

/* Would mremap(2) refuse these for themselves? What it replaces must then stay as it is. */
static bool remap_valid(uint64_t old, uint64_t old_len, uint64_t new_len, int flags,
			uint64_t new_addr)
{
	bool fixed = flags & MREMAP_FIXED, keep = flags & MREMAP_DONTUNMAP;
	uint64_t span = page_align_up(old_len);

	if (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) ||
	    ((fixed || keep) && !(flags & MREMAP_MAYMOVE)) || (keep && old_len != new_len) ||
	    !mapping_span_valid(old, span ? span : SHIM_PAGE_SIZE) ||
	    !mapping_span_valid(old, new_len))
		return false;
	if (!fixed)
		return true;
	return mapping_span_valid(new_addr, new_len) &&
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
	      (fixed && ranges_overlap(new_addr, new_span))))
		return raw(mremap, old, old_len, new_len, flags, new_addr);
	if (!shim_lock(&guard)) {
		/* What is new is this program's too when a vfork child makes it. */
		if (new_span > old_span)
			untold_count_unknown();
		ret = raw(mremap, old, old_len, new_len, flags, new_addr);
		if (new_span > old_span)
			untold_count_unknown();
		return ret;
	}
	known = ranges_next(old, old + (old_span ? old_span : SHIM_PAGE_SIZE), &piece) &&
		piece.start == old;
	valid = remap_valid(old, old_len, new_len, flags, new_addr);
	if (valid && fixed)
		mapping_retire(new_addr, new_span);
	if (valid && known && old_span > new_span)
		mapping_retire(old + new_span, old_span - new_span);
	shim_lock_waits(true);
	ret = raw(mremap, old, old_len, new_len, flags, new_addr);
	if (ret == -EFAULT && valid && fixed && old_span == new_span)
		ret = several_move(old, old_span, flags, new_addr);
	shim_lock_waits(false);
	if (!raw_failed(ret)) {
		remap_done(known ? &piece : NULL, old, old_span, new_span, flags, (uint64_t)ret);
	} else if (valid) {
		if (fixed) {
			remap_failed(old, old_span, new_addr);
			mapping_bring_back(new_addr, new_span);
		}
		if (known && old_span > new_span)
			mapping_bring_back(old + new_span, old_span - new_span);
	}
	shim_unlock(&guard);
	return ret;
}

/* The other pages, which are without access until they are armed. */
static void file_pages_done(const struct range *piece, uint64_t len, uint64_t pgoff)
{
	struct mapping r;
	uint64_t armed;
	int err;

	mapping_of_range(piece, &r);
	r.len = len;
	r.off = pgoff * SHIM_PAGE_SIZE;
	err = mapping_tell(&r, r.addr, r.addr, false, &armed);
	if (err)
		mapping_untold(&r, r.addr, err);
	else
		mapping_remember(&r, r.addr);
	raw(mprotect, r.addr, len, r.prot);
}

/*
 * The kernel makes a new mapping in the place of the old one, with its rights: so those are taken
 * away before, and given back when it is armed.
 */
long map_file_pages(uint64_t addr, uint64_t len, int prot, uint64_t pgoff, int flags)
{
	uint64_t span =
		len & ~(uint64_t)(SHIM_PAGE_SIZE - 1); /* both are cut to pages, not errors */
	struct shim_guard guard;
	struct range piece;
	long ret;

	addr &= ~(uint64_t)(SHIM_PAGE_SIZE - 1);
	if (prot || addr + span <= addr || !ranges_overlap(addr, span))
		return raw(remap_file_pages, addr, len, prot, pgoff, flags);
	if (!shim_lock(&guard)) {
		untold_count_unknown();
		ret = raw(remap_file_pages, addr, len, prot, pgoff, flags);
		untold_count_unknown();
		return ret;
	}
	if (!ranges_whole(addr, addr + span) || !ranges_next(addr, addr + span, &piece)) {
		untold_count_unknown();
		ret = raw(remap_file_pages, addr, len, prot, pgoff, flags);
		untold_count_unknown();
		shim_unlock(&guard);
		return ret;
	}
	mapping_retire(addr, span);
	raw(mprotect, addr, span, PROT_NONE);
	shim_lock_waits(true);
	ret = raw(remap_file_pages, addr, len, prot, pgoff, flags);
	shim_lock_waits(false);
	if (ret == 0)
		file_pages_done(&piece, span, pgoff);
	else
		mapping_bring_back(addr, span);
	shim_unlock(&guard);
	return ret;
}

/* Only noted: what is retired for a call that then fails gets its rights back. */
long map_protect(uint64_t addr, uint64_t len, int prot)
{
	uint64_t span = page_align_up(len);
	struct shim_guard guard;
	long ret;

	if (!mapping_span_valid(addr, len) || !ranges_overlap(addr, span) || !shim_lock(&guard))
		return raw(mprotect, addr, len, prot);
	ret = raw(mprotect, addr, len, prot);
	if (ret == 0)
		ranges_protect(addr, span, (uint32_t)prot & (PROT_READ | PROT_WRITE | PROT_EXEC));
	shim_unlock(&guard);
	return ret;
}
