/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Four rings: fresh and aged are the small queue before and after its pages' probe, main, ghost. An
 * entry names a page and the generation of its stay; an entry whose page has moved on is skipped
 * when it is met, so that nothing is ever searched for.
 *
 * Not chosen: LRU and ARC, which move a page at each use: uses of mapped pages are seen by no one.
 * CLOCK alone is not scan-resistant.
 */
#include "spill/policy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define CHUNK 4096u /* pages whose states are allocated at once */

/* A page's state: where it is, and what is known of it. */
enum where { NOWHERE, SMALL, MAIN, GHOST };
#define STATE_WHERE 0x03
#define STATE_FREQ  0x0c /* touches, at most 3 */
#define FREQ_ONE    0x04
#define STATE_GEN   0x70 /* of its stay; entries of an earlier one are void */
#define GEN_SHIFT   4
#define STATE_AGED  0x80 /* probed: in the small queue it is in the ring of those */

struct entry {
	uint64_t page : 28, slot : 17, gen : 3, tick : 16;
};

_Static_assert(sizeof(struct entry) == 8, "eight bytes per queued page");

struct ring {
	struct entry *entries;
	uint64_t head, nr, room; /* room is a power of two */
	uint64_t live;		 /* entries that are not void */
};

struct file {
	void *owner; /* NULL: the slot is free */
	uint8_t **chunks;
	uint64_t nr_chunks;
};

struct policy {
	uint64_t capacity;
	struct ring fresh, aged, main, ghost;
	struct file *files;
	uint32_t nr_files;
};

/* ---- rings ---- */

static bool ring_grow(struct ring *r)
{
	uint64_t room = r->room ? r->room * 2 : 1024;
	struct entry *bigger = calloc(room, sizeof(*bigger));

	if (!bigger)
		return false;
	for (uint64_t i = 0; i < r->nr; i++)
		bigger[i] = r->entries[(r->head + i) & (r->room - 1)];
	free(r->entries);
	*r = (struct ring){.entries = bigger, .nr = r->nr, .room = room, .live = r->live};
	return true;
}

static struct entry ring_shift(struct ring *r)
{
	struct entry e = r->entries[r->head & (r->room - 1)];

	r->head++;
	r->nr--;
	return e;
}

/* ---- states ---- */

static uint8_t *state_find(const struct policy *p, uint32_t slot, uint64_t page)
{
	const struct file *f = &p->files[slot];
	uint8_t *chunk = page / CHUNK < f->nr_chunks ? f->chunks[page / CHUNK] : NULL;

	return chunk ? &chunk[page % CHUNK] : NULL;
}

static uint8_t *state_make(struct policy *p, uint32_t slot, uint64_t page)
{
	struct file *f = &p->files[slot];
	uint64_t i = page / CHUNK;

	if (page >= POLICY_MAX_PAGES)
		return NULL;
	if (i >= f->nr_chunks) {
		uint64_t nr = i + 1 > f->nr_chunks * 2 ? i + 1 : f->nr_chunks * 2;
		uint8_t **bigger = reallocarray(f->chunks, nr, sizeof(*bigger));

		if (!bigger)
			return NULL;
		memset(bigger + f->nr_chunks, 0, (nr - f->nr_chunks) * sizeof(*bigger));
		f->chunks = bigger;
		f->nr_chunks = nr;
	}
	if (!f->chunks[i])
		f->chunks[i] = calloc(1, CHUNK);
	return f->chunks[i] ? &f->chunks[i][page % CHUNK] : NULL;
}

static enum where where(uint8_t state)
{
	return state & STATE_WHERE;
}

/* The state of an entry's page, if it still is about that stay in a queue `w`. */
static uint8_t *state_of(const struct policy *p, struct entry e, enum where w)
{
	uint8_t *state = p->files[e.slot].owner ? state_find(p, e.slot, e.page) : NULL;

	if (!state || where(*state) != w || (*state & STATE_GEN) >> GEN_SHIFT != e.gen)
		return NULL;
	return state;
}

static bool entry_is_void(const struct policy *p, const struct ring *r, struct entry e)
{
	if (r == &p->ghost)
		return !state_of(p, e, GHOST);
	return !state_of(p, e, r == &p->main ? MAIN : SMALL);
}

static void ring_compact(const struct policy *p, struct ring *r)
{
	uint64_t nr = r->nr, kept = 0;

	for (uint64_t i = 0; i < nr; i++) {
		struct entry e = r->entries[(r->head + i) & (r->room - 1)];

		if (!entry_is_void(p, r, e))
			r->entries[(r->head + kept++) & (r->room - 1)] = e;
	}
	r->nr = kept;
}

/* Files that are truncated and filled again and again leave void entries only. */
static bool ring_push(struct policy *p, struct ring *r, struct entry e)
{
	if (r->nr == r->room && r->nr / 2 > r->live)
		ring_compact(p, r);
	if (r->nr == r->room && !ring_grow(r))
		return false;
	r->entries[(r->head + r->nr++) & (r->room - 1)] = e;
	r->live++;
	return true;
}

/* A new stay: older entries of the page are void. */
static struct entry stay_begin(uint8_t *state, uint32_t slot, uint64_t page, enum where w)
{
	uint8_t gen = (uint8_t)(((*state & STATE_GEN) >> GEN_SHIFT) + 1) & 7;

	*state = (uint8_t)(gen << GEN_SHIFT | w);
	return (struct entry){.page = page & 0xfffffff, .slot = slot & 0x1ffff, .gen = gen & 7};
}

/* ---- life ---- */

int policy_new(uint64_t capacity, struct policy **out)
{
	struct policy *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->capacity = capacity;
	*out = p;
	return 0;
}

static void file_clear(struct file *f)
{
	for (uint64_t i = 0; i < f->nr_chunks; i++)
		free(f->chunks[i]);
	free(f->chunks);
	*f = (struct file){0};
}

void policy_free(struct policy *p)
{
	if (!p)
		return;
	for (uint32_t i = 0; i < p->nr_files; i++)
		file_clear(&p->files[i]);
	free(p->files);
	free(p->fresh.entries);
	free(p->aged.entries);
	free(p->main.entries);
	free(p->ghost.entries);
	free(p);
}

int policy_file_add(struct policy *p, void *owner, uint32_t *slot)
{
	struct file *bigger;
	uint32_t i = 0;

	while (i < p->nr_files && p->files[i].owner)
		i++;
	if (i == POLICY_MAX_FILES)
		return -ENFILE;
	if (i == p->nr_files) {
		uint32_t nr = i ? i * 2 : 16;

		bigger = reallocarray(p->files, nr, sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		memset(bigger + i, 0, (nr - i) * sizeof(*bigger));
		p->files = bigger;
		p->nr_files = nr;
	}
	p->files[i].owner = owner;
	*slot = i;
	return 0;
}

void *policy_file_owner(const struct policy *p, uint32_t slot)
{
	return slot < p->nr_files ? p->files[slot].owner : NULL;
}

void policy_file_remove(struct policy *p, uint32_t slot)
{
	policy_drop(p, slot, 0, POLICY_MAX_PAGES);
	/*
	 * The slot may be given to another file while entries of this one are queued; they cannot
	 * be told from that one's: at worst a page of it has its turn too early.
	 */
	file_clear(&p->files[slot]);
}

uint64_t policy_count(const struct policy *p)
{
	return p->fresh.live + p->aged.live + p->main.live;
}

/* ---- what happens to pages ---- */

void policy_touch(struct policy *p, uint32_t slot, uint64_t page)
{
	uint8_t *state = state_find(p, slot, page);

	if (state && (*state & STATE_FREQ) != STATE_FREQ)
		*state = (uint8_t)(*state + FREQ_ONE);
}

void policy_insert(struct policy *p, uint32_t slot, uint64_t page)
{
	uint8_t *state = state_make(p, slot, page);
	bool again;

	if (!state)
		return;
	if (where(*state) == SMALL || where(*state) == MAIN) {
		policy_touch(p, slot, page);
		return;
	}
	again = where(*state) == GHOST;
	if (again)
		p->ghost.live--;
	if (!ring_push(p, again ? &p->main : &p->fresh,
		       stay_begin(state, slot, page, again ? MAIN : SMALL)))
		*state &= (uint8_t)~STATE_WHERE;
}

static struct ring *ring_of(struct policy *p, uint8_t state)
{
	switch (where(state)) {
	case SMALL:
		return state & STATE_AGED ? &p->aged : &p->fresh;
	case MAIN:
		return &p->main;
	case GHOST:
		return &p->ghost;
	case NOWHERE:
		break;
	}
	return NULL;
}

void policy_drop(struct policy *p, uint32_t slot, uint64_t first, uint64_t nr)
{
	const struct file *f = &p->files[slot];
	uint64_t end = nr > POLICY_MAX_PAGES - first ? POLICY_MAX_PAGES : first + nr;

	if (end > f->nr_chunks * CHUNK)
		end = f->nr_chunks * CHUNK;
	for (uint64_t page = first; page < end; page++) {
		uint8_t *state = state_find(p, slot, page);

		if (!state) {
			page |= CHUNK - 1;
			continue;
		}
		if (ring_of(p, *state))
			ring_of(p, *state)->live--;
		*state &= (uint8_t)~STATE_WHERE;
	}
}

/* ---- choosing ---- */

/* Takes the first entry that is not void; its page stays resident and in no ring. */
static bool ring_take(struct policy *p, struct ring *r, enum where w, struct entry *e,
		      uint8_t **state)
{
	while (r->nr) {
		*e = ring_shift(r);
		*state = state_of(p, *e, w);
		if (*state) {
			r->live--;
			return true;
		}
	}
	r->live = 0;
	return false;
}

/* Has the first of the ring been there for long enough? */
static bool ring_is_ripe(struct policy *p, struct ring *r, uint16_t now, uint16_t min_age)
{
	while (r->nr && entry_is_void(p, r, r->entries[r->head & (r->room - 1)]))
		ring_shift(r);
	return r->nr && (uint16_t)(now - r->entries[r->head & (r->room - 1)].tick) >= min_age;
}

/*
 * The small queue gives when it is more than a tenth. Of its two halves the aged one, unless it is
 * the smaller one or its first is too young to tell.
 */
static struct ring *policy_choose(struct policy *p, uint16_t now, uint16_t min_age)
{
	uint64_t small = p->fresh.live + p->aged.live;

	if (p->main.live && small <= p->capacity / 10)
		return &p->main;
	if (p->aged.live >= p->fresh.live && ring_is_ripe(p, &p->aged, now, min_age))
		return &p->aged;
	if (p->fresh.live)
		return &p->fresh;
	if (ring_is_ripe(p, &p->aged, now, min_age) || !p->main.live)
		return &p->aged;
	return &p->main;
}

bool policy_pop(struct policy *p, uint16_t now, uint16_t min_age, struct policy_page *page)
{
	while (policy_count(p)) {
		struct ring *r = policy_choose(p, now, min_age);
		struct entry e;
		uint8_t *state;

		if (!ring_take(p, r, r == &p->main ? MAIN : SMALL, &e, &state))
			continue;
		*page = (struct policy_page){
			.page = e.page,
			.slot = e.slot,
			.tick = e.tick,
			.gen = e.gen,
			.probed = *state & STATE_AGED,
			.touched = *state & STATE_FREQ,
			.main = r == &p->main,
		};
		*state &= (uint8_t)~STATE_WHERE;
		return true;
	}
	return false;
}

static void ghost_push(struct policy *p, uint8_t *state, const struct policy_page *page)
{
	struct entry e;
	uint8_t *old;

	while (p->ghost.live >= p->capacity && ring_take(p, &p->ghost, GHOST, &e, &old))
		*old &= (uint8_t)~STATE_WHERE;
	if (!ring_push(p, &p->ghost, stay_begin(state, page->slot, page->page, GHOST)))
		*state &= (uint8_t)~STATE_WHERE;
}

void policy_put(struct policy *p, const struct policy_page *page, enum policy_verdict verdict,
		uint16_t now)
{
	struct entry e = {.page = page->page & 0xfffffff,
			  .slot = page->slot & 0x1ffff,
			  .gen = page->gen & 7,
			  .tick = verdict == POLICY_WAIT ? page->tick : now};
	uint8_t *state = state_of(p, e, NOWHERE);
	bool to_main = page->main || verdict == POLICY_USED;

	/* It came anew meanwhile, which began another stay; or there is nothing to keep. */
	if (!state || verdict == POLICY_GONE)
		return;
	if (verdict == POLICY_EVICTED) {
		ghost_push(p, state, page);
		return;
	}
	if (verdict != POLICY_WAIT)
		*state |= STATE_AGED;
	if (verdict == POLICY_USED && *state & STATE_FREQ)
		*state = (uint8_t)(*state - FREQ_ONE);
	*state |= to_main ? MAIN : SMALL;
	if (!ring_push(p, ring_of(p, *state), e))
		*state &= (uint8_t)~STATE_WHERE;
}
