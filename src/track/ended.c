/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fork children that ended. A program may have any number of them, and none of their names comes
 * again: so one that ended with nothing dirty in an epoch is forgotten when the next one begins.
 * What its epochs before that ended with is not: it goes to a row that all that are gone share.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <utlist.h>

#include "db/db.h"
#include "db/marks.h"
#include "track/internal.h"
#include "track/written.h"

bool ended_is_over(const struct tmm *tm, const struct protect_selection *sel)
{
	return tm->state == TMM_DETACHED && tm->fork_child && tm->epoch_turned && !sel->file &&
	       tmm_dirty(tm) == 0;
}

static struct tmm *ended_row(struct track *t, const struct tmm *tm)
{
	char name[TRACK_NAME_SIZE];
	struct tmm *row;

	snprintf(name, sizeof(name), "%.*s" DB_ENDED_NAME, (int)strcspn(tm->name, "/"), tm->name);
	row = tmm_by_name(t, tm->uid, name);
	if (row)
		return row;
	row = tmm_new(t);
	if (!row)
		return NULL;
	row->mm.id = t->next_mm++;
	row->uid = tm->uid;
	row->state = TMM_DETACHED;
	snprintf(row->name, sizeof(row->name), "%s", name);
	memcpy(row->comm, tm->comm, sizeof(row->comm));
	return row;
}

/* Does any of its epochs have something to tell? 1, 0 or -errno. */
static int ended_tell_job(struct db_tx *tx, void *arg)
{
	return db_epochs_tell(tx, ((const struct tmm *)arg)->mm.id);
}

struct ended_job {
	const struct tmm *tm, *row;
	uint64_t end;
};

static int ended_merge_job(struct db_tx *tx, void *arg)
{
	const struct ended_job *job = arg;
	const struct mm_file *f;
	struct timespec now;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &now);
	for (f = job->tm->mm.files; r == 0 && f; f = f->hh.next)
		r = db_epoch_close(tx, job->tm->mm.id, f->id,
				   now.tv_sec * 1000000000LL + now.tv_nsec, NULL, f->written);
	return r < 0 ? r : db_epochs_merge(tx, job->tm->mm.id, job->row->mm.id, job->end);
}

static int ended_merge(struct track *t, struct tmm *tm, uint64_t end)
{
	struct tmm *row = ended_row(t, tm);
	struct ended_job job = {.tm = tm, .row = row, .end = end};
	const struct mm_file *f;
	int r;

	if (!row)
		return -ENOMEM;
	for (f = tm->mm.files; f; f = f->hh.next) {
		if (!mm_file_get(&row->mm, f->id))
			return -ENOMEM;
	}
	r = persist_mm(t, row);
	return r < 0 ? r : db_call(t->config.db, ended_merge_job, &job);
}

int ended_retire(struct track *t, struct tmm *tm, uint64_t end)
{
	int r = written_update(t);

	if (r == 0)
		r = db_read(t->config.db, ended_tell_job, tm);
	if (r > 0)
		r = ended_merge(t, tm, end);
	if (r == 0)
		r = persist_forget(t, tm);
	if (r == 0)
		tmm_free(t, tm);
	return r;
}
