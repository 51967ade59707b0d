/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tracked address spaces out of the database. Rows are from disk: the model's invariants are
 * checked here, and what contradicts itself counts as dirty. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "db/chunks.h"
#include "db/marks.h"

static void text_copy(char *to, size_t size, sqlite3_stmt *st, int i)
{
	snprintf(to, size, "%s", sql_text(st, i));
}

static int mm_row_get(struct db_tx *tx, uint64_t id, struct db_mm *m)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st,
			  "SELECT uid, name, state, pid, start_time, boot_id, witness_pid,"
			  " witness_start, uffd_fd, chan_fd, lower_id, epoch, protect, flags,"
			  " conservative, comm, untold, untold_seen FROM mm WHERE id = ?1",
			  "i", (int64_t)id);

	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r < 0 ? r : -ENOENT;
	*m = (struct db_mm){
		.id = id,
		.uid = (uint32_t)sqlite3_column_int64(st, 0),
		.state = sqlite3_column_int64(st, 2) == 1 ? WPFS_MM_LIVE : WPFS_MM_DETACHED,
		.pid = (pid_t)sqlite3_column_int64(st, 3),
		.start_time = (uint64_t)sqlite3_column_int64(st, 4),
		.witness_pid = (pid_t)sqlite3_column_int64(st, 6),
		.witness_start = (uint64_t)sqlite3_column_int64(st, 7),
		.uffd_fd = (int)sqlite3_column_int64(st, 8),
		.chan_fd = (int)sqlite3_column_int64(st, 9),
		.epoch = (uint64_t)sqlite3_column_int64(st, 11),
		.protect = sqlite3_column_int64(st, 12) != 0,
		.flags = (uint32_t)sqlite3_column_int64(st, 13) & DB_MM_FLAGS_ALL,
		.conservative = (uint64_t)sqlite3_column_int64(st, 14),
		.untold = (uint64_t)sqlite3_column_int64(st, 16),
		.untold_seen = (uint64_t)sqlite3_column_int64(st, 17),
	};
	/* what says neither is detached: nobody is to be signalled or borrowed from by its numbers
	 */
	if (m->state != WPFS_MM_LIVE || m->pid <= 0) {
		m->state = WPFS_MM_DETACHED;
		m->pid = 0;
	}
	if (m->witness_pid <= 0)
		m->witness_pid = 0;
	text_copy(m->name, sizeof(m->name), st, 1);
	text_copy(m->boot_id, sizeof(m->boot_id), st, 5);
	text_copy(m->lower_id, sizeof(m->lower_id), st, 10);
	text_copy(m->comm, sizeof(m->comm), st, 15);
	sql_reset(st);
	return 0;
}

/* ---- mappings ---- */

static int vma_get(sqlite3_stmt *st, uint64_t free_from, struct mm_vma *v)
{
	uint64_t addr = (uint64_t)sqlite3_column_int64(st, 0);
	uint64_t pages = (uint64_t)sqlite3_column_int64(st, 1);
	uint64_t pgoff = (uint64_t)sqlite3_column_int64(st, 3);
	int64_t owner = sqlite3_column_int64(st, 6);

	if (addr < free_from || addr >= DB_ADDR_MAX || addr % WPFS_PAGE_SIZE || pages == 0 ||
	    pages > MM_PGOFF_MAX || pgoff > MM_PGOFF_MAX - pages)
		return -EUCLEAN;
	*v = (struct mm_vma){
		.start = addr,
		.end = addr + (pages << WPFS_PAGE_SHIFT),
		.file = (uint64_t)sqlite3_column_int64(st, 2),
		.pgoff = pgoff,
		.prot = (uint32_t)sqlite3_column_int64(st, 4),
		.dev = (uint64_t)sqlite3_column_int64(st, 5),
		.owner = owner == 2 ? MM_PROGRAM : MM_WPFS,
		.registered = owner != 0,
		.async = sqlite3_column_int64(st, 7) != 0,
		.sealed = sqlite3_column_int64(st, 8) != 0,
	};
	return 0;
}

static int vmas_append(struct mm *mm, sqlite3_stmt *st)
{
	uint64_t free_from = mm->nr_vmas ? mm->vmas[mm->nr_vmas - 1].end : 0;
	struct mm_vma *bigger;
	int r;

	bigger = reallocarray(mm->vmas, mm->nr_vmas + 1, sizeof(*bigger));
	if (!bigger)
		return -ENOMEM;
	mm->vmas = bigger;
	r = vma_get(st, free_from, &bigger[mm->nr_vmas]);
	if (r == 0)
		mm->nr_vmas++;
	return r;
}

static int vmas_get(struct db_tx *tx, struct mm *mm)
{
	sqlite3_stmt *st;
	int r = sql_query(
		tx, &st,
		"SELECT addr, pages, file, pgoff, prot, dev, owner, async, sealed FROM vma"
		" WHERE mm = ?1 ORDER BY addr",
		"i", (int64_t)mm->id);

	while (r == 0 && (r = sql_step(tx, st)) > 0) {
		r = vmas_append(mm, st);
		if (r < 0)
			sql_reset(st);
	}
	for (size_t i = 0; r == 0 && i < mm->nr_vmas; i++) {
		struct mm_vma *v = &mm->vmas[i];

		if (v->registered)
			r = chunks_get_marks(tx, mm->id, v->owner, v->start >> WPFS_PAGE_SHIFT,
					     mm_vma_pages(v), &v->marked);
		if (r == 0 && !mm_file_get(mm, v->file))
			r = -ENOMEM;
	}
	return r;
}

/* ---- files ---- */

static int file_sets_get(struct db_tx *tx, uint64_t mm, struct mm_file *f)
{
	int r = 0;

	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++) {
		struct chunk_key key = {CHUNKS_ARMED, mm, chunk_owner(o), f->id};

		r = chunks_get(tx, &key, &f->own[o].armed);
		key.table = CHUNKS_DIRTY;
		if (r == 0)
			r = chunks_get(tx, &key, &f->own[o].dirty);
		if (r == 0)
			r = mm_set_or(&f->own[o].armed, &f->own[o].dirty);
	}
	return r;
}

static enum mm_written written_get(int64_t value)
{
	return value == MM_WRITTEN_NO || value == MM_WRITTEN_YES ? (enum mm_written)value
								 : MM_WRITTEN_UNKNOWN;
}

static int files_get(struct db_tx *tx, struct mm *mm)
{
	struct mm_file *f;
	sqlite3_stmt *st;
	int r = sql_query(tx, &st,
			  "SELECT file, protect, written, unsettled FROM mm_file WHERE mm = ?1",
			  "i", (int64_t)mm->id);

	while (r == 0 && (r = sql_step(tx, st)) > 0) {
		f = mm_file_get(mm, (uint64_t)sqlite3_column_int64(st, 0));
		r = f ? 0 : -ENOMEM;
		if (f) {
			f->protect = sqlite3_column_int64(st, 1) != 0;
			f->written = written_get(sqlite3_column_int64(st, 2));
			f->unsettled = sqlite3_column_int64(st, 3) != 0;
		} else {
			sql_reset(st);
		}
	}
	for (f = mm->files; r == 0 && f; f = f->hh.next)
		r = file_sets_get(tx, mm->id, f);
	return r;
}

static int mm_get(struct db_tx *tx, uint64_t id, struct db_mm *row, struct mm *model)
{
	int r = mm_row_get(tx, id, row);

	if (r < 0)
		return r;
	model->id = id;
	model->epoch = row->epoch;
	model->protect_new = row->protect;
	model->own_uffds = row->flags & DB_MM_OWN_UFFDS;
	model->own_doubted = row->flags & DB_MM_OWN_DOUBTED;
	model->conservative = row->conservative;
	r = vmas_get(tx, model);
	if (r == 0)
		r = files_get(tx, model);
	return r;
}

int db_mm_get(struct db_tx *tx, uint64_t id, struct db_mm *row, struct mm *model)
{
	int r = mm_get(tx, id, row, model);

	return r < 0 ? r : mm_fold_shown(model);
}

/* ---- all ---- */

static int load_files(struct db_tx *tx, const struct db_marks_visitor *v)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, "SELECT id, handle, path FROM file ORDER BY id", "");

	while (r == 0 && (r = sql_step(tx, st)) > 0) {
		const struct db_file file = {
			.id = (uint64_t)sqlite3_column_int64(st, 0),
			.handle = sqlite3_column_blob(st, 1),
			.handle_len = (size_t)sqlite3_column_bytes(st, 1),
			.path = sql_text(st, 2),
		};

		r = file.handle_len > DB_HANDLE_SIZE ? -EUCLEAN : v->file(v->ctx, &file);
		if (r < 0)
			sql_reset(st);
	}
	return r;
}

static int load_mm(struct db_tx *tx, const struct db_marks_visitor *v, uint64_t id)
{
	struct db_mm row;
	struct mm model;
	int r;

	mm_init(&model);
	r = mm_get(tx, id, &row, &model);
	if (r == 0 && !(v->lives && v->lives(v->ctx, &row)))
		r = mm_fold_shown(&model);
	if (r == 0)
		r = v->mm(v->ctx, &row, &model);
	mm_free(&model);
	return r;
}

static int load_job(struct db_tx *tx, void *arg)
{
	const struct db_marks_visitor *v = arg;
	int64_t id = 0;
	int r = 0;

	if (v->file)
		r = load_files(tx, v);
	while (r >= 0 && v->mm) {
		r = sql_get_i64(tx, &id, "SELECT min(id) FROM mm WHERE id > ?1", "i", id);
		if (r < 0)
			return r == -ENODATA ? 0 : r;
		r = load_mm(tx, v, (uint64_t)id);
	}
	return r;
}

int db_marks_load(struct db *db, const struct db_marks_visitor *visitor)
{
	return db_read(db, load_job, (void *)visitor);
}

static int last_id_job(struct db_tx *tx, void *arg)
{
	return sql_get_i64(tx, arg, "SELECT seq FROM sqlite_sequence WHERE name = 'mm'", "");
}

int db_mm_last_id(struct db *db, uint64_t *id)
{
	int64_t found = 0;
	int r = db_read(db, last_id_job, &found);

	if (r < 0 && r != -ENODATA)
		return r;
	*id = r < 0 ? 0 : (uint64_t)found;
	return 0;
}

struct epochs {
	uint64_t mm, file, from, to;
	struct mm_set *set;
	bool *open;
};

static int epochs_job(struct db_tx *tx, void *arg)
{
	const struct epochs *e = arg;
	int64_t number = (int64_t)e->from, closed;
	int r;

	*e->open = false;
	do {
		const struct chunk_key key = {CHUNKS_EPOCH, e->mm, e->file, (uint64_t)number};

		r = sql_get_i64(tx, &closed,
				"SELECT closed_ns IS NOT NULL FROM epoch"
				" WHERE mm = ?1 AND file = ?2 AND number = ?3",
				"iii", (int64_t)e->mm, (int64_t)e->file, number);
		if (r == -ENODATA)
			return -ENOENT;
		*e->open |= r == 0 && !closed;
		if (r == 0 && closed)
			r = chunks_get(tx, &key, e->set);
		if (r == 0)
			r = sql_get_i64(tx, &number,
					"SELECT min(number) FROM epoch WHERE mm = ?1 AND file = ?2"
					" AND number > ?3 AND number <= ?4",
					"iiii", (int64_t)e->mm, (int64_t)e->file, number,
					(int64_t)e->to);
	} while (r == 0);
	return r == -ENODATA ? 0 : r;
}

int db_epochs_dirty(struct db *db, uint64_t mm, uint64_t file, uint64_t from, uint64_t to,
		    struct mm_set *set, bool *open)
{
	struct epochs e = {mm, file, from, to < INT64_MAX ? to : INT64_MAX, set, open};

	return from > INT64_MAX ? -ENOENT : db_read(db, epochs_job, &e);
}
