/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A tracked program maps and unmaps. MAP is answered when everything that has to be armed in the
 * new mapping is: the shim returns from mmap() only then, so no store can come before.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/residency.h"
#include "uffd/maps.h"

bool mapping_aligned(uint64_t addr, uint64_t len)
{
	return !((addr | len) & (WPFS_PAGE_SIZE - 1)) && len && addr + len > addr &&
	       addr + len <= (uint64_t)1 << 56;
}

static uint64_t mapping_len(const struct wpfs_map *map)
{
	return (map->len + WPFS_PAGE_SIZE - 1) & ~(WPFS_PAGE_SIZE - 1);
}

/* Says what is wrong with a MAP request, or NULL. */
static const char *mapping_bad(const struct track *t, const struct wpfs_map *map)
{
	uint64_t len = mapping_len(map);
	bool ours = false;

	for (size_t i = 0; i < t->nr_devs; i++)
		ours |= t->devs[i] == map->dev;
	if (!ours)
		return "the file is not on this mount";
	if (map->offset & (WPFS_PAGE_SIZE - 1) || len < map->len)
		return "the range is not aligned";
	if (!map->query && (!mapping_aligned(map->addr, len) || !mapping_aligned(map->final, len)))
		return "the range is not aligned";
	if (((map->offset + len) >> WPFS_PAGE_SHIFT) > MM_PGOFF_MAX)
		return "the offset is beyond 16 TiB";
	return NULL;
}

/*
 * [pgoff, pgoff + nr) of a file is armed from now on, because the mm is one that has all its
 * mappings protected. *first: nothing of the file was before; *more: something is new. 0 or -errno.
 */
static int mapping_arm_fresh(struct track *t, struct tmm *tm, const struct wpfs_map *map,
			     bool *first, bool *more)
{
	uint64_t pgoff = map->offset >> WPFS_PAGE_SHIFT, nr = mapping_len(map) >> WPFS_PAGE_SHIFT;
	struct mm_file *f = mm_file_get(&tm->mm, map->ino);
	uint64_t before;
	int r;

	if (!f)
		return -ENOMEM;
	before = mm_set_count(&f->own[MM_WPFS].armed);
	*first = before == 0;
	r = mm_set_add_range(&f->own[MM_WPFS].armed, pgoff, nr);
	if (r == 0)
		r = drops_under_way(t, f->id, &f->own[MM_WPFS].armed, &f->own[MM_WPFS].dirty);
	if (r < 0)
		return r;
	if (f->protect && mm_set_count(&f->own[MM_WPFS].armed) == before)
		return 0; /* known already: an earlier run, or another mapping */
	*more = true;
	mm_file_unsettle(f);
	f->protect = true;
	return 0;
}

/*
 * Is anything of the file armed in this mm? Then its mappings are watched, also one of pages that
 * are all dirty: beside mappings that are it would be one of its own for the kernel, and a program
 * that moves them all with one mremap(2) would get EFAULT. So are marks that the program carries,
 * until it registers: what it stores before must not be marked then.
 */
static bool mapping_is_watched(const struct tmm *tm, uint64_t file, const struct mm_set *carried)
{
	const struct mm_file *f = mm_file_find(&tm->mm, file);

	return f && (f->protect || !mm_set_is_empty(&f->own[MM_WPFS].armed) ||
		     !mm_set_is_empty(carried));
}

/* Marks that are put into a new mapping. */
struct arming {
	struct track *t;
	struct tmm *tm;
	const struct mm_vma *vma; /* where it is now */
	const struct mm_set *set;
	bool done;
	int result; /* of arm_pages, when done */
};

static void mapping_arm(void *arg)
{
	struct arming *arming = arg;
	const struct mm_vma *vma = arming->vma;

	if (!arming->done)
		arming->result = arm_pages(arming->t, arming->tm, vma->file, vma->start, vma->end,
					   vma->pgoff, arming->set);
	arming->done = true;
}

/* From here on the kernel takes longer for the marks than the database for the mapping. */
#define MAPPING_LARGE 32768 /* pages */

/*
 * Stores the mapping as it is going to be, with its marks; before the program goes on, never after.
 * A daemon after this one must know of it: that it is gone again tells that what is armed there is
 * dirty, as does that it is not registered, should this daemon not come to that. Where nothing is
 * armed there is nothing to make dirty, and the next harvest is soon enough.
 *
 * What `beside` (or NULL) is about may be marked meanwhile. A daemon that is killed in between has
 * answered nobody, and the program may go on without one: the next daemon must have read that these
 * pages are armed, so none of them may be armed first here.
 */
static int mapping_persist(struct track *t, struct tmm *tm, const struct wpfs_map *map,
			   bool changed, bool more, struct arming *beside)
{
	const struct mm_file *f = mm_file_find(&tm->mm, map->ino);
	uint64_t len = mapping_len(map);

	if (changed || !f)
		return persist_mm_lazy(t, tm);
	if (!f->protect && mm_set_is_empty(&f->own[MM_WPFS].armed) &&
	    mm_set_is_empty(&f->own[MM_PROGRAM].armed))
		return 0;
	/*
	 * Without a new page armed the sets are as they were stored but for what a look found
	 * since, and what a look finds is dirty; a protect, which takes that away, stores them.
	 * What the program arms is another matter.
	 */
	more |= tm->mm.own_uffds || !mm_set_is_empty(&f->own[MM_WPFS].dirty);
	return persist_mapping(t, tm, map->ino, map->final, map->final + len, more,
			       beside ? mapping_arm : NULL, beside);
}

/* Into the model, at the address it will have when the program sees it. Takes vma->marked. */
static int mapping_record(struct tmm *tm, const struct wpfs_map *map, struct mm_vma *vma)
{
	struct mm_vma final = *vma;

	mm_set_init(&vma->marked);
	final.start = map->final;
	final.end = map->final + mapping_len(map);
	return mm_map(&tm->mm, &final);
}

/* It cannot be armed: what the model and the database say of it was hoped for too early. */
static int mapping_not_armed(struct track *t, struct tmm *tm, const struct wpfs_map *map,
			     struct mm_vma *vma, int error)
{
	int r;

	/* It goes unmarked: dirty, unless it can never be written. */
	vma->registered = vma->async = false;
	vma->sealed = error == -EPERM;
	if (!vma->sealed)
		log_warn("track: cannot arm a mapping of pid %d: %s", tm->program.pid,
			 log_errstr(error));
	r = residency_map(t, tm, vma);
	if (r == 0)
		r = mm_unmap(&tm->mm, map->final, map->final + mapping_len(map), ZAP_UNMAP);
	if (r == 0)
		r = mapping_record(tm, map, vma);
	return r < 0 ? r : mapping_persist(t, tm, map, false, true, NULL);
}

/* What is armed in a new mapping. */
struct mapping_plan {
	struct mm_set wpfs, carried; /* for whom, page offsets in the file */
	struct mm_set all;
};

static void mapping_plan_free(struct mapping_plan *plan)
{
	mm_set_free(&plan->wpfs);
	mm_set_free(&plan->carried);
	mm_set_free(&plan->all);
}

/* `fresh`: all of it, since the file is protected as a whole. 0 or -ENOMEM. */
static int mapping_make_plan(const struct tmm *tm, const struct wpfs_map *map, bool fresh,
			     struct mapping_plan *plan)
{
	const uint64_t pgoff = map->offset >> WPFS_PAGE_SHIFT;
	const uint64_t nr = mapping_len(map) >> WPFS_PAGE_SHIFT;
	const struct mm_file *f = mm_file_find(&tm->mm, map->ino);
	int r = mm_plan_arm(&tm->mm, map->ino, fresh, pgoff, nr, &plan->wpfs);

	if (r == 0 && f)
		r = mm_carried(&tm->mm, f, pgoff, nr, &plan->carried);
	if (r == 0)
		r = mm_set_copy(&plan->all, &plan->wpfs);
	return r < 0 ? r : mm_set_or(&plan->all, &plan->carried);
}

/* Records the mapping and arms what has to be. Gives the number of pages armed or -errno. */
static int64_t mapping_new(struct track *t, struct tmm *tm, const struct wpfs_map *map,
			   const struct mapping_plan *plan, bool fresh, bool changed)
{
	uint64_t len = mapping_len(map);
	struct mm_vma vma = {
		.start = map->addr,
		.end = map->addr + len,
		.file = map->ino,
		.pgoff = map->offset >> WPFS_PAGE_SHIFT,
		.dev = map->dev,
		.prot = map->prot & (PROT_READ | PROT_WRITE | PROT_EXEC),
		.owner = MM_WPFS,
	};
	struct arming arming = {.t = t, .tm = tm, .vma = &vma, .set = &plan->all};
	bool first = false, more = false, watched, beside;
	int r = fresh ? mapping_arm_fresh(t, tm, map, &first, &more) : 0;

	mm_set_init(&vma.marked);
	watched = vma.registered = vma.async = mapping_is_watched(tm, map->ino, &plan->carried);
	if (r == 0 && watched)
		r = mm_set_shift(&vma.marked, &plan->wpfs, -(int64_t)vma.pgoff);
	else if (r == 0)
		r = residency_map(t, tm, &vma);
	if (r == 0)
		r = mapping_record(tm, map, &vma);
	else
		mm_set_free(&vma.marked);
	if (r == 0)
		files_learn_mapped(t, map->ino);
	beside = watched && !more && !changed && mm_set_count(&plan->all) >= MAPPING_LARGE;
	/* What has armed pages has an open epoch: if it had before, this is more of it. */
	if (r == 0)
		r = first ? protect_open_epoch(t, tm, map->ino)
			  : mapping_persist(t, tm, map, changed, more, beside ? &arming : NULL);
	if (r == 0 && watched) {
		mapping_arm(&arming);
		r = arming.result;
		if (r < 0) {
			watched = false;
			r = mapping_not_armed(t, tm, map, &vma, r);
		} else {
			r = residency_map(t, tm, &vma);
		}
	}
	if (r == 0)
		return watched ? (int64_t)mm_set_count(&plan->all) : 0;
	mm_unmap(&tm->mm, map->final, map->final + len, ZAP_UNSEEN);
	return r;
}

/*
 * Ends what the model knows where a mapping is made: before it is decided what of the file can be
 * armed. It was moved away, which a look at the whole mm tells, or replaced without a word, and
 * then its last stores are unknown. *changed: more of the model may be another than was there.
 */
static int mapping_clear_place(struct track *t, struct tmm *tm, const struct wpfs_map *map,
			       bool *changed)
{
	uint64_t end = map->final + mapping_len(map);
	bool known = false;

	for (size_t i = 0; i < tm->mm.nr_vmas; i++)
		known |= tm->mm.vmas[i].start < end && map->final < tm->mm.vmas[i].end;
	*changed = known;
	if (known && map->addr == map->final) {
		int r = tmm_harvest_but(t, tm, map->final, end);

		if (r < 0)
			return r;
	}
	return mm_unmap(&tm->mm, map->final, end, ZAP_UNSEEN);
}

void mapping_is_coming(struct announced *a, const struct wpfs_map *map)
{
	a->coming_file = map->ino;
	a->coming_pgoff = map->offset >> WPFS_PAGE_SHIFT;
	a->coming_pages = mapping_len(map) >> WPFS_PAGE_SHIFT;
	tmm_announce(a);
}

/* Over what is at its final place still, read-only and harvested. */
static void mapping_is_moved(struct announced *a, const struct wpfs_map *map)
{
	a->onto.start = map->final;
	a->onto.end = map->final + mapping_len(map);
	a->onto.file = map->ino;
	a->onto.pgoff = map->offset >> WPFS_PAGE_SHIFT;
	tmm_announce(a);
}

void mapping_announce(struct request *rq)
{
	mapping_is_coming(&rq->c->tmm->announced, rq->body);
}

/*
 * Has the program given up waiting, before this or while it was done? Then it goes on without an
 * answer, and has perhaps stored to what is marked only now.
 */
static int mapping_look_late(struct request *rq, const struct wpfs_map *map)
{
	struct tmm *tm = rq->c->tmm;
	struct mm_file *f = mm_file_find(&tm->mm, map->ino);
	int r;

	if (!f || !client_is_hung_up(rq->c))
		return 0;
	r = mm_doubt(&tm->mm, f, map->offset >> WPFS_PAGE_SHIFT,
		     mapping_len(map) >> WPFS_PAGE_SHIFT);
	return r < 0 ? r : persist_mm_lazy(rq->t, tm);
}

void mapping_map(struct request *rq)
{
	const struct wpfs_map *map = rq->body;
	struct tmm *tm = rq->c->tmm;
	struct wpfs_map_reply reply = {0};
	const char *bad = mapping_bad(rq->t, map);
	struct mapping_plan plan = {0};
	struct mm_file *f;
	bool fresh, changed = false;
	int64_t armed;
	int r = 0;

	if (bad) {
		request_error(rq, -EINVAL, "cannot track a mapping of pid %d: %s", rq->c->id.pid,
			      bad);
		return;
	}
	if (!map->unwitnessed && tmm_has_lost_witness(tm)) {
		request_reply(rq, -EOWNERDEAD, NULL, 0);
		return;
	}
	if (tm->state == TMM_NEW)
		r = tmm_enlist(rq->t, tm);
	if (r < 0) {
		request_error(rq, r, "cannot store the state of pid %d: %s", rq->c->id.pid,
			      log_errstr(r));
		return;
	}
	tm->mapped_shared = true;
	if (!map->query && map->addr != map->final)
		mapping_is_moved(&tm->announced, map);
	if (!map->query)
		r = mapping_clear_place(rq->t, tm, map, &changed);
	f = mm_file_find(&tm->mm, map->ino);
	fresh = tm->mm.protect_new || (f && f->protect);
	if (r == 0)
		r = mapping_make_plan(tm, map, fresh, &plan);
	/* Where other threads could use it before this: they may have stored. Armed, and no marks.
	 */
	if (!map->query && map->addr == map->final && map->flags & MAP_FIXED) {
		mm_set_clear(&plan.wpfs);
		mm_set_clear(&plan.all);
	}
	armed = r < 0 ? r : (int64_t)mm_set_count(&plan.all);
	if (r == 0 && map->query)
		mapping_is_coming(&tm->announced, map);
	if (r == 0 && !map->query)
		armed = mapping_new(rq->t, tm, map, &plan, fresh, changed);
	mapping_plan_free(&plan);
	if (armed >= 0 && !map->query)
		r = mapping_look_late(rq, map);
	if (r < 0)
		armed = r;
	if (armed < 0) {
		/* The program has the mapping all the same, and nobody watches it. */
		f = mm_file_find(&tm->mm, map->ino);
		if (f && !map->query)
			mm_doubt(&tm->mm, f, map->offset >> WPFS_PAGE_SHIFT,
				 mapping_len(map) >> WPFS_PAGE_SHIFT);
		log_warn("track: cannot arm a mapping of pid %d: %s", rq->c->id.pid,
			 log_errstr((int)armed));
		request_error(rq, (int)armed, "cannot arm a mapping of pid %d: %s", rq->c->id.pid,
			      log_errstr((int)armed));
		return;
	}
	residency_busy(rq->t, false);
	reply.mm = tm->mm.id;
	reply.armed_pages = (uint64_t)armed;
	request_reply(rq, 0, &reply, sizeof(reply));
}

void mapping_unmap(struct request *rq)
{
	const struct wpfs_range *range = rq->body;
	struct tmm *tm = rq->c->tmm;
	int r = -EINVAL;

	if (mapping_aligned(range->addr, range->len)) {
		/* The shim has made the range read-only: no store comes after this harvest. */
		r = tmm_harvest(rq->t, tm);
		if (r == 0)
			r = mm_unmap(&tm->mm, range->addr, range->addr + range->len, ZAP_UNMAP);
		residency_busy(rq->t, false);
		/* The kernel will not know any more: a daemon after this one has only what is
		 * stored. */
		if (r == 0)
			r = persist_mm_lazy(rq->t, tm);
		if (r == 0) {
			struct announced *a = &tm->announced;
			unsigned slot = a->nr_going++ % ANNOUNCED_GOING;

			a->going[slot].start = range->addr;
			a->going[slot].end = range->addr + range->len;
			tmm_announce(a);
		}
	}
	request_reply(rq, r, NULL, 0);
}
