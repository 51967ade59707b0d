/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/mounts.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"

/* Compares a field, in which blanks and backslashes are \ooo, with a plain path. */
static bool field_is(const char *field, const char *path)
{
	for (; *field; path++) {
		unsigned char c = (unsigned char)*field++;

		if (c == '\\' && field[0] && field[1] && field[2]) {
			c = (unsigned char)((field[0] - '0') << 6 | (field[1] - '0') << 3 |
					    (field[2] - '0'));
			field += 3;
		}
		if (c != (unsigned char)*path)
			return false;
	}
	return !*path;
}

int mounts_find(const char *path, struct mounts_entry *entry)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/self/mountinfo", "re");
	_cleanup_free_ char *line = NULL;
	size_t room = 0;
	int r = -ENOENT;

	if (!file)
		return -errno;
	/* "id parent major:minor root mountpoint options fields... - fstype source options" */
	while (getline(&line, &room, file) > 0) {
		unsigned major_nr, minor_nr;
		int at = 0;
		char *point, *end, *type;

		if (sscanf(line, "%*d %*d %u:%u %*s %n", &major_nr, &minor_nr, &at) != 2 || !at)
			continue;
		point = line + at;
		end = strchr(point, ' ');
		type = end ? strstr(end, " - ") : NULL;
		if (!type)
			continue;
		*end = '\0';
		if (!field_is(point, path))
			continue;
		entry->dev = makedev(major_nr, minor_nr);
		if (sscanf(type + 3, "%63s", entry->fstype) == 1)
			r = 0; /* a later line lies on top of an earlier one */
	}
	return r;
}
