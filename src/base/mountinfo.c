/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/mountinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"
#include "base/fdio.h"

/* The kernel writes blanks, newlines and backslashes as \ooo. */
static int unescape(const char *text, size_t len, char *buf, size_t size)
{
	size_t used = 0;

	for (size_t i = 0; i < len; i++) {
		char c = text[i];

		if (c == '\\' && len - i > 3 && strspn(text + i + 1, "01234567") >= 3) {
			c = (char)((text[i + 1] - '0') << 6 | (text[i + 2] - '0') << 3 |
				   (text[i + 3] - '0'));
			i += 3;
		}
		if (used + 1 >= size)
			return -EINVAL;
		buf[used++] = c;
	}
	buf[used] = '\0';
	return 0;
}

/* ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [FIELD:...] - FSTYPE SOURCE SUPER */
int mountinfo_parse(const char *line, struct mountinfo *mount)
{
	unsigned major, minor;
	const char *rest;
	int at, at_end;

	if (sscanf(line, "%d %d %u:%u %*s %n%*s%n", &mount->id, &mount->parent, &major, &minor, &at,
		   &at_end) != 4)
		return -EINVAL;
	mount->dev = makedev(major, minor);
	if (unescape(line + at, (size_t)(at_end - at), mount->mountpoint,
		     sizeof(mount->mountpoint)))
		return -EINVAL;
	rest = strstr(line + at_end, " - ");
	if (!rest || sscanf(rest, " - %63s", mount->fstype) != 1)
		return -EINVAL;
	return 0;
}

int mountinfo_read(struct mountinfo_list *list)
{
	_cleanup_free_ char *text = NULL;
	char *save, *line;
	size_t room = 0;
	int r;

	*list = (struct mountinfo_list){0};
	r = fdio_read_file(AT_FDCWD, "/proc/self/mountinfo", &text, NULL);
	if (r)
		return r;
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (list->nr == room) {
			struct mountinfo *more;

			room = room ? room * 2 : 64;
			more = realloc(list->mounts, room * sizeof(*more));
			if (!more)
				return -ENOMEM;
			list->mounts = more;
		}
		if (mountinfo_parse(line, &list->mounts[list->nr]) == 0)
			list->nr++;
	}
	return 0;
}

void mountinfo_free(struct mountinfo_list *list)
{
	free(list->mounts);
	*list = (struct mountinfo_list){0};
}

const struct mountinfo *mountinfo_at(const struct mountinfo_list *list, const char *mountpoint)
{
	for (size_t i = list->nr; i-- > 0;) {
		if (!strcmp(list->mounts[i].mountpoint, mountpoint))
			return &list->mounts[i];
	}
	return NULL;
}

int mountinfo_find(const char *mountpoint, struct mountinfo *mount)
{
	const struct mountinfo *found = NULL;
	struct mountinfo_list list;
	int r = mountinfo_read(&list);

	if (r == 0)
		found = mountinfo_at(&list, mountpoint);
	if (found)
		*mount = *found;
	mountinfo_free(&list);
	return r < 0 ? r : found ? 0 : -ENOENT;
}

const struct mountinfo *mountinfo_below(const struct mountinfo_list *list,
					const struct mountinfo *mount)
{
	for (size_t i = 0; i < list->nr; i++) {
		if (list->mounts[i].parent == mount->id)
			return &list->mounts[i];
	}
	return NULL;
}

size_t mountinfo_count(const struct mountinfo_list *list, dev_t dev)
{
	size_t nr = 0;

	for (size_t i = 0; i < list->nr; i++)
		nr += list->mounts[i].dev == dev;
	return nr;
}
