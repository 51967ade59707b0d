/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * While the store's database cannot be written (locked by another process, full, read-only,
 * damaged) no program is to notice and no mark to be lost. What would have been committed goes
 * aside: into a second database of the same schema in the run directory, which is in memory and
 * outlives the daemon as the lower tmpfs does. Every second it is tried to save all of it; a new
 * daemon that takes over the lower tmpfs takes over what is aside too.
 *
 * When it begins, all mms are put aside, so that reports read the truth from one place. Contents
 * are not flushed meanwhile (track_sync_file fails): the loss of a mark must be durable before the
 * page's new contents are, and a machine that stops now leaves marks and contents of before.
 *
 * Not chosen: to keep the models in the daemon's memory alone. What a program unmapped or punched
 * is nowhere else then, and a daemon that is killed would leave marks that lie.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/db.h"
#include "db/marks.h"
#include "track/internal.h"

bool aside_is_for(int error)
{
	/* what the job itself has against the rows is no trouble of the database's */
	return error < 0 && error != -EEXIST && error != -EINVAL;
}

static void aside_unlink(const struct track *t)
{
	static const char *const ends[] = {"", "-wal", "-shm"};

	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		_cleanup_free_ char *path = NULL;

		if (asprintf(&path, "%s%s", t->config.aside, ends[i]) >= 0)
			unlink(path);
	}
}

static void aside_put_all(struct track *t)
{
	struct tmm *tm;

	DL_FOREACH (t->tmms, tm) {
		int r = tm->state == TMM_NEW || tm->doomed ? 0 : persist_mm_aside(t, tm);

		if (r < 0)
			log_err("track: cannot keep the marks of %s: %s",
				tm->name[0] ? tm->name : tm->comm, log_errstr(r));
	}
}

void aside_begin(struct track *t, int error)
{
	char why[DB_WHY_SIZE] = "";
	int r;

	if (t->db_error)
		return;
	t->db_error = error;
	t->db_since = (uint64_t)time(NULL);
	log_err("cannot write to the database of %s: %s: marks are kept in memory, and written "
		"when "
		"it can be",
		strcmp(t->config.store, "none") ? t->config.store : t->config.mountpoint,
		db_errstr(error));
	aside_unlink(t);
	r = db_open(t->config.aside, DB_VOLATILE, &t->aside, why);
	if (r < 0) {
		t->aside = NULL;
		log_err("track: cannot keep marks in memory: %s", why[0] ? why : log_errstr(r));
		return;
	}
	aside_put_all(t);
}

void aside_distrust(struct track *t, int error)
{
	struct tmm *tm;

	aside_begin(t, error);
	DL_FOREACH (t->tmms, tm)
		tm->unsaved = tm->state != TMM_NEW && !tm->doomed;
}

void aside_close(struct track *t)
{
	if (t->aside)
		db_close(t->aside);
	t->aside = NULL;
}

static void aside_end(struct track *t)
{
	aside_close(t);
	aside_unlink(t);
	t->db_error = 0;
	t->db_since = 0;
	log_info("the database can be written again: all marks are in it");
}

int aside_retry(struct track *t)
{
	struct tmm *tm, *next;
	int r = 0;

	if (!t->db_error)
		return 0;
	/* First what is to go: its name may be another's by now. */
	DL_FOREACH_SAFE(t->tmms, tm, next)
	{
		if (!tm->doomed || r < 0)
			continue;
		r = persist_forget(t, tm);
		if (r == 0)
			tmm_free(t, tm);
	}
	DL_FOREACH (t->tmms, tm) {
		if (r == 0 && tm->unsaved)
			r = persist_mm_save(t, tm);
	}
	/* Nothing was left to save: is there a way in? */
	if (r == 0)
		r = db_meta_set(t->config.db, DB_META_MARKS_LOWER, t->config.lower_id);
	if (r < 0)
		t->db_error = r;
	else
		aside_end(t);
	return r;
}

/* ---- what the last daemon left ---- */

int aside_load(struct track *t, const struct db_marks_visitor *visitor)
{
	char why[DB_WHY_SIZE] = "";
	uint64_t last = 0;
	struct tmm *tm;
	int r;

	if (access(t->config.aside, F_OK) < 0)
		return 0;
	t->db_error = -EAGAIN; /* until all is saved */
	t->db_since = (uint64_t)time(NULL);
	r = db_open(t->config.aside, DB_VOLATILE, &t->aside, why);
	if (r == 0)
		r = db_marks_load(t->aside, visitor);
	if (r == 0)
		r = db_mm_last_id(t->aside, &last);
	if (r == 0) {
		if (last > t->next_mm)
			t->next_mm = last;
		return 0;
	}
	log_warn("track: the marks that the last daemon could not write are lost (%s): what was "
		 "armed "
		 "counts as dirty",
		 why[0] ? why : log_errstr(r));
	aside_close(t);
	aside_unlink(t);
	t->db_error = 0;
	r = 0;
	DL_FOREACH (t->tmms, tm) {
		const uint64_t before = tm->mm.conservative;

		if (r == 0)
			r = mm_lost(&tm->mm);
		t->conservative += tm->mm.conservative - before;
		tm->unsaved = true;
	}
	return r;
}

int aside_resumed(struct track *t)
{
	struct tmm *tm;
	int r = 0;

	if (t->db_error && aside_retry(t) < 0)
		log_warn("the marks that the last daemon could not write are still in memory: %s",
			 db_errstr(t->db_error));
	DL_FOREACH (t->tmms, tm) {
		if (r == 0 && tm->unsaved && !t->db_error)
			r = persist_mm(t, tm); /* what was aside could not be read */
	}
	return r;
}
