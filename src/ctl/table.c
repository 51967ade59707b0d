/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/table.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/units.h"
#include "ctl/width.h"

bool table_colour(void)
{
	static int colour = -1; /* one thread */

	if (colour < 0) {
		const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");

		colour = isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0 &&
			 (!no_color || !no_color[0]);
	}
	return colour > 0;
}

const char *table_paint(enum table_paint paint)
{
	static const char *const on[] = {
		[TABLE_PLAIN] = "\033[0m",   [TABLE_BOLD] = "\033[1m", [TABLE_GREEN] = "\033[32m",
		[TABLE_YELLOW] = "\033[33m", [TABLE_DIM] = "\033[2m",
	};

	return table_colour() ? on[paint] : "";
}

static int table_grow(struct table *table)
{
	size_t room = table->room ? table->room * 2 : 64;
	char **cell;
	enum table_paint *paint;

	cell = realloc(table->cell, room * sizeof(*cell));
	if (!cell)
		return -ENOMEM;
	table->cell = cell;
	paint = realloc(table->paint, room * sizeof(*paint));
	if (!paint)
		return -ENOMEM;
	table->paint = paint;
	table->room = room;
	return 0;
}

int table_add(struct table *table, enum table_paint paint, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (table->cells == table->room && table_grow(table))
		return -ENOMEM;
	va_start(ap, fmt);
	n = vasprintf(&table->cell[table->cells], fmt, ap);
	va_end(ap);
	if (n < 0)
		return -ENOMEM;
	table->paint[table->cells++] = paint;
	return 0;
}

static void table_put(const struct table *table, size_t column, size_t width,
		      enum table_paint paint, const char *text)
{
	int pad = (int)(width - width_of(text));
	bool last = column + 1 == table->columns;

	if (table->right[column])
		printf("%*s", pad, "");
	if (paint == TABLE_PLAIN)
		fputs(text, stdout);
	else
		printf("%s%s%s", table_paint(paint), text, table_paint(TABLE_PLAIN));
	if (!table->right[column] && !last)
		printf("%*s", pad, "");
	fputs(last ? "\n" : "  ", stdout);
}

void table_print(const struct table *table)
{
	size_t width[TABLE_COLUMNS_MAX];

	if (table->cells == 0)
		return;
	for (size_t i = 0; i < table->columns; i++)
		width[i] = strlen(table->title[i]);
	for (size_t i = 0; i < table->cells; i++) {
		size_t len = width_of(table->cell[i]);

		if (len > width[i % table->columns])
			width[i % table->columns] = len;
	}
	for (size_t i = 0; i < table->columns; i++)
		table_put(table, i, width[i], TABLE_BOLD, table->title[i]);
	for (size_t i = 0; i < table->cells; i++) {
		size_t column = i % table->columns;

		table_put(table, column, width[column], table->paint[i], table->cell[i]);
	}
}

void table_free(struct table *table)
{
	for (size_t i = 0; i < table->cells; i++)
		free(table->cell[i]);
	free(table->cell);
	free(table->paint);
	table->cell = NULL;
	table->paint = NULL;
	table->cells = table->room = 0;
}

const char *table_pages(uint64_t pages, char *buf, size_t size)
{
	char bytes[16];

	if (pages == 0)
		snprintf(buf, size, "0");
	else
		snprintf(buf, size, "%" PRIu64 " (%s)", pages,
			 units_format_size(pages << WPFS_PAGE_SHIFT, bytes, sizeof(bytes)));
	return buf;
}

const char *table_count(uint64_t nr, const char *one, char *buf, size_t size)
{
	snprintf(buf, size, "%" PRIu64 " %s%s", nr, one, nr == 1 ? "" : "s");
	return buf;
}
