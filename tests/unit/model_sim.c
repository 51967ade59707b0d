/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The daemon's part of the simulation: each function does what one request does in src/track. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "model_sim.h"

#define AT(page) ((uint64_t)(page) << WPFS_PAGE_SHIFT)

static void ok(int r)
{
	assert(r == 0);
}

uint32_t sim_rng(struct sim *s, uint32_t below)
{
	s->rng ^= s->rng << 13;
	s->rng ^= s->rng >> 7;
	s->rng ^= s->rng << 17;
	return (uint32_t)(s->rng >> 24) % below;
}

void sim_init(struct sim *s, uint64_t seed)
{
	*s = (struct sim){.rng = seed * 0x9e3779b97f4a7c15u + 1};
	mm_init(&s->mm);
	for (int i = 0; i < 8; i++)
		sim_rng(s, 2);
	s->mm.protect_new = sim_rng(s, 2);
	s->own_async = sim_rng(s, 2);
	s->own_remap = sim_rng(s, 2);
}

void sim_free(struct sim *s)
{
	mm_free(&s->mm);
}

/* ---- harvest ---- */

/* Does the model have this page where it is? */
static bool knows(const struct sim *s, size_t at)
{
	const struct sim_page *p = &s->space[at];

	for (size_t i = 0; i < s->mm.nr_vmas; i++) {
		const struct mm_vma *v = &s->mm.vmas[i];

		if (v->start <= AT(at) && AT(at) < v->end)
			return v->file == (uint64_t)p->file &&
			       v->pgoff + ((AT(at) - v->start) >> WPFS_PAGE_SHIFT) ==
				       (uint64_t)p->pgoff;
	}
	return false;
}

/* Has the daemon not been told of a page that is to be armed as it is mapped? */
static bool is_news(const struct sim *s, size_t at)
{
	const struct sim_page *p = &s->space[at];

	return s->mm.protect_new && p->mapped && !p->sealed &&
	       !(p->registered && p->owner == MM_WPFS) && !knows(s, at);
}

/* As tmm_seal(): an attempt to register tells what can never be written. */
static void seal(struct sim *s, struct mm_vma *v)
{
	const struct mm_file *f = mm_file_find(&s->mm, v->file);
	size_t at = v->start >> WPFS_PAGE_SHIFT;
	bool armed = f && (f->protect || !mm_set_is_empty(&f->own[MM_WPFS].armed));

	if (v->registered || (!armed && !s->mm.protect_new))
		return;
	v->sealed = s->space[at].sealed;
	if (!armed)
		return; /* registered for a moment only */
	for (size_t i = 0; !v->sealed && i < mm_vma_pages(v); i++) {
		s->space[at + i].registered = true;
		s->space[at + i].owner = MM_WPFS;
	}
}

/*
 * Where the program has, for all the daemon knows, asynchronous registrations of its own, no
 * mapping of the file is surely wpfs's.
 */
static void doubt_alike(struct sim *s)
{
	for (size_t i = 0; i < s->mm.nr_vmas; i++) {
		const struct mm_vma *v = &s->mm.vmas[i];

		for (int page = 0; page < SIM_PAGES; page++) {
			if (v->registered && v->owner == MM_PROGRAM && v->async)
				sim_taint(s, (int)v->file, page);
		}
	}
}

static void observe(struct sim *s)
{
	bool news[SIM_SPACE];
	struct mm_vma *vmas;
	size_t nr;

	for (size_t i = 0; i < SIM_SPACE; i++)
		news[i] = is_news(s, i);
	ok(sim_view(s, &vmas, &nr));
	for (size_t i = 0; i < nr; i++)
		seal(s, &vmas[i]);
	doubt_alike(s);
	ok(mm_observe(&s->mm, vmas, nr));
	doubt_alike(s);
	for (int i = 0; i < SIM_SPACE; i++) {
		struct sim_page *p = &s->space[i];
		struct sim_ref *ref = &s->ref[p->file][p->pgoff];
		const struct mm_file *f;

		if (!p->mapped)
			continue;
		f = mm_file_find(&s->mm, (uint64_t)p->file);
		if (p->pending)
			ref->stored = true;
		if (f && f->protect && !p->sealed)
			ref->armed = true;
		if (news[i]) {
			ref->armed = true;
			sim_taint(s, p->file, p->pgoff);
		}
		p->known = true;
		p->pending = false;
	}
}

static void check_page(struct sim *s, const struct mm_file *f, int file, int page)
{
	const struct sim_ref *ref = &s->ref[file][page];
	bool armed = f && mm_set_contains(&f->own[MM_WPFS].armed, (uint64_t)page);
	bool dirty = f && mm_set_contains(&f->own[MM_WPFS].dirty, (uint64_t)page);
	const char *what = NULL;

	if (armed != ref->armed)
		what = armed ? "is armed, but was not" : "is not armed, but was";
	else if (ref->stored && !dirty)
		what = "was stored to and is not dirty";
	else if (dirty && !ref->stored && !ref->tainted)
		what = "is dirty, but nothing happened to it";
	if (what)
		snprintf(s->failure, sizeof(s->failure), "file %d page %d %s", file, page, what);
}

/* Is every mapping of the model as in the kernel, and the program's never taken for wpfs's? */
static void check_vma(struct sim *s, const struct mm_vma *v)
{
	for (uint64_t i = 0; i < mm_vma_pages(v); i++) {
		const struct sim_page *p = &s->space[(v->start >> WPFS_PAGE_SHIFT) + i];
		const struct mm_file *f = mm_file_find(&s->mm, v->file);
		bool marked = mm_set_contains(&v->marked, i);

		if (!p->mapped || (v->registered && marked != p->marked))
			snprintf(s->failure, sizeof(s->failure), "a mark is not the kernel's");
		if (v->registered && v->owner == MM_WPFS && p->owner == MM_PROGRAM)
			snprintf(s->failure, sizeof(s->failure),
				 "address %llu: the program's mapping is ours",
				 (unsigned long long)(v->start >> WPFS_PAGE_SHIFT) + i);
		if (v->registered && v->owner == MM_PROGRAM && marked &&
		    !mm_set_contains(&f->own[MM_PROGRAM].armed, v->pgoff + i))
			snprintf(s->failure, sizeof(s->failure), "the program's mark is not armed");
	}
}

void sim_harvest(struct sim *s)
{
	const char *broken;

	observe(s);
	broken = mm_check(&s->mm);
	if (broken)
		snprintf(s->failure, sizeof(s->failure), "mm_check: %s", broken);
	for (size_t i = 0; i < s->mm.nr_vmas; i++)
		check_vma(s, &s->mm.vmas[i]);
	for (int file = 0; file < SIM_FILES; file++) {
		const struct mm_file *f = mm_file_find(&s->mm, (uint64_t)file);

		for (int page = 0; page < SIM_PAGES; page++)
			check_page(s, f, file, page);
	}
}

/* ---- mappings, as src/track/mapping.c ---- */

/* munmap through the shim: read-only, harvest, unmap. */
static void shim_unmap(struct sim *s, struct sim_range r)
{
	sim_harvest(s);
	ok(mm_unmap(&s->mm, AT(r.at), AT(r.at + r.nr), ZAP_UNMAP));
	memset(&s->space[r.at], 0, (size_t)r.nr * sizeof(s->space[0]));
}

/* What the model knows there went unseen: moved away, for all one can tell, or unmapped. */
static void replaced(struct sim *s, int at, int nr)
{
	for (size_t i = 0; i < s->mm.nr_vmas; i++) {
		const struct mm_vma *v = &s->mm.vmas[i];

		for (uint64_t p = 0; p < mm_vma_pages(v); p++) {
			uint64_t here = (v->start >> WPFS_PAGE_SHIFT) + p;

			if (here >= (uint64_t)at && here < (uint64_t)(at + nr))
				sim_taint(s, (int)v->file, (int)(v->pgoff + p));
		}
	}
}

static void shim_map_at(struct sim *s, int at, int nr, int file, int pgoff)
{
	struct mm_file *f = mm_file_find(&s->mm, (uint64_t)file);
	bool fresh = s->mm.protect_new || (f && f->protect);
	bool sealed = sim_rng(s, 6) == 0, fails = sim_rng(s, 30) == 0;
	struct mm_set set = {0};
	struct mm_vma v = {.start = AT(at),
			   .end = AT(at + nr),
			   .file = (uint64_t)file,
			   .pgoff = (uint64_t)pgoff,
			   .owner = MM_WPFS};

	ok(mm_plan_arm(&s->mm, v.file, fresh, v.pgoff, (uint64_t)nr, &set));
	replaced(s, at, nr);
	ok(mm_unmap(&s->mm, v.start, v.end, ZAP_UNSEEN));
	for (int i = 0; fresh && i < nr; i++)
		s->ref[file][pgoff + i].armed = true;
	if (fresh) {
		f = mm_file_get(&s->mm, v.file);
		ok(mm_set_add_range(&f->own[MM_WPFS].armed, v.pgoff, (uint64_t)nr));
		f->protect = true;
	}
	if (!mm_set_is_empty(&set) && sealed) {
		v.sealed = true;
	} else if (!mm_set_is_empty(&set) && !fails) {
		v.registered = v.async = true;
		ok(mm_set_shift(&v.marked, &set, -(int64_t)pgoff));
	}
	for (int i = 0; i < nr; i++) {
		s->space[at + i] = (struct sim_page){
			.mapped = true,
			.file = file,
			.pgoff = pgoff + i,
			.sealed = sealed,
			.registered = v.registered,
			.marked = mm_set_contains(&v.marked, (uint64_t)i),
			.known = true,
		};
		if (fails && !sealed)
			sim_taint(s, file, pgoff + i);
	}
	mm_set_free(&set);
	ok(mm_map(&s->mm, &v));
}

static void shim_map(struct sim *s)
{
	int nr = 1 + (int)sim_rng(s, SIM_PAGES / 2), at;
	int file = (int)sim_rng(s, SIM_FILES);
	int pgoff = (int)sim_rng(s, (uint32_t)(SIM_PAGES - nr + 1));

	if (sim_rng(s, 4) == 0) { /* MAP_FIXED: announced first */
		at = (int)sim_rng(s, (uint32_t)(SIM_SPACE - nr + 1));
		shim_unmap(s, (struct sim_range){at, nr});
	} else if (!sim_pick_free(s, nr, &at)) {
		return;
	}
	shim_map_at(s, at, nr, file, pgoff);
}

/* Punch hole, truncate: contents go, marks stay. */
static void drop(struct sim *s)
{
	int file = (int)sim_rng(s, SIM_FILES), page = (int)sim_rng(s, SIM_PAGES);
	int nr = 1 + (int)sim_rng(s, 4);

	ok(mm_drop(&s->mm, (uint64_t)file, (uint64_t)page, (uint64_t)nr));
	for (int i = page; i < page + nr && i < SIM_PAGES; i++)
		s->ref[file][i].stored |= s->ref[file][i].armed;
}

/* ---- a uffd of the program's own, as src/track/own.c ---- */

static void own_register(struct sim *s)
{
	struct sim_range r;

	if (!sim_pick(s, &r) || s->space[r.at].sealed)
		return;
	sim_harvest(s);
	for (int i = r.at; i < r.at + r.nr; i++) {
		struct sim_page *p = &s->space[i];
		struct mm_file *f = mm_file_find(&s->mm, (uint64_t)p->file);

		if (p->registered && p->owner == MM_WPFS) {
			ok(mm_doubt(&s->mm, f, (uint64_t)p->pgoff, 1));
			ok(mm_set_registered(&s->mm, AT(i), AT(i + 1), false, MM_WPFS, false));
			p->marked = false;
		}
		p->registered = true;
		p->owner = MM_PROGRAM;
		sim_taint(s, p->file, p->pgoff);
	}
	s->mm.own_uffds = true;
	ok(mm_set_registered(&s->mm, AT(r.at), AT(r.at + r.nr), true, MM_PROGRAM, false));
	sim_harvest(s);
}

static void own_unregister(struct sim *s)
{
	struct sim_range r;

	if (!sim_pick(s, &r) || !s->space[r.at].registered || s->space[r.at].owner != MM_PROGRAM)
		return;
	for (int i = r.at; i < r.at + r.nr; i++) {
		s->space[i].registered = s->space[i].marked = false;
		sim_taint(s, s->space[i].file, s->space[i].pgoff);
	}
	ok(mm_unmap(&s->mm, AT(r.at), AT(r.at + r.nr), ZAP_UNMAP));
	sim_harvest(s);
}

/* ---- epochs, as src/track/protect.c ---- */

struct turn {
	int file, from, to; /* the selected pages */
	struct mm_set was_armed, was_dirty, stays;
};

static void turn_begin(struct sim *s, struct turn *t, struct mm_file *f)
{
	struct mm_owned *own = &f->own[MM_WPFS];
	uint64_t from = (uint64_t)t->from, nr = (uint64_t)(t->to - t->from);

	ok(mm_set_copy(&t->was_armed, &own->armed));
	ok(mm_set_or_range(&t->was_dirty, &own->dirty, from, nr));
	ok(mm_set_copy(&t->stays, &own->dirty));
	ok(mm_set_remove_range(&t->stays, from, nr));
	for (size_t i = 0; i < s->mm.nr_vmas; i++) {
		const struct mm_vma *v = &s->mm.vmas[i];

		for (uint64_t p = v->pgoff; p < v->pgoff + mm_vma_pages(v); p++) {
			if (v->file != f->id || v->sealed || p < from || p >= from + nr)
				continue;
			ok(mm_set_add_range(&own->armed, p, 1));
			s->ref[t->file][p].armed = true;
		}
	}
	ok(mm_set_or_range(&own->dirty, &own->armed, from, nr));
}

/* PAGEMAP_SCAN with PM_SCAN_WP_MATCHING over one page: false if it cannot be marked. */
static bool turn_mark_page(struct sim *s, struct turn *t, int at, uint64_t pgoff)
{
	struct sim_page *p = &s->space[at];

	if (!p->mapped)
		return true;
	if (!p->registered || (p->owner == MM_PROGRAM && !s->own_async))
		return false;
	if (!p->marked && mm_set_contains(&t->was_armed, pgoff))
		ok(mm_set_add_range(&t->was_dirty, pgoff, 1));
	if (p->file == t->file && (uint64_t)p->pgoff == pgoff)
		p->pending = false; /* counted just now, or armed only now */
	p->marked = true;
	return true;
}

static void turn_mark(struct sim *s, struct turn *t, struct mm_vma *v)
{
	int at = (int)(v->start >> WPFS_PAGE_SHIFT);
	bool marks = true;

	if (v->file != (uint64_t)t->file || v->sealed || v->pgoff >= (uint64_t)t->to ||
	    v->pgoff + mm_vma_pages(v) <= (uint64_t)t->from)
		return;
	if (!v->registered || v->owner == MM_PROGRAM) {
		for (int i = 0; i < (int)mm_vma_pages(v); i++) {
			struct sim_page *p = &s->space[at + i];

			if (!p->mapped || p->sealed || (p->registered && p->owner == MM_PROGRAM))
				marks = false; /* ENOMEM, EPERM, EBUSY */
		}
		if (s->space[at].mapped && s->space[at].sealed) {
			v->sealed = true;
			return;
		}
		for (int i = 0; marks && i < (int)mm_vma_pages(v); i++)
			s->space[at + i].registered = true, s->space[at + i].owner = MM_WPFS;
		if (marks) {
			v->registered = v->async = true;
			v->owner = MM_WPFS;
		}
	}
	for (uint64_t i = 0; marks && i < mm_vma_pages(v); i++) {
		if (v->pgoff + i >= (uint64_t)t->from && v->pgoff + i < (uint64_t)t->to)
			marks = turn_mark_page(s, t, at + (int)i, v->pgoff + i);
	}
	for (uint64_t p = v->pgoff; !marks && p < v->pgoff + mm_vma_pages(v); p++) {
		if (p < (uint64_t)t->from || p >= (uint64_t)t->to)
			continue;
		ok(mm_set_add_range(&t->stays, p, 1));
		sim_taint(s, t->file, (int)p);
	}
}

/* What a store that is not in the closed epoch owes to the new one; `exact`: there is none. */
static void turn_check(struct sim *s, struct turn *t, bool exact)
{
	for (int p = t->from; p < t->to; p++) {
		struct sim_ref *ref = &s->ref[t->file][p];
		bool was = mm_set_contains(&t->was_dirty, (uint64_t)p);

		/* armed only now: a store before its mark is in no epoch */
		ref->stored &= mm_set_contains(&t->was_armed, (uint64_t)p);
		if (exact && ref->stored && !was)
			snprintf(s->failure, sizeof(s->failure),
				 "file %d page %d: no epoch has its store", t->file, p);
		if (was && !ref->stored && !ref->tainted)
			snprintf(s->failure, sizeof(s->failure),
				 "file %d page %d: dirty in the closed epoch for nothing", t->file,
				 p);
		ref->stored &= !was;
		ref->tainted = !exact || mm_set_contains(&t->stays, (uint64_t)p);
	}
}

static void protect(struct sim *s)
{
	struct turn t = {.file = (int)sim_rng(s, SIM_FILES), .to = SIM_PAGES};
	bool ranged = sim_rng(s, 3) == 0, exact = sim_rng(s, 4);
	struct mm_file *f;

	if (ranged) {
		t.from = (int)sim_rng(s, SIM_PAGES);
		t.to = t.from + 1 + (int)sim_rng(s, (uint32_t)(SIM_PAGES - t.from));
	}
	sim_harvest(s);
	f = mm_file_find(&s->mm, (uint64_t)t.file);
	if (!f)
		return;
	turn_begin(s, &t, f);
	sim_store(s); /* meanwhile */
	if (!exact) {
		sim_move(s, true);
		sim_store(s);
	}
	for (size_t i = 0; i < s->mm.nr_vmas; i++)
		turn_mark(s, &t, &s->mm.vmas[i]);
	ok(mm_set_copy(&f->own[MM_WPFS].dirty, &t.stays));
	ok(mm_set_and(&f->own[MM_WPFS].dirty, &f->own[MM_WPFS].armed));
	if (!ranged)
		f->protect = true;
	s->mm.epoch++;
	turn_check(s, &t, exact);
	mm_set_free(&t.was_armed);
	mm_set_free(&t.was_dirty);
	mm_set_free(&t.stays);
}

/* ---- the end of a run, and the next one of the same name ---- */

static void run_ends(struct sim *s)
{
	if (sim_rng(s, 3)) {
		sim_harvest(s);
	} else { /* nobody could look: killed with its witness */
		ok(mm_lost(&s->mm));
		for (int file = 0; file < SIM_FILES; file++) {
			for (int page = 0; page < SIM_PAGES; page++)
				s->ref[file][page].tainted = true;
		}
	}
	mm_forget_vmas(&s->mm);
	s->mm.own_uffds = false;
	memset(s->space, 0, sizeof(s->space));
}

const char *sim_step(struct sim *s)
{
	uint32_t dice = sim_rng(s, 100);
	struct sim_range r;

	if (dice < 30)
		return sim_store(s), "store";
	if (dice < 42)
		return shim_map(s), "shim map";
	if (dice < 47)
		return sim_pick(s, &r) ? (shim_unmap(s, r), "shim unmap") : "nothing";
	if (dice < 50)
		return sim_pick(s, &r) ? (sim_raw_unmap(s, r), "raw unmap") : "nothing";
	if (dice < 54)
		return sim_raw_map(s), "raw map";
	if (dice < 62)
		return sim_move(s, false), "move";
	if (dice < 66)
		return sim_grow(s), "grow";
	if (dice < 68)
		return drop(s), "drop";
	if (dice < 72)
		return sim_mprotect(s), "mprotect";
	if (dice < 74)
		return own_register(s), "program registers";
	if (dice < 76)
		return own_unregister(s), "program unregisters";
	if (dice < 79)
		return sim_own_writeprotect(s), "program writeprotects";
	if (dice < 84)
		return protect(s), "protect";
	if (dice < 85)
		return run_ends(s), "run ends";
	return sim_harvest(s), "harvest";
}
