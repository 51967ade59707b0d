/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mark_runs() and the views of schema/002_views.sql: valid and hostile sets, and that the views say
 * of a state what the report of wpctl says, over every combination of what a page can be and over
 * random states.
 */
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

#include "db/db_internal.h"
#include "db/marks.h"
#include "db/report_file.h"
#include "db/tree.h"

#define PAGE	4096ULL
#define FILES	2
#define FILE_ID 10 /* of the first */

static char path[64];
static struct db *db;
static struct db_tx sql; /* a reader, as a program of somebody else would have it */

static int set_up(void **state)
{
	int fd;

	strcpy(path, "/tmp/wpfs-views-test.XXXXXX");
	fd = mkstemp(path);
	if (fd < 0 || close(fd) || db_open(path, DB_VOLATILE, &db, NULL))
		return -1;
	return sql_open(&sql, path, SQL_READ);
}

static int tear_down(void **state)
{
	sql_close(&sql);
	db_close(db);
	return unlink(path);
}

/* ---- mark_runs() ---- */

/* Adds the runs that mark_runs() gives to *set, and sees that they ascend and do not touch. */
static int runs_of(const void *bytes, size_t len, int64_t chunk, struct mm_set *set)
{
	int64_t free_from = 0;
	sqlite3_stmt *st;
	int rc;

	assert_int_equal(sqlite3_prepare_v2(sql.sql, "SELECT first, pages FROM mark_runs(?1, ?2)",
					    -1, &st, NULL),
			 SQLITE_OK);
	sqlite3_bind_blob(st, 1, len ? bytes : "", (int)len, SQLITE_STATIC);
	sqlite3_bind_int64(st, 2, chunk);
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		int64_t first = sqlite3_column_int64(st, 0) - (chunk << MM_CHUNK_SHIFT);
		int64_t pages = sqlite3_column_int64(st, 1);

		assert_true(first >= free_from && pages > 0 &&
			    first + pages <= (int64_t)MM_CHUNK_PAGES);
		free_from = first + pages + 1;
		assert_int_equal(mm_set_add_range(set, (uint64_t)first, (uint64_t)pages), 0);
	}
	sqlite3_finalize(st);
	return rc;
}

static void test_runs(void **state)
{
	for (unsigned kind = 0; kind < 6; kind++) {
		_cleanup_set_ struct mm_set set = {NULL}, got = {NULL};
		struct mm_chunk chunk;

		/* single pages, alternating, one run, full, full but one, nearly empty */
		for (uint64_t i = 0; i < MM_CHUNK_PAGES; i++) {
			if ((kind == 0 && i % 1000 == 999) || (kind == 1 && i % 2) ||
			    (kind == 2 && i > 5 && i < 40000) || kind == 3 ||
			    (kind == 4 && i != 77) || (kind == 5 && i == 65535))
				assert_int_equal(mm_set_add_range(&set, i, 1), 0);
		}
		mm_set_get_chunk(&set, 0, &chunk);
		assert_int_equal(runs_of(chunk.bytes, chunk.len, 1234567, &got), SQLITE_DONE);
		assert_true(mm_set_is_equal(&set, &got));
	}
}

static void assert_refused(const char *text, const char *why)
{
	sqlite3_stmt *st;

	assert_int_equal(sqlite3_prepare_v2(sql.sql, text, -1, &st, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(st), SQLITE_ERROR);
	assert_non_null(strstr(sqlite3_errmsg(sql.sql), why));
	sqlite3_finalize(st);
}

static void test_refused(void **state)
{
	assert_refused("SELECT * FROM mark_runs", "no set of pages");
	assert_refused("SELECT * FROM mark_runs(x'00')", "1 bytes that are no valid set");
	assert_refused("SELECT * FROM mark_runs(zeroblob(900000000))", "no valid set");
	assert_refused("SELECT * FROM mark_runs('text')", "is a blob");
	assert_refused("SELECT * FROM mark_runs(17)", "is a blob");
	assert_refused("SELECT * FROM mark_runs(x'', -1)", "number from 0");
	assert_refused("SELECT * FROM mark_runs(x'', 1 << 60)", "number from 0");
	assert_refused("SELECT * FROM mark_runs(x'', 'a')", "number from 0");
	assert_refused("SELECT * FROM mark_runs(x'', NULL)", "number from 0");
}

/* Bytes changed, cut off and added: an error, or a set that is valid for all who read it. */
static void test_hostile(void **state)
{
	unsigned refused = 0, taken = 0;

	srand(1);
	for (unsigned round = 0; round < 20000; round++) {
		_cleanup_set_ struct mm_set set = {NULL}, got = {NULL}, want = {NULL};
		char bytes[MM_CHUNK_BYTES + 16] = {0};
		struct mm_chunk chunk;
		size_t len;
		int r;

		for (int i = rand() % 40; i >= 0; i--)
			assert_int_equal(mm_set_add_range(&set, (uint64_t)(rand() % 65000),
							  (uint64_t)(1 + rand() % 300)),
					 0);
		mm_set_get_chunk(&set, 0, &chunk);
		memcpy(bytes, chunk.bytes, chunk.len);
		len = chunk.len + (round % 5 == 0) * (size_t)(rand() % 16);
		if (round % 7 == 0)
			len = (size_t)rand() % (len + 1);
		for (int i = rand() % 4; i > 0 && len; i--)
			bytes[(size_t)rand() % len] = (char)rand();
		if (len == 0)
			continue; /* that means all pages */
		r = mm_set_add_chunk(&want, 0, MM_CHUNK_BITS, bytes, len);
		assert_int_equal(runs_of(bytes, len, 0, &got), r == 0 ? SQLITE_DONE : SQLITE_ERROR);
		if (r == 0)
			assert_true(mm_set_is_equal(&want, &got));
		taken += r == 0;
		refused += r != 0;
	}
	assert_true(refused > 1000 && taken > 1000);
}

/* ---- states ---- */

static struct mm_vma *add_vma(struct mm *mm, uint64_t start, uint64_t file, uint64_t pgoff,
			      uint64_t pages, int prot, int owner)
{
	struct mm_vma *v;

	mm->vmas = realloc(mm->vmas, (mm->nr_vmas + 1) * sizeof(*mm->vmas));
	assert_non_null(mm->vmas);
	v = &mm->vmas[mm->nr_vmas++];
	*v = (struct mm_vma){.start = start,
			     .end = start + pages * PAGE,
			     .file = file,
			     .pgoff = pgoff,
			     .prot = (uint32_t)prot,
			     .registered = owner >= 0,
			     .owner = owner == MM_PROGRAM ? MM_PROGRAM : MM_WPFS};
	assert_non_null(mm_file_get(mm, file));
	return v;
}

struct put {
	struct db_mm row;
	const struct mm *mm;
};

static int put_job(struct db_tx *tx, void *arg)
{
	struct put *put = arg;
	int r = db_mm_put(tx, &put->row);

	for (uint64_t f = 0; r == 0 && f < FILES; f++)
		r = db_file_put(tx, FILE_ID + f, NULL, 0, f ? "/d/b" : "/a");
	return r ?: db_model_put(tx, put->mm);
}

static void put(const struct mm *mm)
{
	struct put job = {.row = {.id = mm->id,
				  .state = WPFS_MM_LIVE,
				  .pid = 4711,
				  .uffd_fd = -1,
				  .chan_fd = -1},
			  .mm = mm};

	snprintf(job.row.name, sizeof(job.row.name), "n%llu", (unsigned long long)mm->id);
	assert_int_equal(db_call(db, put_job, &job), 0);
}

/* ---- the views against the report's own arithmetic ---- */

/*
 * The pages of a view's rows: of a file, an owner, and for run_v of a mapping (0: parked). Rows
 * must be runs as long as they can be.
 */
static void view_pages(const char *text, uint64_t mm, uint64_t file, enum mm_owner owner,
		       const struct mm_vma *v, struct mm_set *set)
{
	uint64_t free_from = 0;
	sqlite3_stmt *st;
	char start[32] = "";
	int r;

	if (v)
		snprintf(start, sizeof(start), "0x%llx", (unsigned long long)v->start);
	mm_set_clear(set);
	assert_int_equal(sql_query(&sql, &st, text, "iitt", (int64_t)mm, (int64_t)file,
				   owner == MM_WPFS ? "wpfs" : "program", start),
			 0);
	while ((r = sql_step(&sql, st)) > 0) {
		uint64_t pgoff = (uint64_t)sqlite3_column_int64(st, 0);
		uint64_t pages = (uint64_t)sqlite3_column_int64(st, 1);

		assert_true(pages > 0 && pgoff >= free_from);
		free_from = pgoff + pages + 1;
		assert_int_equal(mm_set_add_range(set, pgoff, pages), 0);
	}
	assert_int_equal(r, 0);
}

#define DIRTY                                                                                      \
	"SELECT pgoff, pages FROM dirty_v WHERE mm = ?1 AND file = ?2 AND owner = ?3"              \
	" AND ?4 = ?4 ORDER BY pgoff"
#define PARKED                                                                                     \
	"SELECT pgoff, pages FROM run_v WHERE mm = ?1 AND file = ?2 AND owner = ?3"                \
	" AND addr IS NULL AND ?4 = ?4 ORDER BY pgoff"
/* addr is that of the run */
#define MARKED                                                                                     \
	"SELECT r.pgoff, r.pages FROM run_v AS r JOIN map_v AS v ON v.mm = r.mm AND v.start = ?4"  \
	" JOIN vma ON vma.mm = r.mm AND printf('0x%x', vma.addr) = ?4"                             \
	" WHERE r.mm = ?1 AND r.file = ?2 AND r.owner = ?3 AND r.file = v.file"                    \
	" AND r.addr = printf('0x%x', vma.addr + ((r.pgoff - v.pgoff) << 12))"                     \
	" AND r.pgoff >= v.pgoff AND r.pgoff + r.pages <= v.pgoff + v.pages ORDER BY r.pgoff"

static void check_owner(const struct mm *mm, const struct report_file *rf, enum mm_owner owner)
{
	_cleanup_set_ struct mm_set set = {NULL}, want = {NULL};

	view_pages(DIRTY, mm->id, rf->id, owner, NULL, &set);
	assert_true(mm_set_is_equal(&set, &rf->own[owner].dirty));
	view_pages(PARKED, mm->id, rf->id, owner, NULL, &set);
	assert_int_equal(mm_set_copy(&want, &rf->own[owner].parked), 0);
	assert_int_equal(mm_set_andnot(&want, &rf->own[owner].dirty), 0);
	assert_true(mm_set_is_equal(&set, &want));
	for (size_t i = 0; i < mm->nr_vmas; i++) {
		const struct mm_vma *v = &mm->vmas[i];

		if (v->file != rf->id)
			continue;
		mm_set_clear(&want);
		if (v->registered && v->owner == owner)
			assert_int_equal(mm_set_shift(&want, &v->marked, (int64_t)v->pgoff), 0);
		view_pages(MARKED, mm->id, rf->id, owner, v, &set);
		assert_true(mm_set_is_equal(&set, &want));
	}
}

/* Rows that no file, owner or mapping above has asked for: there are none. */
static void check_totals(const struct mm *mm, uint64_t dirty, uint64_t marked)
{
	int64_t found;

	assert_int_equal(sql_get_i64(&sql, &found,
				     "SELECT ifnull(sum(pages), 0) FROM dirty_v WHERE mm = ?1", "i",
				     (int64_t)mm->id),
			 0);
	assert_int_equal(found, dirty);
	assert_int_equal(sql_get_i64(&sql, &found,
				     "SELECT ifnull(sum(pages), 0) FROM run_v WHERE mm = ?1", "i",
				     (int64_t)mm->id),
			 0);
	assert_int_equal(found, marked);
	assert_int_equal(sql_get_i64(&sql, &found, "SELECT count(*) FROM map_v WHERE mm = ?1", "i",
				     (int64_t)mm->id),
			 0);
	assert_int_equal(found, mm->nr_vmas);
}

static void check(const struct mm *mm)
{
	uint64_t dirty = 0, marked = 0;
	const struct mm_file *f;

	for (f = mm->files; f; f = f->hh.next) {
		struct report_file rf = {0};

		assert_int_equal(report_file_fill(&rf, mm, f, 0, MM_SET_MAX), 0);
		for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
			check_owner(mm, &rf, o);
			dirty += mm_set_count(&rf.own[o].dirty);
			assert_int_equal(mm_set_andnot(&rf.own[o].parked, &rf.own[o].dirty), 0);
			marked += mm_set_count(&rf.own[o].parked);
		}
		report_file_free(&rf);
	}
	for (size_t i = 0; i < mm->nr_vmas; i++)
		marked += mm_set_count(&mm->vmas[i].marked);
	check_totals(mm, dirty, marked);
}

/* Page p: bits armed, in dirty_chunk, marked, for wpfs; the same three for the program. */
static bool is(unsigned p, unsigned bit)
{
	return p >> bit & 1;
}

static void fill_page(struct mm *mm, unsigned p)
{
	struct mm_file *f = mm_file_get(mm, FILE_ID);
	struct mm_vma *v = mm->vmas;

	for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
		unsigned at = o == MM_WPFS ? 0 : 3;

		if (is(p, at))
			assert_int_equal(mm_set_add_range(&f->own[o].armed, p, 1), 0);
		if (is(p, at) && is(p, at + 1))
			assert_int_equal(mm_set_add_range(&f->own[o].dirty, p, 1), 0);
		if (is(p, at + 2) && mm->nr_vmas && v->registered && v->owner == o)
			assert_int_equal(mm_set_add_range(&v->marked, p, 1), 0);
	}
}

static void test_combinations(void **state)
{
	static const int owners[] = {0, MM_WPFS, MM_PROGRAM, -1, -1};

	for (unsigned how = 0; how < 5; how++) { /* not mapped, by wpfs, program, rw, ro */
		struct mm mm;

		mm_init(&mm);
		mm.id = 1;
		if (how)
			add_vma(&mm, 0x7f0000000000, FILE_ID, 0, 64,
				how == 4 ? PROT_READ : PROT_READ | PROT_WRITE, owners[how]);
		for (unsigned p = 0; p < 64; p++)
			fill_page(&mm, p);
		put(&mm);
		check(&mm);
		mm_free(&mm);
	}
}

static void random_set(struct mm_set *set, uint64_t pages)
{
	static const uint64_t longest[] = {1, 3, 50, 70000};
	uint64_t len = longest[rand() % 4];

	for (int i = rand() % 12; i > 0; i--)
		assert_int_equal(
			mm_set_add_range(set, (uint64_t)rand() % pages, 1 + (uint64_t)rand() % len),
			0);
	assert_int_equal(mm_set_keep_range(set, 0, pages), 0);
}

/* Mappings over the borders of chunks of the file (65536 pages) and of addresses (256 MiB). */
static void random_model(struct mm *mm)
{
	uint64_t at = 0x7f0000000000 + ((uint64_t)rand() % 65536) * PAGE;

	for (int i = rand() % 6; i > 0; i--) {
		uint64_t pages = 1 + (uint64_t)rand() % (rand() % 2 ? 200 : 150000);
		struct mm_vma *v = add_vma(
			mm, at, FILE_ID + (uint64_t)rand() % FILES, 65436 + (uint64_t)rand() % 200,
			pages, PROT_READ | (rand() % 2 ? PROT_WRITE : 0), rand() % 3 - 1);

		if (v->registered)
			random_set(&v->marked, pages);
		at = v->end + (uint64_t)(rand() % 2 * (rand() % 100000)) * PAGE;
	}
	for (uint64_t f = 0; f < FILES; f++) {
		struct mm_file *file = mm_file_get(mm, FILE_ID + f);

		for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
			random_set(&file->own[o].armed, 230000);
			random_set(&file->own[o].dirty, 230000);
			assert_int_equal(mm_set_and(&file->own[o].dirty, &file->own[o].armed), 0);
		}
	}
}

static void test_random(void **state)
{
	for (unsigned seed = 0; seed < 30; seed++) {
		struct mm mm;

		srand(seed);
		mm_init(&mm);
		mm.id = 1 + seed % 3; /* others lie beside it */
		random_model(&mm);
		put(&mm);
		check(&mm);
		mm_free(&mm);
	}
}

/* ---- names ---- */

static int produce(struct db_tx *tx, void *ctx)
{
	struct db_inode dir = {.id = 1, .mode = S_IFDIR | 0755};
	struct db_inode file = {.id = FILE_ID, .mode = S_IFREG | 0644};
	int r = db_tree_put_inode(tx, &dir);

	for (dir.id = 4; r == 0 && dir.id < 6; dir.id++)
		r = db_tree_put_inode(tx, &dir);
	r = r ?: db_tree_put_inode(tx, &file);
	r = r ?: db_tree_put_dirent(tx, 1, "x", 1, 4);
	r = r ?: db_tree_put_dirent(tx, 4, "moved", 5, 5);
	return r ?: db_tree_put_dirent(tx, 5, "here", 4, FILE_ID);
}

static void test_names(void **state)
{
	sqlite3_stmt *st;
	struct mm mm;

	mm_init(&mm);
	mm.id = 1;
	add_vma(&mm, 0x7f0000000000, FILE_ID, 7, 2, PROT_READ | PROT_WRITE, MM_WPFS);
	put(&mm);
	mm_free(&mm);
	assert_int_equal(db_tree_replace(db, produce, NULL), 0);
	assert_int_equal(sql_query(&sql, &st,
				   "SELECT group_concat(path, ',') FROM file_v ORDER BY file", ""),
			 0);
	assert_int_equal(sql_step(&sql, st), 1);
	assert_string_equal(sql_text(st, 0), "/x/moved/here,/d/b");
	sql_reset(st);
	assert_int_equal(sql_query(&sql, &st,
				   "SELECT name || path || start || prot || owner || pgoff || "
				   "pages FROM map_v",
				   ""),
			 0);
	assert_int_equal(sql_step(&sql, st), 1);
	assert_string_equal(sql_text(st, 0), "n1/x/moved/here0x7f0000000000rw-wpfs72");
	sql_reset(st);
	assert_int_equal(sql_query(&sql, &st,
				   "SELECT name || state || pid || files || mappings FROM mm_v",
				   ""),
			 0);
	assert_int_equal(sql_step(&sql, st), 1);
	assert_string_equal(sql_text(st, 0), "n1live471111");
	sql_reset(st);
}

/* A store of before the views gets them when it is mounted. */
static void test_older_store(void **state)
{
	int64_t found;

	sql_close(&sql);
	db_close(db);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(db_open_schema(path, DB_VOLATILE, db_migrations, 1, &db, NULL), 0);
	db_close(db);
	assert_int_equal(db_open(path, DB_VOLATILE, &db, NULL), 0);
	assert_int_equal(sql_open(&sql, path, SQL_READ), 0);
	assert_int_equal(
		sql_get_i64(&sql, &found, "SELECT count(*) FROM dirty_v, run_v, mm_v, map_v", ""),
		0);
	assert_int_equal(found, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_runs),	 TEST(test_refused), TEST(test_hostile),
		TEST(test_combinations), TEST(test_random),  TEST(test_names),
		TEST(test_older_store),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
