/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The picture through cairo, as SVG or PNG. A cell is a bar in which dirty pages stand below marked
 * ones; the least dirty page makes it two points high, so that none is overlooked.
 */
#include <cairo-svg.h>
#include <cairo.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "ctl/picture.h"
#include "ctl/say.h"

#define WIDTH	  1000.0
#define MARGIN	  24.0
#define ROW	  (WIDTH - 2 * MARGIN)
#define CELLS	  238 /* of 4 points each */
#define CELL_MAX  24.0
#define BAR	  26.0
#define DIRTY_MIN 2.0
#define HEAD	  64.0
#define MM_HEIGHT 34.0
#define MAP_LINES 88.0
#define STRIP	  8.0 /* of spilled pages, below the bars, */
#define STRIP_GAP 2.0 /* and what is between */
#define NOTE_LINE 18.0
#define FOOT	  44.0
#define MAPS_MAX  200 /* a picture of more is nothing to look at, and cairo's have an end */

struct rgb {
	double r, g, b;
};

struct theme {
	struct rgb paper, text, faint, dirty, marked, never, spilled;
};

#define RGB(hex)                                                                                   \
	{                                                                                          \
		((hex) >> 16) / 255.0, ((hex) >> 8 & 0xff) / 255.0, ((hex)&0xff) / 255.0           \
	}

/* Orange and blue differ for the colour-blind as well, and in grey; spilled has its place. */
static const struct theme themes[] = {
	{RGB(0xffffff), RGB(0x1f2328), RGB(0x59636e), RGB(0xd9480f), RGB(0x74b0f4), RGB(0xdde2e7),
	 RGB(0x7048e8)},
	{RGB(0x0d1117), RGB(0xe6edf3), RGB(0x9198a1), RGB(0xff922b), RGB(0x1f6feb), RGB(0x2d333b),
	 RGB(0xb197fc)},
};

struct drawing {
	cairo_t *cr;
	const struct theme *theme;
	const struct picture *picture;
	double y;
};

enum font { FONT_TEXT, FONT_BOLD, FONT_MONO };

static void set_colour(struct drawing *d, const struct rgb *c)
{
	cairo_set_source_rgb(d->cr, c->r, c->g, c->b);
}

static void set_font(struct drawing *d, enum font font, double size)
{
	cairo_select_font_face(
		d->cr, font == FONT_MONO ? "monospace" : "sans-serif", CAIRO_FONT_SLANT_NORMAL,
		font == FONT_BOLD ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
	cairo_set_font_size(d->cr, size);
}

static double text_width(struct drawing *d, const char *text)
{
	cairo_text_extents_t extents;

	cairo_text_extents(d->cr, text, &extents);
	return extents.x_advance;
}

/* `align`: 0 begins at x, 0.5 is centred there, 1 ends there. */
static void put_text(struct drawing *d, double x, const char *text, double align)
{
	cairo_move_to(d->cr, align > 0 ? x - align * text_width(d, text) : x, d->y);
	cairo_show_text(d->cr, text);
}

/* Too long: its end stays, which tells more of a path. Gives where it ends. */
static double put_cut(struct drawing *d, double x, const char *text, double room)
{
	_cleanup_free_ char *cut = NULL;
	const char *at = text;

	while (*at && text_width(d, at) > room) {
		if (at == text)
			room -= text_width(d, "…");
		at += say_utf8_len(at) ?: 1;
	}
	if (at != text && asprintf(&cut, "…%s", at) < 0)
		cut = NULL;
	put_text(d, x, cut ?: at, 0);
	return x + text_width(d, cut ?: at);
}

static void put_bar(struct drawing *d, double x, double width, double y, double height,
		    const struct rgb *colour)
{
	set_colour(d, colour);
	cairo_rectangle(d->cr, x, y, width, height);
	cairo_fill(d->cr);
}

static void put_cell(struct drawing *d, double x, double width, const struct picture_cell *cell)
{
	double dirty = BAR * (double)cell->dirty / (double)cell->pages;
	double rest = BAR * (double)(cell->dirty + cell->marked) / (double)cell->pages;

	if (cell->dirty && dirty < DIRTY_MIN)
		dirty = DIRTY_MIN;
	if (rest < dirty)
		rest = dirty;
	put_bar(d, x, width, d->y, BAR, &d->theme->never);
	if (cell->marked)
		put_bar(d, x, width, d->y + BAR - rest, rest, &d->theme->marked);
	if (cell->dirty)
		put_bar(d, x, width, d->y + BAR - dirty, dirty, &d->theme->dirty);
}

/* Bars that hang from the cell above: pages whose contents are not in memory. */
static void put_spilled(struct drawing *d, double x, double width, const struct picture_cell *cell)
{
	double part = STRIP * (double)cell->spilled / (double)cell->pages;

	if (cell->spilled)
		put_bar(d, x, width, d->y + BAR + STRIP_GAP, part < DIRTY_MIN ? DIRTY_MIN : part,
			&d->theme->spilled);
}

static double map_height(const struct picture_map *map)
{
	return MAP_LINES + (map->nr_spilled ? STRIP + STRIP_GAP : 0);
}

static void put_axis(struct drawing *d, const struct picture_map *map, double width)
{
	const size_t ticks = width > 400 ? 4 : 1;
	char text[16];

	set_font(d, FONT_TEXT, 11);
	for (size_t i = 0; i <= ticks; i++) {
		double x = MARGIN + width * (double)i / (double)ticks;

		put_bar(d, x - 0.5, 1, d->y - 12, 4, &d->theme->faint);
		set_colour(d, &d->theme->faint);
		units_format_size(picture_offset(map, i, ticks), text, sizeof(text));
		if (width < 80 && i) /* beside the first, not over it */
			x = MARGIN + width + 24;
		put_text(d, x, text, i == 0 ? 0 : i == ticks && width > 80 ? 1 : 0.5);
	}
}

static void put_addresses(struct drawing *d, const struct picture_map *map, double width)
{
	char text[48];

	set_font(d, FONT_MONO, 11);
	set_colour(d, &d->theme->faint);
	if (map->end == 0) {
		put_text(d, MARGIN, "not mapped now", 0);
	} else if (width < 400) {
		snprintf(text, sizeof(text), "0x%" PRIx64 "-0x%" PRIx64, map->start, map->end);
		put_text(d, MARGIN, text, 0);
	} else {
		snprintf(text, sizeof(text), "0x%" PRIx64, map->start);
		put_text(d, MARGIN, text, 0);
		snprintf(text, sizeof(text), "0x%" PRIx64, map->end);
		put_text(d, MARGIN + width, text, 1);
	}
}

static void put_map(struct drawing *d, const struct picture_map *map)
{
	_cleanup_free_ char *path = picture_path(map);
	const size_t nr = map->pages < CELLS ? (size_t)map->pages : CELLS;
	double width = nr ? ROW / (double)nr : 0, top = d->y, label_width;
	struct picture_cell cell;
	char label[128];

	if (width > CELL_MAX)
		width = CELL_MAX;
	picture_map_label(map, label, sizeof(label));
	d->y = top + 13;
	set_font(d, FONT_TEXT, 12);
	set_colour(d, &d->theme->faint);
	label_width = text_width(d, label);
	put_text(d, WIDTH - MARGIN, label, 1);
	set_font(d, FONT_TEXT, 13);
	set_colour(d, &d->theme->text);
	put_cut(d, MARGIN, path ?: "?", ROW - label_width - 16);
	d->y = top + 30;
	put_addresses(d, map, width * (double)nr);
	d->y = top + 36;
	for (size_t i = 0; i < nr; i++) {
		picture_cell(d->picture, map, i, nr, &cell);
		/* a hair wider than its place, or seams show; the next one covers it */
		put_cell(d, MARGIN + width * (double)i, width + (i + 1 < nr ? 0.3 : 0), &cell);
		put_spilled(d, MARGIN + width * (double)i, width + (i + 1 < nr ? 0.3 : 0), &cell);
	}
	d->y = top + 36 + BAR + 13 + map_height(map) - MAP_LINES;
	put_axis(d, map, width * (double)nr);
	d->y = top + map_height(map);
}

static void put_legend(struct drawing *d, bool with_spilled)
{
	const struct {
		const char *text;
		const struct rgb *colour;
	} entries[] = {{"dirty: written since it was protected", &d->theme->dirty},
		       {"marked: protected and not written", &d->theme->marked},
		       {"never armed", &d->theme->never},
		       {"below: not in memory", &d->theme->spilled}};
	const size_t nr = sizeof(entries) / sizeof(entries[0]) - !with_spilled;
	double x = MARGIN;

	set_font(d, FONT_TEXT, 12);
	for (size_t i = 0; i < nr; i++) {
		put_bar(d, x, 12, d->y - 10, 12, entries[i].colour);
		set_colour(d, &d->theme->text);
		put_text(d, x + 18, entries[i].text, 0);
		x += 18 + text_width(d, entries[i].text) + 28;
	}
}

static bool has_spilled(const struct picture *p)
{
	bool spilled = false;

	for (size_t i = 0; i < p->nr_maps && i < MAPS_MAX; i++)
		spilled |= p->maps[i].nr_spilled > 0;
	return spilled;
}

static void put_all(struct drawing *d, const char *title)
{
	const struct picture *p = d->picture;
	char label[160];

	cairo_set_source_rgb(d->cr, d->theme->paper.r, d->theme->paper.g, d->theme->paper.b);
	cairo_paint(d->cr);
	d->y = 38;
	set_font(d, FONT_BOLD, 18);
	set_colour(d, &d->theme->text);
	put_cut(d, MARGIN, title, ROW);
	d->y = HEAD;
	for (size_t i = 0, m = 0; i < p->nr_mms && m < MAPS_MAX; i++) {
		d->y += 14;
		set_font(d, FONT_BOLD, 14);
		set_colour(d, &d->theme->text);
		put_text(d, MARGIN, picture_mm_label(&p->mms[i], label, sizeof(label)), 0);
		d->y += MM_HEIGHT - 14 - 8;
		for (; m < p->nr_maps && p->maps[m].mm == i && m < MAPS_MAX; m++)
			put_map(d, &p->maps[m]);
		d->y += 8;
	}
	d->y += NOTE_LINE;
	set_font(d, FONT_TEXT, 12);
	set_colour(d, &d->theme->faint);
	for (unsigned i = 0; i < p->notes.nr; i++, d->y += NOTE_LINE)
		put_cut(d, MARGIN, p->notes.text[i], ROW);
	if (p->nr_maps > MAPS_MAX) {
		snprintf(label, sizeof(label), "and %zu mappings more", p->nr_maps - MAPS_MAX);
		put_text(d, MARGIN, label, 0);
	}
	d->y += NOTE_LINE;
	put_legend(d, has_spilled(p));
}

static double picture_height(const struct picture *p)
{
	double maps = 0;

	for (size_t i = 0; i < p->nr_maps && i < MAPS_MAX; i++)
		maps += map_height(&p->maps[i]);
	return HEAD + (double)p->nr_mms * MM_HEIGHT + maps + (p->notes.nr + 1) * NOTE_LINE + FOOT;
}

static cairo_status_t write_out(void *closure, const unsigned char *data, unsigned len)
{
	return fwrite(data, 1, len, closure) == len ? CAIRO_STATUS_SUCCESS
						    : CAIRO_STATUS_WRITE_ERROR;
}

static int errno_of(cairo_status_t status)
{
	switch (status) {
	case CAIRO_STATUS_SUCCESS:
		return 0;
	case CAIRO_STATUS_NO_MEMORY:
		return -ENOMEM;
	case CAIRO_STATUS_WRITE_ERROR:
		return errno ? -errno : -EIO;
	default:
		return -EIO;
	}
}

int picture_draw(const struct picture *picture, FILE *f, enum picture_format format, bool dark,
		 const char *title)
{
	const double height = picture_height(picture), scale = format == PICTURE_PNG ? 2 : 1;
	struct drawing d = {.theme = &themes[dark], .picture = picture};
	cairo_surface_t *surface;
	cairo_status_t status;

	if (format == PICTURE_SVG)
		surface = cairo_svg_surface_create_for_stream(write_out, f, WIDTH, height);
	else
		surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, (int)(WIDTH * scale),
						     (int)(height * scale));
	d.cr = cairo_create(surface);
	cairo_scale(d.cr, scale, scale);
	put_all(&d, title);
	status = cairo_status(d.cr);
	cairo_destroy(d.cr);
	if (status == CAIRO_STATUS_SUCCESS && format == PICTURE_PNG)
		status = cairo_surface_write_to_png_stream(surface, write_out, f);
	cairo_surface_finish(surface); /* writes an SVG */
	if (status == CAIRO_STATUS_SUCCESS)
		status = cairo_surface_status(surface);
	cairo_surface_destroy(surface);
	return errno_of(status);
}
