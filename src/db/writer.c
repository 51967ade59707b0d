/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Group commit: while one transaction is being committed jobs pile up, and all of them are the next
 * transaction. A lone caller waits for one commit, many share one, and there is nothing to tune.
 *
 * Each job has a savepoint. Two things undo more than one job: a commit that fails, and SQLite
 * rolling back by itself (disk full, I/O error); the jobs concerned all get that error, those not
 * begun yet get a transaction of their own.
 *
 * A transaction of lazy jobs only is not synced: it is in the log, in the page cache. SQLite syncs
 * the whole log with the next transaction that is, unless that one has nothing to write; then this
 * does.
 */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/writer.h"

struct job {
	db_job_fn fn;
	void *arg;
	void (*free_fn)(void *arg);
	bool posted; /* on the heap, nobody waits */
	bool lazy;   /* need not outlive the machine */
	bool done;   /* guarded by writer.lock */
	int result;  /* writer thread until done */
	struct job *prev, *next;
};

struct writer {
	pthread_t thread;
	pthread_mutex_t lock; /* innermost: nothing is called under it */
	pthread_cond_t more;  /* queue or stop changed */
	pthread_cond_t done;  /* some jobs are done */
	struct job *queue;    /* guarded by lock */
	bool stop;	      /* guarded by lock */
	bool busy;	      /* guarded by lock: somebody has a transaction, and what follows */
	int post_error;	      /* guarded by lock: first failure since the last flush */
	struct db_tx tx;      /* whoever is busy */
	bool unsynced;	      /* whoever is busy: the log has what a power loss may take back */
};

static int job_run(struct db_tx *tx, struct job *job)
{
	int unresolved = 0, high, r;

	r = sql_exec(tx, "SAVEPOINT job", "");
	if (r < 0)
		return r;
	r = job->fn(tx, job->arg);
	/* deferred foreign keys would only fail at the commit, and take the others with them */
	if (r >= 0 &&
	    sqlite3_db_status(tx->sql, SQLITE_DBSTATUS_DEFERRED_FKS, &unresolved, &high, 0) == 0 &&
	    unresolved)
		r = -ENOENT;
	if (sqlite3_get_autocommit(tx->sql))
		return r < 0 ? r : -EIO; /* rolled back by SQLite */
	if (r < 0 && sql_exec(tx, "ROLLBACK TO job", "") < 0)
		sql_exec_text(tx, "ROLLBACK");
	else if (sql_exec(tx, "RELEASE job", "") < 0)
		sql_exec_text(tx, "ROLLBACK");
	return r < 0 ? r : 0;
}

static void jobs_fail(struct job *first, struct job *end, int error)
{
	for (struct job *job = first; job != end; job = job->next) {
		if (job->result == 0)
			job->result = error;
	}
}

static bool jobs_are_lazy(const struct job *job)
{
	while (job && job->lazy)
		job = job->next;
	return !job;
}

static int group_begin(struct db_tx *tx, bool lazy)
{
	int r = sql_lazy(tx, lazy);

	if (r == 0)
		r = sql_exec_text(tx, "BEGIN IMMEDIATE");
	/* Whoever has kept us waiting once is not waited for again until he is gone. */
	sql_patience(tx, r != -EBUSY);
	return r;
}

static int group_commit(struct writer *w, bool lazy)
{
	bool wrote = false;
	int r = sql_commit(&w->tx, &wrote);

	if (r == 0 && !lazy && !wrote && w->unsynced)
		r = sql_sync_log(&w->tx);
	if (r == 0)
		w->unsynced = lazy && (w->unsynced || wrote);
	return r;
}

/* Does jobs from `first` on in one transaction; gives the first that is not done. */
static struct job *group_run(struct writer *w, struct job *first)
{
	const bool lazy = jobs_are_lazy(first);
	struct db_tx *tx = &w->tx;
	struct job *job;
	int r = group_begin(tx, lazy);

	if (r < 0) {
		jobs_fail(first, NULL, r);
		return NULL;
	}
	for (job = first; job; job = job->next) {
		job->result = job_run(tx, job);
		if (sqlite3_get_autocommit(tx->sql)) {
			r = job->result < 0 ? job->result : -EIO;
			jobs_fail(first, job->next, r);
			return job->next;
		}
	}
	r = group_commit(w, lazy);
	if (r < 0) {
		if (!sqlite3_get_autocommit(tx->sql))
			sql_exec_text(tx, "ROLLBACK");
		jobs_fail(first, NULL, r);
	}
	return NULL;
}

/* Frees what nobody waits for, then tells those who wait. */
static void group_finish(struct writer *w, struct job *jobs)
{
	struct job *job, *next;
	int error = 0;

	for (job = jobs; job; job = next) {
		next = job->next;
		if (!job->posted)
			continue;
		DL_DELETE(jobs, job);
		if (error == 0)
			error = job->result;
		if (job->free_fn)
			job->free_fn(job->arg);
		free(job);
	}
	pthread_mutex_lock(&w->lock);
	if (w->post_error == 0)
		w->post_error = error;
	for (job = jobs; job; job = job->next)
		job->done = true; /* its caller frees it once the lock is free */
	pthread_cond_broadcast(&w->done);
	pthread_mutex_unlock(&w->lock);
}

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	struct job *jobs;

	pthread_mutex_lock(&w->lock);
	for (;;) {
		while (w->busy || (!w->queue && !w->stop))
			pthread_cond_wait(&w->more, &w->lock);
		if (!w->queue)
			break;
		jobs = w->queue;
		w->queue = NULL;
		w->busy = true;
		pthread_mutex_unlock(&w->lock);
		for (struct job *rest = jobs; rest;)
			rest = group_run(w, rest);
		group_finish(w, jobs);
		pthread_mutex_lock(&w->lock);
		w->busy = false;
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

int writer_start(struct db_tx *tx, struct writer **writer)
{
	struct writer *w = calloc(1, sizeof(*w));
	int r;

	if (!w) {
		sql_close(tx);
		return -ENOMEM;
	}
	w->tx = *tx;
	w->unsynced = true; /* the log of a process that was killed may be as it left it */
	sql_patience(&w->tx, true);
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->more, NULL);
	pthread_cond_init(&w->done, NULL);
	r = -pthread_create(&w->thread, NULL, writer_main, w);
	if (r < 0) {
		sql_close(&w->tx);
		free(w);
		return r;
	}
	pthread_setname_np(w->thread, "wpfs-db");
	*writer = w;
	return 0;
}

static void job_queue(struct writer *w, struct job *job)
{
	assert(!pthread_equal(pthread_self(), w->thread));
	pthread_mutex_lock(&w->lock);
	DL_APPEND(w->queue, job);
	pthread_cond_signal(&w->more);
	pthread_mutex_unlock(&w->lock);
}

/* Waits for a job of this stack that is queued. */
static int job_wait(struct writer *w, const struct job *job)
{
	pthread_mutex_lock(&w->lock);
	while (!job->done)
		pthread_cond_wait(&w->done, &w->lock);
	pthread_mutex_unlock(&w->lock);
	return job->result;
}

static int job_call(struct writer *w, struct job *job)
{
	job_queue(w, job);
	return job_wait(w, job);
}

int writer_call(struct writer *w, db_job_fn fn, void *arg)
{
	struct job job = {.fn = fn, .arg = arg};

	return job_call(w, &job);
}

/* In this thread, which has made the writer busy. */
static void job_run_alone(struct writer *w, struct job *job)
{
	group_run(w, job);
	pthread_mutex_lock(&w->lock);
	w->busy = false;
	if (w->queue || w->stop)
		pthread_cond_signal(&w->more);
	pthread_mutex_unlock(&w->lock);
}

/* What waits for no disk need not wait for another thread either. False: it is busy. */
static bool job_run_here(struct writer *w, struct job *job)
{
	bool idle;

	pthread_mutex_lock(&w->lock);
	idle = !w->busy && !w->queue;
	w->busy |= idle;
	pthread_mutex_unlock(&w->lock);
	if (!idle)
		return false;
	job_run_alone(w, job);
	return true;
}

int writer_call_lazy(struct writer *w, db_job_fn fn, void *arg)
{
	struct job job = {.fn = fn, .arg = arg, .lazy = true};

	return job_run_here(w, &job) ? job.result : job_call(w, &job);
}

/*
 * Off the processor that this thread is on: there it would run instead of what is to be done beside
 * it, as one that is woken does. *all: where it may be else. False: there is no other processor.
 */
static bool writer_keep_apart(struct writer *w, cpu_set_t *all)
{
	const int cpu = sched_getcpu();
	cpu_set_t others;

	if (cpu < 0 || cpu >= CPU_SETSIZE ||
	    pthread_getaffinity_np(w->thread, sizeof(*all), all) != 0)
		return false;
	others = *all;
	CPU_CLR(cpu, &others);
	return CPU_COUNT(&others) > 0 &&
	       pthread_setaffinity_np(w->thread, sizeof(others), &others) == 0;
}

/* Does a queued job here if the writer has not come to it, and nothing else waits. False: it has.
 */
static bool job_take_back(struct writer *w, struct job *job)
{
	bool mine;

	pthread_mutex_lock(&w->lock);
	mine = !w->busy && w->queue == job && !job->next;
	if (mine) {
		w->queue = NULL;
		w->busy = true;
	}
	pthread_mutex_unlock(&w->lock);
	if (mine)
		job_run_alone(w, job);
	return mine;
}

int writer_call_beside(struct writer *w, db_job_fn fn, void *arg, void (*beside)(void *),
		       void *beside_arg)
{
	struct job job = {.fn = fn, .arg = arg, .lazy = true};
	cpu_set_t all;
	bool apart = writer_keep_apart(w, &all);

	job_queue(w, &job);
	beside(beside_arg);
	if (apart)
		pthread_setaffinity_np(w->thread, sizeof(all), &all);
	return job_take_back(w, &job) ? job.result : job_wait(w, &job);
}

int writer_call_all(struct writer *w, db_job_fn fn, void *const *args, size_t nr, int *results)
{
	_cleanup_free_ struct job *jobs = calloc(nr + 1, sizeof(*jobs));

	if (!jobs)
		return -ENOMEM;
	assert(!pthread_equal(pthread_self(), w->thread));
	/* Under one lock: the writer takes all of them at once. */
	pthread_mutex_lock(&w->lock);
	for (size_t i = 0; i < nr; i++) {
		jobs[i].fn = fn;
		jobs[i].arg = args[i];
		DL_APPEND(w->queue, &jobs[i]);
	}
	pthread_cond_signal(&w->more);
	for (size_t i = 0; i < nr; i++) {
		while (!jobs[i].done)
			pthread_cond_wait(&w->done, &w->lock);
		results[i] = jobs[i].result;
	}
	pthread_mutex_unlock(&w->lock);
	return 0;
}

int writer_post(struct writer *w, db_job_fn fn, void *arg, void (*free_fn)(void *arg))
{
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return -ENOMEM;
	*job = (struct job){.fn = fn, .arg = arg, .free_fn = free_fn, .posted = true};
	job_queue(w, job);
	return 0;
}

static int job_nothing(struct db_tx *tx, void *arg)
{
	return 0;
}

int writer_sync(struct writer *w)
{
	return writer_call(w, job_nothing, NULL);
}

int writer_flush(struct writer *w)
{
	int r = writer_sync(w), posted;

	pthread_mutex_lock(&w->lock);
	posted = w->post_error;
	w->post_error = 0;
	pthread_mutex_unlock(&w->lock);
	return posted < 0 ? posted : r;
}

void writer_stop(struct writer *w)
{
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_signal(&w->more);
	pthread_mutex_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	if (sql_exec_text(&w->tx, "PRAGMA wal_checkpoint(TRUNCATE)") < 0)
		log_debug("database: no checkpoint at the end; the log is kept");
	sql_close(&w->tx);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->more);
	pthread_cond_destroy(&w->done);
	free(w);
}
