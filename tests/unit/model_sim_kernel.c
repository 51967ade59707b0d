/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kernel's part of the simulation: mappings and marks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "model_sim.h"

void sim_taint(struct sim *s, int file, int pgoff)
{
	s->ref[file][pgoff].tainted = true;
}

/* Would the kernel have both pages in one VMA? */
static bool same_vma(const struct sim_page *a, const struct sim_page *b)
{
	return a->mapped && b->mapped && a->file == b->file && a->pgoff + 1 == b->pgoff &&
	       a->sealed == b->sealed && a->prot == b->prot && a->registered == b->registered &&
	       (!a->registered || a->owner == b->owner);
}

static int vma_end(const struct sim *s, int at)
{
	while (at + 1 < SIM_SPACE && same_vma(&s->space[at], &s->space[at + 1]))
		at++;
	return at + 1;
}

/* What a harvest reads. */
int sim_view(const struct sim *s, struct mm_vma **vmas, size_t *nr)
{
	*nr = 0;
	*vmas = calloc(SIM_SPACE + 1, sizeof(**vmas));
	if (!*vmas)
		return -ENOMEM;
	for (int at = 0, end; at < SIM_SPACE; at = end) {
		const struct sim_page *p = &s->space[at];
		struct mm_vma *v = &(*vmas)[*nr];

		end = at + 1;
		if (!p->mapped)
			continue;
		end = vma_end(s, at);
		*v = (struct mm_vma){
			.start = (uint64_t)at << WPFS_PAGE_SHIFT,
			.end = (uint64_t)end << WPFS_PAGE_SHIFT,
			.file = (uint64_t)p->file,
			.pgoff = (uint64_t)p->pgoff,
			.registered = p->registered,
			.async = p->registered && (p->owner == MM_WPFS || s->own_async),
		};
		++*nr;
		for (int i = at; i < end; i++) {
			if (s->space[i].marked &&
			    mm_set_add_range(&v->marked, (uint64_t)(i - at), 1) < 0)
				return -ENOMEM;
		}
	}
	return 0;
}

bool sim_pick(struct sim *s, struct sim_range *r)
{
	int at = (int)sim_rng(s, SIM_SPACE), end;

	for (int i = 0; i < SIM_SPACE && !s->space[at].mapped; i++)
		at = (at + 1) % SIM_SPACE;
	if (!s->space[at].mapped)
		return false;
	while (at > 0 && same_vma(&s->space[at - 1], &s->space[at]) && sim_rng(s, 4))
		at--;
	end = vma_end(s, at);
	*r = (struct sim_range){at, end - at};
	if (sim_rng(s, 2))
		r->nr = 1 + (int)sim_rng(s, (uint32_t)r->nr);
	return true;
}

bool sim_pick_free(struct sim *s, int nr, int *at)
{
	int from = (int)sim_rng(s, SIM_SPACE);

	for (int i = 0, len = 0; i < 2 * SIM_SPACE; i++) {
		int here = (from + i) % SIM_SPACE;

		len = s->space[here].mapped ? 0 : here == 0 ? 1 : len + 1;
		if (len == nr) {
			*at = here - nr + 1;
			return true;
		}
	}
	return false;
}

void sim_store(struct sim *s)
{
	for (uint32_t n = 1 + sim_rng(s, 4); n > 0; n--) {
		struct sim_page *p;
		struct sim_range r;

		if (!sim_pick(s, &r))
			return;
		p = &s->space[r.at + (int)sim_rng(s, (uint32_t)r.nr)];
		if (p->sealed)
			continue;
		p->marked = false;
		if (!s->ref[p->file][p->pgoff].armed)
			continue;
		if (p->known)
			s->ref[p->file][p->pgoff].stored = true;
		else
			p->pending = true;
	}
}

/* A mapping that comes and goes between two harvests leaves no trace: its stores are not seen. */
void sim_raw_unmap(struct sim *s, struct sim_range r)
{
	for (int i = r.at; i < r.at + r.nr; i++) {
		if (s->space[i].mapped) /* sealed ones too: it may not be known yet that they are */
			sim_taint(s, s->space[i].file, s->space[i].pgoff);
		s->space[i] = (struct sim_page){0};
	}
}

void sim_raw_map(struct sim *s)
{
	int nr = 1 + (int)sim_rng(s, 8), at;
	int file = (int)sim_rng(s, SIM_FILES);
	int pgoff = (int)sim_rng(s, (uint32_t)(SIM_PAGES - nr + 1));
	bool sealed = sim_rng(s, 4) == 0;

	if (sim_rng(s, 3) == 0) /* MAP_FIXED */
		at = (int)sim_rng(s, (uint32_t)(SIM_SPACE - nr + 1));
	else if (!sim_pick_free(s, nr, &at))
		return;
	sim_raw_unmap(s, (struct sim_range){at, nr});
	for (int i = 0; i < nr; i++) {
		s->space[at + i] = (struct sim_page){
			.mapped = true, .file = file, .pgoff = pgoff + i, .sealed = sealed};
		if (!sealed)
			sim_taint(s, file, pgoff + i);
	}
}

/* The new place of one page of a mapping that moves. */
static struct sim_page moved(const struct sim *s, const struct sim_page *from)
{
	struct sim_page p = *from;

	if (p.registered && p.owner == MM_PROGRAM && !s->own_remap)
		p.registered = p.marked = false; /* without EVENT_REMAP the kernel lets go */
	return p;
}

/*
 * Asynchronous mappings of the program's own are not moved here: they can be made to look like any
 * of wpfs's. observe_owner_test.c has what is done about it.
 */
static bool movable(const struct sim *s, const struct sim_page *p)
{
	return !p->registered || p->owner == MM_WPFS || !s->own_async;
}

/* mremap; unless `plain` also MREMAP_FIXED, MREMAP_DONTUNMAP and from an old size of 0. */
void sim_move(struct sim *s, bool plain)
{
	uint32_t kind = plain ? 2 : sim_rng(s, 8);
	struct sim_range r;
	int to;

	if (!sim_pick(s, &r) || !movable(s, &s->space[r.at]))
		return;
	if (!plain && sim_rng(s, 3) == 0) {
		to = (int)sim_rng(s, (uint32_t)(SIM_SPACE - r.nr + 1));
		if (to < r.at + r.nr && r.at < to + r.nr)
			return;
		sim_raw_unmap(s, (struct sim_range){to, r.nr});
		kind = 2; /* a copy of the program's over one of wpfs's looks like what was there */
	} else if (!sim_pick_free(s, r.nr, &to)) {
		return;
	}
	for (int i = 0; i < r.nr; i++) {
		struct sim_page *old = &s->space[r.at + i], *now = &s->space[to + i];

		*now = moved(s, old);
		if (old->registered && !now->registered && !now->sealed)
			sim_taint(s, old->file, old->pgoff);
		if (old->sealed || kind <= 1)
			sim_taint(s, old->file, old->pgoff);
		if (kind > 1) {
			*old = (struct sim_page){0};
			continue;
		}
		if (kind == 0) {
			/* DONTUNMAP: the page tables went; what stays is like a new mapping */
			old->marked = old->known = old->pending = false;
		} else {
			now->marked = now->known = now->pending = false;
		}
	}
}

void sim_grow(struct sim *s)
{
	const struct sim_page *last;
	struct sim_range r;

	if (!sim_pick(s, &r) || !movable(s, &s->space[r.at]))
		return;
	for (int at = vma_end(s, r.at), n = 1 + (int)sim_rng(s, 4); n > 0; at++, n--) {
		if (at >= SIM_SPACE || s->space[at].mapped)
			return;
		last = &s->space[at - 1];
		if (last->pgoff + 1 >= SIM_PAGES)
			return;
		s->space[at] = *last;
		s->space[at].pgoff++;
		s->space[at].marked = s->space[at].known = s->space[at].pending = false;
		if (!last->sealed)
			sim_taint(s, last->file, last->pgoff + 1);
	}
}

void sim_mprotect(struct sim *s)
{
	struct sim_range r;

	if (!sim_pick(s, &r))
		return;
	for (int i = r.at; i < r.at + r.nr; i++)
		s->space[i].prot = !s->space[i].prot;
}

/* The program marks or un-marks in its own uffd. */
void sim_own_writeprotect(struct sim *s)
{
	bool on = sim_rng(s, 3);
	struct sim_range r;

	if (!sim_pick(s, &r))
		return;
	for (int i = r.at; i < r.at + r.nr; i++) {
		if (s->space[i].registered && s->space[i].owner == MM_PROGRAM)
			s->space[i].marked = on;
	}
}
