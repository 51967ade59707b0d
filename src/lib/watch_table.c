/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which pages are watched, for whom, and which of them were called for. */
#include "lib/watch.h"

#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/units.h"

pthread_mutex_t watch_table = PTHREAD_MUTEX_INITIALIZER;

static struct watch *watches; /* guarded by watch_table; changed under setup too */

struct watch *watch_new(uint64_t start, uint64_t end, const struct watch *like)
{
	size_t words = ((end - start) / WPFS_PAGE + 63) / 64;
	struct watch *w = calloc(1, sizeof(*w) + words * sizeof(w->called[0]));

	if (!w)
		return NULL;
	w->start = start;
	w->end = end;
	w->handle = like->handle;
	w->fn = like->fn;
	w->arg = like->arg;
	return w;
}

struct watch *watch_at(uint64_t addr)
{
	struct watch *w;

	DL_FOREACH (watches, w) {
		if (w->start <= addr && addr < w->end)
			return w;
	}
	return NULL;
}

bool watch_test_called(const struct watch *w, uint64_t page)
{
	uint64_t i = (page - w->start) / WPFS_PAGE;

	return w->called[i / 64] >> i % 64 & 1;
}

void watch_set_called(struct watch *w, uint64_t page)
{
	uint64_t i = (page - w->start) / WPFS_PAGE;

	w->called[i / 64] |= (uint64_t)1 << i % 64;
}

/* The part [start, end) of a watch as one of its own. */
static struct watch *watch_part(const struct watch *w, uint64_t start, uint64_t end)
{
	struct watch *part = watch_new(start, end, w);

	for (uint64_t page = start; part && page < end; page += WPFS_PAGE) {
		if (watch_test_called(w, page))
			watch_set_called(part, page);
	}
	return part;
}

void watch_append(struct watch *w)
{
	DL_APPEND(watches, w);
}

int watch_cut(uint64_t start, uint64_t end)
{
	struct watch *left = NULL, *right = NULL, *w, *next;

	DL_FOREACH (watches, w) { /* at most one reaches out of either end */
		if (w->end <= start || end <= w->start)
			continue;
		if (w->start < start && !(left = watch_part(w, w->start, start)))
			goto no_memory;
		if (end < w->end && !(right = watch_part(w, end, w->end)))
			goto no_memory;
	}
	DL_FOREACH_SAFE(watches, w, next)
	{
		if (w->end <= start || end <= w->start)
			continue;
		DL_DELETE(watches, w);
		free(w);
	}
	if (left)
		DL_APPEND(watches, left);
	if (right)
		DL_APPEND(watches, right);
	return 0;

no_memory:
	free(left);
	free(right);
	return -ENOMEM;
}

void watch_keep_called(struct watch *w)
{
	struct watch *old;

	DL_FOREACH (watches, old) {
		uint64_t page = old->start > w->start ? old->start : w->start;

		for (; page < old->end && page < w->end; page += WPFS_PAGE) {
			if (watch_test_called(old, page))
				watch_set_called(w, page);
		}
	}
}

void watch_table_empty(void)
{
	struct watch *w, *next;

	DL_FOREACH_SAFE(watches, w, next)
	{
		DL_DELETE(watches, w);
		free(w);
	}
}

void watch_table_forget(void)
{
	pthread_mutex_lock(&watch_table);
	watch_table_empty();
	pthread_mutex_unlock(&watch_table);
}

bool watch_overlaps(uint64_t addr, uint64_t len)
{
	bool found = false;
	struct watch *w;

	pthread_mutex_lock(&watch_table);
	DL_FOREACH (watches, w)
		found |= w->start < addr + len && addr < w->end;
	pthread_mutex_unlock(&watch_table);
	return found;
}

bool watch_by_others(uint64_t start, uint64_t end, const struct watch *mine)
{
	struct watch *w;

	DL_FOREACH (watches, w) {
		if (w->start < end && start < w->end &&
		    (w->handle != mine->handle || w->fn != mine->fn || w->arg != mine->arg))
			return true;
	}
	return false;
}

bool watch_covers(uint64_t start, uint64_t end)
{
	struct watch *w;

	while (start < end && (w = watch_at(start)))
		start = w->end;
	return start >= end;
}

bool watch_any_of(const struct wpfs *handle, uint64_t *start, uint64_t *len)
{
	struct watch *w;

	pthread_mutex_lock(&watch_table);
	DL_FOREACH (watches, w) {
		if (w->handle != handle)
			continue;
		*start = w->start;
		*len = w->end - w->start;
		break;
	}
	pthread_mutex_unlock(&watch_table);
	return w != NULL;
}
