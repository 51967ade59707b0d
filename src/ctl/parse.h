/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What people type: names, ranges, paths, commands. Pure functions. */
#ifndef WPFS_CTL_PARSE_H
#define WPFS_CTL_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Checks a name to give to a program: 1 to WPFS_NAME_MAX of [A-Za-z0-9._-]. Gives NULL when it is
 * one, else what is wrong with it.
 */
const char *parse_name(const char *text);

/*
 * The same for a name to look for, which may have the suffix the daemon gives to a second program
 * of a name and to fork children: NAME/DIGITS.
 */
const char *parse_mm_name(const char *text);

/*
 * Parses OFF+LEN: two sizes (units.h), page-aligned, LEN not 0, the end within 63 bits. NULL, or
 * what is wrong.
 */
const char *parse_range(const char *text, uint64_t *offset, uint64_t *len);

/* Parses a decimal number without sign. NULL, or what is wrong. */
const char *parse_number(const char *text, uint64_t *number);

/* Parses seconds, with a fraction or without, from 0.1 to 3600. NULL, or what is wrong. */
const char *parse_interval(const char *text, unsigned *ms);

/*
 * Writes a path inside the mount to buf the way the daemon names files: with leading '/', without
 * "//", "/./" and a '/' at the end. NULL, or what is wrong: no leading '/', a ".." in it, longer
 * than size.
 */
const char *parse_path(const char *text, char *buf, size_t size);

/* Is it the name of a picture, by its ending? NULL, or what is wrong. */
const char *parse_picture(const char *path, bool *png);

/*
 * How far two words are apart: inserted, deleted, changed and swapped letters (optimal string
 * alignment). Words longer than 31 letters are infinitely far away.
 */
unsigned parse_distance(const char *a, const char *b);

#endif
