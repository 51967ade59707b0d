/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Contents that go while their marks stay: punched, truncated, taken out by MADV_REMOVE. No page
 * table tells of it, so it is told before it is done, and committed: a daemon that is killed in the
 * midst of it leaves a page that is dirty and perhaps as it was, never one that is neither.
 *
 * An epoch may begin between the telling and the deed. So what is about to go is noted until it is
 * over, and what is armed meanwhile is dirty from the beginning.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <utlist.h>

#include "base/log.h"
#include "base/units.h"
#include "fs/store.h"
#include "track/capped_test.h"
#include "track/residency.h"
#include "uffd/maps.h"

/* What a program's madvise(2) is about to take out; over with its next message. */
struct removal {
	struct fs_drop drop;
	struct removal *next;
};

void drops_add(struct track *t, struct fs_drop *drop)
{
	pthread_mutex_lock(&t->drops_lock);
	DL_APPEND(t->drops, drop);
	pthread_mutex_unlock(&t->drops_lock);
}

void drops_remove(struct track *t, struct fs_drop *drop)
{
	pthread_mutex_lock(&t->drops_lock);
	if (drop->prev)
		DL_DELETE(t->drops, drop);
	pthread_mutex_unlock(&t->drops_lock);
}

/* The pages of which a byte goes: each has other contents then. */
static void drops_pages(uint64_t off, uint64_t len, uint64_t *first, uint64_t *nr)
{
	uint64_t end = len ? (off + len + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT : MM_PGOFF_MAX;

	*first = off >> WPFS_PAGE_SHIFT;
	*nr = end > *first ? end - *first : 0;
}

/* Has a message come after that madvise(2)? */
static bool drops_are_over(const struct tmm *tm)
{
	_Alignas(8) char packet[sizeof(struct wpfs_hdr) + sizeof(struct wpfs_map)];

	return tm->client && !tm->client->closing &&
	       client_peek_map(tm->client, packet, sizeof(packet));
}

int drops_under_way(struct track *t, uint64_t ino, const struct mm_set *armed, struct mm_set *set)
{
	struct fs_drop *drop;
	struct tmm *tm;
	int r = 0;

	DL_FOREACH (t->tmms, tm) {
		if (tm->removals && drops_are_over(tm))
			drops_removed(t, tm);
	}
	pthread_mutex_lock(&t->drops_lock);
	DL_FOREACH (t->drops, drop) {
		uint64_t first, nr;

		drops_pages(drop->off, drop->len, &first, &nr);
		if (r == 0 && drop->ino == ino && nr)
			r = mm_set_or_range(set, armed, first, nr);
	}
	pthread_mutex_unlock(&t->drops_lock);
	return r;
}

static uint64_t drops_file_dirty(const struct mm_file *f)
{
	return mm_set_count(&f->own[MM_WPFS].dirty) + mm_set_count(&f->own[MM_PROGRAM].dirty);
}

int drops_tell(struct track *t, uint64_t ino, uint64_t off, uint64_t len)
{
	uint64_t first, nr;
	struct tmm *tm;
	int result = 0;

	drops_pages(off, len, &first, &nr);
	DL_FOREACH (t->tmms, tm) {
		struct mm_file *f = mm_file_find(&tm->mm, ino);
		uint64_t before = f ? drops_file_dirty(f) : 0;
		int r;

		if (!f || !nr)
			continue;
		r = mm_drop(&tm->mm, ino, first, nr);
		/* The drop leaves the mark where it is: only this set remembers. */
		if (r == 0 && tm->state != TMM_NEW && drops_file_dirty(f) != before)
			r = persist_mm(t, tm);
		if (r < 0 && result == 0)
			result = r;
	}
	if (result < 0)
		log_err("track: cannot store what was dropped of file %llu: %s",
			(unsigned long long)ino, log_errstr(result));
	return result;
}

/* ---- MADV_REMOVE ---- */

void drops_removed(struct track *t, struct tmm *tm)
{
	while (tm->removals) {
		struct removal *removal = tm->removals;

		tm->removals = removal->next;
		fs_store_cut(t->config.fs, removal->drop.ino);
		drops_remove(t, &removal->drop);
		free(removal);
	}
}

/* One for each file: whoever asks for ranges without end costs no more. */
static int drops_note_removal(struct track *t, struct tmm *tm, uint64_t ino, uint64_t off,
			      uint64_t len)
{
	struct removal *removal;

	LL_SEARCH_SCALAR(tm->removals, removal, drop.ino, ino);
	if (removal) {
		uint64_t end = removal->drop.off + removal->drop.len;

		drops_remove(t, &removal->drop);
		if (end < off + len)
			end = off + len;
		if (removal->drop.off > off)
			removal->drop.off = off;
		removal->drop.len = end - removal->drop.off;
	} else {
		removal = calloc(1, sizeof(*removal));
		if (!removal)
			return -ENOMEM;
		removal->drop = (struct fs_drop){.ino = ino, .off = off, .len = len};
		LL_PREPEND(tm->removals, removal);
	}
	drops_add(t, &removal->drop);
	return 0;
}

/* May the program write what it has mapped at `addr`, once it has called mprotect(2)? */
static bool drops_may_write(struct track *t, struct tmm *tm, uint64_t file, uint64_t addr)
{
	struct maps_list maps = {0};
	uint8_t *modes = NULL;
	bool may = false;

	if (maps_read(tmm_pid(tm), t->devs, t->nr_devs, &maps) == 0)
		modes = calloc(maps.nr + 1, 1);
	if (modes && maps_read_uffd(tmm_pid(tm), &maps, modes) == 0) {
		for (size_t i = 0; i < maps.nr; i++) {
			const struct maps_vma *vma = &maps.vmas[i];
			struct mm_vma shown = {.dev = vma->dev, .file = vma->ino};

			residency_translate(t, &shown, 1);
			may |= vma->shared && vma->start <= addr && addr < vma->end &&
			       shown.file == file && modes[i] & MAPS_MAY_WRITE;
		}
	}
	free(modes);
	maps_free(&maps);
	return may;
}

/*
 * Is all of [start, end) this mount's, and would the kernel take it out? Not through a mapping that
 * cannot become writable: the program may have no right to that. So just these mappings go, and no
 * other look is had before: something else may be there by then. Whether it is locked the shim has
 * seen. *stored, *others: how many mappings show what may be in the store, or may not.
 */
static bool drops_are_sure(struct track *t, struct tmm *tm, uint64_t start, uint64_t end,
			   size_t *stored, size_t *others)
{
	*stored = *others = 0;
	for (size_t i = 0; start < end && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];
		int r;

		if (vma->end <= start)
			continue;
		if (vma->start > start ||
		    !(vma->prot & PROT_WRITE || drops_may_write(t, tm, vma->file, start)))
			return false;
		r = residency_may_leave(t, tm, vma);
		if (r < 0)
			return false;
		*stored += r > 0;
		*others += r == 0;
		start = vma->end;
	}
	return start >= end;
}

/* The status of a REMOVE. */
static int drops_answer(struct track *t, struct tmm *tm, uint64_t start, uint64_t end)
{
	size_t stored, others;

	if (!t->config.capped || !drops_are_sure(t, tm, start, end, &stored, &others))
		return 0;
	capped_test_point("sure");
	return !others ? 1 : !stored ? 2 : 0;
}

bool drops_come(struct track *t, uint64_t ino)
{
	struct removal *removal;
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		LL_SEARCH_SCALAR(tm->removals, removal, drop.ino, ino);
		/* Who has hung up was told nothing of pages that stay. */
		if (removal && tm->client && !client_is_hung_up(tm->client) && !drops_are_over(tm))
			return true;
	}
	return false;
}

static int drops_remove_part(struct track *t, struct tmm *tm, const struct mm_vma *vma,
			     uint64_t from, uint64_t to, bool now)
{
	uint64_t pgoff = vma->pgoff + ((from - vma->start) >> WPFS_PAGE_SHIFT);
	uint64_t nr = (to - from) >> WPFS_PAGE_SHIFT;
	uint64_t off = pgoff << WPFS_PAGE_SHIFT, len = nr << WPFS_PAGE_SHIFT;
	int r = now ? 0 : drops_note_removal(t, tm, vma->file, off, len);

	fs_store_cut(t->config.fs, vma->file);
	if (r == 0)
		r = drops_tell(t, vma->file, off, len);
	if (r < 0 || !now)
		return r;
	r = residency_remove(t, tm, vma->file, pgoff, nr);
	fs_store_cut(t->config.fs, vma->file);
	return r;
}

/* All that the mm's mappings show in [start, end): it goes, now or by the call that follows. */
static int drops_remove_shown(struct track *t, struct tmm *tm, uint64_t start, uint64_t end,
			      bool now)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t from = vma->start > start ? vma->start : start;
		uint64_t to = vma->end < end ? vma->end : end;

		if (from < to)
			r = drops_remove_part(t, tm, vma, from, to, now);
	}
	return r;
}

/* Is something of this mount mapped there? The shim asks also of mappings that it does not know. */
static bool drops_are_ours(struct track *t, struct tmm *tm, uint64_t start, uint64_t end)
{
	struct maps_list maps = {0};
	bool ours = maps_read(tmm_pid(tm), t->devs, t->nr_devs, &maps) < 0;

	for (size_t i = 0; i < maps.nr; i++)
		ours |= maps.vmas[i].start < end && start < maps.vmas[i].end;
	maps_free(&maps);
	return ours;
}

void drops_request(struct request *rq)
{
	const struct wpfs_range *range = rq->body;
	uint64_t end = range->addr + range->len;
	struct tmm *tm = rq->c->tmm;
	int status = 0, r = -EINVAL;

	if (mapping_aligned(range->addr, range->len)) {
		if (!drops_are_ours(rq->t, tm, range->addr, end)) {
			request_reply(rq, 0, NULL, 0);
			return;
		}
		r = tmm_harvest(rq->t, tm);
		if (r == 0 && rq->hdr->op == WPFS_OP_REMOVE)
			status = drops_answer(rq->t, tm, range->addr, end);
		if (r == 0)
			r = drops_remove_shown(rq->t, tm, range->addr, end, status == 1);
	}
	request_reply(rq, r < 0 ? r : status, NULL, 0);
}
