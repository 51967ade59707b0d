/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* protect, unprotect, forget: what is asked for, of which programs. */
#include <errno.h>
#include <string.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "db/db.h"
#include "track/residency.h"
#include "track/written.h"
#include "uffd/uffd.h"

/* Fills *sel from a checked request, or answers with the error. False: answered. */
static bool protect_select(struct request *rq, struct protect_selection *sel)
{
	const struct wpfs_select *s = rq->body;
	struct fs_file file;
	int r;

	*sel = (struct protect_selection){.nr = MM_PGOFF_MAX};
	if (s->set & WPFS_SELECT_NAME)
		sel->name = s->name;
	if (s->set & WPFS_SELECT_FILE) {
		r = fs_file_by_path(rq->t->config.fs, s->file, &file);
		if (r < 0) {
			request_error(rq, r, "%s: %s", s->file, log_errstr(r));
			return false;
		}
		sel->file = file.ino;
	}
	if (!(s->set & WPFS_SELECT_RANGE))
		return true;
	if (!sel->file) {
		request_error(rq, -EINVAL, "a range needs a file: add --file");
		return false;
	}
	if ((s->offset | s->len) & (WPFS_PAGE_SIZE - 1) || s->len == 0) {
		request_error(rq, -EINVAL, "range %llu+%llu: not whole pages of 4096 bytes",
			      (unsigned long long)s->offset, (unsigned long long)s->len);
		return false;
	}
	if (s->offset + s->len < s->offset ||
	    s->offset + s->len > ((file.size + WPFS_PAGE_SIZE - 1) & ~(WPFS_PAGE_SIZE - 1))) {
		request_error(rq, -ERANGE, "range %llu+%llu: outside of %s, which has %llu bytes",
			      (unsigned long long)s->offset, (unsigned long long)s->len, s->file,
			      (unsigned long long)file.size);
		return false;
	}
	sel->ranged = true;
	sel->pgoff = s->offset >> WPFS_PAGE_SHIFT;
	sel->nr = s->len >> WPFS_PAGE_SHIFT;
	return true;
}

/* ---- unprotect ---- */

static int unprotect_file(struct track *t, struct tmm *tm, const struct protect_selection *sel,
			  struct mm_file *f)
{
	_cleanup_close_ int uffd = -1;
	int r = 0;

	for (size_t i = 0; r == 0 && i < tm->mm.nr_vmas; i++) {
		struct mm_vma *vma = &tm->mm.vmas[i];
		uint64_t start, end, pgoff;

		if (vma->file != f->id || !vma->registered || vma->owner != MM_WPFS ||
		    !protect_part(sel, vma, &start, &end, &pgoff))
			continue;
		if (uffd < 0)
			uffd = tmm_uffd(tm);
		if (uffd < 0)
			return uffd;
		/* A part of a mapping stays registered: unregistering it would split the mapping
		 * and make its other pages look unwatched. */
		if (sel->ranged || residency_must_stay(t, vma->file)) {
			r = uffd_writeprotect(uffd, start, end, false);
			continue;
		}
		r = uffd_unregister(uffd, vma->start, vma->end);
		if (r == 0) {
			mm_set_clear(&vma->marked);
			vma->registered = false;
		}
	}
	if (r == 0)
		r = mm_set_remove_range(&f->own[MM_WPFS].armed, sel->pgoff, sel->nr);
	if (r == 0)
		r = mm_set_remove_range(&f->own[MM_WPFS].dirty, sel->pgoff, sel->nr);
	f->protect = false;
	return r;
}

int unprotect_mm(struct track *t, struct tmm *tm, const struct protect_selection *sel,
		 struct wpfs_protect_reply *reply)
{
	struct mm_file *f, *next;
	uint64_t files = 0;
	int r;

	tm->turning = true;
	r = tm->state == TMM_LIVE ? tmm_harvest(t, tm) : 0;
	tm->turning = false;
	if (tm->state == TMM_DETACHED)
		mm_forget_vmas(&tm->mm); /* there is nobody to unregister from */
	HASH_ITER (hh, tm->mm.files, f, next) {
		struct persist_epoch epoch = {.file = f->id, .last = &f->own[MM_WPFS].dirty};
		uint64_t pages;

		if (r < 0 || (sel->file && f->id != sel->file))
			continue;
		pages = mm_set_count_range(&f->own[MM_WPFS].armed, sel->pgoff, sel->nr);
		if (pages == 0 && !f->protect)
			continue;
		if (!sel->ranged) {
			written_update(t);
			epoch.written = f->written;
			r = persist_mm_epochs(t, tm, &epoch, 1);
		}
		if (r == 0)
			r = unprotect_file(t, tm, sel, f);
		reply->pages += pages;
		files++;
	}
	if (r == 0 && files) {
		tm->epoch_turned = true;
		r = tm->state == TMM_LIVE ? tmm_harvest(t, tm) : 0;
		reply->mms++;
		reply->files += files;
	}
	if (files && r < 0)
		persist_mm(t, tm); /* as far as it came */
	return r < 0 ? r : persist_mm(t, tm);
}

/* ---- requests ---- */

typedef int (*protect_mm_fn)(struct track *t, struct tmm *tm, const struct protect_selection *sel,
			     struct wpfs_protect_reply *reply);

struct protect_result {
	struct wpfs_protect_reply reply;
	bool any;  /* is selected */
	int first; /* what failed first, or 0, and whose it is: */
	char failed[128];
};

static void protect_selected(struct request *rq, protect_mm_fn fn,
			     const struct protect_selection *sel, bool detached,
			     struct protect_result *res)
{
	struct tmm *tm, *next;

	DL_FOREACH_SAFE(rq->t->tmms, tm, next)
	{
		int r;

		if ((tm->state == TMM_DETACHED) != detached ||
		    !tmm_selected(tm, rq->c->peer.uid, sel->name))
			continue;
		res->any = true;
		if (rq->t->db_error)
			r = rq->t->db_error;
		else if (fn == protect_mm && ended_is_over(tm, sel))
			r = ended_retire(rq->t, tm,
					 res->reply.epoch ?: protect_last_epoch(rq->t) + 1);
		else
			r = fn(rq->t, tm, sel, &res->reply);
		if (r == 0 || res->first < 0)
			continue;
		res->first = r;
		snprintf(res->failed, sizeof(res->failed), "%s (pid %d)",
			 tm->name[0] ? tm->name : tm->comm, tm->program.pid);
	}
}

/*
 * All that are selected, whatever becomes of one: it is not in an epoch half way, as what could not
 * be marked is dirty, but who asked must know. The last look at one that lives may find children
 * that nobody tracks: the row that has them (strays.c) must still be in the epoch that ends.
 */
static void protect_each(struct request *rq, protect_mm_fn fn)
{
	struct protect_result res = {.reply = {0}};
	struct protect_selection sel;

	if (!protect_select(rq, &sel))
		return;
	life_sweep(rq->t);
	life_look(
		rq->t); /* who cannot be enlisted stays as it is: unknown, and said so in the log */
	/* An epoch begins and ends in the database, or not at all. */
	res.first = aside_retry(rq->t);
	if (res.first < 0) {
		request_error(rq, res.first,
			      "no epoch can begin or end: the database cannot be "
			      "written: %s",
			      db_errstr(res.first));
		return;
	}
	protect_selected(rq, fn, &sel, false, &res);
	protect_selected(rq, fn, &sel, true, &res);
	if (!res.any)
		request_none(rq, sel.name);
	else if (res.first < 0 && rq->t->db_error)
		request_error(
			rq, res.first,
			"%s: the database cannot be written: %s: its epoch goes on; %llu others "
			"are done",
			res.failed, db_errstr(res.first), (unsigned long long)res.reply.mms);
	else if (res.first < 0)
		request_error(rq, res.first,
			      "%s: %s: what it has armed counts as dirty; %llu others are done",
			      res.failed, log_errstr(res.first), (unsigned long long)res.reply.mms);
	else {
		if (sel.file && !sel.name)
			unseen_holders(rq->t, sel.file,
				       ((const struct wpfs_select *)rq->body)->file, res.reply.note,
				       sizeof(res.reply.note));
		request_reply(rq, 0, &res.reply, sizeof(res.reply));
	}
}

void protect_protect(struct request *rq)
{
	protect_each(rq, protect_mm);
}

void protect_unprotect(struct request *rq)
{
	protect_each(rq, unprotect_mm);
}

void protect_forget(struct request *rq)
{
	struct protect_selection sel;
	struct tmm *tm, *next;
	bool any = false;

	if (!protect_select(rq, &sel))
		return;
	if (!sel.name) {
		request_error(rq, -EINVAL, "say what to forget: --name N");
		return;
	}
	life_sweep(rq->t);
	DL_FOREACH (rq->t->tmms, tm) {
		if (!tmm_selected(tm, rq->c->peer.uid, sel.name))
			continue;
		any = true;
		if (tm->state == TMM_LIVE) {
			request_error(rq, -EBUSY, "'%s' is running (pid %d): end it first",
				      tm->name, tm->program.pid);
			return;
		}
	}
	if (!any) {
		request_error(rq, -ENOENT, "no marks are stored under the name '%s'", sel.name);
		return;
	}
	DL_FOREACH_SAFE(rq->t->tmms, tm, next)
	{
		int r;

		if (!tmm_selected(tm, rq->c->peer.uid, sel.name))
			continue;
		r = persist_forget(rq->t, tm);
		if (r < 0) {
			request_error(rq, r, "cannot forget '%s': %s", tm->name, log_errstr(r));
			return;
		}
		tmm_free(rq->t, tm);
	}
	request_reply(rq, 0, NULL, 0);
}
