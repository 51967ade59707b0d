/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The picture in a terminal. A cell is one letter: its height is the share of dirty pages, and
 * where none is, its shade that of marked ones. Colour says the same once more, so that a pipe
 * loses nothing but the colour.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "ctl/picture.h"
#include "ctl/say.h"

#define INDENT	  2
#define ADDRESSES 32 /* letters that the longest pair of them takes, with blanks */
#define WIDE_MAX  4  /* letters that a cell of few is repeated */
#define MIN_COLS  24
#define MAX_COLS  1024

#define DIRTY	  "\033[33m"
#define MARKED	  "\033[34m"
#define SPILLED	  "\033[35m"
#define BEHIND	  "\033[44m" /* marked pages of a cell that has dirty ones */

static size_t columns(void)
{
	const char *env = getenv("COLUMNS");
	struct winsize size;
	long nr = env ? strtol(env, NULL, 10) : 0;

	if (nr <= 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0)
		nr = size.ws_col;
	if (nr <= 0)
		nr = 80;
	return nr < MIN_COLS ? MIN_COLS : nr > MAX_COLS ? MAX_COLS : (size_t)nr;
}

/* The full one is for all of them without exception. */
static const char *height(uint64_t part, uint64_t pages)
{
	static const char *const letters[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};

	return letters[part == pages ? 7 : part * 7 / pages];
}

static const char *letter(const struct picture_cell *cell)
{
	if (cell->dirty)
		return height(cell->dirty, cell->pages);
	if (cell->marked)
		return cell->marked == cell->pages ? "▒" : "░";
	return "·";
}

static void put_cell(const struct picture_cell *cell, size_t wide)
{
	if (table_colour() && cell->dirty)
		printf("%s%s", DIRTY, cell->marked ? BEHIND : "");
	else if (table_colour() && cell->marked)
		fputs(MARKED, stdout);
	else
		fputs(table_paint(TABLE_DIM), stdout);
	for (size_t i = 0; i < wide; i++)
		fputs(letter(cell), stdout);
	fputs(table_paint(TABLE_PLAIN), stdout);
}

static void put_spilled_cell(const struct picture_cell *cell, size_t wide)
{
	if (table_colour())
		fputs(cell->spilled ? SPILLED : "", stdout);
	for (size_t i = 0; i < wide; i++)
		fputs(cell->spilled ? height(cell->spilled, cell->pages) : " ", stdout);
	fputs(table_paint(TABLE_PLAIN), stdout);
}

/* Offsets of the file below the cells: the first and the last, and as many quarters as have room.
 */
static void put_axis(const struct picture_map *map, size_t width, size_t max)
{
	const size_t ticks = width >= 64 ? 4 : width >= 32 ? 2 : 1;
	char text[16];
	size_t at = 0;

	printf("%*s", INDENT, "");
	for (size_t i = 0; i <= ticks; i++) {
		size_t to = i * width / ticks, len;

		units_format_size(picture_offset(map, i, ticks), text, sizeof(text));
		len = strlen(text);
		if (i == ticks && to >= len && to - len > at)
			to -= len; /* ends with the row */
		if (to > at)
			at += (size_t)printf("%*s", (int)(to - at), "");
		else if (at)
			at += (size_t)printf(" - ");
		if (at + len > max)
			break;
		at += (size_t)printf("%s", text);
	}
	putchar('\n');
}

static void put_map(const struct picture *picture, const struct picture_map *map, size_t width)
{
	_cleanup_free_ char *path = picture_path(map);
	const size_t room = width - 2 * INDENT;
	const size_t nr = map->pages < room ? (size_t)map->pages : room;
	const size_t fits = nr ? room / nr : 0, wide = fits < WIDE_MAX ? fits : WIDE_MAX;
	char label[128], cell_size[16];
	struct picture_cell cell;

	printf("%*s%s", INDENT, "", path ?: "?");
	/* A long path has lines of its own: it is wrapped, and nothing behind it. */
	if (strlen(path ?: "?") + ADDRESSES > room)
		printf("\n%*s", INDENT, "");
	else
		printf("  ");
	if (map->end)
		printf("0x%llx-0x%llx\n", (unsigned long long)map->start,
		       (unsigned long long)map->end);
	else
		printf("not mapped\n");
	if (nr == 0)
		return;
	printf("%*s%s; a cell is %s\n", INDENT, "", picture_map_label(map, label, sizeof(label)),
	       units_format_size((map->pages / nr) << WPFS_PAGE_SHIFT, cell_size,
				 sizeof(cell_size)));
	printf("%*s", INDENT, "");
	for (size_t i = 0; i < nr; i++) {
		picture_cell(picture, map, i, nr, &cell);
		put_cell(&cell, wide);
	}
	putchar('\n');
	if (map->nr_spilled) {
		printf("%*s", INDENT, "");
		for (size_t i = 0; i < nr; i++) {
			picture_cell(picture, map, i, nr, &cell);
			put_spilled_cell(&cell, wide);
		}
		putchar('\n');
	}
	put_axis(map, nr * wide, room);
}

static void put_legend(bool with_spilled)
{
	const struct picture_cell some = {.pages = 8, .dirty = 4}, all = {.pages = 8, .dirty = 8},
				  marked = {.pages = 8, .marked = 8},
				  part = {.pages = 8, .marked = 4}, none = {.pages = 8},
				  spilled = {.pages = 8, .spilled = 4};

	putchar('\n');
	put_cell(&some, 1);
	put_cell(&all, 1);
	printf(" dirty, by share  ");
	put_cell(&marked, 1);
	printf(" marked  ");
	put_cell(&part, 1);
	printf(" some marked  ");
	put_cell(&none, 1);
	printf(" never armed\n");
	if (!with_spilled)
		return;
	put_spilled_cell(&spilled, 1);
	printf(" below: not in memory, by share\n");
}

void picture_text(const struct picture *picture)
{
	const size_t width = columns();
	bool spilled = false;
	char label[160];

	for (size_t i = 0, m = 0; i < picture->nr_mms; i++) {
		if (i)
			putchar('\n');
		printf("%s%s%s\n", table_paint(TABLE_BOLD),
		       picture_mm_label(&picture->mms[i], label, sizeof(label)),
		       table_paint(TABLE_PLAIN));
		for (; m < picture->nr_maps && picture->maps[m].mm == i; m++) {
			put_map(picture, &picture->maps[m], width);
			spilled |= picture->maps[m].nr_spilled > 0;
		}
	}
	if (picture->nr_maps)
		put_legend(spilled);
	for (unsigned i = 0; i < picture->notes.nr; i++) {
		say_text(stdout, picture->notes.text[i]);
		putchar('\n');
	}
}
