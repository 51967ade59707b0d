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

/* Pages of the address space that one set of marks can hold. */
#define REGION_SHIFT 32

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
		" conservative = ?16, comm = ?17, untold = ?18, untold_seen = ?19",
		"iitiiitiiiitiiiitii", (int64_t)m->id, (int64_t)m->uid, m->name, (int64_t)m->state,
		(int64_t)m->pid, (int64_t)m->start_time, m->boot_id, (int64_t)m->witness_pid,
		(int64_t)m->witness_start, (int64_t)m->uffd_fd, (int64_t)m->chan_fd, m->lower_id,
		(int64_t)m->epoch, (int64_t)m->protect, (int64_t)m->flags, (int64_t)m->conservative,
		m->comm, (int64_t)m->untold, (int64_t)m->untold_seen);
}

int db_mm_delete(struct db_tx *tx, uint64_t id)
{
	return sql_exec(tx, "DELETE FROM mm WHERE id = ?1", "i", (int64_t)id);
}

/* ---- mappings and marks ---- */

static int vma_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *v)
{
	return sql_exec(
		tx,
		"INSERT INTO vma (mm, addr, pages, file, pgoff, prot, dev, owner, async, sealed)"
		" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
		"iiiiiiiiii", (int64_t)mm, (int64_t)v->start, (int64_t)mm_vma_pages(v),
		(int64_t)v->file, (int64_t)v->pgoff, (int64_t)v->prot, (int64_t)v->dev,
		(int64_t)(v->registered ? chunk_owner(v->owner) : 0),
		(int64_t)(v->registered && v->async), (int64_t)v->sealed);
}

/* Adds what a mapping has marked in this region of the address space. */
static int region_add(struct mm_set *set, const struct mm_vma *v, uint64_t region)
{
	int64_t page = (int64_t)(v->start >> WPFS_PAGE_SHIFT);
	_cleanup_set_ struct mm_set part = {NULL};
	int r = mm_set_shift(&part, &v->marked, page - (int64_t)(region << REGION_SHIFT));

	return r < 0 ? r : mm_set_or(set, &part);
}

static uint64_t vma_region(uint64_t addr)
{
	return addr >> WPFS_PAGE_SHIFT >> REGION_SHIFT;
}

/* The lowest region at or after `from` with a mapping that can have marks of this owner. */
static bool region_of_vmas(const struct mm_vma *vmas, size_t nr, enum mm_owner owner, uint64_t from,
			   uint64_t *region)
{
	for (size_t i = 0; i < nr; i++) {
		if (!vmas[i].registered || vmas[i].owner != owner ||
		    vma_region(vmas[i].end - 1) < from)
			continue;
		*region = vma_region(vmas[i].start) > from ? vma_region(vmas[i].start) : from;
		return true;
	}
	return false;
}

/* The same by what is stored. 1, 0 or -errno. */
static int region_stored(struct db_tx *tx, uint64_t mm, enum mm_owner owner, uint64_t from,
			 uint64_t *region)
{
	int64_t chunk;
	int r = sql_get_i64(tx, &chunk,
			    "SELECT min(chunk) FROM mark_chunk"
			    " WHERE mm = ?1 AND owner = ?2 AND chunk >= ?3 << 16",
			    "iii", (int64_t)mm, (int64_t)chunk_owner(owner), (int64_t)from);

	if (r < 0)
		return r == -ENODATA ? 0 : r;
	*region = (uint64_t)chunk >> (REGION_SHIFT - MM_CHUNK_SHIFT);
	return 1;
}

static int region_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr,
		      enum mm_owner owner, uint64_t region)
{
	const struct chunk_key key = {CHUNKS_MARKS, mm, chunk_owner(owner), region};
	_cleanup_set_ struct mm_set set = {NULL};
	int r = 0;

	for (size_t i = 0; r == 0 && i < nr; i++) {
		if (vmas[i].registered && vmas[i].owner == owner &&
		    vma_region(vmas[i].start) <= region && vma_region(vmas[i].end - 1) >= region)
			r = region_add(&set, &vmas[i], region);
	}
	return r < 0 ? r : chunks_put(tx, &key, &set);
}

static int marks_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr,
		     enum mm_owner owner)
{
	uint64_t from = 0;

	for (;;) {
		uint64_t mapped, stored, region;
		bool more = region_of_vmas(vmas, nr, owner, from, &mapped);
		int r = region_stored(tx, mm, owner, from, &stored);

		if (r < 0 || (r == 0 && !more))
			return r;
		region = !more || (r > 0 && stored < mapped) ? stored : mapped;
		r = region_put(tx, mm, vmas, nr, owner, region);
		if (r < 0)
			return r;
		from = region + 1;
	}
}

int db_vmas_replace(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr)
{
	int r = sql_exec(tx, "DELETE FROM vma WHERE mm = ?1", "i", (int64_t)mm);

	for (size_t i = 0; r == 0 && i < nr; i++)
		r = vma_put(tx, mm, &vmas[i]);
	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++)
		r = marks_put(tx, mm, vmas, nr, o);
	return r;
}

/* ---- files in an address space ---- */

int db_mm_file_put(struct db_tx *tx, uint64_t mm, uint64_t file, bool protect,
		   enum mm_written written)
{
	return sql_exec(tx,
			"INSERT INTO mm_file (mm, file, protect, written) VALUES (?1, ?2, ?3, ?4)"
			" ON CONFLICT DO UPDATE SET protect = ?3, written = ?4"
			" WHERE protect <> ?3 OR written <> ?4",
			"iiii", (int64_t)mm, (int64_t)file, (int64_t)protect, (int64_t)written);
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

/* The row that sets and epochs belong to. */
static int mm_file_need(struct db_tx *tx, uint64_t mm, uint64_t file)
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
	int r = mm_file_need(tx, mm, file);

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

static int file_sets_put(struct db_tx *tx, uint64_t mm, const struct mm_file *f)
{
	int r = db_mm_file_put(tx, mm, f->id, f->protect, f->written);

	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++) {
		r = db_set_put(tx, DB_SET_ARMED, mm, o, f->id, &f->own[o].armed);
		if (r == 0)
			r = db_set_put(tx, DB_SET_DIRTY, mm, o, f->id, &f->own[o].dirty);
	}
	return r;
}

int db_model_put(struct db_tx *tx, const struct mm *mm)
{
	const struct mm_file *f;
	int r = db_vmas_replace(tx, mm->id, mm->vmas, mm->nr_vmas);

	for (f = mm->files; r == 0 && f; f = f->hh.next)
		r = file_sets_put(tx, mm->id, f);
	return r < 0 ? r : files_prune(tx, mm);
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

/* ---- epochs ---- */

int db_epoch_is_open(struct db_tx *tx, uint64_t mm, uint64_t file)
{
	int64_t nr;
	int r = sql_get_i64(tx, &nr,
			    "SELECT count(*) FROM epoch"
			    " WHERE mm = ?1 AND file = ?2 AND closed_ns IS NULL",
			    "ii", (int64_t)mm, (int64_t)file);

	return r < 0 ? r : (int)nr;
}

int db_epoch_close(struct db_tx *tx, uint64_t mm, uint64_t file, int64_t now_ns,
		   const struct mm_set *last, enum mm_written written)
{
	struct chunk_key key = {CHUNKS_EPOCH, mm, file, 0};
	int64_t number;
	int r = sql_get_i64(
		tx, &number,
		"SELECT number FROM epoch WHERE mm = ?1 AND file = ?2 AND closed_ns IS NULL", "ii",
		(int64_t)mm, (int64_t)file);

	if (r < 0)
		return r == -ENODATA ? 0 : r;
	key.k3 = (uint64_t)number;
	r = sql_exec(tx,
		     "UPDATE epoch SET closed_ns = max(?4, opened_ns), written = ?5"
		     " WHERE mm = ?1 AND file = ?2 AND number = ?3",
		     "iiiii", (int64_t)mm, (int64_t)file, number, now_ns, (int64_t)written);
	if (r == 0 && last)
		r = chunks_put(tx, &key, last);
	if (r == 0)
		r = sql_exec(tx,
			     "DELETE FROM epoch WHERE mm = ?1 AND file = ?2 AND number <= ("
			     " SELECT number FROM epoch WHERE mm = ?1 AND file = ?2"
			     " AND closed_ns IS NOT NULL ORDER BY number DESC LIMIT 1 OFFSET ?3)",
			     "iii", (int64_t)mm, (int64_t)file, (int64_t)DB_EPOCHS_KEPT);
	return r;
}

int db_epoch_open(struct db_tx *tx, uint64_t mm, uint64_t file, uint64_t number, int64_t now_ns,
		  const struct mm_set *last, enum mm_written written)
{
	int64_t open;
	int r = mm_file_need(tx, mm, file);

	if (r == 0)
		r = sql_get_i64(tx, &open,
				"SELECT closed_ns IS NULL FROM epoch"
				" WHERE mm = ?1 AND file = ?2 AND number = ?3",
				"iii", (int64_t)mm, (int64_t)file, (int64_t)number);
	if (r == 0 && open)
		return 0; /* it goes on */
	if (r == 0)	  /* unprotected, and armed again before another began */
		r = sql_exec(tx, "DELETE FROM epoch WHERE mm = ?1 AND file = ?2 AND number = ?3",
			     "iii", (int64_t)mm, (int64_t)file, (int64_t)number);
	if (r == 0 || r == -ENODATA)
		r = db_epoch_close(tx, mm, file, now_ns, last, written);
	if (r == 0)
		r = sql_exec(tx,
			     "INSERT INTO epoch (mm, file, number, opened_ns, closed_ns)"
			     " VALUES (?1, ?2, ?3, ?4, NULL)",
			     "iiii", (int64_t)mm, (int64_t)file, (int64_t)number, now_ns);
	return r;
}
