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
#include <sys/mman.h>

#include "base/cleanup.h"

#define CHUNK 4096u /* pages whose states are allocated at once */

/* A page's state: where it is, and what is known of it. */
enum where { NOWHERE, SMALL, MAIN, GHOST };
#define STATE_WHERE 0x03
#define STATE_FREQ  0x0c /* uses to its credit, at most 3 */
#define FREQ_ONE    0x04
#define STATE_GEN   0x70 /* of its stay; entries of an earlier one are void */
#define GEN_SHIFT   4
#define STATE_AGED  0x80 /* probed: in the small queue it is in the ring of those */

struct entry {
	uint64_t page;
	uint32_t slot;
	uint16_t tick;
	uint8_t gen;
};

/*
 * A ring is of words: most are a page and the generation of its stay; its file and its tick are
 * those of the last word before it that says one. Neighbours are nearly always alike in both.
 */
#define WORD_GEN_SHIFT 28
#define WORD_PAGE      0x0fffffffu
#define WORD_SLOT      0x80000000u /* bit 31: no page, but a slot, */
#define WORD_TICK      0xc0000000u /* or with bit 30 a tick */
#define WORD_VALUE     0x0003ffffu
#define WORDS_MOST     3 /* that one entry can take */
#define RING_LEAST     1024u

_Static_assert(POLICY_MAX_PAGES == WORD_PAGE + 1ull, "a page fits beside its generation");
_Static_assert(POLICY_MAX_FILES <= WORD_VALUE + 1ull, "a slot fits in a word");

/* What the words so far say. */
struct context {
	uint32_t slot;
	uint16_t tick;
};

struct ring {
	uint32_t *words;
	uint64_t head, nr, room;
	uint64_t live;		/* entries that are not void */
	struct context out, in; /* at the head, behind the end */
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

static uint32_t *ring_at(const struct ring *r, uint64_t i)
{
	uint64_t at = r->head + i;

	return &r->words[at < r->room ? at : at - r->room];
}

/* Not from the heap, which would keep the holes of rings that grew. */
static bool ring_move(struct ring *r, uint64_t room)
{
	uint32_t *words = mmap(NULL, room * sizeof(*words), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (words == MAP_FAILED)
		return false;
	for (uint64_t i = 0; i < r->nr; i++)
		words[i] = *ring_at(r, i);
	if (r->words)
		munmap(r->words, r->room * sizeof(*r->words));
	r->words = words;
	r->head = 0;
	r->room = room;
	return true;
}

static void ring_free(struct ring *r)
{
	if (r->words)
		munmap(r->words, r->room * sizeof(*r->words));
	*r = (struct ring){.words = NULL};
}

/* There is room for the words. */
static void ring_append(struct ring *r, const struct entry *e)
{
	if (r->in.slot != e->slot)
		*ring_at(r, r->nr++) = WORD_SLOT | e->slot;
	if (r->in.tick != e->tick)
		*ring_at(r, r->nr++) = WORD_TICK | e->tick;
	r->in = (struct context){e->slot, e->tick};
	*ring_at(r, r->nr++) = (uint32_t)(e->gen & 7) << WORD_GEN_SHIFT | (uint32_t)e->page;
}

/* Word i in its context, which it may change. False: it is no entry. */
static bool ring_parse(const struct ring *r, uint64_t i, struct context *context, struct entry *e)
{
	uint32_t word = *ring_at(r, i);

	if (word >= WORD_TICK) {
		context->tick = (uint16_t)(word & WORD_VALUE);
		return false;
	}
	if (word >= WORD_SLOT) {
		context->slot = word & WORD_VALUE;
		return false;
	}
	*e = (struct entry){.page = word & WORD_PAGE,
			    .slot = context->slot,
			    .tick = context->tick,
			    .gen = (uint8_t)(word >> WORD_GEN_SHIFT)};
	return true;
}

/* The first entry, which stays. False: there is none. */
static bool ring_peek(struct ring *r, struct entry *e)
{
	while (r->nr) {
		if (ring_parse(r, 0, &r->out, e))
			return true;
		r->head = r->head + 1 == r->room ? 0 : r->head + 1;
		r->nr--;
	}
	return false;
}

/* After ring_peek: takes it away. */
static void ring_shift(struct ring *r)
{
	r->head = r->head + 1 == r->room ? 0 : r->head + 1;
	r->nr--;
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
static uint8_t *state_of(const struct policy *p, const struct entry *e, enum where w)
{
	uint8_t *state = p->files[e->slot].owner ? state_find(p, e->slot, e->page) : NULL;

	if (!state || where(*state) != w || (*state & STATE_GEN) >> GEN_SHIFT != e->gen)
		return NULL;
	return state;
}

static bool entry_is_void(const struct policy *p, const struct ring *r, const struct entry *e)
{
	if (r == &p->ghost)
		return !state_of(p, e, GHOST);
	return !state_of(p, e, r == &p->main ? MAIN : SMALL);
}

/* In place: what is kept takes no more words than it took. */
static void ring_compact(const struct policy *p, struct ring *r)
{
	uint64_t nr = r->nr;
	struct context context = r->out;

	r->in = r->out;
	r->nr = 0;
	for (uint64_t i = 0; i < nr; i++) {
		struct entry e;

		if (ring_parse(r, i, &context, &e) && !entry_is_void(p, r, &e))
			ring_append(r, &e);
	}
}

/*
 * Void entries go when there is no room; what is free then is a quarter at least, so that this is
 * not done for each entry, and a half at most.
 */
static bool ring_push(struct policy *p, struct ring *r, const struct entry *e)
{
	if (r->nr + WORDS_MOST > r->room) {
		uint64_t room;

		ring_compact(p, r);
		room = r->nr + r->nr / 3 + RING_LEAST;
		if ((r->nr + r->nr / 4 + WORDS_MOST > r->room || room < r->room / 2) &&
		    !ring_move(r, room) && r->nr + WORDS_MOST > r->room)
			return false;
	}
	ring_append(r, e);
	r->live++;
	return true;
}

/* A new stay: older entries of the page are void. */
static struct entry stay_begin(uint8_t *state, uint32_t slot, uint64_t page, enum where w)
{
	uint8_t gen = (uint8_t)(((*state & STATE_GEN) >> GEN_SHIFT) + 1) & 7;

	*state = (uint8_t)(gen << GEN_SHIFT | w);
	return (struct entry){.page = page, .slot = slot, .gen = gen};
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
	ring_free(&p->fresh);
	ring_free(&p->aged);
	ring_free(&p->main);
	ring_free(&p->ghost);
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

void policy_learn(struct policy *p, uint32_t slot, uint64_t page)
{
	uint8_t *state = state_make(p, slot, page);
	struct entry e;
	bool again;

	if (!state || where(*state) == SMALL || where(*state) == MAIN)
		return;
	again = where(*state) == GHOST;
	if (again)
		p->ghost.live--;
	e = stay_begin(state, slot, page, again ? MAIN : SMALL);
	if (!ring_push(p, again ? &p->main : &p->fresh, &e))
		*state &= (uint8_t)~STATE_WHERE;
}

void policy_insert(struct policy *p, uint32_t slot, uint64_t page)
{
	const uint8_t *state = state_find(p, slot, page);

	if (state && (where(*state) == SMALL || where(*state) == MAIN))
		policy_touch(p, slot, page);
	else
		policy_learn(p, slot, page);
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
	while (ring_peek(r, e)) {
		ring_shift(r);
		*state = state_of(p, e, w);
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
	struct entry e;

	while (ring_peek(r, &e)) {
		if (!entry_is_void(p, r, &e))
			return (uint16_t)(now - e.tick) >= min_age;
		ring_shift(r);
	}
	return false;
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
	e = stay_begin(state, page->slot, page->page, GHOST);
	if (!ring_push(p, &p->ghost, &e))
		*state &= (uint8_t)~STATE_WHERE;
}

void policy_put(struct policy *p, const struct policy_page *page, enum policy_verdict verdict,
		uint16_t now)
{
	struct entry e = {.page = page->page,
			  .slot = page->slot,
			  .gen = page->gen,
			  .tick = verdict == POLICY_WAIT ? page->tick : now};
	uint8_t *state = state_of(p, &e, NOWHERE);
	bool used = verdict == POLICY_USED || verdict == POLICY_SPARED;
	bool to_main = page->main || used;

	/* It came anew meanwhile, which began another stay; or there is nothing to keep. */
	if (!state || verdict == POLICY_GONE)
		return;
	if (verdict == POLICY_EVICTED) {
		ghost_push(p, state, page);
		return;
	}
	if (verdict != POLICY_WAIT)
		*state |= STATE_AGED;
	if (verdict == POLICY_SPARED && *state & STATE_FREQ)
		*state = (uint8_t)(*state - FREQ_ONE);
	/* From the small queue to the main one is enough for a first use. */
	if (verdict == POLICY_USED && page->main && (*state & STATE_FREQ) != STATE_FREQ)
		*state = (uint8_t)(*state + FREQ_ONE);
	*state |= to_main ? MAIN : SMALL;
	if (!ring_push(p, ring_of(p, *state), &e))
		*state &= (uint8_t)~STATE_WHERE;
}
