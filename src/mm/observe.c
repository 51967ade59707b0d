/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A harvest's bookkeeping: the mm as it was known against the mm as the kernel shows it.
 *
 * 1. A registered piece still at its address, same file and offset, is the same mapping: only the
 *    daemon registers for owner wpfs, always asynchronously, so nobody else can have put such a
 *    one there.
 * 2. A known registered piece that is not there any more was moved (mremap) or unmapped. A
 *    registered piece that was not known before can only have been moved there. The two lists are
 *    matched by file, offset and kind of uffd, each new piece accounting for one old one. What is
 *    left of the old list was unmapped unseen: stores since the last harvest are unknown, so
 *    dirty. If the program has an asynchronous uffd of its own, new pieces that show pages of its
 *    mappings can be its, and when one of its left, old ones too: they count as the program's,
 *    until the next protect registers them and so finds out.
 * 3. What every mapping says now is folded into the sticky dirty sets, and before all what those
 *    cannot say that were not registered: everything armed in them. Under --protect a mapping that
 *    nobody was told of is armed here, all of it dirty. What the program carries from an earlier
 * run is dirty likewise where it is not marked, or not watched.
 *
 * All pieces are kept in arrays sorted as the VMAs are; matching 2 is quadratic in the number of
 * pieces that moved since the last harvest, which is small.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "mm/model.h"
#include "mm/model_internal.h"

/* A part of a VMA, in page offsets of its file. */
struct piece {
	uint64_t file, pgoff, nr;
	size_t vma; /* index in its array */
};

struct pieces {
	struct piece *p;
	size_t nr, room;
};

static int pieces_add(struct pieces *list, uint64_t file, uint64_t pgoff, uint64_t nr, size_t vma)
{
	if (nr == 0)
		return 0;
	if (list->nr == list->room) {
		size_t room = list->room ? list->room * 2 : 16;
		struct piece *bigger = reallocarray(list->p, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		list->p = bigger;
		list->room = room;
	}
	list->p[list->nr++] = (struct piece){file, pgoff, nr, vma};
	return 0;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Can a registration of the old VMA be that of the new? wpfs's own is always asynchronous. */
static bool vma_same_uffd(const struct mm_vma *old, const struct mm_vma *now)
{
	return old->registered && now->registered && (old->owner != MM_WPFS || now->async);
}

/* Do both, where they overlap, show the same pages? */
static bool vma_same_place(const struct mm_vma *a, const struct mm_vma *b)
{
	return a->file == b->file &&
	       (a->start >> WPFS_PAGE_SHIFT) - a->pgoff == (b->start >> WPFS_PAGE_SHIFT) - b->pgoff;
}

/* Are both, where they overlap, the same registered mapping? */
static bool vma_continues(const struct mm_vma *old, const struct mm_vma *now)
{
	return vma_same_uffd(old, now) && vma_same_place(old, now);
}

/*
 * Adds to *list the parts of registered VMAs of `vmas` that no VMA of `other` continues at the
 * same address. With `owned` vmas is the new view, and those that do continue get the owner.
 */
static int observe_unmatched(struct mm_vma *vmas, size_t nr, const struct mm_vma *other,
			     size_t nr_other, bool *owned, struct pieces *list)
{
	size_t j = 0;

	for (size_t i = 0; i < nr; i++) {
		struct mm_vma *v = &vmas[i];
		uint64_t at = v->start;
		int r;

		if (!v->registered)
			continue;
		while (j < nr_other && other[j].end <= v->start)
			j++;
		for (size_t k = j; k < nr_other && other[k].start < v->end; k++) {
			uint64_t from = max_u64(v->start, other[k].start);
			uint64_t to = min_u64(v->end, other[k].end);

			if (owned ? !vma_continues(&other[k], v) : !vma_continues(v, &other[k]))
				continue;
			if (owned) {
				/* a VMA has one uffd: if two are claimed, it is not believed */
				if (!owned[i] || other[k].owner == MM_PROGRAM)
					v->owner = other[k].owner;
				owned[i] = true;
			}
			r = pieces_add(list, v->file,
				       v->pgoff + ((at - v->start) >> WPFS_PAGE_SHIFT),
				       (from - at) >> WPFS_PAGE_SHIFT, i);
			if (r < 0)
				return r;
			at = to;
		}
		r = pieces_add(list, v->file, v->pgoff + ((at - v->start) >> WPFS_PAGE_SHIFT),
			       (v->end - at) >> WPFS_PAGE_SHIFT, i);
		if (r < 0)
			return r;
	}
	return 0;
}

/* A harvest under way. */
struct observation {
	struct mm *mm;
	struct mm_vma *now;
	size_t nr;
	bool *owned;	    /* of each in `now`: its owner is known */
	struct pieces come; /* not known before at their address */
};

/*
 * Takes from the new pieces a part that shows pages of an old one; gives the part. False: there is
 * none.
 */
static bool observe_take(struct observation *ob, const struct mm_vma *old, const struct piece *gone,
			 struct piece *part)
{
	for (size_t i = 0; i < ob->come.nr; i++) {
		struct piece *c = &ob->come.p[i];
		uint64_t from = max_u64(c->pgoff, gone->pgoff);
		uint64_t end = c->pgoff + c->nr;
		uint64_t to = min_u64(end, gone->pgoff + gone->nr);

		if (c->file != gone->file || from >= to || ob->now[c->vma].async != old->async)
			continue;
		*part = (struct piece){c->file, from, to - from, c->vma};
		c->nr = from - c->pgoff;
		/* Without memory the tail is not matched, which only makes pages dirty. */
		(void)pieces_add(&ob->come, part->file, to, end - to, part->vma);
		return true;
	}
	return false;
}

/* One old piece that left its address: moved to new pieces as far as they go, the rest unseen. */
static int observe_gone(struct observation *ob, const struct mm_vma *old, struct piece gone)
{
	struct mm_file *f = mm_file_find(ob->mm, gone.file);
	struct pieces rest = {0};
	struct piece part;
	int r = pieces_add(&rest, gone.file, gone.pgoff, gone.nr, gone.vma);

	for (size_t i = 0; r == 0 && i < rest.nr; i++) {
		struct piece left = rest.p[i];

		if (observe_take(ob, old, &left, &part)) {
			uint64_t end = part.pgoff + part.nr;

			if (!ob->owned[part.vma])
				ob->now[part.vma].owner = old->owner;
			ob->owned[part.vma] = true;
			r = pieces_add(&rest, left.file, left.pgoff, part.pgoff - left.pgoff, 0);
			if (r == 0)
				r = pieces_add(&rest, left.file, end, left.pgoff + left.nr - end,
					       0);
		} else if (f) {
			r = mm_zap(ob->mm, f, old->owner, left.pgoff, left.nr, ZAP_UNSEEN);
		}
	}
	free(rest.p);
	return r;
}

/*
 * Mappings that look like one of the program's and show its pages are the program's, for all one
 * can tell: those not known before, and if it is not where it was, all of them.
 */
static void observe_alike(struct observation *ob, const struct mm_vma *old, uint64_t pgoff,
			  uint64_t nr, bool gone)
{
	if (!old->registered || old->owner != MM_PROGRAM || !old->async)
		return;
	for (size_t i = 0; i < ob->nr; i++) {
		struct mm_vma *v = &ob->now[i];

		if ((gone || !ob->owned[i]) && v->async && v->file == old->file &&
		    v->pgoff < pgoff + nr && pgoff < v->pgoff + mm_vma_pages(v)) {
			v->owner = MM_PROGRAM;
			ob->owned[i] = true;
		}
	}
}

/* Steps 1 and 2: whose are the registered mappings of the new view, and what went unseen. */
static int observe_match(struct mm *mm, struct mm_vma *now, size_t nr)
{
	_cleanup_free_ bool *owned = calloc(nr + 1, sizeof(*owned));
	struct observation ob = {.mm = mm, .now = now, .nr = nr, .owned = owned};
	struct pieces gone = {0};
	int r;

	if (!owned)
		return -ENOMEM;
	r = observe_unmatched(now, nr, mm->vmas, mm->nr_vmas, owned, &ob.come);
	if (r == 0)
		r = observe_unmatched(mm->vmas, mm->nr_vmas, now, nr, NULL, &gone);
	for (size_t i = 0; r == 0 && i < gone.nr; i++)
		observe_alike(&ob, &mm->vmas[gone.p[i].vma], gone.p[i].pgoff, gone.p[i].nr, true);
	for (size_t i = 0; r == 0 && i < mm->nr_vmas; i++)
		observe_alike(&ob, &mm->vmas[i], mm->vmas[i].pgoff, mm_vma_pages(&mm->vmas[i]),
			      false);
	for (size_t i = 0; r == 0 && i < gone.nr; i++)
		r = observe_gone(&ob, &mm->vmas[gone.p[i].vma], gone.p[i]);
	/* Registered by nobody we know of: an asynchronous uffd can only be ours unless the program
	 * has shown that it makes its own. */
	for (size_t i = 0; i < nr; i++) {
		if (now[i].registered && !owned[i])
			now[i].owner = now[i].async && !mm->own_uffds ? MM_WPFS : MM_PROGRAM;
	}
	for (size_t i = 0; mm->own_doubted && i < nr; i++) {
		if (now[i].registered && now[i].owner == MM_PROGRAM)
			mm_set_clear(&now[i].marked);
	}
	free(gone.p);
	free(ob.come.p);
	return r;
}

static bool observe_is_aside(const struct mm *mm, uint64_t start, uint64_t end)
{
	return mm->aside_start <= start && end <= mm->aside_end;
}

/* What was armed in [start, end) of a mapping that nobody watched is dirty. */
static int observe_doubt(struct mm *mm, const struct mm_vma *vma, uint64_t start, uint64_t end)
{
	struct mm_file *f = mm_file_find(mm, vma->file);

	if (!f || start >= end)
		return 0;
	return (observe_is_aside(mm, start, end) ? mm_doubt_armed : mm_doubt)(
		mm, f, vma->pgoff + ((start - vma->start) >> WPFS_PAGE_SHIFT),
		(end - start) >> WPFS_PAGE_SHIFT);
}

/*
 * Known mappings that nobody watched, whether or not they are still there: pages may have been
 * armed since, by another mapping of the file. Those turn out harmless that are sealed.
 */
static int observe_unwatched(struct mm *mm, const struct mm_vma *now, size_t nr)
{
	size_t begin = 0; /* the first that can overlap */
	int r = 0;

	for (size_t i = 0; r == 0 && i < mm->nr_vmas; i++) {
		const struct mm_vma *old = &mm->vmas[i];
		uint64_t at = old->start;

		if (old->registered || old->sealed)
			continue;
		while (begin < nr && now[begin].end <= old->start)
			begin++;
		for (size_t k = begin; r == 0 && k < nr && now[k].start < old->end; k++) {
			if (now[k].end <= at || !now[k].sealed || !vma_same_place(old, &now[k]))
				continue;
			r = observe_doubt(mm, old, at, now[k].start);
			at = min_u64(now[k].end, old->end);
		}
		if (r == 0)
			r = observe_doubt(mm, old, at, old->end);
	}
	return r;
}

/* Removes what mappings of the file that can be armed were known to show before. */
static int observe_known(const struct mm *mm, uint64_t file, struct mm_set *set)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < mm->nr_vmas && !mm_set_is_empty(set); i++) {
		if (mm->vmas[i].file == file && !mm->vmas[i].sealed)
			r = mm_set_remove_range(set, mm->vmas[i].pgoff, mm_vma_pages(&mm->vmas[i]));
	}
	return r;
}

/*
 * Pages of a wholly protected file that are mapped and were neither armed nor mapped before:
 * written for all we know. What was mapped and is not armed was unprotected, and is left so; the
 * file may be protected again since for the sake of a mapping that came later.
 */
static int observe_grown(struct mm *mm, struct mm_file *f, const struct mm_vma *vma, bool news)
{
	struct mm_owned *own = &f->own[MM_WPFS];
	uint64_t nr = mm_vma_pages(vma);
	struct mm_set grown;
	int r;

	if (mm_set_count_range(&own->armed, vma->pgoff, nr) == nr)
		return 0;
	mm_set_init(&grown);
	r = mm_set_add_range(&grown, vma->pgoff, nr);
	if (r == 0)
		r = mm_set_andnot(&grown, &own->armed);
	if (r == 0 && !news)
		r = observe_known(mm, f->id, &grown);
	if (r == 0)
		r = mm_set_or(&own->armed, &grown);
	if (r == 0)
		r = mm_set_or(&own->dirty, &grown);
	if (r == 0)
		mm->conservative += mm_set_count(&grown);
	mm_set_free(&grown);
	return r;
}

static int observe_fold_wpfs(struct mm *mm, struct mm_file *f, const struct mm_vma *vma, bool news)
{
	int r;

	if (vma->sealed)
		return 0;
	if (f->protect) {
		r = observe_grown(mm, f, vma, news);
		if (r < 0)
			return r;
	}
	if (vma->registered && vma->owner == MM_WPFS)
		return mm_vma_shown(vma, &f->own[MM_WPFS].armed, &f->own[MM_WPFS].dirty);
	return mm_doubt_armed(mm, f, vma->pgoff, mm_vma_pages(vma));
}

/*
 * What a mapping that is not the program's says of the pages that it carries. From then on only
 * marks of pages that wpfs has armed are wpfs's.
 */
static int observe_carried(struct mm_file *f, const struct mm_vma *now, size_t nr,
			   struct mm_vma *vma, uint64_t *conservative)
{
	_cleanup_set_ struct mm_set carried = {NULL}, mine = {NULL};
	struct mm_owned *own = &f->own[MM_PROGRAM];
	const uint64_t before = mm_set_count(&own->dirty);
	int r;

	if (vma->sealed || mm_set_is_empty(&own->armed) ||
	    (vma->registered && vma->owner == MM_PROGRAM))
		return 0;
	r = mm_carried_beside(now, nr, f, vma->pgoff, mm_vma_pages(vma), &carried);
	if (r == 0)
		r = vma->registered ? mm_vma_shown(vma, &carried, &own->dirty)
				    : mm_set_or(&own->dirty, &carried);
	if (r == 0 && !vma->registered)
		*conservative += mm_set_count(&own->dirty) - before;
	if (r == 0 && vma->registered)
		r = mm_set_shift(&mine, &f->own[MM_WPFS].armed, -(int64_t)vma->pgoff);
	if (r == 0 && vma->registered)
		r = mm_set_and(&vma->marked, &mine);
	return r;
}

/* Is a page marked that was not at the last look? */
static bool observe_gained(const struct mm_owned *own, const struct mm_set *marked)
{
	uint64_t first, nr;
	struct mm_runs runs;

	mm_runs_begin(&runs, marked, 0, MM_SET_MAX);
	while (mm_runs_next(&runs, &first, &nr)) {
		if (mm_set_count_range(&own->armed, first, nr) != nr ||
		    mm_set_count_range(&own->dirty, first, nr) != 0)
			return true;
	}
	return false;
}

/*
 * With protect_new: was all of this mapping known? One that was not, and that wpfs has not
 * registered, was made without a word; it is armed as if there had been one. What was known and is
 * not watched is so because it was unprotected. *begin as in observe_unwatched.
 */
static bool observe_is_news(const struct mm *mm, const struct mm_vma *vma, size_t *begin)
{
	uint64_t at = vma->start;

	if (!mm->protect_new || vma->sealed || (vma->registered && vma->owner == MM_WPFS))
		return false;
	while (*begin < mm->nr_vmas && mm->vmas[*begin].end <= vma->start)
		(*begin)++;
	for (size_t i = *begin; i < mm->nr_vmas && mm->vmas[i].start <= at && at < vma->end; i++) {
		if (vma_same_place(&mm->vmas[i], vma))
			at = max_u64(at, mm->vmas[i].end);
	}
	return at < vma->end;
}

/* What the program has marked itself is armed by it; its dirty set is made anew each time. */
static int observe_arm_program(struct mm_file *f, const struct mm_vma *vma)
{
	struct mm_owned *own = &f->own[MM_PROGRAM];
	struct mm_set marked;
	int r;

	mm_set_init(&marked);
	r = mm_set_shift(&marked, &vma->marked, (int64_t)vma->pgoff);
	if (r == 0 && observe_gained(own, &marked))
		mm_file_unsettle(f);
	if (r == 0)
		r = mm_set_or(&own->armed, &marked);
	mm_set_free(&marked);
	if (r == 0)
		r = mm_set_remove_range(&own->dirty, vma->pgoff, mm_vma_pages(vma));
	return r;
}

/* Step 3. */
static int observe_fold(struct mm *mm, struct mm_vma *now, size_t nr)
{
	_cleanup_free_ bool *news = calloc(nr + 1, sizeof(*news));
	size_t begin = 0;
	int r = news ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < nr; i++) {
		struct mm_file *f = mm_file_get(mm, now[i].file);

		if (!f)
			return -ENOMEM;
		news[i] = observe_is_news(mm, &now[i], &begin);
		if (news[i]) {
			f->unopened |= mm_set_is_empty(&f->own[MM_WPFS].armed);
			f->protect = true;
		}
	}
	for (size_t i = 0; r == 0 && i < nr; i++) {
		struct mm_file *f = mm_file_find(mm, now[i].file);

		if (now[i].registered && now[i].owner == MM_PROGRAM)
			r = observe_arm_program(f, &now[i]);
		if (r == 0)
			r = observe_fold_wpfs(mm, f, &now[i], news[i]);
		if (r == 0 &&
		    (now[i].registered || !observe_is_aside(mm, now[i].start, now[i].end)))
			r = observe_carried(f, now, nr, &now[i], &mm->conservative);
	}
	for (size_t i = 0; r == 0 && i < nr; i++) {
		struct mm_owned *own = &mm_file_find(mm, now[i].file)->own[MM_PROGRAM];

		if (now[i].registered && now[i].owner == MM_PROGRAM)
			r = mm_vma_shown(&now[i], &own->armed, &own->dirty);
	}
	return r;
}

int mm_observe(struct mm *mm, struct mm_vma *now, size_t nr)
{
	int r = observe_unwatched(mm, now, nr);

	if (r == 0)
		r = observe_match(mm, now, nr);
	if (r == 0)
		r = observe_fold(mm, now, nr);
	if (r < 0) {
		mm_vmas_free(now, nr);
		return r;
	}
	mm_vmas_free(mm->vmas, mm->nr_vmas);
	mm->vmas = now;
	mm->nr_vmas = nr;
	return 0;
}
