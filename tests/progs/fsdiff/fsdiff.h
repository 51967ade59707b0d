/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The same random operations on two file systems, step by step, and what each gave.
 *
 * A thread ("hand") works in a directory of its own on both sides, so that what it sees is its own
 * doing and a seed tells it all; the file systems see all hands at once. An operation draws its
 * numbers once (struct params) and is then done on either side (struct side). Its answer is text.
 */
#ifndef FSDIFF_H
#define FSDIFF_H

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>

/*
 * What FUSE makes different and nobody can mend is left out, each where it would show: see the
 * comments with "FUSE", and wpfs(8).
 */
#define SLOTS	   8
#define MAPS	   4
#define DIRS	   2
#define NUMBERS	   6
#define ANSWER	   8192
#define ARENA_EACH (1 << 20)

struct answer {
	size_t used;
	char text[ANSWER];
};

__attribute__((format(printf, 2, 3))) void say(struct answer *a, const char *fmt, ...);
/* The outcome of a call: "0", or the value with `value`, or the name of errno. */
void say_result(struct answer *a, long ret, bool value);
/* Names with odd bytes, escaped. */
void say_name(struct answer *a, const char *name);
uint64_t hash_bytes(const void *data, size_t len);

/* What was last seen of a file, to tell whether its times moved. */
struct seen {
	uint64_t ino;
	unsigned number; /* the same on both sides */
	struct timespec mtime, ctime;
};

struct side {
	const char *top; /* this hand's directory */
	int fd[SLOTS];
	int flags[SLOTS];
	bool through_us[SLOTS]; /* FUSE: reads do not go straight to the lower file */
	char *arena;		/* room for the mappings, ARENA_EACH for one */
	char *map[MAPS];
	size_t map_len[MAPS];
	ino_t map_ino[MAPS];
	bool was_mapped; /* something, at the look before */
	DIR *dir[DIRS];
	long dir_at[DIRS];
	int inotify;
	bool ticked; /* the clock has, since the look before: a time that was set has moved */
	struct seen *seen;
	size_t nr_seen, room_seen;
};

struct params {
	char a[PATH_MAX], b[PATH_MAX]; /* paths below the side's top */
	const char *name;	       /* of an xattr */
	unsigned slot, slot2, map, dir;
	uint32_t n[NUMBERS];
};

/* The full path on a side; a buffer of the caller. */
const char *path_of(const struct side *s, const char *path, char buf[PATH_MAX]);

struct operation {
	const char *name;
	void (*run)(struct side *s, const struct params *p, struct answer *a);
	unsigned weight;
	/* what is looked at afterwards: the two paths, the descriptor of slot and slot2 */
	bool path_a, path_b, slot, slot2;
};

/* Each file of operations ends its table with a NULL name. */
extern const struct operation name_operations[], attr_operations[], io_operations[],
	map_operations[];

/* ---- look.c ----------------------------------------------------------------------------- */

/* Attributes and, relative to what was seen of the file before, whether its times moved. */
void look_path(struct side *s, const char *path, struct answer *a);
void look_fd(struct side *s, int fd, struct answer *a);
void look_events(struct side *s, struct answer *a);
void forget_events(struct side *s);
void look_statfs(const char *path, struct answer *a);

/*
 * Everything below the side's top: names in their order, attributes, contents, xattrs. Calls
 * `line` for each file.
 */
void look_tree(struct side *s, void (*line)(void *ctx, const char *text), void *ctx);

/* ---- maps.c ----------------------------------------------------------------------------- */

void arena_open(struct side *s);

/* ---- reclaim.c -------------------------------------------------------------------------- */

/*
 * Do two lines of a tree differ only in pages of holes that the kernel has taken or made, and that
 * not in too many files? Of how many, and how often this thread has let it pass. Do two answers
 * differ in nothing but blocks, for which the trees tell why?
 */
bool only_reclaimed(const char *model, const char *other);
bool only_blocks(const char *model, const char *other);
unsigned reclaimed_count(void);
unsigned reclaimed_passed(void);

/* ---- users.c ---------------------------------------------------------------------------- */

/* This thread's credentials; number 0 is root with all it has. */
void become(unsigned user);
#define USERS 6

#endif
