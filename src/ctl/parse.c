/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/parse.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "wpfs.h"

#define NAME_LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
#define DIGITS	     "0123456789"
#define WORD_MAX     31

static const char *name_check(const char *text, size_t len)
{
	if (len == 0)
		return "is empty";
	if (len > WPFS_NAME_MAX)
		return "is longer than 64 characters";
	if (strspn(text, NAME_LETTERS) < len)
		return "has a character that is none of A-Z a-z 0-9 . _ -";
	return NULL;
}

const char *parse_name(const char *text)
{
	if (strchr(text, '/'))
		return "has a slash in it";
	return name_check(text, strlen(text));
}

const char *parse_mm_name(const char *text)
{
	const char *slash = strchr(text, '/');
	size_t digits;

	if (!slash)
		return name_check(text, strlen(text));
	digits = strspn(slash + 1, DIGITS);
	if (digits == 0 || digits > 10 || slash[1 + digits])
		return "has a slash that no number follows";
	return name_check(text, (size_t)(slash - text));
}

const char *parse_range(const char *text, uint64_t *offset, uint64_t *len)
{
	const char *plus = strchr(text, '+');
	char first[32];

	if (!plus || (size_t)(plus - text) >= sizeof(first))
		return "is not OFF+LEN";
	memcpy(first, text, (size_t)(plus - text));
	first[plus - text] = '\0';
	/* a share of the machine's memory is no place in a file */
	if (strchr(text, '%') || units_parse_size(first, offset) || units_parse_size(plus + 1, len))
		return "is not OFF+LEN with OFF and LEN in bytes or with K, M, G, T";
	if (*offset % WPFS_PAGE_SIZE || *len % WPFS_PAGE_SIZE)
		return "is not aligned to pages of 4096 bytes";
	if (*len == 0)
		return "is empty";
	if (*len > (uint64_t)INT64_MAX - *offset)
		return "ends beyond the largest file";
	return NULL;
}

const char *parse_number(const char *text, uint64_t *number)
{
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return "is not a number"; /* strtoull would take a sign or blanks */
	errno = 0;
	*number = strtoull(text, &end, 10);
	if (*end)
		return "is not a number";
	return errno ? "is too large" : NULL;
}

const char *parse_interval(const char *text, unsigned *ms)
{
	unsigned long whole;
	unsigned part = 0;
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return "is not a number of seconds";
	errno = 0;
	whole = strtoul(text, &end, 10);
	if (*end == '.' && end[1]) {
		unsigned place = 100;

		for (end++; isdigit((unsigned char)*end); end++, place /= 10)
			part += (unsigned)(*end - '0') * place;
	}
	if (*end)
		return "is not a number of seconds";
	if (errno || whole > 3600 || whole * 1000 + part > 3600000 || whole * 1000 + part < 100)
		return "is not between 0.1 and 3600 seconds";
	*ms = (unsigned)whole * 1000 + part;
	return NULL;
}

const char *parse_path(const char *text, char *buf, size_t size)
{
	size_t used = 0;

	if (text[0] != '/')
		return "does not begin with '/': it is a path inside the mount";
	if (size < sizeof("/"))
		return "is too long";
	while (*text) {
		size_t len;

		text += strspn(text, "/");
		len = strcspn(text, "/");
		if (len == 2 && !strncmp(text, "..", 2))
			return "has a '..' in it";
		if (len == 0 || (len == 1 && text[0] == '.')) {
			text += len;
			continue;
		}
		if (used + 1 + len + 1 > size)
			return "is too long";
		buf[used++] = '/';
		memcpy(buf + used, text, len);
		used += len;
		text += len;
	}
	if (used == 0)
		buf[used++] = '/';
	buf[used] = '\0';
	return NULL;
}

const char *parse_picture(const char *path, bool *png)
{
	const char *end = strrchr(path, '.');

	*png = end && !strcmp(end, ".png");
	return *png || (end && !strcmp(end, ".svg")) ? NULL : "ends with neither .svg nor .png";
}

unsigned parse_distance(const char *a, const char *b)
{
	size_t len_a = strlen(a), len_b = strlen(b);
	unsigned d[WORD_MAX + 1][WORD_MAX + 1];

	if (len_a > WORD_MAX || len_b > WORD_MAX)
		return UINT_MAX;
	for (size_t i = 0; i <= len_a; i++)
		d[i][0] = (unsigned)i;
	for (size_t j = 0; j <= len_b; j++)
		d[0][j] = (unsigned)j;
	for (size_t i = 1; i <= len_a; i++) {
		for (size_t j = 1; j <= len_b; j++) {
			unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);

			if (d[i - 1][j] + 1 < best)
				best = d[i - 1][j] + 1;
			if (d[i][j - 1] + 1 < best)
				best = d[i][j - 1] + 1;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
			    d[i - 2][j - 2] + 1 < best)
				best = d[i - 2][j - 2] + 1;
			d[i][j] = best;
		}
	}
	return d[len_a][len_b];
}
