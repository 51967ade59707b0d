/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where a capped mount's daemon begins or ends beside programs that live on: faults are served
 * again, the fence of a killed one comes off, and who cannot be served has all in memory.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_mm.h"
#include "track/capped_track.h"
#include "track/keep.h"
#include "track/residency.h"
#include "uffd/maps.h"
#include "uffd/uffd.h"

#define KEPT_TRIES 3

/* The lower files that the program has mapped; the caller frees the list. */
static void residency_read_maps(struct track *t, const struct tmm *tm, struct maps_list *maps)
{
	const uint64_t dev = capped_lower_dev(t->config.capped);

	if (tm->program_watch.fd < 0 || maps_read(tm->program.pid, &dev, 1, maps) < 0)
		maps->nr = 0;
}

/*
 * Only the one that a mapping is registered with can be registered with it again. Mappings as they
 * are, not as the database has them: what it knows of may be gone, and an eviction registers
 * without a word to it.
 */
static bool residency_is_kept(struct track *t, const struct tmm *tm, int uffd)
{
	_cleanup_free_ uint8_t *modes = NULL;
	struct maps_list maps = {0};
	bool is = false;

	residency_read_maps(t, tm, &maps);
	modes = calloc(maps.nr + 1, sizeof(*modes));
	if (!modes || maps_read_uffd(proc_thread(tm->program.pid), &maps, modes) < 0)
		maps.nr = 0;
	for (size_t i = 0; !is && i < maps.nr; i++) {
		const struct maps_vma *vma = &maps.vmas[i];

		if (!vma->shared || !(modes[i] & (MAPS_UFFD_WP | MAPS_UFFD_MISSING)))
			continue;
		is = (modes[i] & MAPS_UFFD_MISSING
			      ? uffd_register_missing(uffd, vma->start, vma->end)
			      : uffd_register_wp(uffd, vma->start, vma->end)) == 0;
	}
	maps_free(&maps);
	return is;
}

static void residency_take_kept(struct track *t, struct tmm *tm, int number, int *fd)
{
	if (*fd >= 0 && tm->uffd_copy < 0 && uffd_is_inited_sync(*fd) &&
	    residency_is_kept(t, tm, *fd))
		tm->uffd_copy = steal_fd(fd);
}

void residency_find_kept(struct track *t, struct tmm *tm)
{
	if (!t->config.capped)
		return;
	/* Where mappings change meanwhile none may be recognised. */
	for (int tries = 0; tries < KEPT_TRIES && tm->uffd_copy < 0; tries++)
		own_for_each_fd(t, tm, residency_take_kept);
	tm->widowed = tm->uffd_copy >= 0;
	if (tm->widowed)
		close_fd(&tm->witness_pidfd);
}

/* The file's pages of the eviction that a killed daemon was at. */
static struct mm_file *residency_left(struct track *t, struct tmm *tm)
{
	const struct capped_record *left =
		t->config.capped ? capped_record_left(t->config.capped) : NULL;

	return left && left->nr ? mm_file_find(&tm->mm, left->ino) : NULL;
}

int residency_resume_doubt(struct track *t, struct tmm *tm)
{
	struct mm_file *f = residency_left(t, tm);
	const struct capped_record *left;
	int r = 0;

	if (!f)
		return 0;
	left = capped_record_left(t->config.capped);
	for (uint64_t i = 0; r == 0 && i < left->nr; i++)
		r = mm_doubt(&tm->mm, f, left->runs[i].first, left->runs[i].nr);
	return r;
}

/* Un-marks pages of one mapping that are in a run of the killed daemon's batch. */
static int unfence_run(int uffd, const struct mm_vma *vma, const struct capped_run *run)
{
	uint64_t from = vma->pgoff > run->first ? vma->pgoff : run->first;
	uint64_t to = vma->pgoff + mm_vma_pages(vma);

	if (to > run->first + run->nr)
		to = run->first + run->nr;
	if (from >= to)
		return 0;
	return uffd_writeprotect(uffd, vma->start + ((from - vma->pgoff) << WPFS_PAGE_SHIFT),
				 vma->start + ((to - vma->pgoff) << WPFS_PAGE_SHIFT), false);
}

/* Takes the fence off that the killed daemon had put there. */
static int residency_unfence(struct track *t, struct tmm *tm, int uffd)
{
	const struct capped_record *left = capped_record_left(t->config.capped);
	int r = left->nr ? tmm_harvest(t, tm) : 0;

	for (size_t i = 0; r == 0 && left->nr && i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *vma = &tm->mm.vmas[i];

		if (vma->file != left->ino || !vma->registered)
			continue;
		for (uint64_t run = 0; r == 0 && run < left->nr; run++)
			r = unfence_run(uffd, vma, &left->runs[run]);
	}
	return r;
}

int residency_resume(struct track *t, struct tmm *tm)
{
	_cleanup_close_ int uffd = -1;
	int r;

	if (!t->config.capped)
		return 0;
	keep_take_back(t, tm);
	uffd = tmm_uffd(tm);
	if (uffd < 0)
		return uffd;
	r = capped_mm_add(t->config.capped, tm->program.pid, tmm_pid(tm), uffd, &tm->capped);
	if (r == 0)
		r = keep_children_take_back(t, tm);
	return r < 0 ? r : residency_unfence(t, tm, uffd);
}

int residency_resume_children(struct track *t, struct tmm *tm)
{
	return t->config.capped ? keep_children_take_back(t, tm) : 0;
}

void residency_found(struct track *t)
{
	if (!t->config.capped)
		return;
	lost_find(t);
	capped_lower_wins(t->config.capped);
}

void residency_abandon(struct track *t, const struct tmm *tm)
{
	struct capped *c = t->config.capped;
	struct maps_list maps = {0};
	uint64_t loaded = 0;

	if (!c)
		return;
	residency_read_maps(t, tm, &maps);
	for (size_t i = 0; i < maps.nr; i++) {
		uint64_t file = fs_ino_of_lower(t->config.fs, maps.vmas[i].ino);
		int r = maps.vmas[i].shared ? capped_load_file(c, file, &loaded) : 0;

		if (r < 0)
			log_err("cannot bring file %" PRIu64 " back from the store: %s", file,
				log_errstr(r));
	}
	maps_free(&maps);
	if (loaded)
		log_err("pid %d (%s) had no daemon, no witness and no userfaultfd while pages that "
			"it maps were in the store: it has read zeros if it touched any",
			tm->program.pid, tm->comm);
}

void residency_let_alone(struct track *t, const struct tmm *tm)
{
	_cleanup_close_ int uffd = t->config.capped ? tmm_uffd(tm) : -1;
	struct maps_list maps = {0};

	if (uffd < 0)
		return;
	residency_read_maps(t, tm, &maps);
	for (size_t i = 0; i < maps.nr; i++) {
		if (maps.vmas[i].shared)
			uffd_unregister(uffd, maps.vmas[i].start, maps.vmas[i].end);
	}
	/* The kernel does not wake who waits at a mark. */
	uffd_wake_all(uffd);
	maps_free(&maps);
}

void residency_resumed(struct track *t)
{
	if (!t->config.capped)
		return;
	capped_record_clear(t->config.capped);
	capped_settled(t->config.capped);
}
