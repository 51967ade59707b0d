/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a program asks about its own mm (libwpfs). Who asks is the process that made the connection;
 * a fork child that inherited it would speak for its parent, so libwpfs makes its own.
 *
 * An answer is as of now: the mm is harvested first. It comes from the model, not from the
 * database, so that nothing waits for a disk; only what closed epochs ended with is read there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "db/marks.h"
#include "ipc/record.h"
#include "track/internal.h"

struct tmm *self_find(struct request *rq)
{
	const struct proc_id *id = &rq->c->id;
	struct tmm *tm;

	life_sweep(rq->t);
	DL_FOREACH (rq->t->tmms, tm) {
		if (tm->state != TMM_DETACHED && tm->state != TMM_FORKED &&
		    tm->program.pid == id->pid && tm->program.start_time == id->start_time)
			break;
	}
	return tm && tm->state == TMM_NEW && !tm->client ? NULL : tm;
}

struct tmm *self_mm(struct request *rq)
{
	const struct proc_id *id = &rq->c->id;
	struct tmm *tm = self_find(rq);
	int r = 0;

	if (!tm) {
		request_error(rq, -ESRCH, "pid %d is not attached", id->pid);
		return NULL;
	}
	if (tm->state == TMM_NEW)
		r = tmm_enlist(rq->t, tm);
	if (r < 0) {
		request_error(rq, r, "cannot store the state of pid %d: %s", id->pid,
			      log_errstr(r));
		return NULL;
	}
	return tm;
}

/* The pages that a request means; answers with the error when it means none. */
static bool self_select(struct request *rq, struct protect_selection *sel)
{
	const struct wpfs_self *self = rq->body;

	*sel = (struct protect_selection){.file = self->file, .nr = MM_PGOFF_MAX};
	if (self->len == 0 && self->offset == 0)
		return true;
	if (((self->offset | self->len) & (WPFS_PAGE_SIZE - 1)) || !self->file ||
	    self->offset + self->len < self->offset ||
	    (self->offset + self->len) >> WPFS_PAGE_SHIFT > MM_PGOFF_MAX) {
		request_error(rq, -EINVAL,
			      "range %llu+%llu: not whole pages of %llu bytes of a file below "
			      "16 TiB",
			      (unsigned long long)self->offset, (unsigned long long)self->len,
			      (unsigned long long)WPFS_PAGE_SIZE);
		return false;
	}
	sel->ranged = true;
	sel->pgoff = self->offset >> WPFS_PAGE_SHIFT;
	sel->nr = self->len ? self->len >> WPFS_PAGE_SHIFT : MM_PGOFF_MAX - sel->pgoff;
	return true;
}

typedef int (*self_mm_fn)(struct track *t, struct tmm *tm, const struct protect_selection *sel,
			  struct wpfs_protect_reply *reply);

static void self_turn(struct request *rq, self_mm_fn fn)
{
	struct wpfs_protect_reply reply = {0};
	struct protect_selection sel;
	struct tmm *tm;
	int r;

	if (!self_select(rq, &sel))
		return;
	tm = self_mm(rq);
	if (!tm)
		return;
	/* An epoch begins and ends in the database, or not at all. */
	r = aside_retry(rq->t);
	if (r == 0)
		r = fn(rq->t, tm, &sel, &reply);
	if (r < 0 && rq->t->db_error)
		request_error(rq, r,
			      "pid %d: the database cannot be written: %s: its epoch goes on",
			      rq->c->id.pid, db_errstr(r));
	else if (r < 0)
		request_error(rq, r, "pid %d: %s: what it has armed counts as dirty", rq->c->id.pid,
			      log_errstr(r));
	else
		request_reply(rq, 0, &reply, sizeof(reply));
}

void self_protect(struct request *rq)
{
	self_turn(rq, protect_mm);
}

void self_unprotect(struct request *rq)
{
	self_turn(rq, unprotect_mm);
}

void self_sync(struct request *rq)
{
	struct tmm *tm = self_mm(rq);
	int r;

	if (!tm)
		return;
	r = tmm_harvest(rq->t, tm);
	if (r == 0)
		r = persist_mm(rq->t, tm);
	if (r == 0)
		r = aside_retry(rq->t); /* durable means there */
	if (r < 0)
		request_error(rq, r, "the marks of pid %d could not be stored: %s", rq->c->id.pid,
			      log_errstr(r));
	else
		request_reply(rq, 0, NULL, 0);
}

/* The dirty pages of epochs from .. to of a file in an mm. -ENOENT: `from` is not kept. */
static int self_dirty(struct track *t, const struct tmm *tm, const struct wpfs_self *self,
		      const struct mm_owned *own, struct mm_set *set)
{
	bool open = true;
	int r = 0;

	if (self->from)
		r = db_epochs_dirty(t->config.db, tm->mm.id, self->file, self->from,
				    self->to ? self->to : UINT64_MAX, set, &open);
	return r == 0 && open && own ? mm_set_or(set, &own->dirty) : r;
}

static int self_collect(struct track *t, struct tmm *tm, const struct wpfs_self *self,
			struct mm_set *set)
{
	const struct mm_file *f = mm_file_find(&tm->mm, self->file);
	const struct mm_owned *own;
	int r;

	if (self->runs == WPFS_SELF_DIRTY)
		return self_dirty(t, tm, self, f ? &f->own[MM_WPFS] : NULL, set);
	if (!f)
		return 0;
	own = &f->own[self->runs == WPFS_SELF_CLEAN ? MM_WPFS : MM_PROGRAM];
	r = mm_set_copy(set, &own->armed);
	return r < 0 ? r : mm_set_andnot(set, &own->dirty);
}

static int self_sink(void *arg, const void *body, size_t len)
{
	struct request *rq = arg;
	struct wpfs_hdr hdr = {.op = WPFS_OP_RECORD, .seq = rq->hdr->seq};

	return ipc_outq_send(&rq->c->out, rq->c->watch.fd, &hdr, body, len, NULL, 0);
}

/* 0, -errno, or 1: there are more than WPFS_SELF_RUNS_MAX. */
static int self_emit(struct request *rq, const struct protect_selection *sel,
		     const struct mm_set *set)
{
	uint64_t left = WPFS_SELF_RUNS_MAX;
	struct wpfs_rec_run run = {0};
	struct ipc_records records;
	struct mm_runs runs;
	int r = 0;

	ipc_records_init(&records, self_sink, rq);
	mm_runs_begin(&runs, set, sel->pgoff, sel->nr);
	while (r == 0 && left && mm_runs_next(&runs, &run.pgoff, &run.pages)) {
		r = ipc_records_add(&records, WPFS_REC_RUN, &run, sizeof(run));
		left--;
	}
	if (r == 0)
		r = ipc_records_flush(&records);
	return r < 0 ? r : left == 0;
}

void self_runs(struct request *rq)
{
	const struct wpfs_self *self = rq->body;
	_cleanup_set_ struct mm_set set = {NULL};
	struct protect_selection sel;
	struct tmm *tm;
	int r;

	if (!self_select(rq, &sel))
		return;
	if (!self->file || self->runs < WPFS_SELF_DIRTY || self->runs > WPFS_SELF_WATCHED ||
	    (self->to && self->to < self->from)) {
		request_error(rq, -EINVAL, "not a question about a file");
		return;
	}
	tm = self_mm(rq);
	if (!tm)
		return;
	r = tmm_harvest(rq->t, tm);
	if (r == 0)
		r = self_collect(rq->t, tm, self, &set);
	if (r == -ENOENT) {
		request_error(rq, r, "no epoch %llu of this file is kept",
			      (unsigned long long)self->from);
		return;
	}
	if (r == 0)
		r = self_emit(rq, &sel, &set);
	if (r < 0)
		request_error(rq, r, "the marks of pid %d could not be read: %s", rq->c->id.pid,
			      log_errstr(r));
	else
		request_reply(rq, r, NULL, 0);
}
