/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mappings and their marks into the database. What is stored is read first and compared: a program
 * with ten thousand mappings has them harvested again and again, and hardly one is another.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "db/chunks.h"
#include "db/marks.h"
#include "db/vmas.h"

/* Pages of the address space that one set of marks can hold. */
#define REGION_SHIFT	 32

/* Of the address space, in a mark_chunk row. */
#define CHUNK_ADDR_SHIFT (WPFS_PAGE_SHIFT + MM_CHUNK_SHIFT)

/* ---- rows ---- */

/* The columns of a row, in the order of VMA_COLUMNS. */
struct vma_row {
	int64_t addr, pages, file, pgoff, prot, dev, owner, async, sealed;
};

#define VMA_COLUMNS    "addr, pages, file, pgoff, prot, dev, owner, async, sealed"
#define VMA_NR_COLUMNS 9

_Static_assert(sizeof(struct vma_row) == VMA_NR_COLUMNS * sizeof(int64_t), "columns in a row");

struct vma_rows {
	struct vma_row *row;
	size_t nr, room;
};

static void row_of_vma(const struct mm_vma *v, struct vma_row *row)
{
	*row = (struct vma_row){
		.addr = (int64_t)v->start,
		.pages = (int64_t)mm_vma_pages(v),
		.file = (int64_t)v->file,
		.pgoff = (int64_t)v->pgoff,
		.prot = (int64_t)v->prot,
		.dev = (int64_t)v->dev,
		.owner = (int64_t)(v->registered ? chunk_owner(v->owner) : 0),
		.async = v->registered && v->async,
		.sealed = v->sealed,
	};
}

static uint64_t row_end(const struct vma_row *row)
{
	return (uint64_t)row->addr + ((uint64_t)row->pages << WPFS_PAGE_SHIFT);
}

static int rows_append(struct vma_rows *rows, sqlite3_stmt *st)
{
	int64_t *column;

	if (rows->nr == rows->room) {
		size_t room = rows->room ? rows->room * 2 : 16;
		struct vma_row *bigger = reallocarray(rows->row, room, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		rows->row = bigger;
		rows->room = room;
	}
	column = &rows->row[rows->nr++].addr;
	for (int i = 0; i < VMA_NR_COLUMNS; i++)
		column[i] = sqlite3_column_int64(st, i);
	return 0;
}

/* The stored mappings that touch [start, end), ascending. Stored ones do not overlap. */
static int rows_get(struct db_tx *tx, uint64_t mm, uint64_t start, uint64_t end,
		    struct vma_rows *rows)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st,
			  "SELECT " VMA_COLUMNS " FROM vma WHERE mm = ?1 AND addr < ?3"
			  " AND addr >= coalesce((SELECT max(addr) FROM vma"
			  "  WHERE mm = ?1 AND addr <= ?2), 0)"
			  " AND addr + pages * 4096 > ?2 ORDER BY addr",
			  "iii", (int64_t)mm, (int64_t)start, (int64_t)end);

	while (r == 0 && (r = sql_step(tx, st)) > 0) {
		r = rows_append(rows, st);
		if (r < 0)
			sql_reset(st);
	}
	return r;
}

static int row_delete(struct db_tx *tx, uint64_t mm, const struct vma_row *row)
{
	return sql_exec(tx, "DELETE FROM vma WHERE mm = ?1 AND addr = ?2", "ii", (int64_t)mm,
			row->addr);
}

static int row_put(struct db_tx *tx, uint64_t mm, const struct vma_row *row)
{
	return sql_exec(tx,
			"INSERT INTO vma (mm, " VMA_COLUMNS ")"
			" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"
			" ON CONFLICT DO UPDATE SET pages = ?3, file = ?4, pgoff = ?5, prot = ?6,"
			" dev = ?7, owner = ?8, async = ?9, sealed = ?10",
			"iiiiiiiiii", (int64_t)mm, row->addr, row->pages, row->file, row->pgoff,
			row->prot, row->dev, row->owner, row->async, row->sealed);
}

/* Both ascend by address. */
static int rows_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr,
		    const struct vma_rows *stored)
{
	size_t s = 0;
	int r = 0;

	for (size_t i = 0; r == 0 && i < nr; i++) {
		struct vma_row row;

		row_of_vma(&vmas[i], &row);
		for (; r == 0 && s < stored->nr && stored->row[s].addr < row.addr; s++)
			r = row_delete(tx, mm, &stored->row[s]);
		if (r == 0 && s < stored->nr && stored->row[s].addr == row.addr) {
			if (memcmp(&stored->row[s++], &row, sizeof(row)) == 0)
				continue;
		}
		if (r == 0)
			r = row_put(tx, mm, &row);
	}
	for (; r == 0 && s < stored->nr; s++)
		r = row_delete(tx, mm, &stored->row[s]);
	return r;
}

/* ---- marks ---- */

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

/* Of the chunks `first` and `last` of a region, as they are stored, what is not in [start, end). */
static int region_get_rest(struct db_tx *tx, const struct chunk_key *key, uint64_t first,
			   uint64_t last, uint64_t start, uint64_t end, struct mm_set *set)
{
	const uint64_t base = key->k3 << REGION_SHIFT;
	uint64_t from = start >> WPFS_PAGE_SHIFT, to = end >> WPFS_PAGE_SHIFT;
	bool head = from > base && from & (MM_CHUNK_PAGES - 1);
	bool tail = to < base + MM_SET_MAX && to & (MM_CHUNK_PAGES - 1);
	int r = head ? chunks_get_one(tx, key, (uint32_t)first, set) : 0;

	if (r == 0 && tail && (!head || last != first))
		r = chunks_get_one(tx, key, (uint32_t)last, set);
	from = from > base ? from - base : 0;
	return r < 0 ? r : mm_set_remove_range(set, from, to - base - from);
}

/* Stores the marks of a region in [start, end): those of these mappings, which are all there. */
static int region_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr,
		      enum mm_owner owner, uint64_t region, uint64_t start, uint64_t end)
{
	const struct chunk_key key = {CHUNKS_MARKS, mm, chunk_owner(owner), region};
	const uint64_t base = region << (REGION_SHIFT - MM_CHUNK_SHIFT);
	const uint64_t most = (MM_SET_MAX >> MM_CHUNK_SHIFT) - 1;
	uint64_t first = start >> CHUNK_ADDR_SHIFT, last = (end - 1) >> CHUNK_ADDR_SHIFT;
	_cleanup_set_ struct mm_set set = {NULL};
	int r;

	first = first > base ? first - base : 0;
	last = last - base < most ? last - base : most;
	r = region_get_rest(tx, &key, first, last, start, end, &set);
	for (size_t i = 0; r == 0 && i < nr; i++) {
		if (vmas[i].registered && vmas[i].owner == owner &&
		    vma_region(vmas[i].start) <= region && vma_region(vmas[i].end - 1) >= region)
			r = region_add(&set, &vmas[i], region);
	}
	return r < 0 ? r : chunks_put_part(tx, &key, &set, first, last);
}

/* Stores the marks in [start, end): those of these mappings, which are all there. */
static int marks_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr,
		     enum mm_owner owner, uint64_t start, uint64_t end)
{
	uint64_t from = vma_region(start);

	for (;;) {
		uint64_t mapped, stored, region;
		bool more = region_of_vmas(vmas, nr, owner, from, &mapped);
		int r = region_stored(tx, mm, owner, from, &stored);

		if (r < 0 || (r == 0 && !more))
			return r;
		region = !more || (r > 0 && stored < mapped) ? stored : mapped;
		if (region > vma_region(end - 1))
			return 0;
		r = region_put(tx, mm, vmas, nr, owner, region, start, end);
		if (r < 0)
			return r;
		from = region + 1;
	}
}

/* ---- both ---- */

static bool crosses(uint64_t start, uint64_t end, uint64_t border)
{
	return start < border && border < end;
}

/* The mappings of the model in [start, end), as indices. False: one crosses a border. */
static bool vmas_within(const struct mm_vma *vmas, size_t nr, uint64_t start, uint64_t end,
			size_t *first, size_t *last)
{
	size_t i = 0;

	while (i < nr && vmas[i].end <= start)
		i++;
	*first = i;
	while (i < nr && vmas[i].end <= end)
		i++;
	*last = i;
	return (*first == nr || vmas[*first].start >= start) && (i == nr || vmas[i].start >= end);
}

static bool rows_within(const struct vma_rows *rows, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < rows->nr; i++) {
		uint64_t addr = (uint64_t)rows->row[i].addr;

		if (crosses(addr, row_end(&rows->row[i]), start) ||
		    crosses(addr, row_end(&rows->row[i]), end))
			return false;
	}
	return true;
}

int vmas_put(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr, uint64_t start,
	     uint64_t end)
{
	struct vma_rows rows = {0};
	size_t first, last;
	int r = rows_get(tx, mm, start, end, &rows);

	if (r == 0 && (!vmas_within(vmas, nr, start, end, &first, &last) ||
		       !rows_within(&rows, start, end))) {
		free(rows.row);
		return db_vmas_replace(tx, mm, vmas, nr);
	}
	if (r == 0)
		r = rows_put(tx, mm, vmas + first, last - first, &rows);
	for (enum mm_owner o = MM_WPFS; r == 0 && o < MM_NR_OWNERS; o++)
		r = marks_put(tx, mm, vmas + first, last - first, o, start, end);
	free(rows.row);
	return r;
}

int db_vmas_replace(struct db_tx *tx, uint64_t mm, const struct mm_vma *vmas, size_t nr)
{
	return vmas_put(tx, mm, vmas, nr, 0, DB_ADDR_MAX);
}
