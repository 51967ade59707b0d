/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What wpctl top asks every other second. The answer comes from the model right after a harvest:
 * nothing is written for it, because the page tables stay the truth whoever has read them.
 */
#include <errno.h>
#include <string.h>
#include <utlist.h>

#include "base/log.h"
#include "db/report_file.h"
#include "ipc/record.h"
#include "track/internal.h"

static int top_count_file(const struct tmm *tm, const struct mm_file *f, struct wpfs_rec_mm *rec)
{
	struct report_file rf = {0};
	int64_t armed = 0, marked = 0, dirty = 0;
	int r = report_file_fill(&rf, &tm->mm, f, 0, MM_PGOFF_MAX);

	if (r == 0) {
		armed = report_file_count(&rf, REPORT_ARMED);
		marked = report_file_count(&rf, REPORT_MARKED);
		dirty = report_file_count(&rf, REPORT_DIRTY);
	}
	if (r == 0 && (armed < 0 || marked < 0 || dirty < 0))
		r = -ENOMEM;
	if (r == 0) {
		rec->armed += (uint64_t)armed;
		rec->marked += (uint64_t)marked;
		rec->dirty += (uint64_t)dirty;
		rec->files += armed > 0 || rf.mapped;
	}
	report_file_free(&rf);
	return r;
}

int top_count(const struct tmm *tm, struct wpfs_rec_mm *rec)
{
	const struct mm_file *f;
	int r = 0;

	rec->armed = rec->marked = rec->dirty = 0;
	rec->files = 0;
	for (f = tm->mm.files; r == 0 && f; f = f->hh.next)
		r = top_count_file(tm, f, rec);
	return r;
}

static int top_add(struct ipc_records *records, const struct tmm *tm)
{
	struct wpfs_rec_top top = {.mm = {.id = tm->mm.id,
					  .uid = tm->uid,
					  .pid = tm->program.pid,
					  .state = WPFS_MM_LIVE,
					  .epoch = tm->mm.epoch}};
	int r = top_count(tm, &top.mm);

	memcpy(top.mm.name, tm->name, sizeof(top.mm.name));
	memcpy(top.mm.comm, tm->comm, sizeof(top.mm.comm));
	for (size_t i = 0; i < tm->mm.nr_vmas; i++)
		top.mapped += mm_vma_pages(&tm->mm.vmas[i]);
	proc_faults(tm->program.pid, &top.faults); /* gone: 0, and soon its row too */
	return r < 0 ? r : ipc_records_add(records, WPFS_REC_TOP, &top, sizeof(top));
}

static int top_sink(void *arg, const void *body, size_t len)
{
	struct request *rq = arg;
	struct wpfs_hdr hdr = {.op = WPFS_OP_RECORD, .seq = rq->hdr->seq};

	return ipc_outq_send(&rq->c->out, rq->c->watch.fd, &hdr, body, len, NULL, 0);
}

void top_answer(struct request *rq)
{
	struct wpfs_status status;
	struct ipc_records records;
	struct tmm *tm;
	int r;

	life_sweep(rq->t);
	r = life_look(rq->t);
	ipc_records_init(&records, top_sink, rq);
	DL_FOREACH (rq->t->tmms, tm) {
		int harvested;

		if (r < 0 || tm->state != TMM_LIVE || !tmm_selected(tm, rq->c->peer.uid, NULL))
			continue;
		harvested = tmm_harvest(rq->t, tm); /* -ESRCH: ends at the next sweep */
		r = harvested < 0 && harvested != -ESRCH ? harvested : top_add(&records, tm);
	}
	if (r == 0)
		r = ipc_records_flush(&records);
	if (r < 0) {
		request_error(rq, r, "the marks could not be read: %s", log_errstr(r));
		return;
	}
	answer_fill_status(rq->t, &status);
	request_reply(rq, 0, &status, sizeof(status));
}
