/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The screen of wpctl top, through ncurses: some lines about the mount, a table as wide as the
 * terminal, a line of keys. Everything is drawn anew each time; ncurses sends what changed.
 */
#include <curses.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "ctl/top.h"
#include "ctl/width.h"
#include "db/db.h"

#define COLUMNS_MAX 1024 /* of a terminal, as far as text goes */
#define LINE_SIZE   (COLUMNS_MAX * 4 + 8)

enum { PAIR_DIRTY = 1, PAIR_WARN };

/* A column of numbers; those not `narrow` are left out below WIDE columns. */
struct column {
	const char *title;
	int width;
	bool narrow;
	bool sorts;
	enum top_sort by;
};

#define WIDE 100

static const struct column columns[] = {
	{"PID", 8, true, true, TOP_BY_PID},	  {"UID", 7, false, false, 0},
	{"MAPPED", 8, true, true, TOP_BY_MAPPED}, {"ARMED", 8, false, false, 0},
	{"MARKED", 8, true, true, TOP_BY_MARKED}, {"DIRTY", 8, true, true, TOP_BY_DIRTY},
	{"DIRTIED", 9, true, true, TOP_BY_RATE},  {"FAULTS", 9, true, true, TOP_BY_FAULTS},
};
#define NR_COLUMNS (sizeof(columns) / sizeof(columns[0]))

static bool is_shown(const struct column *c)
{
	return c->narrow || COLS >= WIDE;
}

static SCREEN *screen;

int top_screen_open(void)
{
	width_init();
	screen = newterm(NULL, stdout, stdin);
	if (!screen)
		return -ENOTTY;
	cbreak();
	noecho();
	keypad(stdscr, TRUE);
	nodelay(stdscr, TRUE);
	set_escdelay(25);
	curs_set(0);
	if (has_colors() && !(getenv("NO_COLOR") && getenv("NO_COLOR")[0])) {
		start_color();
		use_default_colors();
		init_pair(PAIR_DIRTY, COLOR_YELLOW, -1);
		init_pair(PAIR_WARN, COLOR_RED, -1);
	}
	return 0;
}

void top_screen_close(void)
{
	if (!screen)
		return;
	endwin();
	delscreen(screen);
	screen = NULL;
}

/* A line of text, cut to the screen. */
static void put_line(int y, attr_t attr, const char *text)
{
	char line[LINE_SIZE];

	width_fit(line, sizeof(line), text, (size_t)(COLS < COLUMNS_MAX ? COLS : COLUMNS_MAX));
	attron(attr);
	mvaddstr(y, 0, line);
	attroff(attr);
}

/* ---- about the mount ---- */

static int draw_head(const struct top *top)
{
	const struct wpfs_status *s = &top->status, *b = &top->before;
	char text[LINE_SIZE], age[24], used[16], size[16], r1[16], r2[16], r3[16];
	int y = 0;

	snprintf(text, sizeof(text), "%s  %s", s->mountpoint,
		 s->kind == WPFS_KIND_CAPPED ? "capped" : "native");
	put_line(y++, A_BOLD, text);
	snprintf(text, sizeof(text),
		 "%" PRIu64 " live, %" PRIu64 " detached; %s of %s used; marks committed %s",
		 s->mms_live, s->mms_detached, units_format_size(s->used, used, sizeof(used)),
		 units_format_size(s->size, size, sizeof(size)), top_age(s, age));
	put_line(y++, A_NORMAL, text);
	if (s->kind == WPFS_KIND_CAPPED) {
		snprintf(text, sizeof(text),
			 "%s of %s resident; faults %s, refaults %s, evictions %s",
			 units_format_size(s->resident, used, sizeof(used)),
			 units_format_size(s->cap, size, sizeof(size)),
			 top_per_second(top_rate(top, s->faults, b->faults), r1),
			 top_per_second(top_rate(top, s->refaults, b->refaults), r2),
			 top_per_second(top_rate(top, s->evictions, b->evictions), r3));
		put_line(y++, A_NORMAL, text);
	}
	if (s->db_error) {
		snprintf(text, sizeof(text), "the database cannot be written: %s",
			 db_errstr(s->db_error));
		put_line(y++, A_BOLD | (attr_t)COLOR_PAIR(PAIR_WARN), text);
	}
	return y + 1;
}

/* ---- the table ---- */

static int names_width(void)
{
	int left = COLS;

	for (size_t i = 0; i < NR_COLUMNS; i++)
		left -= is_shown(&columns[i]) ? columns[i].width : 0;
	left -= 2; /* before the command */
	/* the name may have half of it, up to what an instance of the longest name takes */
	left /= 2;
	return left < 4 ? 4 : left > 76 ? 76 : left;
}

static void draw_titles(int y, const struct top_view *view)
{
	attr_t plain = A_REVERSE, sorted = A_REVERSE | A_BOLD | A_UNDERLINE;
	char cell[LINE_SIZE];
	int x = names_width();

	put_line(y, plain, "");
	attron(view->by == TOP_BY_NAME ? sorted : plain);
	mvaddstr(y, 0, "NAME");
	attroff(sorted);
	for (size_t i = 0; i < NR_COLUMNS; i++) {
		const struct column *c = &columns[i];

		if (!is_shown(c))
			continue;
		x += c->width;
		attron(c->sorts && view->by == c->by ? sorted : plain);
		if (x <= COLS)
			mvaddstr(y, x - (int)strlen(c->title), c->title);
		attroff(sorted);
	}
	attron(plain);
	width_fit(cell, sizeof(cell), "COMMAND", COLS > x + 2 ? (size_t)(COLS - x - 2) : 0);
	mvaddstr(y, x + 2, cell);
	attroff(plain);
}

static void cell_text(const struct top_row *row, size_t column, char text[24])
{
	const struct wpfs_rec_mm *mm = &row->rec.mm;

	switch (column) {
	case 0:
		snprintf(text, 24, "%" PRId32, mm->pid);
		break;
	case 1:
		snprintf(text, 24, "%" PRIu32, mm->uid);
		break;
	case 2:
		units_format_size(row->rec.mapped << WPFS_PAGE_SHIFT, text, 24);
		break;
	case 3:
		units_format_size(mm->armed << WPFS_PAGE_SHIFT, text, 24);
		break;
	case 4:
		units_format_size(mm->marked << WPFS_PAGE_SHIFT, text, 24);
		break;
	case 5:
		units_format_size(mm->dirty << WPFS_PAGE_SHIFT, text, 24);
		break;
	case 6:
		top_per_second(row->rated ? row->dirty_rate : -1, text);
		break;
	default:
		top_per_second(row->rated ? row->fault_rate : -1, text);
		break;
	}
}

static void draw_row(int y, const struct top_row *row)
{
	const struct wpfs_rec_mm *mm = &row->rec.mm;
	const int names = names_width();
	char cell[LINE_SIZE], text[24];
	int x = names;

	width_fit(cell, sizeof(cell), mm->name[0] ? mm->name : "-", (size_t)names);
	mvaddstr(y, 0, cell);
	for (size_t i = 0; i < NR_COLUMNS; i++) {
		attr_t attr = i == 5 && mm->dirty ? (attr_t)COLOR_PAIR(PAIR_DIRTY) : A_NORMAL;

		if (!is_shown(&columns[i]))
			continue;
		x += columns[i].width;
		cell_text(row, i, text);
		attron(attr);
		if (x <= COLS)
			mvaddstr(y, x - (int)strlen(text), text);
		attroff(attr);
	}
	width_fit(cell, sizeof(cell), mm->comm, COLS > x + 2 ? (size_t)(COLS - x - 2) : 0);
	mvaddstr(y, x + 2, cell);
}

static const char *const help_text[] = {
	"d  pages dirty: armed and written since",
	"r  how fast pages become dirty; one written twice counts once",
	"m  bytes mapped shared",
	"k  bytes marked: armed and not written",
	"f  page faults of the process, of all its memory, as the kernel counts them",
	"n  name",
	"p  pid",
	"R  the other way round",
	"up, down, page up, page down, home, end  scroll",
	"space  look now",
	"h  this text; q  quit",
};

static void draw_help(int y)
{
	for (size_t i = 0; i < sizeof(help_text) / sizeof(help_text[0]) && y < LINES - 1; i++)
		put_line(y++, A_NORMAL, help_text[i]);
}

/* Rows that fit between the titles and the line of keys. */
static size_t room(int y)
{
	return y < LINES - 1 ? (size_t)(LINES - 1 - y) : 0;
}

void top_screen_draw(const struct top *top, struct top_view *view)
{
	char text[LINE_SIZE];
	size_t fit;
	int y;

	erase();
	y = draw_head(top);
	if (view->help) {
		draw_help(y);
	} else {
		draw_titles(y++, view);
		fit = room(y);
		if (view->first + fit > top->nr)
			view->first = top->nr > fit ? top->nr - fit : 0;
		for (size_t i = view->first; i < top->nr && i < view->first + fit; i++)
			draw_row(y++, &top->rows[i]);
		if (!top->nr) {
			put_line(y, A_NORMAL, top_nothing());
			put_line(y + 1, A_NORMAL, top_nothing_do);
		}
	}
	snprintf(text, sizeof(text),
		 "q quit  h help  sort: d dirty  r rate  m mapped  k marked  f faults  n name  p "
		 "pid  R reverse");
	put_line(LINES - 1, A_REVERSE, text);
	refresh();
}

/* ---- keys ---- */

static bool sort_key(int key, struct top_view *view)
{
	static const struct {
		int key;
		enum top_sort by;
	} keys[] = {{'d', TOP_BY_DIRTY},  {'r', TOP_BY_RATE},	{'m', TOP_BY_MAPPED},
		    {'k', TOP_BY_MARKED}, {'f', TOP_BY_FAULTS}, {'n', TOP_BY_NAME},
		    {'p', TOP_BY_PID}};

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (keys[i].key != key)
			continue;
		view->by = keys[i].by;
		view->first = 0;
		return true;
	}
	return false;
}

static void scroll_key(const struct top *top, int key, struct top_view *view)
{
	const size_t page = LINES > 8 ? (size_t)LINES - 8 : 1;

	if (key == KEY_UP && view->first)
		view->first--;
	else if (key == KEY_DOWN && view->first + 1 < top->nr)
		view->first++;
	else if (key == KEY_PPAGE)
		view->first = view->first > page ? view->first - page : 0;
	else if (key == KEY_NPAGE)
		view->first += page; /* drawing puts it right */
	else if (key == KEY_HOME)
		view->first = 0;
	else if (key == KEY_END)
		view->first = top->nr;
}

bool top_screen_keys(const struct top *top, struct top_view *view, bool *changed)
{
	int key;

	while ((key = getch()) != ERR) {
		*changed = true;
		if (key == 'q' || key == 'Q')
			return false;
		if (key == 'h' || key == '?')
			view->help = !view->help;
		else if (key == 'R')
			view->reverse = !view->reverse;
		else if (key == 27)
			view->help = false;
		else if (!sort_key(key, view))
			scroll_key(top, key, view);
	}
	return true;
}
