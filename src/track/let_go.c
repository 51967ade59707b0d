/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files of a capped mount that nobody uses any more are let go of, and with the last name their
 * contents in the store. Nobody uses a file that no program maps, or is about to: the tracked ones
 * are known; while there are others that could (orphans: capped_internal.h) all of /proc is asked.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "ipc/wire.h"
#include "track/capped_mm.h"
#include "track/capped_track.h"
#include "track/residency.h"
#include "uffd/maps.h"

#define AGAIN_MS 1000

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Files that programs map, or are about to. */
struct coming {
	struct track *t;
	uint64_t *inos;
	size_t nr, room;
	bool unknown; /* it could not be looked: any file may be one */
};

static bool coming_has(const struct coming *coming, uint64_t ino)
{
	for (size_t i = 0; i < coming->nr; i++) {
		if (coming->inos[i] == ino)
			return true;
	}
	return false;
}

static void coming_add(struct coming *coming, uint64_t ino)
{
	if (coming_has(coming, ino))
		return;
	if (coming->nr == coming->room) {
		size_t room = coming->room ? coming->room * 2 : 32;
		uint64_t *bigger = reallocarray(coming->inos, room, sizeof(*bigger));

		if (!bigger) {
			coming->unknown = true;
			return;
		}
		coming->inos = bigger;
		coming->room = room;
	}
	coming->inos[coming->nr++] = ino;
}

/* What anybody maps. */
static void coming_look(struct coming *coming)
{
	const uint64_t dev = capped_lower_dev(coming->t->config.capped);
	_cleanup_dir_ DIR *dir = opendir("/proc");
	struct maps_list list = {0};
	struct dirent *de;

	coming->unknown = !dir;
	while (dir && (errno = 0, de = readdir(dir))) {
		pid_t pid = atoi(de->d_name);
		int r = pid > 0 ? maps_read(pid, &dev, 1, &list) : -ESRCH;

		/* Whatever else keeps us from looking says nothing of the process. (EACCES: one of
		 * a user namespace above ours, as the first one of a container may be.) */
		coming->unknown |= r < 0 && r != -ESRCH && r != -EACCES;
		if (r < 0)
			continue;
		for (size_t i = 0; i < list.nr; i++)
			coming_add(coming, fs_ino_of_lower(coming->t->config.fs, list.vmas[i].ino));
	}
	coming->unknown |= errno != 0;
	maps_free(&list);
}

static void coming_ask(void *ctx)
{
	_Alignas(8) char packet[sizeof(struct wpfs_hdr) + sizeof(struct wpfs_map)];
	struct coming *coming = ctx;
	struct tmm *tm;

	DL_FOREACH (coming->t->tmms, tm) {
		const struct wpfs_map *map = NULL;

		if (tm->announced.coming_pages)
			coming_add(coming, tm->announced.coming_file);
		if (tm->client && !tm->client->closing)
			map = client_peek_map(tm->client, packet, sizeof(packet));
		if (map)
			coming_add(coming, map->ino);
	}
}

static bool coming_is_mapped(void *ctx, uint64_t ino)
{
	const struct coming *coming = ctx;

	return coming->unknown || coming_has(coming, ino) || files_is_mapped(coming->t, ino);
}

/*
 * With orphans a look is a walk through /proc, and anybody can have one as often as he asks how
 * much room there is: only when there is something that could go, and of the same again only now
 * and then.
 */
static bool let_go_is_vain(struct track *t, uint64_t now)
{
	const size_t idle = capped_nr_idle(t->config.capped);

	return idle == 0 || (idle == t->let_go_left && now - t->let_go_ms < AGAIN_MS);
}

void residency_let_go(struct track *t)
{
	struct coming coming = {.t = t};
	struct capped_mapped mapped = {
		.look = coming_ask, .is_mapped = coming_is_mapped, .ctx = &coming};
	const uint64_t now = now_ms();

	if (!t->config.capped)
		return;
	mapped.now = capped_now(t->config.capped);
	if (!capped_has_orphans(t->config.capped)) {
		capped_sweep(t->config.capped, &mapped);
	} else if (let_go_is_vain(t, now)) {
		mapped.now = 0;
		capped_sweep(t->config.capped, &mapped);
	} else {
		coming_look(&coming);
		t->let_go_ms = now;
		t->let_go_left = capped_sweep(t->config.capped, &mapped);
	}
	free(coming.inos);
}
