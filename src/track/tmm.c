/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One tracked mm at run time: its processes, its name, its harvest. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/residency.h"
#include "uffd/harvest.h"
#include "uffd/pagemap.h"
#include "uffd/uffd.h"

#define TMM_ANNOUNCED_NS 2000000000u /* between a request and its system call, at most */

struct tmm *tmm_new(struct track *t)
{
	struct tmm *tm = calloc(1, sizeof(*tm));

	if (!tm)
		return NULL;
	mm_init(&tm->mm);
	tm->program_watch = (struct watch){WATCH_PROGRAM, -1};
	tm->witness_pidfd = tm->uffd_fd = tm->chan_fd = tm->uffd_copy = tm->mm_fd = -1;
	tm->born_uffd = -1;
	DL_APPEND(t->tmms, tm);
	atomic_fetch_add(&t->nr_tmms, 1);
	return tm;
}

void tmm_free(struct track *t, struct tmm *tm)
{
	if (tm->client) {
		tm->client->tmm = NULL;
		tm->client->attached = false;
	}
	track_watch_remove(t, &tm->program_watch);
	residency_detach(t, tm);
	own_free_all(tm);
	carried_forget(tm);
	close_fd(&tm->witness_pidfd);
	close_fd(&tm->uffd_copy);
	close_fd(&tm->born_uffd);
	close_fd(&tm->mm_fd);
	mm_free(&tm->mm);
	free(tm->stored);
	drops_removed(t, tm);
	DL_DELETE(t->tmms, tm);
	atomic_fetch_sub(&t->nr_tmms, 1);
	free(tm);
}

struct tmm *tmm_by_name(struct track *t, uid_t uid, const char *name)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		if (tm->state != TMM_NEW && tm->uid == uid && strcmp(tm->name, name) == 0)
			return tm;
	}
	return NULL;
}

bool tmm_selected(const struct tmm *tm, uid_t uid, const char *name)
{
	size_t len;

	if (tm->state < TMM_LIVE || (uid != 0 && uid != tm->uid))
		return false;
	if (!name)
		return true;
	/* "db" means db and its instances db/2 and db/PID: a backup of what db did wants them. */
	len = strlen(name);
	return strncmp(tm->name, name, len) == 0 && (tm->name[len] == '\0' || tm->name[len] == '/');
}

int tmm_uffd(const struct tmm *tm)
{
	int fd, r;

	if (tm->uffd_copy >= 0) {
		fd = fcntl(tm->uffd_copy, F_DUPFD_CLOEXEC, 0);
		return fd < 0 ? -errno : fd;
	}
	if (tm->witness_pidfd < 0)
		return -ESRCH;
	fd = proc_borrow_fd(tm->witness_pidfd, tm->uffd_fd);
	if (fd < 0)
		return fd == -ESRCH ? residency_uffd(tm) : fd;
	r = uffd_is_uffd(fd) ? 0 : -EBADF; /* the table is the witness's, its memory is not */
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

bool tmm_has_lost_witness(const struct tmm *tm)
{
	return tm->witness_pidfd >= 0 ? proc_is_dead(tm->witness_pidfd) : tm->widowed;
}

bool tmm_is_gone(const struct tmm *tm)
{
	return tm->mm_fd >= 0 && pagemap_is_gone(tm->mm_fd);
}

/* The program's; not of another image that it has executed. */
static pid_t tmm_program_pid(const struct tmm *tm)
{
	pid_t pid;

	if (tm->program_watch.fd < 0 || proc_is_dead(tm->program_watch.fd) || tmm_is_gone(tm))
		return 0;
	pid = proc_thread(tm->program.pid);
	return pid > 0 ? pid : 0;
}

pid_t tmm_pid(const struct tmm *tm)
{
	if (tm->witness_pidfd >= 0 && !proc_is_dead(tm->witness_pidfd))
		return tm->witness.pid;
	return tmm_program_pid(tm);
}

uint64_t tmm_dirty(const struct tmm *tm)
{
	struct mm_file *f, *next;
	uint64_t dirty = 0;

	HASH_ITER (hh, tm->mm.files, f, next)
		dirty += mm_set_count(&f->own[MM_WPFS].dirty);
	return dirty;
}

/* Was this mapping known before, where it is and as what it is? */
static bool tmm_knows(const struct tmm *tm, const struct mm_vma *vma)
{
	const struct mm_vma *vmas = tm->mm.vmas;
	size_t first = 0, end = tm->mm.nr_vmas; /* the last one that starts at or before it */

	while (first < end) {
		size_t middle = first + (end - first) / 2;

		if (vmas[middle].start <= vma->start)
			first = middle + 1;
		else
			end = middle;
	}
	return first > 0 && vma->end <= vmas[first - 1].end && vmas[first - 1].file == vma->file &&
	       (vmas[first - 1].start >> WPFS_PAGE_SHIFT) - vmas[first - 1].pgoff ==
		       (vma->start >> WPFS_PAGE_SHIFT) - vma->pgoff;
}

uint64_t tmm_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void tmm_announce(struct announced *a)
{
	a->until_ns = tmm_now_ns() + TMM_ANNOUNCED_NS;
}

/* Was this mapping made by a call of which the daemon is still to be told? */
static bool tmm_is_coming(const struct tmm *tm, const struct announced *a, const struct mm_vma *vma)
{
	return !vma->registered && a->coming_pages && vma->file == a->coming_file &&
	       vma->pgoff == a->coming_pgoff && mm_vma_pages(vma) == a->coming_pages &&
	       !tmm_knows(tm, vma);
}

/* Has this mapping a part that was harvested for an munmap that is still to come? Cuts to it. */
static bool tmm_is_going(const struct announced *a, const struct mm_vma *vma, uint64_t *start,
			 uint64_t *end)
{
	if (!vma->registered || vma->prot & PROT_WRITE)
		return false;
	for (unsigned i = 0; i < a->nr_going && i < ANNOUNCED_GOING; i++) {
		if (vma->start >= a->going[i].end || a->going[i].start >= vma->end)
			continue;
		if (*start < a->going[i].start)
			*start = a->going[i].start;
		if (*end > a->going[i].end)
			*end = a->going[i].end;
		return true;
	}
	return false;
}

/* Likewise of a mapping over which another one is about to be moved; not that one. */
static bool tmm_is_replaced(const struct announced *a, const struct mm_vma *vma, uint64_t *start,
			    uint64_t *end)
{
	if (!vma->registered || vma->prot & PROT_WRITE || vma->start >= a->onto.end ||
	    a->onto.start >= vma->end)
		return false;
	if (vma->file == a->onto.file && (vma->start >> WPFS_PAGE_SHIFT) - vma->pgoff ==
						 (a->onto.start >> WPFS_PAGE_SHIFT) - a->onto.pgoff)
		return false;
	if (*start < a->onto.start)
		*start = a->onto.start;
	if (*end > a->onto.end)
		*end = a->onto.end;
	return true;
}

/*
 * Takes out of a harvest what is there only for a moment, between a request and the system call
 * it is about: nobody has stored there, or can, and what is armed there would count as unwatched.
 */
static int tmm_hide_announced(const struct tmm *tm, struct harvest *h)
{
	struct mm view = {.vmas = h->vmas, .nr_vmas = h->nr};
	_Alignas(8) char packet[sizeof(struct wpfs_hdr) + sizeof(struct wpfs_map)];
	struct announced a = tm->announced;
	const struct wpfs_map *map = NULL;
	int r = 0;

	/* Sent before the call, so if the harvest has seen the mapping it is there to be seen, or
	 * has been read already and what follows the call is. */
	if (tm->client && !tm->client->closing)
		map = client_peek_map(tm->client, packet, sizeof(packet));
	if (map) {
		/* What was going may have been there still when the harvest looked. */
		if (tmm_now_ns() >= a.until_ns)
			a = (struct announced){0};
		mapping_is_coming(&a, map);
	}
	if (tmm_now_ns() >= a.until_ns)
		return 0;
	for (size_t i = 0; r == 0 && i < view.nr_vmas;) {
		const struct mm_vma *vma = &view.vmas[i];
		uint64_t start = vma->start, end = vma->end;

		if (tmm_is_going(&a, vma, &start, &end) || tmm_is_replaced(&a, vma, &start, &end) ||
		    tmm_is_coming(tm, &a, vma))
			r = mm_unmap(&view, start, end, ZAP_UNMAP);
		else
			i++;
	}
	h->vmas = view.vmas;
	h->nr = view.nr_vmas;
	return r;
}

/*
 * Armed mappings that nobody registered: those that can never be written are harmless. The test
 * is an attempt to register, which the kernel refuses with EPERM for just those. The others stay
 * registered, without marks, so that the next harvest need not try again; but only where the model
 * knows then that it is ours, or the program's own REGISTER would find the range taken. And not in
 * a program with userfaultfds of its own: what it has unregistered is nobody's, and its calls there
 * must say so. The next protect takes it.
 */
static int tmm_seal(struct track *t, struct tmm *tm, struct harvest *h)
{
	_cleanup_close_ int uffd = -1;

	for (size_t i = 0; i < h->nr; i++) {
		struct mm_vma *vma = &h->vmas[i];
		struct mm_file *f = mm_file_find(&tm->mm, vma->file);
		bool armed = (tm->mm.protect_new && !tmm_knows(tm, vma)) ||
			     (f && (f->protect || !mm_set_is_empty(&f->own[MM_WPFS].armed)));
		/* What it carries is lost where it can be written: only the test is for it. */
		bool carried = !(vma->prot & PROT_WRITE) && f &&
			       !mm_set_is_empty(&f->own[MM_PROGRAM].armed);
		int r;

		if (vma->registered || (!armed && !carried) ||
		    (vma->start < tm->announced.aside_end && tm->announced.aside_start < vma->end))
			continue;
		if (uffd < 0)
			uffd = tmm_uffd(tm);
		if (uffd < 0)
			return uffd == -ESRCH ? 0 : uffd;
		r = residency_register(t, uffd, vma->start, vma->end, vma->file);
		/* What can be written now was not it: that mapping has come since. */
		vma->sealed = r == -EPERM && !(vma->prot & PROT_WRITE);
		if (r == 0 && armed && tmm_knows(tm, vma) &&
		    (!tm->mm.own_uffds || residency_must_stay(t, vma->file))) {
			vma->registered = vma->async = true;
			r = mm_set_registered(&tm->mm, vma->start, vma->end, true, MM_WPFS, true);
			if (r < 0)
				return r;
		} else if (r == 0) {
			uffd_unregister(uffd, vma->start, vma->end);
		}
	}
	return 0;
}

/* Of one of its tasks. */
static int tmm_look_at(struct track *t, const struct tmm *tm, pid_t pid, uint64_t skip_start,
		       uint64_t skip_end, struct harvest *h)
{
	struct harvest_request req = {
		.pid = pid,
		.devs = t->devs,
		.nr_devs = t->nr_devs,
		.skip_start = skip_start,
		.skip_end = skip_end,
		.own_uffds = tm->mm.own_uffds || t->config.capped, /* ours is one there */
		.uffd = residency_askable(t, tm),
	};
	int r;

	if (pid == 0)
		return -ESRCH;
	r = harvest_mm(&req, h);
	if (r < 0)
		return r;
	if (tmm_pid(tm) != pid && tmm_program_pid(tm) != pid) {
		mm_vmas_free(h->vmas, h->nr); /* it died under the scan: the pid may be another's */
		return -ESRCH;
	}
	residency_translate(t, h->vmas, h->nr);
	r = tmm_hide_announced(tm, h);
	if (r < 0)
		mm_vmas_free(h->vmas, h->nr);
	return r;
}

int tmm_look(struct track *t, const struct tmm *tm, uint64_t skip_start, uint64_t skip_end,
	     struct harvest *h)
{
	pid_t pid = tmm_pid(tm);
	int r = tmm_look_at(t, tm, pid, skip_start, skip_end, h);

	/* A witness that was killed just now: the program shows the same. */
	if (r == -ESRCH && pid == tm->witness.pid)
		r = tmm_look_at(t, tm, tmm_program_pid(tm), skip_start, skip_end, h);
	return r;
}

/* Is every file that was watched through some mapping still watched through one? */
static bool tmm_is_plausible(const struct tmm *tm, const struct harvest *h)
{
	size_t j = 0; /* most mappings stay: the next one is found where the last one was */

	for (size_t i = 0; i < tm->mm.nr_vmas; i++) {
		const struct mm_vma *v = &tm->mm.vmas[i];
		bool found = !v->registered;

		for (size_t n = 0; n < h->nr && !found; n++, j++) {
			const struct mm_vma *now = &h->vmas[j % h->nr];

			found = now->registered && now->file == v->file &&
				now->pgoff < v->pgoff + mm_vma_pages(v) &&
				v->pgoff < now->pgoff + mm_vma_pages(now);
		}
		if (!found)
			return false;
	}
	return true;
}

#define TMM_LOOKS 5

/*
 * A mapping that was away just while its registration was asked for, and back for the second
 * reading of the maps, looks like one that nobody watches. That would only cost precision; a look
 * more costs little, and a mapping that is really gone is gone the next time too.
 */
static int tmm_look_well(struct track *t, const struct tmm *tm, uint64_t skip_start,
			 uint64_t skip_end, struct harvest *h)
{
	int r;

	for (int looks = 1;; looks++) {
		r = tmm_look(t, tm, skip_start, skip_end, h);
		if (r < 0 || looks == TMM_LOOKS || tmm_is_plausible(tm, h))
			return r;
		mm_vmas_free(h->vmas, h->nr);
	}
}

/* A harvest armed files of which nothing had been: their epochs begin. */
static int tmm_open_epochs(struct track *t, struct tmm *tm)
{
	struct mm_file *f, *next;
	int r = 0;

	/* One that is attaching has no row yet: protect_store_born follows. */
	if (tm->client && !tm->client->attached)
		return 0;
	HASH_ITER (hh, tm->mm.files, f, next) {
		if (r == 0 && f->unopened) {
			f->unopened = false;
			r = protect_open_epoch(t, tm, f->id);
		}
	}
	return r;
}

int tmm_harvest_but(struct track *t, struct tmm *tm, uint64_t skip_start, uint64_t skip_end)
{
	uint64_t doubted = tm->mm.conservative;
	const char *broken;
	struct harvest h;
	int r;

	/* Who has hung up has gone on, and will not say what it has registered. */
	if (!tm->client || client_is_hung_up(tm->client))
		carried_forget(tm);
	r = tmm_look_well(t, tm, skip_start, skip_end, &h);
	if (r < 0)
		return r;
	r = tmm_seal(t, tm, &h);
	if (r < 0) {
		mm_vmas_free(h.vmas, h.nr);
		return r;
	}
	tm->private_maps = h.private_maps;
	tm->mapped_shared |= h.nr > 0;
	r = mm_observe(&tm->mm, h.vmas, h.nr);
	if (r == 0)
		r = tmm_untold(t, tm, tmm_pid(tm));
	if (r == -ESRCH)
		r = tmm_untold(t, tm, tmm_program_pid(tm));
	if (r == 0 && t->config.capped)
		r = residency_strays(t, tm);
	else if (r == 0 && tm->witness_pidfd >= 0)
		r = strays_look(t, tm);
	if (r == 0 && tm->mm.protect_new)
		r = tmm_open_epochs(t, tm);
	broken = mm_check(&tm->mm);
	if (broken)
		log_err("track: mm %llu: %s", (unsigned long long)tm->mm.id, broken);
	t->harvests++;
	t->conservative += tm->mm.conservative - doubted;
	if (tm->state == TMM_LIVE)
		events_mm(t, tm, WPFS_EVENT_HARVEST, false);
	return r;
}

int tmm_harvest(struct track *t, struct tmm *tm)
{
	return tmm_harvest_but(t, tm, 0, 0);
}

/* The first free instance of a name; a detached one of that name is free to be taken on. */
static struct tmm *tmm_pick_name(struct track *t, struct tmm *tm, const char *name)
{
	for (unsigned instance = 1;; instance++) {
		struct tmm *old;

		if (instance == 1)
			snprintf(tm->name, sizeof(tm->name), "%s", name);
		else
			snprintf(tm->name, sizeof(tm->name), "%s/%u", name, instance);
		old = tmm_by_name(t, tm->uid, tm->name);
		if (!old || old->state == TMM_DETACHED)
			return old;
	}
}

int tmm_take_name(struct track *t, struct tmm *tm)
{
	struct tmm *old = NULL;
	int r;

	if (tm->client->name[0])
		old = tmm_pick_name(t, tm, tm->client->name);
	if (old) {
		bool protect_new = tm->mm.protect_new;

		mm_free(&tm->mm);
		tm->mm = old->mm;
		tm->epoch_unsaved = old->epoch_unsaved;
		tm->maybe_shared = old->maybe_shared && unseen_has_armed(t, &tm->mm);
		mm_init(&old->mm);
		tmm_free(t, old);
		mm_forget_vmas(&tm->mm);
		tm->mm.protect_new = protect_new;
		tm->mm.own_uffds = tm->mm.own_doubted = false;
	} else {
		tm->mm.id = t->next_mm++;
	}
	proc_comm(tm->program.pid, tm->comm);
	tm->state = TMM_LIVE;
	events_mm(t, tm, WPFS_EVENT_ATTACH, false);
	r = persist_mm_lazy(t, tm);
	if (r < 0)
		log_err("track: cannot store the mm of pid %d (%s): %s", tm->program.pid, tm->comm,
			log_errstr(r));
	return r;
}

int tmm_enlist(struct track *t, struct tmm *tm)
{
	/* The last run of the same name may have ended just now. This one, too: not before it has
	 * its answer. */
	if (tm->client->name[0])
		life_sweep_name(t, tm->uid, tm->client->name);
	return tmm_take_name(t, tm);
}
