/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tracking on a capped mount: where mms meet residency (track/capped.h). On a native mount all of
 * it is nothing.
 *
 * Mappings of attached programs are of the lower file itself, with its device and inode, and their
 * uffd is synchronous and served by the fault thread. The model (mm/model.h) does not know the
 * difference: what wpfs registers is "async" to it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "track/capped_mm.h"
#include "track/capped_room.h"
#include "track/capped_track.h"
#include "track/evict.h"
#include "track/keep.h"
#include "track/residency.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

/* ---- mms ---- */

int residency_attach(struct track *t, struct tmm *tm, int uffd)
{
	int r;

	if (!t->config.capped || tm->capped)
		return 0;
	r = capped_mm_add(t->config.capped, tm->program.pid, tmm_pid(tm), uffd, &tm->capped);
	if (r == 0)
		keep_children(t, tm);
	return r;
}

void residency_renewed(struct track *t, struct tmm *tm)
{
	if (tm->capped)
		keep_children(t, tm);
}

int residency_uffd(const struct tmm *tm)
{
	int fd = tm->capped ? fcntl(tm->capped->uffd, F_DUPFD_CLOEXEC, 0) : -1;

	return fd < 0 ? -ESRCH : fd;
}

bool residency_is_uffd(const struct tmm *tm, int fd)
{
	const pid_t self = getpid();

	return tm->capped && syscall(SYS_kcmp, self, self, KCMP_FILE, tm->capped->uffd, fd) == 0;
}

void residency_detach(struct track *t, struct tmm *tm)
{
	if (tm->capped)
		capped_mm_remove(t->config.capped, tm->capped);
	tm->capped = NULL;
}

void residency_end(struct track *t, struct tmm *tm)
{
	/* Only a witness could have told that nobody else has this memory. */
	if (tm->capped && (tm->witness_pidfd < 0 || proc_is_dead(tm->witness_pidfd)))
		capped_mm_leave(t->config.capped, tm->capped);
	else
		residency_detach(t, tm);
	tm->capped = NULL;
}

const int *residency_askable(struct track *t, const struct tmm *tm)
{
	/* Where size= limits the room to the page there may be none to be taken for a moment. */
	return tm->capped && !capped_has_limit(t->config.capped) ? &tm->capped->uffd : NULL;
}

void residency_moved(struct track *t, struct tmm *tm)
{
	if (tm->capped)
		capped_mm_moved(t->config.capped, tm->capped, tm->program.pid, tmm_pid(tm));
}

static bool residency_has_armed(const struct mm *mm)
{
	const struct mm_file *f;

	for (f = mm->files; f; f = f->hh.next) {
		if (!mm_set_is_empty(&f->own[MM_WPFS].armed))
			return true;
	}
	return false;
}

int residency_strays(struct track *t, struct tmm *tm)
{
	const bool last = tm->ending || tm->turning; /* as strays_sort() */
	unsigned lost;
	int r = 0;

	if (!tm->capped)
		return 0;
	if (capped_mm_strays(t->config.capped, tm->capped, last ? 0 : STRAYS_CLAIM_MS, &lost) &&
	    residency_has_armed(&tm->mm))
		r = strays_doubt(t, tm);
	if (r == 0)
		capped_mm_strays_noted(t->config.capped, tm->capped, lost);
	return r;
}

void residency_translate(struct track *t, struct mm_vma *vmas, size_t nr)
{
	if (!t->config.capped)
		return;
	for (size_t i = 0; i < nr; i++) {
		if (vmas[i].dev == capped_lower_dev(t->config.capped))
			vmas[i].file = fs_ino_of_lower(t->config.fs, vmas[i].file);
		vmas[i].async = vmas[i].registered;
	}
}

/* ---- registration and marks ---- */

int residency_register(struct track *t, int uffd, uint64_t start, uint64_t end, uint64_t file)
{
	if (t->config.capped && capped_is_missing(t->config.capped, file))
		return uffd_register_missing(uffd, start, end);
	return uffd_register_wp(uffd, start, end);
}

bool residency_must_stay(struct track *t, uint64_t file)
{
	return t->config.capped && capped_is_missing(t->config.capped, file);
}

int residency_watch(struct tmm *tm, int uffd, const struct mm_vma *vma)
{
	int r = uffd_register_missing(uffd, vma->start, vma->end);

	if (r == 0 && !(vma->registered && vma->owner == MM_WPFS))
		r = mm_set_registered(&tm->mm, vma->start, vma->end, true, MM_WPFS, true);
	return r;
}

int residency_may_leave(struct track *t, struct tmm *tm, const struct mm_vma *vma)
{
	_cleanup_close_ int uffd = -1;
	int r;

	if (!residency_must_stay(t, vma->file))
		return 0;
	uffd = tmm_uffd(tm);
	r = uffd < 0 ? uffd : residency_watch(tm, uffd, vma);
	return r == 0 ? 1 : r == -EBUSY ? 0 : r;
}

int residency_bring_back(struct track *t, uint64_t file)
{
	return t->config.capped ? evict_load(t, file, CAPPED_HOLD_MUST, NULL) : 0;
}

/*
 * Takes huge entries apart by marking their pages. None of them was marked, so all count as written
 * in the epoch that ends, whatever is stored until then. One that comes after that gets one mark
 * for all of its pages: too much will be dirty then, never too little.
 */
static int residency_protect_huge(int uffd, int pagemap, uint64_t start, uint64_t end,
				  struct mm_set *written)
{
	_cleanup_set_ struct mm_set huge = {NULL};
	int r = pagemap_huge_unmarked(pagemap, start, end, &huge);

	if (r == 0)
		r = mm_set_or(written, &huge);
	return r < 0 ? r : arm_runs(uffd, start, end, 0, &huge, true);
}

int residency_protect(struct track *t, struct tmm *tm, int uffd, int pagemap, uint64_t start,
		      uint64_t end, struct mm_set *written)
{
	int r;

	if (tm->capped)
		return capped_protect(t->config.capped, tm->capped, start, end, written);
	r = residency_protect_huge(uffd, pagemap, start, end, written);
	return r < 0 ? r : pagemap_protect(pagemap, start, end, written);
}

int residency_map(struct track *t, struct tmm *tm, struct mm_vma *vma)
{
	_cleanup_close_ int uffd = -1;
	int r;

	if (!t->config.capped)
		return 0;
	/* The mapping is one of the lower file, and will be seen as such. */
	vma->dev = capped_lower_dev(t->config.capped);
	keep_file(t, tm, vma->file);
	evict_pressure(t, vma);
	if (!residency_must_stay(t, vma->file))
		return 0;
	/* Without a witness the uffd goes with this daemon, and with it what stands in for pages.
	 */
	if (tm->witness_pidfd >= 0 && !vma->registered) {
		uffd = tmm_uffd(tm);
		r = uffd < 0 ? uffd : uffd_register_missing(uffd, vma->start, vma->end);
		vma->registered = vma->async = r == 0;
	}
	/* A mapping that nobody can be told of faults in must not miss a page, now or later: the
	 * file cannot be evicted while it is there. */
	return vma->registered && tm->witness_pidfd >= 0
		       ? 0
		       : evict_load(t, vma->file, CAPPED_HOLD_WHOLE, NULL);
}

void residency_busy(struct track *t, bool look)
{
	struct tmm *tm;
	size_t nr = 0;

	if (!t->config.capped)
		return;
	DL_FOREACH (t->tmms, tm) {
		if (tm->state == TMM_DETACHED)
			continue;
		if (look && tm->capped)
			tmm_harvest(t, tm);
		nr += tm->mm.nr_vmas;
	}
	if (nr == 0)
		close_fd(&t->busy_fd);
	else if (t->busy_fd < 0)
		t->busy_fd = open(t->config.mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* Whoever has given up waiting goes on without, and what it stores since must stay. */
static bool residency_is_waited_for(const void *ctx)
{
	const struct tmm *tm = ctx;

	return tm->client && !client_is_hung_up(tm->client);
}

int residency_remove(struct track *t, const struct tmm *tm, uint64_t file, uint64_t pgoff,
		     uint64_t nr)
{
	return t->config.capped ? capped_remove(t->config.capped, file, pgoff, nr,
						residency_is_waited_for, tm)
				: 0;
}

/* ---- fork ---- */

struct child_ctx {
	int pagemap;
	uint64_t scratch;
};

/* Only the child's uffd can protect the child's page. */
static bool child_is_of(void *arg, int uffd)
{
	const struct child_ctx *ctx = arg;
	const uint64_t end = ctx->scratch + WPFS_PAGE_SIZE;
	_cleanup_set_ struct mm_set marked = {0};
	bool is = false;

	if (uffd_register_wp(uffd, ctx->scratch, end) < 0)
		return false;
	if (uffd_writeprotect(uffd, ctx->scratch, end, true) == 0 &&
	    pagemap_marked(ctx->pagemap, ctx->scratch, end, false, &marked) == 0)
		is = !mm_set_is_empty(&marked);
	uffd_unregister(uffd, ctx->scratch, end);
	return is;
}

int residency_find_child(struct track *t, pid_t child, uint64_t scratch)
{
	_cleanup_close_ int pagemap = pagemap_open(child);
	struct child_ctx ctx = {pagemap, scratch};

	if (pagemap < 0)
		return pagemap;
	return capped_mm_find_child(t->config.capped, child, child_is_of, &ctx);
}

/* ---- the rest ---- */

int residency_spilled(struct track *t, uint64_t file, struct mm_set *set)
{
	return t->config.capped ? capped_spilled(t->config.capped, file, set) : 0;
}

void residency_status(struct track *t, struct wpfs_status *status)
{
	struct capped_counts counts;

	if (!t->config.capped)
		return;
	counts = capped_counts(t->config.capped);
	status->passthrough = 0;
	status->resident = status->used;
	status->used += counts.spilled << WPFS_PAGE_SHIFT;
	status->size = capped_size(t->config.capped);
	status->cap = capped_cap(t->config.capped);
	status->pinned = capped_pinned(t->config.capped);
	status->failing = capped_failing(t->config.capped);
	status->ahead = counts.ahead;
	status->probes = counts.probes;
	status->throttled = counts.throttled;
	status->zeros = counts.zeros;
	status->store_errors = counts.errors;
	status->fences = counts.fences;
	status->fence_ns = counts.fence_ns;
	status->io_depth = capped_io_stats(t->config.capped)->depth;
	status->io_depth_max = capped_io_stats(t->config.capped)->depth_max;
	status->store_uring = capped_is_uring(t->config.capped);
	status->spilled = counts.spilled << WPFS_PAGE_SHIFT;
	status->faults = counts.faults;
	status->refaults = counts.refaults;
	status->evictions = counts.evictions;
}

void residency_sweep(struct track *t)
{
	if (!t->config.capped)
		return;
	keep_sweep(t);
	residency_let_go(t);
	evict_pressure(t, NULL);
	residency_busy(t, false);
}
