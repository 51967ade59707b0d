/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tracked mms to and from the database. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/db.h"
#include "db/marks.h"
#include "track/capped_track.h"
#include "track/internal.h"

/* ---- load ---- */

struct persist_loader {
	struct track *t;
	bool same_lower; /* the lower tmpfs of the last daemon is still there */
	bool aside;	 /* out of what it could not save */
};

static int persist_load_file(void *ctx, const struct db_file *row)
{
	const struct persist_loader *l = ctx;

	return files_load(l->t, row, l->same_lower);
}

/*
 * The lower went with what was in it: after a power loss the last commit is right for the contents
 * as stored, but where those may be older than what was armed.
 */
static int persist_settle_lost(struct tmm *tm)
{
	struct mm_file *f, *next;
	int r = 0;

	HASH_ITER (hh, tm->mm.files, f, next) {
		uint64_t before = tm->mm.conservative;

		if (!f->unsettled)
			continue;
		f->unsettled = false;
		if (r == 0)
			r = mm_file_lost(&tm->mm, f);
		if (tm->mm.conservative != before)
			tm->stale_row = true;
	}
	return r;
}

/* As far as the row tells: whether its processes are there is looked at later. */
static bool persist_lives(void *ctx, const struct db_mm *row)
{
	const struct persist_loader *l = ctx;

	return row->state == WPFS_MM_LIVE && l->same_lower &&
	       strcmp(row->boot_id, l->t->boot_id) == 0;
}

static int persist_load_mm(void *ctx, const struct db_mm *row, struct mm *model)
{
	const struct persist_loader *l = ctx;
	struct track *t = l->t;
	bool live = persist_lives(ctx, row);
	struct tmm *tm, *older = NULL;

	for (tm = l->aside ? t->tmms : NULL; tm; tm = tm->next) {
		if (tm->mm.id == row->id)
			older = tm;
	}
	if (older)
		tmm_free(t, older);
	tm = tmm_new(t);
	if (!tm)
		return -ENOMEM;
	tm->unsaved = l->aside;
	tm->mm = *model;
	mm_init(model);
	tm->uid = row->uid;
	snprintf(tm->name, sizeof(tm->name), "%s", row->name);
	snprintf(tm->comm, sizeof(tm->comm), "%s", row->comm);
	tm->private_maps = row->flags & DB_MM_PRIVATE_MAPS;
	tm->mapped_shared = row->flags & DB_MM_MAPPED_SHARED;
	tm->fork_child = row->flags & DB_MM_FORK_CHILD;
	tm->maybe_shared = l->same_lower && row->flags & DB_MM_MAYBE_SHARED;
	tm->epoch_turned = tm->fork_child; /* for all one knows */
	tm->mm.own_uffds = row->flags & DB_MM_OWN_UFFDS;
	tm->mm.own_doubted = row->flags & DB_MM_OWN_DOUBTED;
	tm->state = live ? TMM_LIVE : TMM_DETACHED;
	tm->stale_row = row->state == WPFS_MM_LIVE && !live;
	if (strcmp(row->boot_id, t->boot_id) == 0 && (live || row->state == WPFS_MM_DETACHED))
		tm->witness = (struct proc_id){row->witness_pid, row->witness_start};
	if (!live)
		return l->same_lower ? 0 : persist_settle_lost(tm);
	tm->program = (struct proc_id){row->pid, row->start_time};
	tm->uffd_fd = row->uffd_fd;
	tm->chan_fd = row->chan_fd;
	tm->untold = row->untold;
	tm->untold_seen = row->untold_seen;
	return 0;
}

#define DEVS_TEXT_SIZE (TRACK_MAX_DEVS * 21)

/*
 * Each once: the kernel gives a number again when nobody has a file of its mount mapped or open any
 * more (devs.c tells whose a file is then). None is ever left out, or stores through a mapping that
 * was made there would be unseen.
 */
static int persist_add_dev(struct track *t, uint64_t dev)
{
	for (size_t i = 0; i < t->nr_devs; i++) {
		if (t->devs[i] == dev)
			return 0;
	}
	if (t->nr_devs == TRACK_MAX_DEVS)
		return -EMFILE;
	t->devs[t->nr_devs++] = dev;
	return 0;
}

/* The st_dev numbers of earlier mounts of this lower tmpfs: "253 254 ...". */
static int persist_load_devs(struct track *t)
{
	_cleanup_free_ char *text = malloc(DEVS_TEXT_SIZE);
	char *p = text, *end;
	int r;

	if (!text)
		return -ENOMEM;
	r = db_meta_get(t->config.db, "devs", text, DEVS_TEXT_SIZE);
	if (r == -ENODATA)
		return 0;
	while (r == 0) {
		unsigned long long dev = strtoull(p, &end, 10);

		if (end == p)
			break;
		r = persist_add_dev(t, dev);
		p = end;
	}
	return r;
}

static int persist_store_devs(struct track *t)
{
	_cleanup_free_ char *text = malloc(DEVS_TEXT_SIZE);
	size_t used = 0;

	if (!text)
		return -ENOMEM;
	for (size_t i = 0; i < t->nr_devs; i++)
		used += (size_t)snprintf(text + used, DEVS_TEXT_SIZE - used, "%llu ",
					 (unsigned long long)t->devs[i]);
	return db_meta_set(t->config.db, "devs", text);
}

/* What this mount's mappings show: on a capped one programs map the lower file itself. */
static int persist_add_devs(struct track *t)
{
	int r = persist_add_dev(t, t->config.dev);

	if (r == 0 && t->config.capped)
		r = persist_add_dev(t, capped_lower_dev(t->config.capped));
	return r;
}

static int persist_last_epoch_job(struct db_tx *tx, void *arg)
{
	return db_last_epoch(tx, arg);
}

int persist_load(struct track *t)
{
	struct persist_loader loader = {.t = t};
	const struct db_marks_visitor visitor = {.ctx = &loader,
						 .file = persist_load_file,
						 .mm = persist_load_mm,
						 .lives = persist_lives};
	char lower_id[DB_ID_SIZE];
	int r = 0;

	if (db_meta_get(t->config.db, DB_META_MARKS_LOWER, lower_id, sizeof(lower_id)) == 0)
		loader.same_lower = strcmp(lower_id, t->config.lower_id) == 0;
	if (loader.same_lower)
		r = persist_load_devs(t);
	if (r == 0)
		r = persist_add_devs(t);
	if (r == 0)
		r = db_marks_load(t->config.db, &visitor);
	if (r == 0)
		r = db_mm_last_id(t->config.db, &t->next_mm);
	if (r == 0)
		r = db_read(t->config.db, persist_last_epoch_job, &t->last_epoch);
	loader.aside = true;
	if (r == 0 && loader.same_lower)
		r = aside_load(t, &visitor);
	t->next_mm++;
	if (r == 0)
		r = persist_store_devs(t);
	return r < 0 ? r : db_meta_set(t->config.db, DB_META_MARKS_LOWER, t->config.lower_id);
}

/* ---- store ---- */

struct persist_job {
	struct track *t;
	struct tmm *tm;
	const struct persist_epoch *epochs;
	size_t nr_epochs;
	uint64_t file, start, end; /* persist_mapping_job: what is new */
	bool sets;		   /* of the file too */
};

static void persist_row(const struct track *t, const struct tmm *tm, struct db_mm *row)
{
	memset(row, 0, sizeof(*row)); /* rows are compared */
	*row = (struct db_mm){
		.id = tm->mm.id,
		.uid = tm->uid,
		.state = tm->state == TMM_DETACHED ? WPFS_MM_DETACHED : WPFS_MM_LIVE,
		.uffd_fd = -1,
		.chan_fd = -1,
		.epoch = tm->mm.epoch,
		.protect = tm->mm.protect_new,
		.flags = (tm->private_maps ? DB_MM_PRIVATE_MAPS : 0) |
			 (tm->mapped_shared ? DB_MM_MAPPED_SHARED : 0) |
			 (tm->mm.own_uffds ? DB_MM_OWN_UFFDS : 0) |
			 (tm->mm.own_doubted || tm->own_unsure ? DB_MM_OWN_DOUBTED : 0) |
			 (tm->fork_child ? DB_MM_FORK_CHILD : 0) |
			 (tm->maybe_shared ? DB_MM_MAYBE_SHARED : 0) |
			 (tm->witness_pidfd < 0 ? DB_MM_NO_WITNESS : 0),
		.conservative = tm->mm.conservative,
		.untold = tm->untold,
		.untold_seen = tm->untold_seen,
	};
	snprintf(row->name, sizeof(row->name), "%s", tm->name);
	snprintf(row->comm, sizeof(row->comm), "%s", tm->comm);
	snprintf(row->boot_id, sizeof(row->boot_id), "%s", t->boot_id);
	snprintf(row->lower_id, sizeof(row->lower_id), "%s", t->config.lower_id);
	if (tm->state != TMM_DETACHED) {
		row->pid = tm->program.pid;
		row->start_time = tm->program.start_time;
	}
	/* Of a detached one too: it is let go only when this is committed. */
	if (tm->witness_pidfd < 0)
		return;
	row->witness_pid = tm->witness.pid;
	row->witness_start = tm->witness.start_time;
	row->uffd_fd = tm->uffd_fd;
	row->chan_fd = tm->chan_fd;
}

static int persist_mm_job(struct db_tx *tx, void *arg)
{
	const struct persist_job *job = arg;
	struct mm_file *f, *next;
	struct db_mm row;
	int r;

	persist_row(job->t, job->tm, &row);
	r = db_mm_put(tx, &row);
	HASH_ITER (hh, job->tm->mm.files, f, next) {
		if (r == 0)
			r = files_put(job->t, tx, f->id);
	}
	if (r == 0)
		r = db_model_put(tx, &job->tm->mm);
	for (size_t i = 0; r == 0 && i < job->nr_epochs; i++) {
		const struct persist_epoch *e = &job->epochs[i];
		struct timespec now;

		clock_gettime(CLOCK_REALTIME, &now);
		if (e->number)
			r = db_epoch_open(tx, row.id, e->file, e->number,
					  now.tv_sec * 1000000000LL + now.tv_nsec, e->last,
					  e->written);
		else
			r = db_epoch_close(tx, row.id, e->file,
					   now.tv_sec * 1000000000LL + now.tv_nsec, e->last,
					   e->written);
	}
	return r;
}

int persist_mm_in(struct track *t, struct db_tx *tx, struct tmm *tm)
{
	struct persist_job job = {.t = t, .tm = tm};

	free(tm->stored); /* how that job ends is not told here */
	tm->stored = NULL;
	return persist_mm_job(tx, &job);
}

/* The row as it is stored now. */
static void persist_remember(const struct track *t, struct tmm *tm)
{
	if (!tm->stored)
		tm->stored = malloc(sizeof(*tm->stored));
	if (tm->stored)
		persist_row(t, tm, tm->stored);
}

/* What a commit gave: notes it, and gives it on. */
static int persist_done(struct track *t, struct tmm *tm, int r)
{
	if (r == 0) {
		persist_remember(t, tm);
		t->last_commit = (uint64_t)time(NULL);
		tm->unsaved = tm->epoch_unsaved = false;
	} else if (aside_is_for(r)) {
		tm->unsaved = true;
		aside_begin(t, r);
	}
	return r;
}

/* How much a commit has to outlive. */
enum persist_what { PERSIST_DURABLE, PERSIST_LAZY };

/* Into the database, or an error of it. */
static int persist_commit(struct track *t, struct tmm *tm, db_job_fn fn, struct persist_job *job,
			  enum persist_what what)
{
	struct db *db = t->config.db;
	int r = what == PERSIST_LAZY ? db_call_lazy(db, fn, job) : db_call(db, fn, job);

	events_commit(t, &tm, 1, what == PERSIST_LAZY, r);
	return persist_done(t, tm, r);
}

int persist_mm_epochs(struct track *t, struct tmm *tm, const struct persist_epoch *epochs,
		      size_t nr)
{
	struct persist_job job = {.t = t, .tm = tm, .epochs = epochs, .nr_epochs = nr};

	return persist_commit(t, tm, persist_mm_job, &job, PERSIST_DURABLE);
}

int persist_mm_epochs_lazy(struct track *t, struct tmm *tm, const struct persist_epoch *epochs,
			   size_t nr)
{
	struct persist_job job = {.t = t, .tm = tm, .epochs = epochs, .nr_epochs = nr};

	return persist_commit(t, tm, persist_mm_job, &job, PERSIST_LAZY);
}

/* With the epochs that began while it could not be saved. */
static int persist_save_job(struct db_tx *tx, void *arg)
{
	const struct persist_job *job = arg;
	const struct mm *mm = &job->tm->mm;
	const struct mm_file *f;
	struct timespec now;
	int r = persist_mm_job(tx, arg);

	clock_gettime(CLOCK_REALTIME, &now);
	for (f = mm->files; r == 0 && job->tm->epoch_unsaved && f; f = f->hh.next) {
		if (mm_set_is_empty(&f->own[MM_WPFS].armed))
			continue;
		r = db_epoch_is_open(tx, mm->id, f->id);
		if (r == 0)
			r = db_epoch_open(tx, mm->id, f->id, mm->epoch,
					  now.tv_sec * 1000000000LL + now.tv_nsec, NULL,
					  MM_WRITTEN_UNKNOWN);
		else if (r > 0)
			r = 0;
	}
	return r;
}

static int persist_save(struct track *t, struct tmm *tm, enum persist_what what)
{
	struct persist_job job = {.t = t, .tm = tm};

	return persist_commit(t, tm, persist_save_job, &job, what);
}

int persist_mm_save(struct track *t, struct tmm *tm)
{
	return persist_save(t, tm, PERSIST_DURABLE);
}

int persist_mm_aside(struct track *t, struct tmm *tm)
{
	struct persist_job job = {.t = t, .tm = tm};

	return t->aside ? db_call(t->aside, persist_mm_job, &job) : t->db_error;
}

static int persist_somewhere(struct track *t, struct tmm *tm, enum persist_what what)
{
	if (!t->db_error) {
		int r = persist_save(t, tm, what);

		if (!aside_is_for(r))
			return r;
	}
	tm->unsaved = true;
	return persist_mm_aside(t, tm);
}

int persist_mm(struct track *t, struct tmm *tm)
{
	return persist_somewhere(t, tm, PERSIST_DURABLE);
}

int persist_mm_lazy(struct track *t, struct tmm *tm)
{
	return persist_somewhere(t, tm, PERSIST_LAZY);
}

static int persist_mapping_job(struct db_tx *tx, void *arg)
{
	const struct persist_job *job = arg;
	struct db_mm row;
	int r = 0;

	persist_row(job->t, job->tm, &row);
	if (!job->tm->stored || memcmp(job->tm->stored, &row, sizeof(row)) != 0)
		r = db_mm_put(tx, &row);
	if (r == 0)
		r = files_put(job->t, tx, job->file);
	return r < 0 ? r
		     : db_mapping_put(tx, &job->tm->mm, job->file, job->start, job->end, job->sets);
}

/* What such a commit gave: as persist_commit, and aside if that has to be. */
static int persist_lazily(struct track *t, struct tmm *tm, int r)
{
	events_commit(t, &tm, 1, true, r);
	r = persist_done(t, tm, r);
	return aside_is_for(r) ? persist_mm_lazy(t, tm) : r;
}

int persist_mapping(struct track *t, struct tmm *tm, uint64_t file, uint64_t start, uint64_t end,
		    bool sets, void (*beside)(void *), void *arg)
{
	struct persist_job job = {
		.t = t, .tm = tm, .file = file, .start = start, .end = end, .sets = sets};
	int r;

	if (t->db_error || tm->unsaved) {
		r = persist_mm_lazy(t, tm);
		if (beside)
			beside(arg);
		return r;
	}
	if (!beside)
		return persist_lazily(t, tm, db_call_lazy(t->config.db, persist_mapping_job, &job));
	return persist_lazily(t, tm,
			      db_call_beside(t->config.db, persist_mapping_job, &job, beside, arg));
}

/* One commit for all. False: it could not be tried. */
static bool persist_together(struct track *t, struct tmm *const *tmms, size_t nr, int *results)
{
	_cleanup_free_ struct persist_job *jobs = calloc(nr, sizeof(*jobs));
	_cleanup_free_ void **args = calloc(nr, sizeof(*args));
	int r = 0;

	if (t->db_error || !jobs || !args)
		return false;
	for (size_t i = 0; i < nr; i++) {
		jobs[i] = (struct persist_job){.t = t, .tm = tmms[i]};
		args[i] = &jobs[i];
	}
	if (db_call_all(t->config.db, persist_save_job, args, nr, results) < 0)
		return false;
	for (size_t i = 0; i < nr && r == 0; i++)
		r = results[i];
	events_commit(t, tmms, nr, false, r);
	return true;
}

int persist_all(struct track *t, struct tmm *const *tmms, size_t nr)
{
	_cleanup_free_ int *results = calloc(nr + 1, sizeof(*results));
	bool tried = nr > 0 && results && persist_together(t, tmms, nr, results);
	int result = 0;

	for (size_t i = 0; i < nr; i++) {
		int r = tried ? persist_done(t, tmms[i], results[i]) : 0;

		if (!tried || aside_is_for(r))
			r = persist_mm(t, tmms[i]);
		if (r < 0 && result == 0)
			result = r;
	}
	return result;
}

static int persist_forget_job(struct db_tx *tx, void *arg)
{
	return db_mm_delete(tx, *(uint64_t *)arg);
}

/* `r`: what the database said to it. */
static int persist_forgotten(struct track *t, struct tmm *tm, int r)
{
	if (t->last_epoch < tm->mm.epoch)
		t->last_epoch = tm->mm.epoch;
	if (aside_is_for(r))
		aside_begin(t, r);
	if (t->aside && db_call(t->aside, persist_forget_job, &tm->mm.id) < 0)
		log_debug("track: mm %llu stays in what is aside", (unsigned long long)tm->mm.id);
	return r;
}

int persist_forget(struct track *t, struct tmm *tm)
{
	return persist_forgotten(t, tm, db_call(t->config.db, persist_forget_job, &tm->mm.id));
}

int persist_forget_lazy(struct track *t, struct tmm *tm)
{
	return persist_forgotten(t, tm, db_call_lazy(t->config.db, persist_forget_job, &tm->mm.id));
}

struct persist_settle_job {
	uint64_t mm, file;
};

static int persist_settle_fn(struct db_tx *tx, void *arg)
{
	const struct persist_settle_job *job = arg;

	return db_mm_file_settle(tx, job->mm, job->file);
}

void persist_settle(struct track *t, struct tmm *tm, struct mm_file *file)
{
	struct persist_settle_job job = {tm->mm.id, file->id};

	file->settling = file->unsettled = false;
	/* With a row that is not stored now it is stored later, and until then it is in doubt. */
	if (tm->state != TMM_NEW && !tm->unsaved)
		db_call(t->config.db, persist_settle_fn, &job);
}
