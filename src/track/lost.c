/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who maps files of a capped mount and whose userfaultfd nobody holds any more: a fork child of
 * which the last daemon was killed before it could tell the witness, or whose witness had no room,
 * was killed too, or was not there. Until there is a new daemon it finds holes where pages are in
 * the store. What it touches of them is zeros, and they are in the lower file from then on, for
 * everybody. So before the lower file wins such zeros are given back, and the whole file comes into
 * memory; it stays there while such a process maps it (evict.c).
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "track/capped_track.h"
#include "track/residency.h"
#include "uffd/maps.h"

/* One that is tracked, or has the memory of one that is: residency.c's. */
static bool lost_is_tracked(const struct track *t, pid_t pid)
{
	const struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		if (tm->state != TMM_LIVE)
			continue;
		if (tm->program_watch.fd >= 0 &&
		    (tm->program.pid == pid || proc_same_mm(pid, tm->program.pid) == 1))
			return true;
		if (tm->witness_pidfd >= 0 && proc_same_mm(pid, tm->witness.pid) == 1 &&
		    !proc_is_dead(tm->witness_pidfd))
			return true;
	}
	return false;
}

/* What it has stored is seen by nobody: in doubt is what any program had armed that can be it. */
static void lost_doubt(struct track *t, uint64_t file)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		const struct mm_file *f =
			tm->state == TMM_LIVE ? mm_file_find(&tm->mm, file) : NULL;

		if (f && !mm_set_is_empty(&f->own[MM_WPFS].armed) && strays_doubt(t, tm) < 0)
			log_err("track: what a child of %s has stored cannot be noted",
				tm->name[0] ? tm->name : tm->comm);
	}
}

static void lost_bring_back(struct track *t, pid_t pid, uint64_t file, bool touched)
{
	struct capped *c = t->config.capped;
	uint64_t loaded = 0;
	int r;

	/* Not by capped_lower_wins: what it touches meanwhile would win too. */
	capped_drop_zeros(c, file);
	r = capped_load_file(c, file, &loaded);
	if (r < 0)
		log_err("cannot bring file %" PRIu64 " back from the store: %s", file,
			log_errstr(r));
	if (loaded && touched)
		log_err("pid %d is not tracked and had no userfaultfd while pages that it maps "
			"were in the store: it has read zeros if it touched any",
			pid);
}

static void lost_look_at(struct track *t, pid_t pid, struct maps_list *maps)
{
	const uint64_t dev = capped_lower_dev(t->config.capped);
	_cleanup_free_ uint8_t *modes = NULL;

	if (maps_read(pid, &dev, 1, maps) < 0 || maps->nr == 0 || lost_is_tracked(t, pid))
		return;
	modes = calloc(maps->nr, sizeof(*modes));
	if (!modes || maps_read_uffd(proc_thread(pid), maps, modes) < 0)
		return;
	for (size_t i = 0; i < maps->nr; i++) {
		const uint64_t file = fs_ino_of_lower(t->config.fs, maps->vmas[i].ino);
		/* Else the shim was about to make it when the daemon was killed. */
		const bool touched = maps->vmas[i].prot != PROT_NONE;

		/* Where somebody holds the userfaultfd it is registered still. */
		if (!maps->vmas[i].shared || modes[i] & MAPS_UFFD_MISSING)
			continue;
		if (capped_nr_spilled(t->config.capped, file))
			lost_bring_back(t, pid, file, touched);
		if (touched && !(modes[i] & MAPS_UFFD_WP))
			lost_doubt(t, file);
	}
}

void lost_find(struct track *t)
{
	_cleanup_dir_ DIR *dir = t->config.capped->config.adopted ? opendir("/proc") : NULL;
	struct maps_list maps = {0};
	struct dirent *de;

	while (dir && (de = readdir(dir))) {
		const pid_t pid = (pid_t)atoi(de->d_name);

		if (pid > 0)
			lost_look_at(t, pid, &maps);
	}
	maps_free(&maps);
}
