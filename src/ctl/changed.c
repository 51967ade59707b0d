/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Two reports, both over all programs of the file: as it is now, which tells who else could have
 * stored to it, and of the epoch that is asked for, or of each of several. Everything that could
 * make a page be missing is a gap: what a backup lacks is found out when it is needed.
 *
 * A gap is: write(2) in the epoch, or nobody knows; a process that is not tracked and can store to
 * it; a writable mapping that wpfs does not watch all of; programs of others that this user may not
 * look at; with --name, a program of another name that can store to it. What is gone without having
 * been protected leaves nothing to be seen: wpctl(1) says so.
 */
#include "ctl/changed.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "ctl/say.h"

struct walk {
	struct changed *changed;
	const struct wpfs_select *select;
	bool now;      /* the report of now: its mappings tell who stores */
	bool take;     /* and its runs are wanted */
	bool selected; /* the mm at hand */
	bool known;    /* --name is one that is there */
	uint64_t armed;
	uint64_t open; /* the largest number of an epoch that is open */
	struct wpfs_rec_mm mm;
};

static void gap(struct changed *changed, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* The first is told: one is enough. */
static void gap(struct changed *changed, const char *fmt, ...)
{
	va_list ap;

	if (changed->gap[0])
		return;
	va_start(ap, fmt);
	vsnprintf(changed->gap, sizeof(changed->gap), fmt, ap);
	va_end(ap);
}

static const char *mm_name(const struct walk *walk)
{
	return walk->mm.name[0] ? walk->mm.name : "a program without a name";
}

static void take_mapping(struct walk *walk, const struct wpfs_rec_map *map)
{
	struct changed *changed = walk->changed;
	bool stores = map->end > map->start && (map->prot & PROT_WRITE);

	if (!walk->selected) {
		if (stores || map->dirty)
			gap(changed, "%s stores to it too: leave --name away", mm_name(walk));
	} else if (map->owner == WPFS_OWNER_PROGRAM) {
		if (stores || map->dirty)
			gap(changed,
			    "%s protects it through a userfaultfd of its own: its dirty pages are "
			    "a "
			    "lower bound",
			    mm_name(walk));
	} else {
		walk->armed += map->armed;
		if (stores && map->armed < map->pages)
			gap(changed, "%s maps it and not all of that is protected", mm_name(walk));
	}
}

static void take_map(struct walk *walk, const struct wpfs_rec_map *map)
{
	struct changed *changed = walk->changed;

	changed->file = map->file;
	if (walk->now)
		take_mapping(walk, map);
	if (!walk->take || !walk->selected)
		return;
	if (map->written == WPFS_WRITTEN_YES)
		gap(changed,
		    "write(2), or a call like it, changed it in this epoch, which leaves no "
		    "dirty page");
	else if (map->written == WPFS_WRITTEN_UNKNOWN)
		gap(changed, "whether write(2) changed it in this epoch is not known");
}

static int take_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	struct walk *walk = arg;
	const struct wpfs_rec_run *run = body;
	const struct wpfs_rec_note *note = body;

	switch (type) {
	case WPFS_REC_MM:
		walk->mm = *(const struct wpfs_rec_mm *)body;
		walk->selected = target_selects(walk->select, walk->mm.name);
		walk->known |= walk->selected;
		if (walk->now && walk->selected && walk->mm.epoch > walk->open)
			walk->open = walk->mm.epoch;
		if (walk->selected && walk->take && walk->mm.epoch > walk->changed->epoch)
			walk->changed->epoch = walk->mm.epoch;
		break;
	case WPFS_REC_MAP:
		take_map(walk, body);
		break;
	case WPFS_REC_RUN:
		if (walk->take && walk->selected)
			return mm_set_add_range(&walk->changed->pages, run->pgoff, run->pages);
		break;
	case WPFS_REC_UNION:
		walk->selected = false; /* its runs came before, mm by mm */
		break;
	case WPFS_REC_NOTE:
		if (note->kind == WPFS_NOTE_GAP)
			gap(walk->changed, "%s", note->text);
		break;
	case WPFS_REC_EVENT:
	case WPFS_REC_TOP:
	case WPFS_REC_PART:
	case WPFS_REC_PROGRESS:
		break; /* of no such report */
	}
	return 0;
}

static int fail(const struct target *target, const char *file, const char *words)
{
	ctl_say("%s: %s: %s: %s", target->command, target->arg, file, words);
	return CTL_FAILED;
}

/* Adds what the epochs first .. last ended with. */
static int take_epochs(struct walk *walk, struct target *target, uint64_t first, uint64_t last)
{
	struct wpfs_select select = *walk->select;
	int r = 0;

	select.kind = WPFS_REPORT_DIRTY;
	select.set = WPFS_SELECT_FILE | WPFS_SELECT_EPOCH;
	walk->now = false;
	walk->take = true;
	for (uint64_t epoch = first; r == 0 && epoch <= last; epoch++) {
		walk->selected = false;
		select.epoch = epoch;
		r = target_report(target, &select, take_record, walk);
	}
	walk->changed->epoch = last;
	return r;
}

int changed_find(struct changed *changed, struct target *target, const struct ctl_args *args)
{
	struct wpfs_select select = args->select;
	const bool closed = args->has_since || (select.set & WPFS_SELECT_EPOCH);
	struct walk walk = {
		.changed = changed, .select = &args->select, .now = true, .take = !closed};
	int r;

	select.kind = WPFS_REPORT_DIRTY;
	select.set = WPFS_SELECT_FILE;
	r = target_report(target, &select, take_record, &walk);
	if (r)
		return r;
	if (!walk.known && select.name[0])
		return fail(
			target, select.file,
			"no program of that name has it mapped shared: wpctl ps lists the names");
	if (walk.armed == 0 && !closed)
		return fail(target, select.file,
			    "nothing of it is protected, so that nothing is known: wpctl protect, "
			    "then export it with --full once");
	if (!closed)
		return 0;
	if (!args->has_since)
		return take_epochs(&walk, target, select.epoch, select.epoch);
	if (args->since == 0 || args->since >= walk.open)
		return fail(target, select.file,
			    "no epoch was closed since that one: wpctl protect closes the one that "
			    "is open");
	return take_epochs(&walk, target, args->since, walk.open - 1);
}

void changed_free(struct changed *changed)
{
	mm_set_free(&changed->pages);
}
