/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What `wpctl map` draws: for each mapping the pages that are dirty, marked or neither, and how
 * many of each a row of cells shows. Works on runs of pages: a mapping of 64 GiB costs what its
 * runs do.
 */
#ifndef WPFS_CTL_PICTURE_H
#define WPFS_CTL_PICTURE_H

#include <stdint.h>
#include <stdio.h>

#include "ctl/out.h"
#include "ctl/target.h"
#include "mm/set.h"

/* A file in an mm. */
struct picture_file {
	uint64_t mm, id;
	struct mm_set dirty;
	struct mm_set spilled; /* not in memory, whatever their marks (capped mounts) */
};

struct picture_map {
	size_t mm, file; /* indices */
	char *path;
	uint64_t start, end; /* 0, 0: kept, and not mapped now */
	uint64_t pgoff, pages;
	struct mm_set marked; /* and not dirty, after picture_load */
	uint64_t nr_dirty, nr_marked, nr_spilled;
};

struct picture {
	struct wpfs_rec_mm *mms;
	struct picture_map *maps; /* in the order of their mms */
	struct picture_file *files;
	size_t nr_mms, nr_maps, nr_files;
	struct out_notes notes; /* of the whole, and of mms that show nothing */
};

/*
 * Pages of one cell; what is neither dirty nor marked was never armed. Spilled ones are any of
 * these.
 */
struct picture_cell {
	uint64_t pages, dirty, marked, spilled;
};

/* Asks for the marks and for what is dirty. 0 or a ctl_status, said. To be freed in any case. */
int picture_load(struct picture *picture, struct target *target, const struct wpfs_select *select);
void picture_free(struct picture *picture);

/* The pages of a mapping from cell i of nr on; nr of at most 4096, and not more than it has pages.
 */
void picture_cell(const struct picture *picture, const struct picture_map *map, size_t i, size_t nr,
		  struct picture_cell *cell);

/* Byte offset in the file at which cell i begins; i = nr: where the mapping ends. */
uint64_t picture_offset(const struct picture_map *map, size_t i, size_t nr);

/* "db  pid 123  live  epoch 2": returns buf. */
const char *picture_mm_label(const struct wpfs_rec_mm *mm, char *buf, size_t size);

/* "1 page dirty, 62 marked, 1 never armed, 3 spilled": returns buf. */
const char *picture_map_label(const struct picture_map *map, char *buf, size_t size);

/* The path, shown as by say_text. The caller frees. NULL: no memory. */
char *picture_path(const struct picture_map *map);

/* On stdout, for people: as wide as the terminal, or 80 columns. */
void picture_text(const struct picture *picture);

enum picture_format { PICTURE_SVG, PICTURE_PNG };

/*
 * Draws it to `f`, which stays open. `title` stands above it. 0 or -errno.
 */
int picture_draw(const struct picture *picture, FILE *f, enum picture_format format, bool dark,
		 const char *title);

#endif
