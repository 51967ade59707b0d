/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What programs and wpctl ask of a capped mount: tickets, evictions and loads. */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "track/capped_track.h"
#include "track/evict.h"
#include "track/residency.h"

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
