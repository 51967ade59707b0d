/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tracked address spaces in the database: what goes in comes out, and only changes are written. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "db/chunks.h"
#include "db/db_internal.h"
#include "db/marks.h"

#define PAGE 4096ULL

static char path[64];
static struct db *db;

static int set_up(void **state)
{
	int fd;

	strcpy(path, "/tmp/wpfs-marks-test.XXXXXX");
	fd = mkstemp(path);
	if (fd < 0 || close(fd))
		return -1;
	return db_open(path, DB_VOLATILE, &db, NULL);
}

static int tear_down(void **state)
{
	db_close(db);
	return unlink(path);
}

static uint64_t rng_state = 88172645463325252;

static uint64_t rng(uint64_t below)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return (rng_state >> 8) % below;
}

static void random_set(struct mm_set *set, uint64_t pages)
{
	for (uint64_t n = rng(30); n > 0; n--) {
		uint64_t first = rng(pages), nr = 1 + rng(rng(4) ? 20 : pages);

		assert_int_equal(
			mm_set_add_range(set, first, nr < pages - first ? nr : pages - first), 0);
	}
}

static struct db_mm row_make(uint64_t id, const char *name)
{
	struct db_mm row = {.id = id,
			    .uid = 1000,
			    .state = WPFS_MM_LIVE,
			    .pid = 4711,
			    .start_time = 1ULL << 40,
			    .witness_pid = 4712,
			    .witness_start = 5,
			    .uffd_fd = 3,
			    .chan_fd = 4,
			    .epoch = 2,
			    .protect = true,
			    .flags = DB_MM_OWN_UFFDS | DB_MM_PRIVATE_MAPS,
			    .conservative = 9};

	snprintf(row.name, sizeof(row.name), "%s", name);
	strcpy(row.boot_id, "boot");
	strcpy(row.lower_id, "lower");
	strcpy(row.comm, "prog");
	return row;
}

/* A model with mappings of three files, one over the border of two regions of 2^32 pages. */
static void model_make(struct mm *mm, uint64_t id)
{
	static const struct {
		uint64_t start, pages, pgoff;
	} places[] = {{0x10000, 16, 0},
		      {0x7f0000000000 - 300 * PAGE, 200000, 5},
		      {(1ULL << 44) - 1000 * PAGE, 140000, 70000},
		      {(1ULL << 44) + 140000 * PAGE, 3, 1}};

	mm_init(mm);
	mm->id = id;
	mm->epoch = 2;
	mm->vmas = calloc(4, sizeof(*mm->vmas));
	assert_non_null(mm->vmas);
	for (int i = 0; i < 4; i++) {
		static const int order[] = {0, 2, 3, 1}; /* ascending by address */
		struct mm_vma *v = &mm->vmas[mm->nr_vmas++];
		int p = order[i];

		v->start = places[p].start;
		v->end = v->start + places[p].pages * PAGE;
		v->file = 10 + (unsigned)p % 3;
		v->pgoff = places[p].pgoff;
		v->prot = PROT_READ | PROT_WRITE;
		v->dev = 99;
		v->registered = p != 3;
		v->owner = p == 1 ? MM_PROGRAM : MM_WPFS;
		v->async = p == 0;
		v->sealed = p == 3;
		if (v->registered)
			random_set(&v->marked, places[p].pages);
		assert_non_null(mm_file_get(mm, v->file));
	}
	for (uint64_t file = 10; file < 14; file++) { /* 13 is not mapped any more */
		struct mm_file *f = mm_file_get(mm, file);

		assert_non_null(f);
		f->protect = file & 1;
		for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
			random_set(&f->own[o].armed, 300000);
			assert_int_equal(
				mm_set_or_range(&f->own[o].dirty, &f->own[o].armed, 0, rng(200000)),
				0);
		}
	}
	assert_int_equal(mm_fold_shown(mm), 0); /* as a harvest does */
}

struct put {
	const struct db_mm *row;
	const struct mm *mm;
	const struct mm_vma *only; /* this mapping and its file */
	int written;		   /* rows */
};

static int put_job(struct db_tx *tx, void *arg)
{
	struct put *put = arg;
	int before = sqlite3_total_changes(tx->sql), r = 0;

	if (put->row)
		r = db_mm_put(tx, put->row);
	for (uint64_t file = 10; r == 0 && file < 14; file++)
		r = db_file_put(tx, file, "handle", 6, "/path");
	if (r == 0 && put->only)
		r = db_mapping_put(tx, put->mm, put->only->file, put->only->start, put->only->end,
				   true);
	else if (r == 0)
		r = db_model_put(tx, put->mm);
	put->written = sqlite3_total_changes(tx->sql) - before;
	return r;
}

static int put_model(const struct db_mm *row, const struct mm *mm)
{
	struct put put = {.row = row, .mm = mm};

	assert_int_equal(db_call(db, put_job, &put), 0);
	return put.written;
}

static void assert_same_model(const struct mm *a, const struct mm *b)
{
	const struct mm_file *f;

	assert_int_equal(a->nr_vmas, b->nr_vmas);
	for (size_t i = 0; i < a->nr_vmas; i++) {
		const struct mm_vma *v = &a->vmas[i], *w = &b->vmas[i];

		assert_true(v->start == w->start && v->end == w->end && v->file == w->file);
		assert_true(v->pgoff == w->pgoff && v->prot == w->prot && v->dev == w->dev);
		assert_true(v->registered == w->registered && v->async == w->async);
		assert_true(v->sealed == w->sealed);
		assert_true(!v->registered || v->owner == w->owner);
		assert_true(mm_set_is_equal(&v->marked, &w->marked));
	}
	assert_int_equal(HASH_COUNT(a->files), HASH_COUNT(b->files));
	for (f = a->files; f; f = f->hh.next) {
		const struct mm_file *g = mm_file_find(b, f->id);

		assert_non_null(g);
		assert_int_equal(f->protect, g->protect);
		for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
			assert_true(mm_set_is_equal(&f->own[o].armed, &g->own[o].armed));
			assert_true(mm_set_is_equal(&f->own[o].dirty, &g->own[o].dirty));
		}
	}
}

/* ---- what goes in comes out ---- */

struct expect {
	const struct mm *mm;
	unsigned files, mms;
};

static int expect_file(void *ctx, const struct db_file *file)
{
	struct expect *e = ctx;

	e->files++;
	assert_int_equal(file->handle_len, 6);
	assert_memory_equal(file->handle, "handle", 6);
	assert_string_equal(file->path, "/path");
	return 0;
}

static int expect_mm(void *ctx, const struct db_mm *row, struct mm *model)
{
	struct db_mm same = row_make(7, "db");
	struct expect *e = ctx;
	struct mm taken;

	e->mms++;
	assert_memory_equal(row->name, same.name, sizeof(same.name));
	assert_true(row->id == 7 && row->uid == 1000 && row->state == WPFS_MM_LIVE);
	assert_true(row->pid == 4711 && row->start_time == 1ULL << 40);
	assert_true(row->witness_pid == 4712 && row->witness_start == 5);
	assert_true(row->uffd_fd == 3 && row->chan_fd == 4 && row->epoch == 2 && row->protect);
	assert_true(row->flags == same.flags && row->conservative == 9);
	assert_string_equal(row->boot_id, "boot");
	assert_string_equal(row->lower_id, "lower");
	assert_string_equal(row->comm, "prog");
	assert_true(model->id == 7 && model->epoch == 2 && model->protect_new && model->own_uffds);
	assert_int_equal(model->conservative, 9);
	taken = *model;
	mm_init(model);
	assert_same_model(e->mm, &taken);
	mm_free(&taken);
	return 0;
}

static void test_round_trip(void **state)
{
	struct db_mm row = row_make(7, "db");

	for (int i = 0; i < 20; i++) {
		struct mm mm;
		struct expect e = {&mm, 0, 0};
		const struct db_marks_visitor visitor = {&e, expect_file, expect_mm, NULL};

		model_make(&mm, 7);
		put_model(&row, &mm);
		assert_int_equal(db_marks_load(db, &visitor), 0);
		assert_int_equal(e.files, 4);
		assert_int_equal(e.mms, 1);
		mm_free(&mm);
	}
}

/* ---- only what changed is written ---- */

static void test_changes(void **state)
{
	struct db_mm row = row_make(7, "db");
	struct mm mm;
	struct mm_file *f;
	int base;

	model_make(&mm, 7);
	put_model(&row, &mm);
	base = put_model(&row, &mm);
	assert_int_equal(base, 0);
	f = mm_file_find(&mm, 13);
	assert_int_equal(mm_set_add_range(&f->own[MM_WPFS].armed, 65536 * 9 + 7, 1), 0);
	assert_int_equal(put_model(&row, &mm), base + 1);
	assert_int_equal(mm_set_remove_range(&f->own[MM_WPFS].armed, 65536 * 9 + 7, 1), 0);
	assert_int_equal(put_model(&row, &mm), base + 1);
	mm.vmas[1].prot ^= PROT_WRITE;
	assert_int_equal(put_model(&row, &mm), base + 1);
	f = mm_file_find(&mm, mm.vmas[0].file); /* what is not armed is not dirty */
	assert_int_equal(mm_set_remove_range(&f->own[MM_WPFS].armed, 0, 16), 0);
	assert_int_equal(mm_set_remove_range(&f->own[MM_WPFS].dirty, 0, 16), 0);
	mm_set_clear(&mm.vmas[0].marked);
	put_model(&row, &mm);
	assert_int_equal(mm_set_add_range(&mm.vmas[0].marked, 3, 4), 0);
	assert_int_equal(put_model(&row, &mm), base + 1);
	mm_free(&mm);
}

static int dirty_rows_job(struct db_tx *tx, void *arg)
{
	return sql_get_i64(tx, arg, "SELECT count(*) FROM dirty_chunk", "");
}

static int64_t dirty_rows(void)
{
	int64_t rows;

	assert_int_equal(db_read(db, dirty_rows_job, &rows), 0);
	return rows;
}

/* What marks tell is not stored again as dirty; once they are gone it is. */
static void test_dirty_once(void **state)
{
	struct db_mm row = row_make(7, "db");
	struct expect e = {0};
	const struct db_marks_visitor visitor = {&e, NULL, expect_mm, NULL};
	struct mm_vma *v;
	struct mm_file *f;
	struct mm mm;

	mm_init(&mm);
	mm.id = 7;
	mm.epoch = 2;
	mm.vmas = calloc(1, sizeof(*mm.vmas));
	f = mm_file_get(&mm, 10);
	assert_true(mm.vmas && f);
	mm.nr_vmas = 1;
	v = mm.vmas;
	*v = (struct mm_vma){.start = 5 * PAGE,
			     .end = 105 * PAGE,
			     .file = 10,
			     .pgoff = 7,
			     .prot = PROT_READ,
			     .dev = 99,
			     .registered = true,
			     .async = true};
	assert_int_equal(mm_set_add_range(&v->marked, 20, 80), 0);
	assert_int_equal(mm_set_add_range(&f->own[MM_WPFS].armed, 0, 107), 0);
	assert_int_equal(mm_fold_shown(&mm), 0);
	assert_int_equal(mm_set_count(&f->own[MM_WPFS].dirty), 20);
	e.mm = &mm;
	put_model(&row, &mm);
	assert_int_equal(dirty_rows(), 0);
	assert_int_equal(db_marks_load(db, &visitor), 0);

	/* one that the marks do not tell, and then none of them does */
	assert_int_equal(mm_set_add_range(&f->own[MM_WPFS].dirty, 3, 1), 0);
	put_model(&row, &mm);
	assert_int_equal(dirty_rows(), 1);
	assert_int_equal(db_marks_load(db, &visitor), 0);
	mm_forget_vmas(&mm);
	put_model(&row, &mm);
	assert_int_equal(db_marks_load(db, &visitor), 0);
	assert_int_equal(e.mms, 3);
	mm_free(&mm);
}

/* A new mapping stored alone is the same as all stored again. */
static void test_mapping_put(void **state)
{
	struct db_mm row = row_make(7, "db");

	for (int i = 0; i < 40; i++) {
		struct mm_vma v = {.file = 10 + rng(3), .prot = PROT_READ, .dev = 99};
		struct expect e = {0};
		const struct db_marks_visitor visitor = {&e, NULL, expect_mm, NULL};
		struct put put = {.row = &row};
		uint64_t pages = 1 + rng(100000);
		struct mm mm;

		model_make(&mm, 7);
		put_model(&row, &mm);
		/* in free space, beside a mapping, over one, over the border of one */
		switch (rng(4)) {
		case 0:
			v.start = (1 + rng(1000)) * PAGE << 15;
			break;
		case 1:
			v.start = mm.vmas[rng(4)].end;
			pages = 1 + rng(900);
			break;
		case 2:
			v.start = mm.vmas[0].start;
			v.file = mm.vmas[0].file;
			break;
		default:
			v.start = mm.vmas[1].end - 5 * PAGE;
			v.file = mm.vmas[1].file;
			pages = 1 + rng(900);
		}
		v.end = v.start + pages * PAGE;
		v.registered = rng(2);
		v.async = v.registered;
		if (v.registered)
			random_set(&v.marked, pages);
		put.only = &(struct mm_vma){.start = v.start, .end = v.end, .file = v.file};
		assert_int_equal(mm_map(&mm, &v), 0);
		assert_int_equal(mm_fold_shown(&mm), 0);
		put.mm = e.mm = &mm;
		assert_int_equal(db_call(db, put_job, &put), 0);
		assert_int_equal(db_marks_load(db, &visitor), 0);
		assert_int_equal(e.mms, 1);
		mm_free(&mm);
	}
}

/* ---- how much is stored and written: the goals of the table of speeds ---- */

#define GIB_PAGES 262144u

static int used_pages_job(struct db_tx *tx, void *arg)
{
	return sql_get_i64(tx, arg,
			   "SELECT page_count - freelist_count"
			   " FROM pragma_page_count, pragma_freelist_count",
			   "");
}

static double bytes_used(void)
{
	int64_t pages;

	assert_int_equal(db_read(db, used_pages_job, &pages), 0);
	return (double)pages * 4096;
}

/* Pages that have been written to the log since it began. */
static int64_t log_pages(void)
{
	char wal[80];
	struct stat st;

	snprintf(wal, sizeof(wal), "%s-wal", path);
	assert_int_equal(stat(wal, &st), 0);
	return (st.st_size - 32) / (4096 + 24);
}

static void test_bytes(void **state)
{
	struct db_mm row = row_make(7, "db");
	struct mm_vma *v;
	struct mm_file *f;
	struct mm mm;
	double empty;
	int64_t before;

	mm_init(&mm);
	mm.id = 7;
	mm.vmas = v = calloc(1, sizeof(*v));
	assert_non_null(v);
	mm.nr_vmas = 1;
	*v = (struct mm_vma){.start = 0x7f0000000000,
			     .end = 0x7f0000000000 + GIB_PAGES * PAGE,
			     .file = 10,
			     .prot = PROT_READ | PROT_WRITE,
			     .registered = true,
			     .async = true};
	f = mm_file_get(&mm, 10);
	assert_non_null(f);
	put_model(&row, &mm);
	empty = bytes_used();
	assert_int_equal(mm_set_add_range(&f->own[MM_WPFS].armed, 0, GIB_PAGES), 0);
	assert_int_equal(mm_set_add_range(&v->marked, 0, GIB_PAGES), 0);
	put_model(&row, &mm);
	assert_true((bytes_used() - empty) / GIB_PAGES <= 0.001);

	/* Half of them are written, at random. */
	for (uint64_t page = 0; page < GIB_PAGES; page++) {
		if (rng(2))
			assert_int_equal(mm_set_remove_range(&v->marked, page, 1), 0);
	}
	assert_int_equal(mm_fold_shown(&mm), 0);
	put_model(&row, &mm);
	assert_true((bytes_used() - empty) / GIB_PAGES <= 0.15);

	/* One page more: its chunk, none of the three other ones. */
	assert_int_equal(mm_set_add_range(&v->marked, 70000, 1), 0);
	put_model(&row, &mm);
	before = log_pages();
	assert_int_equal(mm_set_remove_range(&v->marked, 70000, 1), 0);
	assert_int_equal(mm_fold_shown(&mm), 0);
	assert_int_equal(put_model(&row, &mm), 1); /* the chunk */
	assert_in_range(log_pages() - before, 1, 8);
	mm_free(&mm);
}

static int count_rows_job(struct db_tx *tx, void *arg)
{
	return sql_get_i64(
		tx, arg,
		"SELECT (SELECT count(*) FROM vma) + (SELECT count(*) FROM mm_file)"
		" + (SELECT count(*) FROM mark_chunk) + (SELECT count(*) FROM armed_chunk)"
		" + (SELECT count(*) FROM dirty_chunk) + (SELECT count(*) FROM epoch)"
		" + (SELECT count(*) FROM epoch_chunk)",
		"");
}

static int64_t count_rows(void)
{
	int64_t rows;

	assert_int_equal(db_read(db, count_rows_job, &rows), 0);
	return rows;
}

static int delete_mm_job(struct db_tx *tx, void *arg)
{
	return db_mm_delete(tx, *(uint64_t *)arg);
}

static int delete_file_job(struct db_tx *tx, void *arg)
{
	return db_file_delete(tx, *(uint64_t *)arg);
}

static void test_delete(void **state)
{
	struct db_mm row = row_make(7, "db");
	uint64_t id, file;
	struct mm mm;

	assert_int_equal(db_mm_last_id(db, &id), 0);
	assert_int_equal(id, 0);
	model_make(&mm, 7);
	put_model(&row, &mm);
	mm_file_remove(&mm, mm_file_find(&mm, 13)); /* its sets go with the next store */
	put_model(&row, &mm);
	for (file = 10; file < 14; file++)
		assert_int_equal(db_call(db, delete_file_job, &file), 0);
	/* all that is left are marks, which belong to addresses */
	assert_true(count_rows() > 0);
	id = 7;
	assert_int_equal(db_call(db, delete_mm_job, &id), 0);
	assert_int_equal(count_rows(), 0);
	assert_int_equal(db_mm_last_id(db, &id), 0);
	assert_int_equal(id, 7);
	mm_free(&mm);
}

static int put_row_job(struct db_tx *tx, void *arg)
{
	return db_mm_put(tx, arg);
}

static void test_rows(void **state)
{
	struct db_mm a = row_make(1, "db"), b = row_make(2, "db"), c = row_make(3, "");

	assert_int_equal(db_call(db, put_row_job, &a), 0);
	assert_int_equal(db_call(db, put_row_job, &b), -EEXIST);
	b.uid++;
	assert_int_equal(db_call(db, put_row_job, &b), 0);
	assert_int_equal(db_call(db, put_row_job, &c), 0);
	c.id++;
	assert_int_equal(db_call(db, put_row_job, &c), 0); /* no name is no clash */
	a.pid = 0; /* live without a pid, detached with one, descriptors without a witness */
	assert_int_equal(db_call(db, put_row_job, &a), -EEXIST);
	a.pid = 1;
	a.state = WPFS_MM_DETACHED;
	assert_int_equal(db_call(db, put_row_job, &a), -EEXIST);
	a.pid = 0;
	a.witness_pid = 0;
	assert_int_equal(db_call(db, put_row_job, &a), -EEXIST);
	a.uffd_fd = a.chan_fd = -1;
	assert_int_equal(db_call(db, put_row_job, &a), 0);
}

/* ---- epochs ---- */

struct epoch {
	uint64_t number; /* 0: close only */
	const struct mm_set *last;
};

static int epoch_job(struct db_tx *tx, void *arg)
{
	const struct epoch *e = arg;
	struct db_mm row = row_make(7, "db");
	int r = db_mm_put(tx, &row);

	r = r ?: db_file_put(tx, 10, NULL, 0, NULL);
	if (r == 0 && e->number)
		return db_epoch_open(tx, 7, 10, e->number, 1000, e->last, MM_WRITTEN_YES);
	return r ?: db_epoch_close(tx, 7, 10, 999, e->last, MM_WRITTEN_YES);
}

static int epochs_kept_job(struct db_tx *tx, void *arg)
{
	int64_t *out = arg;
	int r = sql_get_i64(tx, &out[0], "SELECT count(*) FROM epoch WHERE closed_ns IS NULL", "");

	r = r ?: sql_get_i64(tx, &out[1], "SELECT count(*) FROM epoch", "");
	r = r ?: sql_get_i64(tx, &out[2], "SELECT min(number) FROM epoch", "");
	return r ?: sql_get_i64(tx, &out[3], "SELECT count(*) FROM epoch_chunk", "");
}

static void test_epochs(void **state)
{
	struct mm_set last = {NULL};
	int64_t got[4];

	assert_int_equal(mm_set_add_range(&last, 65535, 2), 0);
	for (uint64_t number = 1; number <= DB_EPOCHS_KEPT + 10; number++) {
		struct epoch e = {number, &last};

		assert_int_equal(db_call(db, epoch_job, &e), 0);
	}
	assert_int_equal(db_read(db, epochs_kept_job, got), 0);
	assert_int_equal(got[0], 1);
	assert_int_equal(got[1], DB_EPOCHS_KEPT + 1);
	assert_int_equal(got[2], 10);
	assert_int_equal(got[3], 2 * DB_EPOCHS_KEPT);
	for (int i = 0; i < 2; i++) { /* closing twice is closing once */
		struct epoch e = {0, NULL};

		assert_int_equal(db_call(db, epoch_job, &e), 0);
		assert_int_equal(db_read(db, epochs_kept_job, got), 0);
		assert_int_equal(got[0], 0);
		assert_int_equal(got[1], DB_EPOCHS_KEPT);
	}
	struct epoch closed = {12, NULL}, next = {DB_EPOCHS_KEPT + 11, NULL};

	assert_int_equal(db_call(db, epoch_job, &closed), -EEXIST);
	for (int i = 0; i < 2; i++) { /* one that is open goes on */
		assert_int_equal(db_call(db, epoch_job, &next), 0);
		assert_int_equal(db_read(db, epochs_kept_job, got), 0);
		assert_int_equal(got[0], 1);
	}
	mm_set_free(&last);
}

/* Three epochs, each with pages of its own; the last one is open. */
static void test_epochs_dirty(void **state)
{
	struct mm_set last[3] = {{NULL}}, set = {NULL};
	bool open = false;

	assert_int_equal(mm_set_add_range(&last[1], 5, 2), 0);
	assert_int_equal(mm_set_add_range(&last[2], 65536, 65536), 0);
	for (uint64_t i = 0; i < 3; i++) {
		struct epoch e = {3 + 2 * i, &last[i]}; /* each closes the one before it */

		assert_int_equal(db_call(db, epoch_job, &e), 0);
	}
	assert_int_equal(db_epochs_dirty(db, 7, 10, 3, 3, &set, &open), 0);
	assert_true(!open && mm_set_is_equal(&set, &last[1]));
	mm_set_clear(&set);
	assert_int_equal(db_epochs_dirty(db, 7, 10, 5, 6, &set, &open), 0);
	assert_true(!open && mm_set_is_equal(&set, &last[2]));
	assert_int_equal(db_epochs_dirty(db, 7, 10, 3, UINT64_MAX, &set, &open), 0);
	assert_true(open && mm_set_count(&set) == 2 + 65536);
	mm_set_clear(&set);
	assert_int_equal(db_epochs_dirty(db, 7, 10, 7, UINT64_MAX, &set, &open), 0);
	assert_true(open && mm_set_is_empty(&set));
	assert_int_equal(db_epochs_dirty(db, 7, 10, 4, 7, &set, &open), -ENOENT);
	assert_int_equal(db_epochs_dirty(db, 7, 11, 3, 7, &set, &open), -ENOENT);
	assert_int_equal(db_epochs_dirty(db, 8, 10, 3, 7, &set, &open), -ENOENT);
	assert_int_equal(db_epochs_dirty(db, 7, 10, UINT64_MAX, UINT64_MAX, &set, &open), -ENOENT);
	assert_true(mm_set_is_empty(&set));
	for (int i = 0; i < 3; i++)
		mm_set_free(&last[i]);
	mm_set_free(&set);
}

/* ---- rows that nobody of us wrote ---- */

static int text_job(struct db_tx *tx, void *arg)
{
	return sql_exec_text(tx, arg);
}

static int look_at_pid(void *ctx, const struct db_mm *row, struct mm *model)
{
	assert_true(row->state == WPFS_MM_LIVE ? row->pid > 0 : row->pid == 0);
	return 0;
}

static void test_corrupt(void **state)
{
	static const struct {
		const char *text;
		int error;
	} cases[] = {
		{"UPDATE armed_chunk SET armed = x'00'", -EBADMSG},
		{"UPDATE dirty_chunk SET dirty = x'3b30000001000000000100ffffff00'", -EBADMSG},
		{"UPDATE mark_chunk SET marked = zeroblob(9000)", -EBADMSG},
		{"PRAGMA ignore_check_constraints=1; UPDATE armed_chunk SET chunk = -chunk - 1",
		 -EBADMSG},
		{"UPDATE vma SET pages = 0x7fffffff", -EUCLEAN},
		{"PRAGMA ignore_check_constraints=1; UPDATE vma SET pgoff = -1", -EUCLEAN},
		{"PRAGMA ignore_check_constraints=1; UPDATE vma SET addr = -addr", -EUCLEAN},
		{"UPDATE file SET handle = zeroblob(65)", -EUCLEAN},
		{"PRAGMA ignore_check_constraints=1; UPDATE mm SET state = 7", 0},
		{"PRAGMA ignore_check_constraints=1; UPDATE mm SET pid = -1", 0},
	};
	const struct db_marks_visitor visitor = {NULL, .mm = look_at_pid, .file = expect_file};
	struct expect e = {0};
	struct db_marks_visitor all = visitor;
	struct db_mm row = row_make(7, "db");
	struct mm mm;

	all.ctx = &e;
	model_make(&mm, 7);
	for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++)
		assert_int_equal(mm_set_or(&mm_file_find(&mm, 10)->own[o].dirty,
					   &mm_file_find(&mm, 10)->own[o].armed),
				 0);
	assert_int_equal(mm_set_add_range(&mm.vmas[0].marked, 1, 2), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t id = 7;

		assert_int_equal(db_call(db, delete_mm_job, &id), 0);
		put_model(&row, &mm);
		assert_int_equal(db_call(db, text_job, (void *)cases[i].text), 0);
		assert_int_equal(db_call(db, text_job, (void *)"PRAGMA ignore_check_constraints=0"),
				 0);
		assert_int_equal(db_marks_load(db, &all), cases[i].error);
	}
	mm_free(&mm);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_round_trip), TEST(test_changes),     TEST(test_bytes),
		TEST(test_dirty_once), TEST(test_mapping_put), TEST(test_delete),
		TEST(test_rows),       TEST(test_epochs),      TEST(test_epochs_dirty),
		TEST(test_corrupt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
