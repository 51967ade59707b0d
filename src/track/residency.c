/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tracking on a capped mount: where mms meet residency (track/capped.h). On a native mount all of
 * it is nothing.
 *
 * Mappings of attached programs are of the lower file itself, with its device and inode, and their
 * uffd is synchronous and served by the fault thread. The model (mm/model.h) does not know the
 * difference: what wpfs registers is "async" to it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_evict.h"
#include "track/capped_mm.h"
#include "track/capped_room.h"
#include "track/capped_track.h"
#include "track/evict.h"
#include "track/keep.h"
#include "track/residency.h"
#include "uffd/maps.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

#define KEPT_TRIES 3

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
	struct capped *c = t->config.capped;
	struct tmm *tm;

	if (!c)
		return;
	DL_FOREACH (t->tmms, tm) {
		struct maps_list maps = {0};

		if (tm->state != TMM_LIVE || tm->widowed ||
		    (tm->witness_pidfd >= 0 && !proc_is_dead(tm->witness_pidfd)))
			continue;
		residency_read_maps(t, tm, &maps);
		for (size_t i = 0; i < maps.nr; i++) {
			if (maps.vmas[i].shared)
				capped_drop_zeros(c,
						  fs_ino_of_lower(t->config.fs, maps.vmas[i].ino));
		}
		maps_free(&maps);
	}
	capped_lower_wins(c);
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
	if (t->config.capped)
		capped_record_clear(t->config.capped);
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
	return r < 0 ? r : arm_runs(uffd, start, end, 0, &huge);
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

/* ---- requests ---- */

/* The file a request is about, checked. False: answered. */
static bool residency_select(struct request *rq, struct fs_file *file)
{
	const struct wpfs_select *s = rq->body;
	int r;

	if (!rq->t->config.capped) {
		request_error(rq, -EOPNOTSUPP,
			      "this mount is not capped: mount it with -o resident=SIZE to evict");
		return false;
	}
	if (!(s->set & WPFS_SELECT_FILE)) {
		request_error(rq, -EINVAL, "say which file");
		return false;
	}
	r = fs_file_by_path(rq->t->config.fs, s->file, file);
	if (r == 0 && !S_ISREG(file->mode))
		r = S_ISDIR(file->mode) ? -EISDIR : -EINVAL;
	if (r == 0 && rq->c->peer.uid != 0 && rq->c->peer.uid != file->uid)
		r = -EPERM;
	if (r < 0)
		request_error(rq, r, "%s: %s", s->file, log_errstr(r));
	return r == 0;
}

/* An eviction or a load that tells how far it is. */
struct moving {
	struct request *rq;
	struct wpfs_evict_reply reply;
	uint64_t total, told_ms;
};

#define MOVING_TELL_MS 100

/* A client that cannot be told now is told later, or not. */
static void moving_tell(void *ctx)
{
	struct moving *m = ctx;
	struct wpfs_hdr hdr = {.op = WPFS_OP_RECORD, .seq = m->rq->hdr->seq};
	const struct {
		struct wpfs_rec rec;
		struct wpfs_rec_progress progress;
	} body = {{sizeof(body), WPFS_REC_PROGRESS}, {m->reply.pages, m->total}};
	struct timespec now;
	uint64_t ms;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
	if (ms - m->told_ms < MOVING_TELL_MS)
		return;
	m->told_ms = ms;
	ipc_send(m->rq->c->watch.fd, &hdr, &body, sizeof(body), NULL, 0);
}

/* Pages of a file that are in memory; 0 when that cannot be told. */
static uint64_t residency_pages(struct track *t, const struct fs_file *file)
{
	_cleanup_close_ int fd = -1;
	struct stat st;
	bool known;

	if (fs_file_hold(t->config.fs, &file->handle, &fd) < 0)
		return 0;
	known = fstat(fd, &st) == 0;
	close_fd(&fd); /* before: it stands for a user of the file */
	fs_file_unhold(t->config.fs, file->ino);
	return known ? (uint64_t)st.st_blocks >> (WPFS_PAGE_SHIFT - 9) : 0;
}

void residency_evict(struct request *rq)
{
	const struct wpfs_select *s = rq->body;
	struct moving m = {.rq = rq};
	char why[EVICT_WHY_SIZE] = "";
	struct fs_file file;
	int r;

	if (!residency_select(rq, &file))
		return;
	life_sweep(rq->t);
	m.total = residency_pages(rq->t, &file);
	capped_set_progress(rq->t->config.capped, moving_tell, &m);
	r = evict_file(rq->t, &file, &m.reply.pages, why);
	capped_set_progress(rq->t->config.capped, NULL, NULL);
	events_evict(rq->t);
	if (r < 0) {
		log_info("%s was not evicted: %s", s->file, why[0] ? why : log_errstr(r));
		request_error(rq, r, "cannot evict %s: %s", s->file, why[0] ? why : log_errstr(r));
	} else {
		request_reply(rq, 0, &m.reply, sizeof(m.reply));
	}
}

void residency_load(struct request *rq)
{
	const struct wpfs_select *s = rq->body;
	struct moving m = {.rq = rq};
	struct fs_file file;
	int r;

	if (!residency_select(rq, &file))
		return;
	m.total = capped_nr_spilled(rq->t->config.capped, file.ino);
	capped_set_progress(rq->t->config.capped, moving_tell, &m);
	r = evict_load(rq->t, file.ino, CAPPED_HOLD_ASKED, &m.reply.pages);
	capped_set_progress(rq->t->config.capped, NULL, NULL);
	if (r == -EFBIG)
		request_error(rq, r, "cannot load %s: it does not fit into resident=", s->file);
	else if (r < 0)
		request_error(rq, r, "cannot load %s: %s", s->file, log_errstr(r));
	else
		request_reply(rq, 0, &m.reply, sizeof(m.reply));
}

/* ---- the rest ---- */

void residency_ticket(struct request *rq)
{
	const struct wpfs_ticket_request *ticket = rq->body;
	_cleanup_close_ int fd = -ESTALE;
	uint64_t ino;

	if (rq->t->config.capped)
		fd = capped_redeem(rq->t->config.capped, &ticket->ticket, &ino);
	if (fd < 0)
		request_reply(rq, fd, NULL, 0);
	else
		request_reply_fds(rq, NULL, 0, &fd, 1);
}

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
