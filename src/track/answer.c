/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What wpctl asks. Every answer first finishes the harvests of the dead. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <utlist.h>

#include "base/log.h"
#include "db/report.h"
#include "fs/store.h"
#include "ipc/record.h"
#include "track/residency.h"
#include "track/written.h"

void answer_settle(struct request *rq)
{
	life_sweep(rq->t);
	residency_busy(rq->t, true);
	request_reply(rq, 0, NULL, 0);
}

void answer_sync(struct request *rq)
{
	const struct wpfs_select *s = rq->body;
	const char *name = s->set & WPFS_SELECT_NAME ? s->name : NULL;
	struct tmm *tm;
	bool any = false;
	int r;

	r = life_sync_all(rq->t);
	if (r == 0)
		r = aside_retry(rq->t);
	DL_FOREACH (rq->t->tmms, tm)
		any |= tmm_selected(tm, rq->c->peer.uid, name);
	if (name && !any)
		request_none(rq, name);
	else if (rq->t->db_error)
		request_error(rq, r, "marks are kept in memory: the database cannot be written: %s",
			      db_errstr(r));
	else if (r < 0)
		request_error(rq, r, "not all marks could be read and stored: %s", log_errstr(r));
	else
		request_reply(rq, 0, NULL, 0);
}

void answer_fill_status(struct track *t, struct wpfs_status *status)
{
	struct statvfs space;
	struct client *c;
	struct tmm *tm;
	size_t failing;

	*status = (struct wpfs_status){
		.kind = t->config.kind,
		.pid = getpid(),
		.passthrough = 1, /* a mount without it is refused */
		.uring = fs_uring(t->config.fs),
		.conservative = t->conservative,
		.harvests = t->harvests,
		.last_commit = t->last_commit,
		.db_error = -t->db_error,
		.db_since = t->db_since,
	};
	status->store_error = -fs_store_error(t->config.fs, &failing);
	status->store_files = failing;
	if (fs_statvfs(t->config.fs, &space) == 0) {
		status->size = (uint64_t)space.f_blocks * space.f_frsize;
		status->used = (uint64_t)(space.f_blocks - space.f_bfree) * space.f_frsize;
		status->inodes = space.f_files;
		status->inodes_used = space.f_files - space.f_ffree;
	}
	residency_status(t, status);
	snprintf(status->store, sizeof(status->store), "%s", t->config.store);
	snprintf(status->mountpoint, sizeof(status->mountpoint), "%s", t->config.mountpoint);
	snprintf(status->id, sizeof(status->id), "%s", t->config.id);
	DL_FOREACH (t->clients, c)
		status->clients += !c->ctl && c->attached;
	DL_FOREACH (t->tmms, tm) {
		status->mms_live += tm->state == TMM_LIVE;
		status->mms_detached += tm->state == TMM_DETACHED && !tm->doomed;
		status->unsaved += tm->unsaved;
	}
}

void answer_status(struct request *rq)
{
	struct wpfs_status status;

	life_sync_all(rq->t);
	aside_retry(rq->t);
	answer_fill_status(rq->t, &status);
	request_reply(rq, 0, &status, sizeof(status));
}

/* ---- reports ---- */

static int answer_sink(void *arg, const void *body, size_t len)
{
	struct request *rq = arg;
	struct wpfs_hdr hdr = {.op = WPFS_OP_RECORD, .seq = rq->hdr->seq};

	return ipc_outq_send(&rq->c->out, rq->c->watch.fd, &hdr, body, len, NULL, 0);
}

static int answer_emit(void *ctx, uint32_t type, const void *body, size_t len)
{
	return ipc_records_add(ctx, type, body, len);
}

/* Who asks what to copy of a file must know whose stores are not in the answer. */
static int answer_holders(struct request *rq, const struct db_report_query *query,
			  struct ipc_records *records)
{
	const struct wpfs_select *s = rq->body;
	struct wpfs_rec_note note = {.text = ""};

	if (query->kind != WPFS_REPORT_DIRTY || query->name)
		return 0;
	if (unseen_holders(rq->t, query->file, s->file, note.text, sizeof(note.text)))
		note.kind = WPFS_NOTE_GAP;
	return note.text[0] ? answer_emit(records, WPFS_REC_NOTE, &note, sizeof(note)) : 0;
}

/* ---- of wpctl map ---- */

static int answer_part(struct ipc_records *records, enum wpfs_report_kind kind)
{
	const struct wpfs_rec_part part = {.kind = kind};

	return ipc_records_add(records, WPFS_REC_PART, &part, sizeof(part));
}

static int answer_spilled_file(struct track *t, uint64_t ino, struct ipc_records *records)
{
	_cleanup_set_ struct mm_set set = {NULL};
	struct wpfs_rec_map file = {.file = ino, .owner = WPFS_OWNER_WPFS};
	struct wpfs_rec_run run = {0};
	struct mm_runs runs;
	int r = residency_spilled(t, ino, &set);

	if (r < 0 || mm_set_is_empty(&set))
		return r;
	r = ipc_records_add(records, WPFS_REC_UNION, &file, sizeof(file));
	mm_runs_begin(&runs, &set, 0, MM_SET_MAX);
	while (r == 0 && mm_runs_next(&runs, &run.pgoff, &run.pages))
		r = ipc_records_add(records, WPFS_REC_RUN, &run, sizeof(run));
	return r;
}

/* Of the files that the selected mms have to do with, each once. */
static int answer_spilled(struct request *rq, const struct db_report_query *query,
			  struct ipc_records *records)
{
	_cleanup_set_ struct mm_set told = {NULL};
	const struct mm_file *f;
	struct tmm *tm;
	int r = answer_part(records, WPFS_REPORT_SPILLED);

	DL_FOREACH (rq->t->tmms, tm) {
		if (!tmm_selected(tm, query->all_uids ? 0 : query->uid, query->name))
			continue;
		for (f = tm->mm.files; r == 0 && f; f = f->hh.next) {
			if ((query->file && query->file != f->id) || mm_set_contains(&told, f->id))
				continue;
			r = answer_spilled_file(rq->t, f->id, records);
			if (r == 0)
				r = mm_set_add_range(&told, f->id, 1);
		}
	}
	return r;
}

/* One harvest and one moment for all of it. */
static int answer_map(struct request *rq, struct db *db, struct db_report_query *query,
		      struct ipc_records *records, char why[DB_WHY_SIZE])
{
	static const enum wpfs_report_kind kinds[] = {WPFS_REPORT_MARKS, WPFS_REPORT_DIRTY};
	int r = 0;

	for (size_t i = 0; r == 0 && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		query->kind = kinds[i];
		r = answer_part(records, kinds[i]);
		if (r == 0)
			r = db_report(db, query, answer_emit, records, why);
	}
	if (r == 0 && rq->t->config.capped)
		r = answer_spilled(rq, query, records);
	return r;
}

void answer_report(struct request *rq)
{
	const struct wpfs_select *s = rq->body;
	struct db_report_query query = {
		.kind = s->kind,
		.all_uids = rq->c->peer.uid == 0,
		.uid = rq->c->peer.uid,
		.name = s->set & WPFS_SELECT_NAME ? s->name : NULL,
		.epoch = s->set & WPFS_SELECT_EPOCH ? s->epoch : 0,
	};
	char why[DB_WHY_SIZE] = "";
	struct ipc_records records;
	struct fs_file file;
	struct db *db;
	int r, unseen;

	if (s->set & WPFS_SELECT_FILE) {
		r = fs_file_by_path(rq->t->config.fs, s->file, &file);
		if (r < 0) {
			request_error(rq, r, "%s: %s", s->file, log_errstr(r));
			return;
		}
		query.file = file.ino;
	}
	if (s->set & WPFS_SELECT_RANGE) {
		query.offset = s->offset;
		query.len = s->len;
	}
	r = life_sync_all(rq->t);
	if (r == 0)
		r = files_refresh(rq->t);
	if (r == 0)
		r = written_update(rq->t);
	if (r < 0) {
		request_error(rq, r, "the marks could not be read and stored: %s", log_errstr(r));
		return;
	}
	if (rq->t->db_error && query.epoch) {
		request_error(rq, rq->t->db_error,
			      "closed epochs cannot be told while the database cannot be written: "
			      "%s",
			      db_errstr(rq->t->db_error));
		return;
	}
	ipc_records_init(&records, answer_sink, rq);
	unseen = query.file ? answer_holders(rq, &query, &records)
			    : unseen_report(rq->t, query.uid, query.name, answer_emit, &records);
	db = rq->t->db_error ? rq->t->aside : rq->t->config.db;
	if (unseen < 0)
		r = unseen;
	else if (query.kind == WPFS_REPORT_MAP)
		r = answer_map(rq, db, &query, &records, why);
	else
		r = db_report(db, &query, answer_emit, &records, why);
	if (r == -EUCLEAN || r == -EBADMSG)
		aside_distrust(rq->t, r); /* who asks again is told from memory */
	if (r == -ENOENT && query.name && unseen > 0)
		r = 0; /* such a program is there, and the note says what it does */
	if (r == 0)
		r = ipc_records_flush(&records);
	if (r < 0)
		request_error(rq, r, "%s", why[0] ? why : log_errstr(r));
	else
		request_reply(rq, 0, NULL, 0);
}
