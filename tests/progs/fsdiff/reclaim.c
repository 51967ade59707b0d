/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the kernel does to holes when it looks for memory, on either side, and tells nobody: a page
 * that a load has put into a hole and nobody has written to goes, and one that was only allocated
 * is made one of zeros (to go to swap). So st_blocks, and what SEEK_DATA says of a page of zeros,
 * differ. (Swap and little memory beside this, or DAMON.) With a few files that is let pass; a file
 * system that fills holes, or loses zeros, does it to more.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fsdiff.h"

#define RECLAIMED_MAX 8
#define PAGE	      4096

static atomic_uint reclaimed;
static _Thread_local unsigned passed;
static _Atomic uint64_t seen[RECLAIMED_MAX]; /* which lines, by what they begin with */

/* It is there in each look at the tree: each file counts once. */
static bool count_file(const char *line)
{
	uint64_t file = hash_bytes(line, strcspn(line, "#"));

	for (unsigned i = 0; i < RECLAIMED_MAX; i++) {
		uint64_t none = 0;

		if (seen[i] == file)
			return true;
		if (!seen[i] && atomic_compare_exchange_strong(&seen[i], &none, file)) {
			reclaimed++;
			return true;
		}
	}
	return false;
}

/* Without " blocks=N"; gives N. */
static unsigned long cut_blocks(char *line)
{
	char *at = strstr(line, " blocks="), *end;
	unsigned long blocks;

	if (!at)
		return 0;
	blocks = strtoul(at + 8, &end, 10);
	memmove(at, end, strlen(end) + 1);
	return blocks;
}

/* The ranges of data at the end of a line of a tree, cut off: a bit for each page that is data. */
static bool cut_data(char *line, uint64_t data[ANSWER / 64])
{
	unsigned long long from, to;
	char *at, end;

	memset(data, 0, ANSWER / 8);
	while ((at = strrchr(line, ' ')) && sscanf(at, " %llu-%llu%c", &from, &to, &end) == 2) {
		if (to / PAGE >= ANSWER)
			return false;
		for (unsigned long long n = from / PAGE; n < (to + PAGE - 1) / PAGE; n++)
			data[n / 64] |= 1ull << (n % 64);
		*at = '\0';
	}
	return true;
}

/* Is page `n` zeros, by the hashes at the end of the line? */
static bool is_zeros(const char *line, unsigned long n)
{
	static const char page[PAGE];
	const char *hashes = strrchr(line, ' ');
	char zeros[8];

	snprintf(zeros, sizeof(zeros), "%04x", (unsigned)(hash_bytes(page, PAGE) & 0xffff));
	return hashes && strlen(hashes + 1) >= 4 * (n + 1) &&
	       memcmp(hashes + 1 + 4 * n, zeros, 4) == 0;
}

bool only_reclaimed(const char *model, const char *other)
{
	uint64_t data[2][ANSWER / 64];
	char *line[2] = {strdup(model), strdup(other)};
	long blocks[2], pages = 0;
	bool same = line[0] && line[1];

	for (int i = 0; same && i < 2; i++) {
		blocks[i] = (long)cut_blocks(line[i]);
		same = cut_data(line[i], data[i]);
	}
	same = same && strcmp(line[0], line[1]) == 0;
	for (unsigned long n = 0; same && n < ANSWER; n++) {
		long is[2] = {data[0][n / 64] >> (n % 64) & 1, data[1][n / 64] >> (n % 64) & 1};

		pages += is[1] != is[0];
		same = is[0] == is[1] || is_zeros(line[0], n);
	}
	/* What was taken counts until the file is looked at by the kernel the next time. */
	same = same && labs(blocks[1] - blocks[0]) <= pages * (PAGE / 512) && count_file(line[0]);
	passed += same;
	free(line[0]);
	free(line[1]);
	return same;
}

bool only_blocks(const char *model, const char *other)
{
	char *line[2] = {strdup(model), strdup(other)};
	bool same = line[0] && line[1];

	for (int i = 0; same && i < 2; i++) {
		while (strstr(line[i], " blocks="))
			cut_blocks(line[i]);
	}
	same = same && strcmp(line[0], line[1]) == 0;
	free(line[0]);
	free(line[1]);
	return same;
}

unsigned reclaimed_passed(void)
{
	return passed;
}

unsigned reclaimed_count(void)
{
	return reclaimed;
}
