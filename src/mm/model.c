/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file entries of an mm, and what changes single pages or ranges of it. The harvest, which
 * compares two views of the whole mm, is in observe.c.
 */
#include "mm/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "mm/model_internal.h"

void mm_init(struct mm *mm)
{
	memset(mm, 0, sizeof(*mm));
}

void mm_vmas_free(struct mm_vma *vmas, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		mm_set_free(&vmas[i].marked);
	free(vmas);
}

static void file_free(struct mm *mm, struct mm_file *file)
{
	HASH_DEL(mm->files, file);
	for (int o = 0; o < MM_NR_OWNERS; o++) {
		mm_set_free(&file->own[o].armed);
		mm_set_free(&file->own[o].dirty);
	}
	free(file);
}

/* One that has ended is still known to have had mappings of the file. */
void mm_file_remove(struct mm *mm, struct mm_file *file)
{
	size_t kept = 0;

	for (size_t i = 0; i < mm->nr_vmas; i++) {
		if (mm->vmas[i].file == file->id)
			mm_set_free(&mm->vmas[i].marked);
		else
			mm->vmas[kept++] = mm->vmas[i];
	}
	mm->nr_vmas = kept;
	file_free(mm, file);
}

void mm_free(struct mm *mm)
{
	struct mm_file *file, *next;

	HASH_ITER (hh, mm->files, file, next)
		file_free(mm, file);
	mm_vmas_free(mm->vmas, mm->nr_vmas);
	mm_init(mm);
}

struct mm_file *mm_file_find(const struct mm *mm, uint64_t file)
{
	struct mm_file *found;

	HASH_FIND(hh, mm->files, &file, sizeof(file), found);
	return found;
}

struct mm_file *mm_file_get(struct mm *mm, uint64_t file)
{
	struct mm_file *f = mm_file_find(mm, file);

	if (f)
		return f;
	f = calloc(1, sizeof(*f));
	if (!f)
		return NULL;
	f->id = file;
	f->written = MM_WRITTEN_UNKNOWN;
	for (int o = 0; o < MM_NR_OWNERS; o++) {
		mm_set_init(&f->own[o].armed);
		mm_set_init(&f->own[o].dirty);
	}
	HASH_ADD(hh, mm->files, id, sizeof(f->id), f);
	return f;
}

/* What is armed in [pgoff, pgoff + nr) is dirty; *added (may be NULL) grows by the new ones. */
static int mm_owned_taint(struct mm_owned *own, uint64_t pgoff, uint64_t nr, uint64_t *added)
{
	uint64_t before = mm_set_count(&own->dirty);
	int r = mm_set_or_range(&own->dirty, &own->armed, pgoff, nr);

	if (added)
		*added += mm_set_count(&own->dirty) - before;
	return r;
}

/* Nothing in [pgoff, pgoff + nr) is armed any more. */
static int mm_owned_disarm(struct mm_owned *own, uint64_t pgoff, uint64_t nr)
{
	int r = mm_set_remove_range(&own->armed, pgoff, nr);

	return r < 0 ? r : mm_set_remove_range(&own->dirty, pgoff, nr);
}

int mm_zap(struct mm *mm, struct mm_file *file, enum mm_owner owner, uint64_t pgoff, uint64_t nr,
	   enum zap_reason why)
{
	struct mm_owned *own = &file->own[owner];

	switch (why) {
	case ZAP_DROP:
		/* The mark stays where it is: only this set remembers. */
		return mm_owned_taint(own, pgoff, nr, NULL);
	case ZAP_UNMAP:
		/* The program's are gone, as in the kernel. wpfs's are parked: armed still. */
		return owner == MM_PROGRAM ? mm_owned_disarm(own, pgoff, nr) : 0;
	case ZAP_UNSEEN:
		return owner == MM_PROGRAM ? mm_owned_disarm(own, pgoff, nr)
					   : mm_doubt(mm, file, pgoff, nr);
	case ZAP_LOST:
		/* Whether they were unmapped before is not known either. */
		return mm_owned_taint(own, pgoff, nr, &mm->conservative);
	}
	return -EINVAL;
}

int mm_carried_beside(const struct mm_vma *vmas, size_t nr_vmas, const struct mm_file *file,
		      uint64_t pgoff, uint64_t nr, struct mm_set *set)
{
	int r = mm_set_or_range(set, &file->own[MM_PROGRAM].armed, pgoff, nr);

	for (size_t i = 0; r == 0 && i < nr_vmas && !mm_set_is_empty(set); i++) {
		if (vmas[i].file == file->id && vmas[i].registered && vmas[i].owner == MM_PROGRAM)
			r = mm_set_remove_range(set, vmas[i].pgoff, mm_vma_pages(&vmas[i]));
	}
	return r;
}

int mm_carried(const struct mm *mm, const struct mm_file *file, uint64_t pgoff, uint64_t nr,
	       struct mm_set *set)
{
	_cleanup_set_ struct mm_set carried = {NULL};
	int r = mm_carried_beside(mm->vmas, mm->nr_vmas, file, pgoff, nr, &carried);

	if (r == 0)
		r = mm_set_andnot(&carried, &file->own[MM_PROGRAM].dirty);
	return r < 0 ? r : mm_set_or(set, &carried);
}

int mm_doubt_carried(struct mm *mm, struct mm_file *file, uint64_t pgoff, uint64_t nr)
{
	_cleanup_set_ struct mm_set carried = {NULL};
	int r;

	if (mm_set_is_empty(&file->own[MM_PROGRAM].armed))
		return 0;
	r = mm_carried(mm, file, pgoff, nr, &carried);
	if (r < 0)
		return r;
	mm->conservative += mm_set_count(&carried);
	return mm_set_or(&file->own[MM_PROGRAM].dirty, &carried);
}

int mm_carried_written(struct mm *mm, struct mm_file *file, const struct mm_set *set)
{
	_cleanup_set_ struct mm_set carried = {NULL};
	int r = mm_carried(mm, file, 0, MM_PGOFF_MAX, &carried);

	if (r == 0)
		r = mm_set_and(&carried, set);
	return r < 0 ? r : mm_set_or(&file->own[MM_PROGRAM].dirty, &carried);
}

int mm_doubt_armed(struct mm *mm, struct mm_file *file, uint64_t pgoff, uint64_t nr)
{
	return mm_owned_taint(&file->own[MM_WPFS], pgoff, nr, &mm->conservative);
}

int mm_doubt(struct mm *mm, struct mm_file *file, uint64_t pgoff, uint64_t nr)
{
	int r = mm_doubt_armed(mm, file, pgoff, nr);

	return r < 0 ? r : mm_doubt_carried(mm, file, pgoff, nr);
}

int mm_drop(struct mm *mm, uint64_t file, uint64_t pgoff, uint64_t nr)
{
	struct mm_file *f = mm_file_find(mm, file);

	if (!f)
		return 0;
	if (pgoff >= MM_PGOFF_MAX)
		return 0;
	if (nr > MM_PGOFF_MAX - pgoff)
		nr = MM_PGOFF_MAX - pgoff;
	for (int o = 0; o < MM_NR_OWNERS; o++) {
		int r = mm_zap(mm, f, (enum mm_owner)o, pgoff, nr, ZAP_DROP);

		if (r < 0)
			return r;
	}
	return 0;
}

int mm_file_lost(struct mm *mm, struct mm_file *file)
{
	int r = 0;

	for (int o = 0; r == 0 && o < MM_NR_OWNERS; o++)
		r = mm_zap(mm, file, (enum mm_owner)o, 0, MM_PGOFF_MAX, ZAP_LOST);
	return r;
}

int mm_lost(struct mm *mm)
{
	struct mm_file *f, *next;
	int r = 0;

	HASH_ITER (hh, mm->files, f, next) {
		if (r == 0)
			r = mm_file_lost(mm, f);
	}
	return r;
}

int mm_lost_registration(struct mm *mm)
{
	struct mm_file *f, *next;
	int r = 0;

	for (size_t i = 0; i < mm->nr_vmas; i++) {
		if (mm->vmas[i].owner != MM_WPFS)
			continue;
		mm_set_clear(&mm->vmas[i].marked);
		mm->vmas[i].registered = mm->vmas[i].async = false;
	}
	HASH_ITER (hh, mm->files, f, next) {
		if (r == 0)
			r = mm_doubt(mm, f, 0, MM_PGOFF_MAX);
	}
	return r;
}

void mm_forget_vmas(struct mm *mm)
{
	mm_vmas_free(mm->vmas, mm->nr_vmas);
	mm->vmas = NULL;
	mm->nr_vmas = 0;
}

bool mm_is_empty(const struct mm *mm)
{
	struct mm_file *f, *next;

	HASH_ITER (hh, mm->files, f, next) {
		for (int o = 0; o < MM_NR_OWNERS; o++) {
			if (!mm_set_is_empty(&f->own[o].armed))
				return false;
		}
	}
	return true;
}

/* Cuts vma i of the mm at `addr`, strictly inside it; the upper part becomes vma i + 1. */
static int mm_split(struct mm *mm, size_t i, uint64_t addr)
{
	struct mm_vma *bigger, *low, *high;
	uint64_t low_nr;
	int r;

	bigger = reallocarray(mm->vmas, mm->nr_vmas + 1, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	mm->vmas = bigger;
	low = &bigger[i];
	high = low + 1;
	memmove(high, low, (mm->nr_vmas - i) * sizeof(*bigger));
	low_nr = (addr - low->start) >> WPFS_PAGE_SHIFT;
	mm_set_init(&high->marked);
	r = mm_set_shift(&high->marked, &low->marked, -(int64_t)low_nr);
	if (r == 0)
		r = mm_set_remove_range(&low->marked, low_nr, MM_PGOFF_MAX - low_nr);
	if (r < 0) {
		mm_set_free(&high->marked);
		memmove(high, high + 1, (mm->nr_vmas - i - 1) * sizeof(*bigger));
		return r;
	}
	low->end = addr;
	high->start = addr;
	high->pgoff += low_nr;
	mm->nr_vmas++;
	return 0;
}

/* Cuts so that no VMA crosses `start` or `end`; gives the VMAs inside as [*first, *last). */
static int mm_cut(struct mm *mm, uint64_t start, uint64_t end, size_t *first, size_t *last)
{
	const uint64_t border[] = {start, end};

	for (int b = 0; b < 2; b++) {
		for (size_t i = 0; i < mm->nr_vmas; i++) {
			if (mm->vmas[i].start < border[b] && border[b] < mm->vmas[i].end) {
				int r = mm_split(mm, i, border[b]);

				if (r < 0)
					return r;
				break;
			}
		}
	}
	for (*first = 0; *first < mm->nr_vmas && mm->vmas[*first].start < start;)
		++*first;
	for (*last = *first; *last < mm->nr_vmas && mm->vmas[*last].end <= end;)
		++*last;
	return 0;
}

static void mm_remove_vmas(struct mm *mm, size_t first, size_t last)
{
	if (first == last)
		return;
	for (size_t i = first; i < last; i++)
		mm_set_free(&mm->vmas[i].marked);
	memmove(&mm->vmas[first], &mm->vmas[last], (mm->nr_vmas - last) * sizeof(*mm->vmas));
	mm->nr_vmas -= last - first;
}

/* What can never be written, and nobody watched, has no last stores. */
static int mm_unmap_vma(struct mm *mm, const struct mm_vma *vma, enum zap_reason why)
{
	struct mm_file *f = mm_file_find(mm, vma->file);
	enum mm_owner owner = vma->registered ? vma->owner : MM_WPFS;

	if (!f || vma->sealed)
		return 0;
	return mm_zap(mm, f, owner, vma->pgoff, mm_vma_pages(vma), why);
}

int mm_unmap(struct mm *mm, uint64_t start, uint64_t end, enum zap_reason why)
{
	size_t first, last;
	int r = mm_cut(mm, start, end, &first, &last);

	for (size_t i = first; r == 0 && i < last; i++)
		r = mm_unmap_vma(mm, &mm->vmas[i], why);
	if (r < 0)
		return r;
	mm_remove_vmas(mm, first, last);
	return 0;
}

int mm_map(struct mm *mm, struct mm_vma *vma)
{
	struct mm_vma *bigger;
	size_t i = 0;
	int r = mm_unmap(mm, vma->start, vma->end, ZAP_UNSEEN);

	if (r == 0 && !mm_file_get(mm, vma->file))
		r = -ENOMEM;
	bigger = r == 0 ? reallocarray(mm->vmas, mm->nr_vmas + 1, sizeof(*bigger)) : NULL;
	if (!bigger) {
		mm_set_free(&vma->marked);
		return r < 0 ? r : -ENOMEM;
	}
	mm->vmas = bigger;
	while (i < mm->nr_vmas && bigger[i].start < vma->start)
		i++;
	memmove(&bigger[i + 1], &bigger[i], (mm->nr_vmas - i) * sizeof(*bigger));
	bigger[i] = *vma;
	mm->nr_vmas++;
	/* Now: it may be gone again before a harvest sees it. */
	if (!vma->registered && !vma->sealed)
		return mm_doubt(mm, mm_file_find(mm, vma->file), vma->pgoff, mm_vma_pages(vma));
	return 0;
}

int mm_set_registered(struct mm *mm, uint64_t start, uint64_t end, bool registered,
		      enum mm_owner owner, bool async)
{
	size_t first, last;
	int r = mm_cut(mm, start, end, &first, &last);

	for (size_t i = first; r == 0 && i < last; i++) {
		struct mm_vma *vma = &mm->vmas[i];

		if (vma->registered && vma->owner == MM_PROGRAM &&
		    !(registered && owner == MM_PROGRAM))
			r = mm_unmap_vma(mm, vma, ZAP_UNSEEN);
		if (r < 0)
			return r;
		if (!registered)
			mm_set_clear(&vma->marked);
		vma->registered = registered;
		vma->owner = owner;
		vma->async = async;
	}
	return r;
}

int mm_plan_arm(const struct mm *mm, uint64_t file, bool fresh, uint64_t pgoff, uint64_t nr,
		struct mm_set *set)
{
	struct mm_file *f = mm_file_find(mm, file);
	int r;

	if (fresh)
		r = mm_set_add_range(set, pgoff, nr);
	else
		r = f ? mm_set_or_range(set, &f->own[MM_WPFS].armed, pgoff, nr) : 0;
	if (r == 0 && f)
		r = mm_set_andnot(set, &f->own[MM_WPFS].dirty);
	return r;
}

int mm_vma_shown(const struct mm_vma *vma, const struct mm_set *armed, struct mm_set *set)
{
	_cleanup_set_ struct mm_set shown = {NULL}, marked = {NULL};
	int r = mm_set_or_range(&shown, armed, vma->pgoff, mm_vma_pages(vma));

	if (r == 0)
		r = mm_set_shift(&marked, &vma->marked, (int64_t)vma->pgoff);
	if (r == 0)
		r = mm_set_andnot(&shown, &marked);
	return r < 0 ? r : mm_set_or(set, &shown);
}

int mm_shown_dirty(const struct mm *mm, const struct mm_file *file, enum mm_owner owner,
		   uint64_t start, uint64_t end, struct mm_set *set)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < mm->nr_vmas; i++) {
		const struct mm_vma *vma = &mm->vmas[i];

		if (vma->file == file->id && vma->registered && vma->owner == owner &&
		    start <= vma->start && vma->end <= end)
			r = mm_vma_shown(vma, &file->own[owner].armed, set);
	}
	return r;
}

int mm_fold_shown(struct mm *mm)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < mm->nr_vmas; i++) {
		const struct mm_vma *vma = &mm->vmas[i];
		struct mm_file *f = mm_file_find(mm, vma->file);

		if (f && vma->registered)
			r = mm_vma_shown(vma, &f->own[vma->owner].armed, &f->own[vma->owner].dirty);
	}
	return r;
}

const char *mm_check(const struct mm *mm)
{
	struct mm_file *f, *next;

	for (size_t i = 0; i < mm->nr_vmas; i++) {
		const struct mm_vma *vma = &mm->vmas[i];

		if (vma->start >= vma->end || (vma->start | vma->end) & (WPFS_PAGE_SIZE - 1))
			return "a mapping is empty or unaligned";
		if (i && mm->vmas[i - 1].end > vma->start)
			return "mappings overlap or are out of order";
		if (mm_set_count_range(&vma->marked, 0, mm_vma_pages(vma)) !=
		    mm_set_count(&vma->marked))
			return "a mark lies outside its mapping";
		if (!vma->registered && !mm_set_is_empty(&vma->marked))
			return "a mark without a registration";
	}
	HASH_ITER (hh, mm->files, f, next) {
		for (int o = 0; o < MM_NR_OWNERS; o++) {
			if (!mm_set_is_subset(&f->own[o].dirty, &f->own[o].armed))
				return "a page is dirty that was never armed";
		}
	}
	return NULL;
}
