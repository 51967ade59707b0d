/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by the files of the program `mapper`: its numbered files and mappings, and its orders. */
#ifndef WPFS_TESTS_MAPPER_H
#define WPFS_TESTS_MAPPER_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#define PAGE	  4096ul
#define SLOTS	  64
#define WORDS_MAX 16

struct map {
	char *volatile addr; /* writer threads follow it when it moves */
	size_t len;
};

extern struct map maps[SLOTS];
extern int files[SLOTS];

/* In a fork child: nobody is to wait for it at a userfaultfd that its parent alone serves. */
void served_close(void);

struct order {
	char *word[WORDS_MAX + 1]; /* NULL-terminated */
	int words;
};

struct verb {
	const char *name;
	int words;			    /* at least, with the verb */
	long (*run)(const struct order *o); /* the answer's value, or -errno */
};

extern const struct verb life_verbs[], child_verbs[]; /* the last one has no name */

static inline unsigned long number(const struct order *o, int i)
{
	return i < o->words ? strtoul(o->word[i], NULL, 0) : 0;
}

static inline int *file_at(const struct order *o, int i)
{
	return &files[number(o, i) % SLOTS];
}

static inline struct map *map_at(const struct order *o, int i)
{
	return &maps[number(o, i) % SLOTS];
}

static inline char *page_at(const struct order *o, int map, int page)
{
	return map_at(o, map)->addr + number(o, page) * PAGE;
}

/* Turns what a system call returned into what an order returns: a value or -errno. */
static inline long result(long value)
{
	return value < 0 ? -errno : value;
}

#endif
