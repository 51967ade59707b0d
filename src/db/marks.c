/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tracked address spaces into the database. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "db/chunks.h"
#include "db/marks.h"
#include "db/marks_internal.h"
#include "db/vmas.h"

/* ---- address spaces ---- */

int db_mm_put(struct db_tx *tx, const struct db_mm *m)
{
	return sql_exec(
		tx,
		"INSERT INTO mm (id, uid, name, state, pid, start_time, boot_id, witness_pid,"
		" witness_start, uffd_fd, chan_fd, lower_id, epoch, protect, flags, conservative,"
		" comm, untold, untold_seen)"
		" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15,"
		" ?16, ?17, ?18, ?19) ON CONFLICT (id) DO UPDATE SET uid = ?2, name = ?3, state = "
		"?4, pid = "
		"?5,"
		" start_time = ?6, boot_id = ?7, witness_pid = ?8, witness_start = ?9, uffd_fd = "
		"?10,"
		" chan_fd = ?11, lower_id = ?12, epoch = ?13, protect = ?14, flags = ?15,"
		" conservative = ?16, comm = ?17, untold = ?18, untold_seen = ?19"
		" WHERE (uid, name, state, pid, start_time, boot_id, witness_pid, witness_start,"
		" uffd_fd, chan_fd, lower_id, epoch, protect, flags, conservative, comm, untold,"
		" untold_seen) IS NOT (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14,"
		" ?15, ?16, ?17, ?18, ?19)",
		"iitiiitiiiitiiiitii", (int64_t)m->id, (int64_t)m->uid, m->name, (int64_t)m->state,
		(int64_t)m->pid, (int64_t)m->start_time, m->boot_id, (int64_t)m->witness_pid,
		(int64_t)m->witness_start, (int64_t)m->uffd_fd, (int64_t)m->chan_fd, m->lower_id,
		(int64_t)m->epoch, (int64_t)m->protect, (int64_t)m->flags, (int64_t)m->conservative,
		m->comm, (int64_t)m->untold, (int64_t)m->untold_seen);
}

int db_mm_delete(struct db_tx *tx, uint64_t id)
{
	int r = sql_exec(tx,
			 "INSERT INTO meta SELECT ?2, epoch FROM mm WHERE id = ?1 AND epoch >"
			 " coalesce((SELECT value FROM meta WHERE key = ?2), 0)"
			 " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
			 "it", (int64_t)id, DB_META_LAST_EPOCH);

	return r < 0 ? r : sql_exec(tx, "DELETE FROM mm WHERE id = ?1", "i", (int64_t)id);
}

/* ---- files in an address space ---- */

int db_mm_file_put(struct db_tx *tx, uint64_t mm, const struct mm_file *file)
{
	return sql_exec(tx,
			"INSERT INTO mm_file (mm, file, protect, written, unsettled)"
			" VALUES (?1, ?2, ?3, ?4, ?5)"
			" ON CONFLICT DO UPDATE SET protect = ?3, written = ?4, unsettled = ?5"
			" WHERE protect <> ?3 OR written <> ?4 OR unsettled <> ?5",
			"iiiii", (int64_t)mm, (int64_t)file->id, (int64_t)file->protect,
			(int64_t)file->written, (int64_t)file->unsettled);
}

int db_mm_file_settle(struct db_tx *tx, uint64_t mm, uint64_t file)
{
	return sql_exec(tx, "UPDATE mm_file SET unsettled = 0 WHERE mm = ?1 AND file = ?2", "ii",
			(int64_t)mm, (int64_t)file);
}

static int settle_all_job(struct db_tx *tx, void *arg)
{
	return sql_exec(tx, "UPDATE mm_file SET unsettled = 0 WHERE unsettled <> 0", "");
}

int db_settle_all(struct db *db)
{
	return db_call(db, settle_all_job, NULL);
}

int db_mm_file_written(struct db_tx *tx, uint64_t mm, uint64_t file, enum mm_written written)
{
	return sql_exec(tx,
			"UPDATE mm_file SET written = ?3"
			" WHERE mm = ?1 AND file = ?2 AND written <> ?3",
			"iii", (int64_t)mm, (int64_t)file, (int64_t)written);
}

int db_mm_file_delete(struct db_tx *tx, uint64_t mm, uint64_t file)
{
	return sql_exec(tx, "DELETE FROM mm_file WHERE mm = ?1 AND file = ?2", "ii", (int64_t)mm,
			(int64_t)file);
}

int marks_file_need(struct db_tx *tx, uint64_t mm, uint64_t file)
{
	return sql_exec(tx,
			"INSERT INTO mm_file (mm, file, protect) VALUES (?1, ?2, 0)"
			" ON CONFLICT DO NOTHING",
			"ii", (int64_t)mm, (int64_t)file);
}

int db_set_put(struct db_tx *tx, enum db_set_kind kind, uint64_t mm, enum mm_owner owner,
	       uint64_t file, const struct mm_set *set)
{
	const struct chunk_key key = {kind == DB_SET_ARMED ? CHUNKS_ARMED : CHUNKS_DIRTY, mm,
				      chunk_owner(owner), file};
	int r = marks_file_need(tx, mm, file);

	return r < 0 ? r : chunks_put(tx, &key, set);
}

/* Removes what the model does not know any more, one file at a time. */
static int files_prune(struct db_tx *tx, const struct mm *mm)
{
	int64_t file = 0;
	int r;

	for (;;) {
		r = sql_get_i64(tx, &file,
				"SELECT min(file) FROM mm_file WHERE mm = ?1 AND file > ?2", "ii",
				(int64_t)mm->id, file);
		if (r < 0)
			return r == -ENODATA ? 0 : r;
		if (mm_file_find(mm, (uint64_t)file))
			continue;
		r = db_mm_file_delete(tx, mm->id, (uint64_t)file);
		if (r < 0)
			return r;
	}
}

/*
 * What the mappings in [start, end) say is dirty is not stored a second time: see README.md,
 * Reading a page. Theirs are the marks that this transaction makes equal to the model's.
 */
static int dirty_put(struct db_tx *tx, const struct mm *mm, const struct mm_file *f,
		     enum mm_owner owner, uint64_t start, uint64_t end)
{
	_cleanup_set_ struct mm_set shown = {NULL}, rest = {NULL};
	const struct mm_set *dirty = &f->own[owner].dirty;
	int r = 0;

	if (!mm_set_is_empty(dirty)) {
		r = mm_shown_dirty(mm, f, owner, start, end, &shown);
		if (r == 0 && !mm_set_is_empty(&shown)) {
			r = mm_set_copy(&rest, dirty);
			dirty = &rest;
		}
		if (r == 0)
			r = mm_set_andnot(&rest, &shown);
	}
	return r < 0 ? r : db_set_put(tx, DB_SET_DIRTY, mm->id, owner, f->id, dirty);
}

static int file_sets_put(struct db_tx *tx, const struct mm *mm, const struct mm_file *f,
			 uint64_t start, uint64_t end)
{
	int r = db_mm_file_put(tx, mm->id, f);

	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++) {
		r = db_set_put(tx, DB_SET_ARMED, mm->id, o, f->id, &f->own[o].armed);
		if (r == 0)
			r = dirty_put(tx, mm, f, o, start, end);
	}
	return r;
}

int db_model_put(struct db_tx *tx, const struct mm *mm)
{
	const struct mm_file *f;
	int r = db_vmas_replace(tx, mm->id, mm->vmas, mm->nr_vmas);

	for (f = mm->files; r == 0 && f; f = f->hh.next)
		r = file_sets_put(tx, mm, f, 0, UINT64_MAX);
	return r < 0 ? r : files_prune(tx, mm);
}

int db_mapping_put(struct db_tx *tx, const struct mm *mm, uint64_t file, uint64_t start,
		   uint64_t end, bool sets)
{
	const struct mm_file *f = mm_file_find(mm, file);
	int r = vmas_put(tx, mm->id, mm->vmas, mm->nr_vmas, start, end);

	return r < 0 || !f || !sets ? r : file_sets_put(tx, mm, f, start, end);
}

/* ---- files ---- */

int db_file_put(struct db_tx *tx, uint64_t id, const void *handle, size_t handle_len,
		const char *path)
{
	int r = sql_exec(tx,
			 "INSERT INTO file (id, handle, path) VALUES (?1, x'', '')"
			 " ON CONFLICT DO NOTHING",
			 "i", (int64_t)id);

	assert(handle_len <= DB_HANDLE_SIZE);
	if (r == 0 && handle)
		r = sql_exec(tx, "UPDATE file SET handle = ?2 WHERE id = ?1 AND handle <> ?2", "ib",
			     (int64_t)id, handle, handle_len);
	if (r == 0 && path)
		r = sql_exec(tx, "UPDATE file SET path = ?2 WHERE id = ?1 AND path <> ?2", "it",
			     (int64_t)id, path);
	return r;
}

int db_file_delete(struct db_tx *tx, uint64_t id)
{
	return sql_exec(tx, "DELETE FROM file WHERE id = ?1", "i", (int64_t)id);
}

int db_file_delete_gone(struct db_tx *tx)
{
	return sql_exec(tx, "DELETE FROM file WHERE id NOT IN (SELECT id FROM inode)", "");
}
