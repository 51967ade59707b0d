/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Marks are told mapping by mapping, dirty pages file by file, spilled ones once for each file. A
 * daemon tells all of one moment; a store that is not mounted does not change.
 */
#include "ctl/picture.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "ctl/say.h"

struct load {
	struct picture *p;
	enum wpfs_report_kind part; /* which records come */
	struct mm_set *to;	    /* runs go there; NULL: nowhere */
	uint64_t mm;		    /* id of the one at hand */
	struct mm_builder runs;	    /* for *to */
};

/* One more element of `size` bytes, zeroed, at the end of *array; grows at powers of two. */
static void *grow(void *array, size_t nr, size_t size)
{
	void **at = array;
	char *more = *at;

	if ((nr & (nr - 1)) == 0) {
		more = reallocarray(more, nr ? nr * 2 : 1, size);
		if (!more)
			return NULL;
		*at = more;
	}
	return memset(more + nr * size, 0, size);
}

/* What came of runs goes to its set. */
static int flush(struct load *load)
{
	int r = load->to ? mm_builder_end(&load->runs, load->to) : 0;

	load->to = NULL;
	return r;
}

static void fill(struct load *load, struct mm_set *set)
{
	load->to = set;
	mm_builder_begin(&load->runs);
}

/* -1: there is none. */
static ssize_t find_file(const struct picture *p, uint64_t mm, uint64_t id)
{
	for (size_t i = p->nr_files; i-- > 0;) {
		if (p->files[i].mm == mm && p->files[i].id == id)
			return (ssize_t)i;
	}
	return -1;
}

static ssize_t need_file(struct picture *p, uint64_t mm, uint64_t id)
{
	ssize_t at = find_file(p, mm, id);

	if (at >= 0)
		return at;
	if (!grow(&p->files, p->nr_files, sizeof(*p->files)))
		return -1;
	p->files[p->nr_files] = (struct picture_file){.mm = mm, .id = id};
	return (ssize_t)p->nr_files++;
}

static int add_mm(struct load *load, const struct wpfs_rec_mm *mm)
{
	struct picture *p = load->p;

	load->mm = mm->id;
	if (load->part != WPFS_REPORT_MARKS)
		return 0;
	if (!grow(&p->mms, p->nr_mms, sizeof(*p->mms)))
		return -ENOMEM;
	p->mms[p->nr_mms++] = *mm;
	return 0;
}

static int add_map(struct load *load, const struct wpfs_rec_map *rec)
{
	struct picture *p = load->p;
	struct picture_map *map = p->nr_maps ? &p->maps[p->nr_maps - 1] : NULL;
	ssize_t file;

	if (load->part != WPFS_REPORT_MARKS) {
		file = find_file(p, load->mm, rec->file);
		if (file >= 0)
			fill(load, &p->files[file].dirty);
		return 0;
	}
	/* A mapping that both owners have to do with comes twice. */
	if (!map || map->mm != p->nr_mms - 1 || map->start != rec->start || map->end == 0) {
		file = need_file(p, load->mm, rec->file);
		map = file < 0 ? NULL : grow(&p->maps, p->nr_maps, sizeof(*p->maps));
		if (!map)
			return -ENOMEM;
		p->nr_maps++;
		map->mm = p->nr_mms - 1;
		map->file = (size_t)file;
		map->start = rec->start;
		map->end = rec->end;
		map->pgoff = rec->pgoff;
		map->pages = rec->pages;
		map->path = strdup(rec->path);
		if (!map->path)
			return -ENOMEM;
	}
	fill(load, &map->marked);
	return 0;
}

/* To the first of the file; others get a copy at the end. */
static void add_spilled(struct load *load, const struct wpfs_rec_map *rec)
{
	struct picture *p = load->p;

	for (size_t i = 0; i < p->nr_files; i++) {
		if (p->files[i].id == rec->file) {
			fill(load, &p->files[i].spilled);
			return;
		}
	}
}

static int take_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	struct load *load = arg;
	const struct wpfs_rec_run *run = body;
	const struct wpfs_rec_note *note = body;
	int r;

	switch (type) {
	case WPFS_REC_RUN:
		if (load->to)
			mm_builder_add(&load->runs, run->pgoff, run->pages);
		return 0;
	case WPFS_REC_MM:
		r = flush(load);
		return r ?: add_mm(load, body);
	case WPFS_REC_MAP:
		r = flush(load);
		return r ?: add_map(load, body);
	case WPFS_REC_UNION:
		r = flush(load);
		if (r == 0 && load->part == WPFS_REPORT_SPILLED)
			add_spilled(load, body);
		return r; /* of dirty pages it is what is known */
	case WPFS_REC_NOTE:
		return load->part == WPFS_REPORT_MARKS ? out_notes_add(&load->p->notes, note->text)
						       : 0;
	case WPFS_REC_PART:
		load->part = ((const struct wpfs_rec_part *)body)->kind;
		return flush(load);
	case WPFS_REC_EVENT:
	case WPFS_REC_TOP:
	case WPFS_REC_PROGRESS:
		break; /* of no report */
	}
	return 0;
}

static int share_spilled(struct picture *p)
{
	int r = 0;

	for (size_t i = 1; r == 0 && i < p->nr_files; i++) {
		size_t first = 0;

		while (p->files[first].id != p->files[i].id)
			first++;
		if (first < i)
			r = mm_set_copy(&p->files[i].spilled, &p->files[first].spilled);
	}
	return r;
}

static int count(struct picture *p)
{
	int r = share_spilled(p);

	for (size_t i = 0; r == 0 && i < p->nr_maps; i++) {
		struct picture_map *map = &p->maps[i];
		const struct mm_set *dirty = &p->files[map->file].dirty;

		r = mm_set_andnot(&map->marked, dirty);
		map->nr_dirty = mm_set_count_range(dirty, map->pgoff, map->pages);
		map->nr_marked = mm_set_count_range(&map->marked, map->pgoff, map->pages);
		map->nr_spilled =
			mm_set_count_range(&p->files[map->file].spilled, map->pgoff, map->pages);
	}
	return r;
}

/* Out of a store that is not mounted: nothing is spilled. */
static int load_part(struct load *load, struct target *target, const struct wpfs_select *select,
		     enum wpfs_report_kind kind)
{
	struct wpfs_select ask = *select;
	int r;

	ask.kind = kind;
	load->part = kind;
	r = target_report(target, &ask, take_record, load);
	return flush(load) && r == 0 ? target_fail(target, -ENOMEM) : r;
}

int picture_load(struct picture *picture, struct target *target, const struct wpfs_select *select)
{
	struct wpfs_select ask = *select;
	_cleanup_free_ struct load *load = calloc(1, sizeof(*load));
	int r = 0;

	*picture = (struct picture){0};
	if (!load)
		return target_fail(target, -ENOMEM);
	load->p = picture;
	load->part = WPFS_REPORT_MARKS; /* where the notes belong that come before it */
	if (target->mounted) {
		ask.kind = WPFS_REPORT_MAP;
		r = target_report(target, &ask, take_record, load);
	} else {
		r = load_part(load, target, select, WPFS_REPORT_MARKS);
		r = r ?: load_part(load, target, select, WPFS_REPORT_DIRTY);
	}
	if (flush(load) && r == 0)
		r = target_fail(target, -ENOMEM);
	if (r == 0 && count(picture))
		r = target_fail(target, -ENOMEM);
	return r;
}

void picture_free(struct picture *picture)
{
	for (size_t i = 0; i < picture->nr_maps; i++) {
		free(picture->maps[i].path);
		mm_set_free(&picture->maps[i].marked);
	}
	for (size_t i = 0; i < picture->nr_files; i++) {
		mm_set_free(&picture->files[i].dirty);
		mm_set_free(&picture->files[i].spilled);
	}
	free(picture->maps);
	free(picture->files);
	free(picture->mms);
	out_notes_free(&picture->notes);
	*picture = (struct picture){0};
}

static uint64_t cell_first(const struct picture_map *map, size_t i, size_t nr)
{
	return map->pgoff + map->pages * i / nr; /* below 2^32 times 4096 */
}

uint64_t picture_offset(const struct picture_map *map, size_t i, size_t nr)
{
	return cell_first(map, i, nr) << WPFS_PAGE_SHIFT;
}

void picture_cell(const struct picture *picture, const struct picture_map *map, size_t i, size_t nr,
		  struct picture_cell *cell)
{
	const uint64_t first = cell_first(map, i, nr);

	cell->pages = cell_first(map, i + 1, nr) - first;
	cell->dirty = mm_set_count_range(&picture->files[map->file].dirty, first, cell->pages);
	cell->marked = mm_set_count_range(&map->marked, first, cell->pages);
	cell->spilled = mm_set_count_range(&picture->files[map->file].spilled, first, cell->pages);
}

const char *picture_mm_label(const struct wpfs_rec_mm *mm, char *buf, size_t size)
{
	char pid[24] = "", epoch[32] = "";

	if (mm->pid > 0)
		snprintf(pid, sizeof(pid), "  pid %" PRIi32, mm->pid);
	if (mm->epoch)
		snprintf(epoch, sizeof(epoch), "  epoch %" PRIu64, mm->epoch);
	snprintf(buf, size, "%s%s  %s%s", mm->name[0] ? mm->name : "(unnamed)", pid,
		 out_state_name(mm->state), epoch);
	return buf;
}

const char *picture_map_label(const struct picture_map *map, char *buf, size_t size)
{
	char dirty[40], spilled[40] = "";

	if (map->nr_spilled)
		snprintf(spilled, sizeof(spilled), ", %" PRIu64 " spilled", map->nr_spilled);
	snprintf(buf, size, "%s dirty, %" PRIu64 " marked, %" PRIu64 " never armed%s",
		 table_count(map->nr_dirty, "page", dirty, sizeof(dirty)), map->nr_marked,
		 map->pages - map->nr_dirty - map->nr_marked, spilled);
	return buf;
}

char *picture_path(const struct picture_map *map)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	say_text(f, map->path);
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}
