/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The thread that writes: a queue of jobs, done in groups. See db.h for what jobs may expect. */
#ifndef WPFS_DB_WRITER_H
#define WPFS_DB_WRITER_H

#include "db/db.h"
#include "db/sql.h"

struct writer;

/* Takes over the connection *tx (and closes it in the end, also if this fails). 0 or -errno. */
int writer_start(struct db_tx *tx, struct writer **writer);

int writer_call(struct writer *writer, db_job_fn fn, void *arg);
int writer_call_lazy(struct writer *writer, db_job_fn fn, void *arg);
int writer_call_beside(struct writer *writer, db_job_fn fn, void *arg, void (*beside)(void *),
		       void *beside_arg);
int writer_sync(struct writer *writer);
int writer_call_all(struct writer *writer, db_job_fn fn, void *const *args, size_t nr,
		    int *results);
int writer_post(struct writer *writer, db_job_fn fn, void *arg, void (*free_fn)(void *arg));
int writer_flush(struct writer *writer);

/* Does what is queued, then ends the thread, closes and frees. */
void writer_stop(struct writer *writer);

#endif
