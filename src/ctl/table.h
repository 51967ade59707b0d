/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What people read on a terminal: columns as wide as their longest cell, sizes with units, colour
 * only where stdout is a terminal (and NO_COLOR is not set).
 */
#ifndef WPFS_CTL_TABLE_H
#define WPFS_CTL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 12

enum table_paint { TABLE_PLAIN, TABLE_BOLD, TABLE_GREEN, TABLE_YELLOW, TABLE_DIM };

/* Is stdout a terminal that is to have colour? */
bool table_colour(void);

/* The sequences that switch a paint on, and back to plain; "" where there is no colour. */
const char *table_paint(enum table_paint paint);

struct table {
	size_t columns;
	const char *title[TABLE_COLUMNS_MAX];
	bool right[TABLE_COLUMNS_MAX]; /* numbers are aligned to the right */
	char **cell;		       /* rows * columns, owned */
	enum table_paint *paint;       /* of each cell */
	size_t cells, room;
};

/* Adds a cell to the last row, or begins a new one when that is full. 0 or -ENOMEM. */
int table_add(struct table *table, enum table_paint paint, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Writes it to stdout, with the titles if there is a row at all. */
void table_print(const struct table *table);

void table_free(struct table *table);

/* "PAGES (SIZE)", for a cell: buf of at least 40 bytes; returns it. */
const char *table_pages(uint64_t pages, char *buf, size_t size);

/* "1 page", "2 pages": returns buf. */
const char *table_count(uint64_t nr, const char *one, char *buf, size_t size);

#endif
