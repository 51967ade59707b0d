/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who maps files of a capped mount and whose userfaultfd nobody holds any more: a fork child of
 * which the last daemon was killed before it could tell the witness, or whose witness had no room,
 * was killed too, or was not there. Until there is a new daemon it finds holes where pages are in
 * the store. What it touches of them is zeros, and they are in the lower file from then on, until
 * the next daemon gives them back (capped_lower_has). For one that lives the whole file comes into
 * memory before that, but for what it has stored, and stays there while it maps it (evict.c).
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

/* One that is tracked, or has the memory of one that is: residency.c's. Or a witness that is left.
 */
static bool lost_is_tracked(const struct track *t, pid_t pid)
{
	const struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		_cleanup_close_ int left = tm->state != TMM_LIVE && tm->witness.pid == pid
						   ? proc_open(&tm->witness)
						   : -1;

		if (left >= 0)
			return true;
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

/*
 * A mapping without access: was the shim about to make it when the daemon was killed? Then nothing
 * was touched, and it registers it before it goes on. Not so if some program has it mapped at that
 * place: a child's, who has taken the access away.
 */
static bool lost_is_being_made(const struct track *t, const struct maps_vma *vma, uint64_t file)
{
	const struct tmm *tm;

	if (vma->prot != PROT_NONE)
		return false;
	DL_FOREACH (t->tmms, tm) {
		for (size_t i = 0; i < tm->mm.nr_vmas; i++) {
			const struct mm_vma *theirs = &tm->mm.vmas[i];

			if (theirs->file == file && theirs->start < vma->end &&
			    vma->start < theirs->end)
				return false;
		}
	}
	return true;
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

static void lost_bring_back(struct track *t, pid_t pid, uint64_t file)
{
	uint64_t loaded = 0;
	int r = capped_load_file(t->config.capped, file, &loaded);

	if (r < 0)
		log_err("cannot bring file %" PRIu64 " back from the store: %s", file,
			log_errstr(r));
	if (loaded || r < 0)
		log_err("pid %d is not tracked and had no userfaultfd while pages that it maps "
			"were in the store: it has read zeros if it touched any",
			pid);
}

/* What it mapped was read, but has gone since: no more is known of it, and nothing can be given
 * back.
 */
static bool lost_has_ended(pid_t pid)
{
	const uint64_t none = 0;
	struct maps_list maps = {0};
	int r = maps_read(pid, &none, 1, &maps);

	maps_free(&maps);
	return r == -ESRCH;
}

static void lost_look_at(struct track *t, pid_t pid, struct maps_list *maps)
{
	const uint64_t dev = capped_lower_dev(t->config.capped);
	_cleanup_free_ uint8_t *modes = NULL;
	bool known = false, ended = false;
	int r = maps_read(pid, &dev, 1, maps);

	if (r < 0 && r != -ESRCH && r != -ENOENT && r != -EACCES && r != -EPERM)
		log_err("what pid %d maps cannot be read: %s: if it was born as the last daemon "
			"ended its stores may be missed",
			pid, log_errstr(r));
	if (r < 0 || maps->nr == 0 || lost_is_tracked(t, pid))
		return;
	/* Who is not known to be registered is not. */
	modes = calloc(maps->nr, sizeof(*modes));
	if (modes) {
		r = maps_read_uffd(proc_thread(pid), maps, modes);
		ended = lost_has_ended(pid);
		known = r == 0;
	}
	for (size_t i = 0; i < maps->nr; i++) {
		const struct maps_vma *vma = &maps->vmas[i];
		const uint64_t file = fs_ino_of_lower(t->config.fs, vma->ino);
		const unsigned mode = known ? modes[i] : 0;

		/* Where somebody holds the userfaultfd it is registered still. */
		if (!vma->shared || mode & MAPS_UFFD_MISSING || lost_is_being_made(t, vma, file))
			continue;
		if (!ended && capped_nr_spilled(t->config.capped, file))
			lost_bring_back(t, pid, file);
		if (!(mode & MAPS_UFFD_WP))
			lost_doubt(t, file);
	}
}

void lost_find(struct track *t)
{
	const bool adopted = t->config.capped->config.adopted;
	_cleanup_dir_ DIR *dir = adopted ? opendir("/proc") : NULL;
	struct maps_list maps = {0};
	struct dirent *de;

	if (adopted && !dir)
		log_err("cannot look for who is not tracked: %s", log_errstr(-errno));
	while (dir && (de = readdir(dir))) {
		const pid_t pid = (pid_t)atoi(de->d_name);

		if (pid > 0)
			lost_look_at(t, pid, &maps);
	}
	maps_free(&maps);
}
