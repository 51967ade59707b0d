/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/ids.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "fs/fs.h"

#define IDS_MAGIC 0x3173646966707731ull /* "1wpfids1" */

struct ids_header {
	uint64_t magic, base, nr, sum; /* sum: of the pairs' numbers, against a torn file */
};

int fs_ids_add(struct fs_ids *ids, uint64_t lower, uint64_t id)
{
	if (ids->nr == ids->room) {
		size_t room = ids->room ? ids->room * 2 : 256;
		struct fs_id_pair *pairs = reallocarray(ids->pairs, room, sizeof(*pairs));

		if (!pairs)
			return -ENOMEM;
		ids->pairs = pairs;
		ids->room = room;
	}
	ids->pairs[ids->nr++] = (struct fs_id_pair){.lower = lower, .id = id};
	return 0;
}

static int ids_compare(const void *a, const void *b)
{
	const struct fs_id_pair *x = a, *y = b;

	return (x->lower > y->lower) - (x->lower < y->lower);
}

void fs_ids_sort(struct fs_ids *ids)
{
	if (ids->nr)
		qsort(ids->pairs, ids->nr, sizeof(*ids->pairs), ids_compare);
}

uint64_t fs_ids_get(const struct fs_ids *ids, uint64_t lower)
{
	struct fs_id_pair key = {.lower = lower}, *pair = NULL;

	if (lower == 1)
		return FS_ROOT_ID;
	if (ids->nr && lower <= ids->pairs[ids->nr - 1].lower)
		pair = bsearch(&key, ids->pairs, ids->nr, sizeof(key), ids_compare);
	return pair ? pair->id : lower + ids->base;
}

static uint64_t ids_sum(const struct fs_ids *ids)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < ids->nr; i++)
		sum = sum * 31 + ids->pairs[i].lower + ids->pairs[i].id;
	return sum;
}

int fs_ids_save(const struct fs_ids *ids, int dirfd, const char *name)
{
	struct ids_header header = {
		.magic = IDS_MAGIC, .base = ids->base, .nr = ids->nr, .sum = ids_sum(ids)};
	char temporary[256];
	_cleanup_close_ int fd = -1;
	int r;

	snprintf(temporary, sizeof(temporary), "%s.new", name);
	fd = openat(dirfd, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = fdio_pwrite_full(fd, &header, sizeof(header), 0);
	if (!r)
		r = fdio_pwrite_full(fd, ids->pairs, ids->nr * sizeof(*ids->pairs), sizeof(header));
	if (!r && renameat(dirfd, temporary, dirfd, name) < 0)
		r = -errno;
	return r;
}

int fs_ids_load(struct fs_ids *ids, int dirfd, const char *name)
{
	struct ids_header header;
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	memset(ids, 0, sizeof(*ids));
	fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	r = fdio_pread_full(fd, &header, sizeof(header), 0);
	if (r)
		return r == -ENODATA ? -EBADMSG : r;
	if (header.magic != IDS_MAGIC ||
	    header.nr != ((uint64_t)st.st_size - sizeof(header)) / sizeof(struct fs_id_pair))
		return -EBADMSG;
	ids->base = header.base;
	ids->pairs = calloc(header.nr ? header.nr : 1, sizeof(struct fs_id_pair));
	if (!ids->pairs)
		return -ENOMEM;
	ids->nr = ids->room = header.nr;
	r = fdio_pread_full(fd, ids->pairs, ids->nr * sizeof(*ids->pairs), sizeof(header));
	if (!r && ids_sum(ids) != header.sum)
		r = -EBADMSG;
	if (r)
		fs_ids_clear(ids);
	return r;
}

void fs_ids_clear(struct fs_ids *ids)
{
	free(ids->pairs);
	memset(ids, 0, sizeof(*ids));
}
