/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reports for people. `ps` is a table; marks and dirty are one heading per mm, one per map, and
 * below it its runs, all of them, as page numbers of the file.
 */
#include "ctl/out.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "ctl/say.h"

/* The caller frees. NULL: no memory. */
static char *text_dup(const char *s)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	say_text(f, s);
	if (fclose(f)) { /* which may move the text */
		free(text);
		return NULL;
	}
	return text;
}

static void put_notes(struct out_notes *notes, const char *indent)
{
	for (unsigned i = 0; i < notes->nr; i++) {
		fputs(indent, stdout);
		say_text(stdout, notes->text[i]);
		putchar('\n');
	}
	out_notes_free(notes);
}

static int ps_row(struct out *out, const struct wpfs_rec_mm *mm)
{
	struct table *t = &out->table;
	_cleanup_free_ char *comm = text_dup(mm->comm);
	char pid[16] = "-", armed[40], marked[40], dirty[40];
	bool live = mm->state == WPFS_MM_LIVE;
	int r;

	if (!comm)
		return -ENOMEM;
	if (t->columns == 0) {
		static const char *const title[] = {"NAME",  "PID",    "UID",	"STATE",  "FILES",
						    "ARMED", "MARKED", "DIRTY", "COMMAND"};

		for (t->columns = 0; t->columns < sizeof(title) / sizeof(title[0]); t->columns++) {
			t->title[t->columns] = title[t->columns];
			t->right[t->columns] = strchr("PUFAMD", title[t->columns][0]) != NULL;
		}
	}
	if (mm->pid > 0)
		snprintf(pid, sizeof(pid), "%d", mm->pid);
	r = table_add(t, TABLE_BOLD, "%s", mm->name[0] ? mm->name : "-");
	r = r ?: table_add(t, TABLE_PLAIN, "%s", pid);
	r = r ?: table_add(t, TABLE_PLAIN, "%" PRIu32, mm->uid);
	r = r ?: table_add(t, live ? TABLE_GREEN : TABLE_DIM, "%s", out_state_name(mm->state));
	r = r ?: table_add(t, TABLE_PLAIN, "%" PRIu32, mm->files);
	r = r ?: table_add(t, TABLE_PLAIN, "%s", table_pages(mm->armed, armed, sizeof(armed)));
	r = r ?: table_add(t, TABLE_PLAIN, "%s", table_pages(mm->marked, marked, sizeof(marked)));
	r = r
		    ?: table_add(t, mm->dirty ? TABLE_YELLOW : TABLE_PLAIN, "%s",
				 table_pages(mm->dirty, dirty, sizeof(dirty)));
	return r ?: table_add(t, TABLE_PLAIN, "%s", comm);
}

/* "3 of 16384 armed pages dirty (12.0K of 64.0M)" */
static void put_share(const struct out *out, uint64_t marked, uint64_t dirty, uint64_t armed)
{
	bool is_dirty = out->kind == WPFS_REPORT_DIRTY;
	uint64_t part = is_dirty ? dirty : marked;
	char part_size[16], armed_size[16], count[40];

	if (armed == 0 && part == 0) {
		printf("nothing armed");
		return;
	}
	printf("%s%" PRIu64 "%s of %s %s",
	       table_paint(is_dirty && part ? TABLE_YELLOW : TABLE_BOLD), part,
	       table_paint(TABLE_PLAIN), table_count(armed, "armed page", count, sizeof(count)),
	       is_dirty ? "dirty" : "marked");
	if (part)
		printf(" (%s of %s)",
		       units_format_size(part << WPFS_PAGE_SHIFT, part_size, sizeof(part_size)),
		       units_format_size(armed << WPFS_PAGE_SHIFT, armed_size, sizeof(armed_size)));
}

static void end_mm(struct out *out)
{
	if (!out->in_mm)
		return;
	if (out->kind != WPFS_REPORT_PS)
		put_notes(&out->notes, "  ");
	out->in_mm = out->in_map = false;
}

static void put_mm(struct out *out, const struct wpfs_rec_mm *mm)
{
	end_mm(out);
	if (out->begun)
		putchar('\n');
	out->begun = out->in_mm = true;
	printf("%s%s%s", table_paint(TABLE_BOLD), mm->name[0] ? mm->name : "(unnamed)",
	       table_paint(TABLE_PLAIN));
	if (mm->pid > 0)
		printf("  pid %d", mm->pid);
	printf("  uid %" PRIu32 "  %s%s%s", mm->uid,
	       table_paint(mm->state == WPFS_MM_LIVE ? TABLE_GREEN : TABLE_DIM),
	       out_state_name(mm->state), table_paint(TABLE_PLAIN));
	if (mm->epoch)
		printf("  epoch %" PRIu64, mm->epoch);
	printf("  ");
	put_share(out, mm->marked, mm->dirty, mm->armed);
	putchar('\n');
}

static void put_map(struct out *out, const struct wpfs_rec_map *map)
{
	if (!out->in_mm)
		return;
	out->in_map = true;
	printf("  ");
	say_text(stdout, map->path);
	if (map->end > map->start)
		printf("  0x%" PRIx64 "-0x%" PRIx64, map->start, map->end);
	else
		printf("  not mapped");
	if (map->pages)
		printf("  pages %" PRIu64 "-%" PRIu64, map->pgoff, map->pgoff + map->pages - 1);
	printf("  ");
	put_share(out, map->marked, map->dirty, map->armed);
	printf("%s\n", map->owner == WPFS_OWNER_PROGRAM ? "  (own userfaultfd)" : "");
}

static void put_union(struct out *out, const struct wpfs_rec_map *map)
{
	end_mm(out);
	out->in_map = true;
	printf("\n%sall of them%s  ", table_paint(TABLE_BOLD), table_paint(TABLE_PLAIN));
	say_text(stdout, map->path);
	printf("  ");
	put_share(out, map->marked, map->dirty, map->armed);
	putchar('\n');
}

static void put_run(const struct wpfs_rec_run *run)
{
	char range[48], count[40];

	if (run->pages > 1)
		snprintf(range, sizeof(range), "%" PRIu64 "-%" PRIu64, run->pgoff,
			 run->pgoff + run->pages - 1);
	else
		snprintf(range, sizeof(range), "%" PRIu64, run->pgoff);
	printf("    %-21s  %14s", range, table_count(run->pages, "page", count, sizeof(count)));
	if (run->vaddr)
		printf("  0x%" PRIx64, run->vaddr);
	putchar('\n');
}

/* In a table notes stand below it, each with the name of its mm. */
static int ps_keep_notes(struct out *out)
{
	for (unsigned i = 0; out->in_mm && i < out->notes.nr; i++) {
		_cleanup_free_ char *line = NULL;
		int r;

		if (asprintf(&line, "%s: %s", out->mm.name[0] ? out->mm.name : "(unnamed)",
			     out->notes.text[i]) < 0)
			return -ENOMEM;
		r = out_notes_add(&out->all_notes, line);
		if (r)
			return r;
	}
	out_notes_free(&out->notes);
	return 0;
}

int out_table_record(struct out *out, enum wpfs_rec_type type, const void *body)
{
	if (type == WPFS_REC_MM && out->kind == WPFS_REPORT_PS) {
		int r = ps_keep_notes(out);

		out->mm = *(const struct wpfs_rec_mm *)body;
		out->in_mm = true;
		return r ?: ps_row(out, &out->mm);
	}
	if (out->kind == WPFS_REPORT_PS)
		return 0;
	if (type == WPFS_REC_MM)
		put_mm(out, body);
	else if (type == WPFS_REC_MAP)
		put_map(out, body);
	else if (type == WPFS_REC_UNION)
		put_union(out, body);
	else if (type == WPFS_REC_RUN && out->in_map)
		put_run(body);
	return 0;
}

int out_table_finish(struct out *out)
{
	int r = 0;

	if (out->kind == WPFS_REPORT_PS) {
		r = ps_keep_notes(out);
		table_print(&out->table);
	}
	end_mm(out);
	put_notes(&out->all_notes, "");
	return r;
}
