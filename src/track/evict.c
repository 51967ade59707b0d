/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Before pages of a file can leave, every mapping of it has to be known and registered for missing
 * faults, and nobody may map it who is not tracked. That look (evict_collect) costs a harvest of
 * every mm and a walk through /proc, so its result is kept, and used again as long as the mappings
 * of all programs are what they were: once a mapping is registered, a child that inherits it is
 * known by its parent's fork event, and a new one says so itself.
 */
#include "track/evict_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_mm.h"
#include "track/capped_track.h"
#include "track/residency.h"
#include "uffd/uffd.h"

#define EVICT_TRIES 20
#define KNOWN_MAX   64

static int evict_refuse(struct evict *e, const struct tmm *tm, const char *reason)
{
	snprintf(e->why, sizeof(e->why), "%s (pid %d) %s", tm->name[0] ? tm->name : tm->comm,
		 tm->program.pid, reason);
	return -EBUSY;
}

static bool evict_is_pinned(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	const char *line;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (fdio_read_file(AT_FDCWD, path, &text, NULL) < 0)
		return true;
	line = strstr(text, "\nVmPin:");
	return line && strtoull(line + 7, NULL, 10) > 0;
}

static int evict_add(struct evict *e, struct tmm *tm, const struct mm_vma *vma)
{
	if (e->nr == e->room) {
		size_t room = e->room ? e->room * 2 : 16;
		struct capped_mapping *bigger = reallocarray(e->maps, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		e->maps = bigger;
		e->room = room;
	}
	e->maps[e->nr++] = (struct capped_mapping){tm->capped, tm->witness_pidfd, vma->start,
						   vma->end, vma->pgoff};
	return 0;
}

/* Registers one mapping for missing pages and puts it on the list. */
static int evict_vma(struct evict *e, struct tmm *tm, int uffd, const struct mm_vma *vma)
{
	int r;

	if (vma->start < tm->announced.aside_end && tm->announced.aside_start < vma->end)
		return evict_refuse(e, tm, "is about to register a userfaultfd of its own there");
	/* Whose an asynchronous registration is only this tells for sure. */
	r = residency_watch(tm, uffd, vma);
	if (r == -EPERM)
		return evict_refuse(e, tm, "has mapped it for reading only");
	if (r == -EBUSY)
		return evict_refuse(e, tm, "has a userfaultfd of its own there");
	if (r < 0) {
		evict_refuse(e, tm, "changes its mappings just now: try again");
		return -EAGAIN;
	}
	return evict_add(e, tm, vma);
}

static int evict_mm(struct evict *e, struct tmm *tm)
{
	_cleanup_close_ int uffd = -1;
	bool maps_it = false;
	int r = tmm_harvest(e->t, tm);

	if (r < 0)
		return evict_refuse(e, tm, "cannot be looked at");
	for (size_t i = 0; i < tm->mm.nr_vmas; i++)
		maps_it |= tm->mm.vmas[i].file == e->ino;
	if (!maps_it)
		return 0;
	if (!tm->capped || tm->witness_pidfd < 0 || proc_is_dead(tm->witness_pidfd))
		return evict_refuse(e, tm, "has mapped it and has no witness");
	if (evict_is_pinned(tmm_pid(tm)))
		return evict_refuse(e, tm, "has memory pinned for direct I/O");
	uffd = tmm_uffd(tm);
	if (uffd < 0)
		return evict_refuse(e, tm, "cannot be looked at");
	e->mms[e->nr_mms++] = tm;
	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		if (tm->mm.vmas[i].file == e->ino)
			r = evict_vma(e, tm, uffd, &tm->mm.vmas[i]);
	}
	/* What is registered from now on is known to be ours. */
	return r == 0 ? tmm_harvest(e->t, tm) : r;
}

static bool evict_knows(const struct evict *e, pid_t pid)
{
	for (size_t i = 0; i < e->nr_mms; i++) {
		if (proc_same_mm(pid, tmm_pid(e->mms[i])) == 1)
			return true;
	}
	return false;
}

/*
 * A process that maps the file and is not tracked: the child of a raw clone, or somebody who was
 * handed a descriptor. Its accesses could not be served. A child made from now on is known by the
 * fork event of its parent.
 */
static int evict_foreigners(struct evict *e)
{
	const uint64_t dev = capped_lower_dev(e->t->config.capped);
	_cleanup_dir_ DIR *dir = opendir("/proc");
	struct maps_list list = {0};
	struct dirent *de;
	int r = dir ? 0 : -errno;

	while (r == 0 && (errno = 0, de = readdir(dir))) {
		pid_t pid = atoi(de->d_name);
		bool maps_it = false;
		int read = pid > 0 ? maps_read(pid, &dev, 1, &list) : -ESRCH;

		/* Whatever else keeps us from looking says nothing of the process. (EACCES: one of
		 * a user namespace above ours, as the first one of a container may be.) */
		if (read < 0 && read != -ESRCH && read != -EACCES) {
			snprintf(e->why, sizeof(e->why), "cannot look at pid %d: %s", pid,
				 log_errstr(read));
			r = read;
		}
		if (read < 0)
			continue;
		for (size_t i = 0; i < list.nr; i++)
			maps_it |= list.vmas[i].ino == e->lower_ino;
		if (!maps_it || evict_knows(e, pid))
			continue;
		snprintf(e->why, sizeof(e->why), "pid %d has mapped it and is not tracked", pid);
		r = -EBUSY;
	}
	if (r == 0)
		r = -errno; /* of readdir(3) */
	maps_free(&list);
	return r;
}

static int evict_collect(struct evict *e)
{
	struct tmm *tm;
	int r = 0;

	DL_FOREACH (e->t->tmms, tm) {
		/* A fork child that has not mapped anything itself has no row, but mappings. */
		if (r == 0 && tm->state != TMM_DETACHED && tmm_pid(tm))
			r = evict_mm(e, tm);
	}
	return r == 0 ? evict_foreigners(e) : r;
}

/* ---- what is known ---- */

/* A child that waits for its ATTACH, or one that ended, is in no list. */
static bool evict_counts(const struct tmm *tm)
{
	return tm->state != TMM_DETACHED && tmm_pid(tm) && tm->capped;
}

void evict_unsee(struct evict *e)
{
	for (size_t i = 0; i < e->nr_seen; i++)
		maps_free(&e->seen[i].list);
	free(e->seen);
	e->seen = NULL;
	e->nr_seen = 0;
}

static void known_free(struct track *t, struct evict *e)
{
	DL_DELETE(t->evicts, e);
	evict_unsee(e);
	free(e->maps);
	free(e->mms);
	free(e);
}

void evict_forget(struct track *t)
{
	while (t->evicts)
		known_free(t, t->evicts);
}

/* Notes what all mms map. 0 or -errno. */
static int evict_see(struct evict *e)
{
	const uint64_t dev = capped_lower_dev(e->t->config.capped);
	struct tmm *tm;
	size_t nr = 0;

	evict_unsee(e);
	DL_FOREACH (e->t->tmms, tm)
		nr += evict_counts(tm);
	e->seen = calloc(nr + 1, sizeof(*e->seen));
	if (!e->seen)
		return -ENOMEM;
	DL_FOREACH (e->t->tmms, tm) {
		struct evict_seen *seen = &e->seen[e->nr_seen];
		int r;

		if (!evict_counts(tm))
			continue;
		seen->mm = tm->capped->id;
		e->nr_seen++;
		r = maps_read(tmm_pid(tm), &dev, 1, &seen->list);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Is everything as it was seen? */
static bool evict_is_current(const struct evict *e)
{
	const uint64_t dev = capped_lower_dev(e->t->config.capped);
	struct maps_list list = {0};
	bool same = true;
	struct tmm *tm;
	size_t nr = 0;

	DL_FOREACH (e->t->tmms, tm) {
		if (!evict_counts(tm))
			continue;
		same = same && nr < e->nr_seen && e->seen[nr].mm == tm->capped->id &&
		       maps_read(tmm_pid(tm), &dev, 1, &list) == 0 &&
		       maps_equal(&list, &e->seen[nr].list);
		nr++;
	}
	maps_free(&list);
	return same && nr == e->nr_seen;
}

/* What can have changed without a trace in the mappings. 0 or -errno with a reason. */
static int evict_check(struct evict *e)
{
	for (size_t i = 0; i < e->nr_mms; i++) {
		const struct tmm *tm = e->mms[i];

		if (tm->witness_pidfd < 0 || proc_is_dead(tm->witness_pidfd))
			return evict_refuse(e, tm, "has mapped it and has no witness");
		if (evict_is_pinned(tmm_pid(tm)))
			return evict_refuse(e, tm, "has memory pinned for direct I/O");
		if (tm->announced.aside_end)
			return -EAGAIN; /* the whole look tells what this means */
	}
	for (size_t i = 0; i < e->nr; i++) {
		/* No change, unless another uffd has it by now. */
		int r = uffd_register_missing(e->maps[i].mm->uffd, e->maps[i].start,
					      e->maps[i].end);

		if (r < 0)
			return -EAGAIN;
	}
	return 0;
}

/* The whole look. 0 or -errno with a reason in e->why. */
static int evict_look(struct evict *e)
{
	const uint64_t now = capped_now(e->t->config.capped);
	struct tmm *tm;
	size_t nr = 1;
	int r;

	DL_FOREACH (e->t->tmms, tm)
		nr++;
	free(e->mms);
	e->mms = calloc(nr, sizeof(struct tmm *));
	if (!e->mms)
		return -ENOMEM;
	e->nr = e->nr_mms = 0;
	e->why[0] = '\0';
	/* In this order: what changes after it was seen makes it looked at again. */
	r = evict_see(e);
	if (r == 0)
		r = evict_collect(e);
	if (r == 0)
		capped_looked(e->t->config.capped, e->file, now);
	return r;
}

int evict_ready(struct track *t, const struct fs_file *file, bool patient, struct evict **out)
{
	struct evict *e;
	size_t nr = 0;
	int r;

	DL_FOREACH (t->evicts, e) {
		if (e->ino == file->ino)
			break;
		nr++;
	}
	*out = e;
	if (!e) {
		if (nr >= KNOWN_MAX)
			known_free(t, t->evicts);
		e = calloc(1, sizeof(*e));
		if (!e)
			return -ENOMEM;
		e->t = t;
		e->ino = file->ino;
		DL_APPEND(t->evicts, e);
		*out = e;
	}
	r = capped_file_open(t->config.capped, &file->handle, file->ino,
			     (file->size + WPFS_PAGE_SIZE - 1) >> WPFS_PAGE_SHIFT, &e->file,
			     &e->lower_ino);
	if (r < 0)
		return r;
	if (drops_come(t, file->ino)) {
		snprintf(e->why, sizeof(e->why), "contents of it are about to be taken out");
		return -EBUSY;
	}
	if (capped_wait_unpinned(t->config.capped, e->file, patient)) {
		snprintf(e->why, sizeof(e->why), "%s", CAPPED_WHY_PINNED);
		return -ETXTBSY;
	}
	if (e->seen && evict_is_current(e)) {
		r = evict_check(e);
		if (r != -EAGAIN)
			return r;
	}
	r = evict_look(e);
	if (r < 0)
		evict_unsee(e);
	return r;
}

/*
 * Bringing one page of a huge one back would make zeros of its neighbours that are still in the
 * store. The lower is mounted with huge=never; only this setting, which is for tests, overrides it.
 */
static bool evict_makes_huge(void)
{
	_cleanup_free_ char *text = NULL;

	return fdio_read_file(AT_FDCWD, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", &text,
			      NULL) == 0 &&
	       strstr(text, "[force]");
}

int evict_file(struct track *t, const struct fs_file *file, uint64_t *pages,
	       char why[EVICT_WHY_SIZE])
{
	struct evict *e = NULL;
	bool begun = false;
	int r = -EAGAIN;

	if (evict_makes_huge()) {
		snprintf(why, EVICT_WHY_SIZE,
			 "transparent_hugepage/shmem_enabled is set to force: set it to never");
		return -EOPNOTSUPP;
	}
	/* What gives up because a mapping was moved or unmapped under it is begun again. */
	for (int tries = 0; r == -EAGAIN && tries < EVICT_TRIES; tries++) {
		r = evict_ready(t, file, true, &e);
		begun |= r == 0;
		if (r == 0)
			r = capped_evict(t->config.capped, e->file, e->maps, e->nr, pages, why,
					 EVICT_WHY_SIZE);
		else if (e)
			snprintf(why, EVICT_WHY_SIZE, "%s", e->why);
		if (r < 0 && e)
			evict_unsee(e);
	}
	if (r != -ETXTBSY)
		return r;
	/* Somebody opened it meanwhile: it is back, and stays, as if it had been opened after. */
	return begun ? 0 : -EBUSY;
}
