/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reports over states made by hand: every combination of what a page can be, and every answer that
 * is empty. */
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
#include "db/report.h"
#include "db/tree.h"

#define PAGE	 4096ULL
#define ADDR(i)	 (0x7f0000000000ULL + (i)*0x1000000ULL)
#define FILE_A	 10
#define FILE_B	 11
#define NR_PAGES 256 /* that collect() looks at */

static char path[64];
static struct db *db;

static int set_up(void **state)
{
	int fd;

	strcpy(path, "/tmp/wpfs-report-test.XXXXXX");
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

/* ---- states ---- */

static void add_vma(struct mm *mm, uint64_t file, uint64_t pgoff, uint64_t pages, int prot,
		    int owner)
{
	struct mm_vma *v;

	mm->vmas = realloc(mm->vmas, (mm->nr_vmas + 1) * sizeof(*mm->vmas));
	assert_non_null(mm->vmas);
	v = &mm->vmas[mm->nr_vmas];
	*v = (struct mm_vma){.start = ADDR(mm->nr_vmas),
			     .end = ADDR(mm->nr_vmas) + pages * PAGE,
			     .file = file,
			     .pgoff = pgoff,
			     .prot = (uint32_t)prot,
			     .registered = owner >= 0,
			     .owner = owner == MM_PROGRAM ? MM_PROGRAM : MM_WPFS};
	mm->nr_vmas++;
	assert_non_null(mm_file_get(mm, file));
}

static void mark(struct mm *mm, size_t vma, uint64_t pgoff, uint64_t nr)
{
	struct mm_vma *v = &mm->vmas[vma];

	assert_int_equal(mm_set_add_range(&v->marked, pgoff - v->pgoff, nr), 0);
}

static struct mm_owned *owned(struct mm *mm, uint64_t file, enum mm_owner owner)
{
	struct mm_file *f = mm_file_get(mm, file);

	assert_non_null(f);
	return &f->own[owner];
}

static void arm(struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t pgoff, uint64_t nr)
{
	assert_int_equal(mm_set_add_range(&owned(mm, file, owner)->armed, pgoff, nr), 0);
}

static void dirty(struct mm *mm, uint64_t file, enum mm_owner owner, uint64_t pgoff, uint64_t nr)
{
	assert_int_equal(mm_set_add_range(&owned(mm, file, owner)->dirty, pgoff, nr), 0);
}

struct put {
	struct db_mm row;
	const struct mm *mm;
};

static int put_job(struct db_tx *tx, void *arg)
{
	struct put *put = arg;
	int r = db_mm_put(tx, &put->row);

	r = r ?: db_file_put(tx, FILE_A, NULL, 0, "/a");
	r = r ?: db_file_put(tx, FILE_B, NULL, 0, "/d/b");
	return r ?: db_model_put(tx, put->mm);
}

static void put(struct mm *mm, const char *name, uint32_t uid, uint32_t flags, bool live)
{
	struct put job = {.row = {.id = mm->id,
				  .uid = uid,
				  .state = live ? WPFS_MM_LIVE : WPFS_MM_DETACHED,
				  .pid = live ? 4711 : 0,
				  .uffd_fd = -1,
				  .chan_fd = -1,
				  .epoch = mm->epoch,
				  .flags = flags},
			  .mm = mm};

	snprintf(job.row.name, sizeof(job.row.name), "%s", name);
	assert_int_equal(db_call(db, put_job, &job), 0);
	mm_free(mm);
}

/* ---- what a report gave ---- */

static struct {
	unsigned mms, maps, runs, notes;
	struct wpfs_rec_mm mm;	   /* the last */
	struct wpfs_rec_map map;   /* the last */
	struct wpfs_rec_map all;   /* the union */
	uint64_t all_pages;	   /* in its runs */
	unsigned listed[NR_PAGES]; /* times a page of FILE_A stood in a run */
	uint64_t run_pages;
	char files[256]; /* path of each MAP and a comma */
	char text[1024]; /* of all notes */
} got;

static void collect_run(const struct wpfs_rec_run *run)
{
	got.runs++;
	got.run_pages += run->pages;
	if (got.map.end)
		assert_int_equal(run->vaddr, got.map.start + (run->pgoff - got.map.pgoff) * PAGE);
	else
		assert_int_equal(run->vaddr, 0);
	assert_true(run->pgoff >= got.map.pgoff);
	if (got.map.pages)
		assert_true(run->pgoff + run->pages <= got.map.pgoff + got.map.pages);
	for (uint64_t i = 0; got.map.file == FILE_A && i < run->pages; i++)
		got.listed[run->pgoff + i]++;
}

static void append(char *to, size_t size, const char *text, char end)
{
	size_t used = strlen(to);

	snprintf(to + used, size - used, "%s%c", text, end);
}

static int collect(void *ctx, uint32_t type, const void *body, size_t len)
{
	if (type == WPFS_REC_MM) {
		assert_int_equal(len, sizeof(got.mm));
		got.mm = *(const struct wpfs_rec_mm *)body;
		got.mms++;
	} else if (type == WPFS_REC_MAP) {
		assert_int_equal(len, sizeof(got.map));
		assert_true(got.mms > 0);
		got.map = *(const struct wpfs_rec_map *)body;
		append(got.files, sizeof(got.files), got.map.path, ',');
		got.maps++;
	} else if (type == WPFS_REC_UNION) {
		assert_int_equal(len, sizeof(got.all));
		got.all = *(const struct wpfs_rec_map *)body;
	} else if (type == WPFS_REC_RUN && got.all.file) {
		got.all_pages += ((const struct wpfs_rec_run *)body)->pages;
	} else if (type == WPFS_REC_RUN) {
		assert_true(got.maps > 0);
		collect_run(body);
	} else {
		assert_int_equal(type, WPFS_REC_NOTE);
		append(got.text, sizeof(got.text), ((const struct wpfs_rec_note *)body)->text,
		       '\n');
		got.notes++;
	}
	return ctx ? *(int *)ctx : 0;
}

static int report(struct db_report_query q, char *why)
{
	memset(&got, 0, sizeof(got));
	if (!q.uid)
		q.all_uids = true;
	return db_report(db, &q, collect, NULL, why);
}

static void report_ok(struct db_report_query q)
{
	assert_int_equal(report(q, NULL), 0);
}

#define ASSERT_NOTE(text_) assert_non_null(strstr(got.text, text_))

/* ---- every combination ---- */

enum mapped { PARKED, BY_WPFS, BY_PROGRAM, PLAIN_RW, PLAIN_RO, NR_MAPPED };

/* Page p: bits armed, in dirty_chunk, marked, for wpfs; the same three for the program. */
static bool is(unsigned p, unsigned bit)
{
	return p >> bit & 1;
}

static bool expect_marked(enum mapped how, unsigned p, enum mm_owner owner)
{
	unsigned at = owner == MM_WPFS ? 0 : 3;

	return is(p, at + 2) && how == (owner == MM_WPFS ? BY_WPFS : BY_PROGRAM);
}

static bool expect_dirty(enum mapped how, unsigned p, enum mm_owner owner)
{
	unsigned at = owner == MM_WPFS ? 0 : 3;

	if (!is(p, at))
		return false;
	if (is(p, at + 1))
		return true;
	if (owner == MM_PROGRAM)
		return how == BY_PROGRAM && !expect_marked(how, p, owner);
	return how == BY_PROGRAM || how == PLAIN_RW ||
	       (how == BY_WPFS && !expect_marked(how, p, owner));
}

static void make_all(struct mm *mm, enum mapped how)
{
	static const int owners[] = {0, MM_WPFS, MM_PROGRAM, -1, -1};

	mm_init(mm);
	mm->id = 1;
	if (how != PARKED)
		add_vma(mm, FILE_A, 0, 64, how == PLAIN_RO ? PROT_READ : PROT_READ | PROT_WRITE,
			owners[how]);
	for (unsigned p = 0; p < 64; p++) {
		for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
			unsigned at = o == MM_WPFS ? 0 : 3;

			if (is(p, at))
				arm(mm, FILE_A, o, p, 1);
			if (is(p, at) && is(p, at + 1))
				dirty(mm, FILE_A, o, p, 1);
			if (expect_marked(how, p, o))
				mark(mm, 0, p, 1);
		}
	}
}

static void check_all(enum mapped how)
{
	unsigned armed = 0, marked = 0, dirties = 0, listed = 0;
	bool in_runs[64];

	for (unsigned p = 0; p < 64; p++) {
		bool d = false, m = false;

		for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
			bool di = expect_dirty(how, p, o);

			d |= di;
			m |= expect_marked(how, p, o);
			m |= how == PARKED && is(p, o == MM_WPFS ? 0 : 3) && !di;
		}
		armed += is(p, 0) || is(p, 3);
		marked += m;
		dirties += d;
		in_runs[p] = d;
	}
	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY});
	for (unsigned p = 0; p < 64; p++) {
		assert_int_equal(got.listed[p], in_runs[p]);
		listed += got.listed[p];
	}
	assert_int_equal(got.run_pages, dirties);
	assert_int_equal(got.mm.armed, armed);
	assert_int_equal(got.mm.marked, marked);
	assert_int_equal(got.mm.dirty, dirties);
	assert_int_equal(listed, dirties);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_PS});
	assert_true(got.mms == 1 && got.maps == 0);
	assert_true(got.mm.armed == armed && got.mm.marked == marked && got.mm.dirty == dirties);
}

static void test_combinations(void **state)
{
	for (enum mapped how = PARKED; how < NR_MAPPED; how++) {
		struct mm mm;

		make_all(&mm, how);
		put(&mm, "x", 5, 0, how != PARKED);
		check_all(how);
		report_ok((struct db_report_query){.kind = WPFS_REPORT_MARKS});
		for (unsigned p = 0; p < 64; p++) {
			unsigned times = 0;

			for (enum mm_owner o = MM_WPFS; o < MM_NR_OWNERS; o++) {
				times += expect_marked(how, p, o);
				times += how == PARKED && is(p, o == MM_WPFS ? 0 : 3) &&
					 !expect_dirty(how, p, o);
			}
			assert_int_equal(got.listed[p], times);
		}
	}
}

/* ---- a page mapped twice, in part, not at all ---- */

static void test_overlap(void **state)
{
	struct mm mm;

	mm_init(&mm);
	mm.id = 1;
	add_vma(&mm, FILE_A, 0, 10, PROT_READ | PROT_WRITE, MM_WPFS);
	add_vma(&mm, FILE_A, 5, 10, PROT_READ | PROT_WRITE, MM_WPFS);
	arm(&mm, FILE_A, MM_WPFS, 0, 20);
	mark(&mm, 0, 0, 10);
	mark(&mm, 1, 5, 10);
	dirty(&mm, FILE_A, MM_WPFS, 18, 1); /* not mapped */
	assert_int_equal(mm_set_remove_range(&mm.vmas[0].marked, 7, 1),
			 0); /* in both, by the first */
	assert_int_equal(mm_set_remove_range(&mm.vmas[1].marked, 3, 1), 0); /* 8, by the second */
	assert_int_equal(mm_set_remove_range(&mm.vmas[1].marked, 9, 1), 0); /* 14, in one */
	put(&mm, "x", 5, 0, true);

	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY});
	assert_int_equal(got.mm.armed, 20);
	assert_int_equal(got.mm.dirty, 4);
	assert_int_equal(got.mm.marked, 18); /* 7 and 8 have a mark elsewhere */
	assert_int_equal(got.maps, 3);
	assert_int_equal(got.runs, 3); /* 7-8, 14, 18 */
	assert_int_equal(got.run_pages, 4);
	assert_int_equal(got.map.start, 0);
	assert_int_equal(got.map.armed, 5);
	assert_int_equal(got.map.marked, 4);
	assert_int_equal(got.map.pgoff, 15);
	assert_int_equal(got.map.pages, 5);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_MARKS});
	assert_int_equal(got.listed[6], 2); /* each mapping its own */
	assert_int_equal(got.listed[7], 1);
	assert_int_equal(got.listed[18], 0);
	assert_int_equal(got.listed[19], 1);

	report_ok((struct db_report_query){
		.kind = WPFS_REPORT_DIRTY, .offset = 8 * PAGE, .len = 7 * PAGE});
	assert_int_equal(got.run_pages, 2);
	assert_int_equal(got.mm.armed, 7);
	report_ok((struct db_report_query){
		.kind = WPFS_REPORT_DIRTY, .offset = 14 * PAGE, .len = UINT64_MAX});
	assert_int_equal(got.run_pages, 2);
}

/* ---- which mms and files ---- */

static void test_filters(void **state)
{
	char why[DB_WHY_SIZE];
	struct mm mm;

	for (uint64_t id = 1; id <= 3; id++) {
		mm_init(&mm);
		mm.id = id;
		add_vma(&mm, FILE_B, 0, 4, PROT_READ | PROT_WRITE, MM_WPFS);
		if (id != 2)
			add_vma(&mm, FILE_A, 0, 4, PROT_READ | PROT_WRITE, MM_WPFS);
		arm(&mm, FILE_B, MM_WPFS, 0, 4);
		put(&mm, id == 3 ? "y" : "x", id == 2 ? 6 : 5, 0, true);
	}
	report_ok((struct db_report_query){.kind = WPFS_REPORT_PS});
	assert_int_equal(got.mms, 3);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_PS, .uid = 5});
	assert_int_equal(got.mms, 2);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_PS, .name = "x"});
	assert_int_equal(got.mms, 2);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY, .name = "x", .uid = 5});
	assert_int_equal(got.mms, 1);
	assert_string_equal(got.files, "/a,/d/b,");
	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY, .file = FILE_A});
	assert_int_equal(got.mms, 2);
	assert_string_equal(got.files, "/a,/a,");
	assert_int_equal(got.mm.armed, 0);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY, .path = "/d/b"});
	assert_int_equal(got.mms, 3);
	assert_int_equal(got.mm.armed, 4);
	assert_int_equal(
		report((struct db_report_query){.kind = WPFS_REPORT_DIRTY, .name = "y", .uid = 6},
		       why),
		-ENOENT);
	assert_non_null(strstr(why, "'y'"));
	assert_int_equal(report((struct db_report_query){.path = "/nope", .kind = 2}, why),
			 -ENOENT);
	assert_non_null(strstr(why, "/nope"));
	assert_int_equal(got.mms + got.notes, 0);
}

static int stop_after(void *ctx, uint32_t type, const void *body, size_t len)
{
	return --*(int *)ctx ? 0 : -ENOBUFS;
}

static void test_stopped(void **state)
{
	struct mm mm;

	make_all(&mm, BY_WPFS);
	put(&mm, "x", 5, 0, true);
	for (int n = 1; n <= 4; n++) {
		struct db_report_query q = {.kind = WPFS_REPORT_DIRTY, .all_uids = true};
		int left = n;

		assert_int_equal(db_report(db, &q, stop_after, &left, NULL), -ENOBUFS);
	}
}

/* ---- paths of an unmounted store come from its tree ---- */

static int produce(struct db_tx *tx, void *ctx)
{
	struct db_inode dir = {.id = 1, .mode = S_IFDIR | 0755};
	struct db_inode file = {.id = FILE_A, .mode = S_IFREG | 0644};
	int r = db_tree_put_inode(tx, &dir);

	dir.id = 5;
	r = r ?: db_tree_put_inode(tx, &dir);
	r = r ?: db_tree_put_inode(tx, &file);
	r = r ?: db_tree_put_dirent(tx, 1, "moved", 5, 5);
	return r ?: db_tree_put_dirent(tx, 5, "here", 4, FILE_A);
}

static void test_unmounted(void **state)
{
	struct mm mm;

	mm_init(&mm);
	mm.id = 1;
	arm(&mm, FILE_A, MM_WPFS, 3, 2);
	arm(&mm, FILE_B, MM_WPFS, 3, 2);
	put(&mm, "x", 5, 0, false);
	assert_int_equal(db_tree_replace(db, produce, NULL), 0);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_MARKS});
	assert_string_equal(got.files, "/a,/d/b,");
	db_close(db);
	assert_int_equal(db_open(path, DB_READONLY, &db, NULL), 0);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_MARKS});
	assert_string_equal(got.files, "/d/b,/moved/here,");
	assert_int_equal(got.run_pages, 4);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_MARKS, .path = "/moved/here"});
	assert_string_equal(got.files, "/moved/here,");
	assert_int_equal(got.mm.state, WPFS_MM_DETACHED);
}

/* ---- closed epochs ---- */

static int epochs_job(struct db_tx *tx, void *arg)
{
	int r = db_epoch_open(tx, 1, FILE_A, 1, 10, NULL, MM_WRITTEN_NO);

	r = r ?: db_epoch_open(tx, 1, FILE_A, 2, 20, arg, MM_WRITTEN_NO);
	return r ?: db_epoch_open(tx, 1, FILE_A, 3, 30, NULL, MM_WRITTEN_NO);
}

static void test_epochs(void **state)
{
	struct db_report_query q = {.kind = WPFS_REPORT_DIRTY, .epoch = 1};
	struct mm_set last = {NULL};
	char why[DB_WHY_SIZE];
	struct mm mm;

	mm_init(&mm);
	mm.id = 1;
	mm.epoch = 3;
	add_vma(&mm, FILE_A, 0, 10, PROT_READ | PROT_WRITE, MM_WPFS);
	arm(&mm, FILE_A, MM_WPFS, 0, 10);
	mark(&mm, 0, 0, 9);
	put(&mm, "x", 5, 0, true);
	assert_int_equal(mm_set_add_range(&last, 3, 2), 0);
	assert_int_equal(mm_set_add_range(&last, 100, 1), 0);
	assert_int_equal(db_call(db, epochs_job, &last), 0);
	mm_set_free(&last);

	report_ok(q);
	assert_int_equal(got.mm.epoch, 1);
	assert_int_equal(got.mm.dirty, 3);
	assert_int_equal(got.run_pages, 3);
	assert_true(got.listed[3] && got.listed[4] && got.listed[100]);
	q.len = 10 * PAGE;
	report_ok(q);
	assert_int_equal(got.run_pages, 2);
	q.epoch = 2;
	report_ok(q);
	assert_int_equal(got.mms, 0);
	ASSERT_NOTE("nothing was written in epoch 2");
	q.epoch = 3; /* the open one */
	report_ok(q);
	assert_int_equal(got.run_pages, 1);
	assert_true(got.listed[9]);
	q.epoch = 4;
	assert_int_equal(report(q, why), -ENOENT);
	assert_non_null(strstr(why, "epoch 4"));
}

/* ---- empty answers say why ---- */

static void test_notes(void **state)
{
	struct mm mm;
	uint64_t live = 9, detached = 9;

	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY});
	ASSERT_NOTE("no program that is attached");
	mm_init(&mm);
	mm.id = 1;
	add_vma(&mm, FILE_A, 0, 4, PROT_READ | PROT_WRITE, -1);
	put(&mm, "", 5, 0, true);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY});
	ASSERT_NOTE("nothing armed");
	ASSERT_NOTE("no name");
	assert_int_equal(got.maps, 1);
	assert_int_equal(got.map.armed, 0);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY, .file = FILE_B});
	ASSERT_NOTE("no tracked program has mapped this file");
	mm_init(&mm);
	mm.id = 1;
	put(&mm, "x", 5, DB_MM_PRIVATE_MAPS | DB_MM_NO_WITNESS, true);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_PS});
	ASSERT_NOTE("nothing mapped shared");
	ASSERT_NOTE("MAP_PRIVATE");
	ASSERT_NOTE("no witness");
	mm_init(&mm);
	mm.id = 1;
	arm(&mm, FILE_A, MM_PROGRAM, 0, 1);
	put(&mm, "x", 5, 0, false);
	report_ok((struct db_report_query){.kind = WPFS_REPORT_DIRTY});
	ASSERT_NOTE("lower bound");
	assert_int_equal(got.notes, 1);
	assert_int_equal(got.map.owner, WPFS_OWNER_PROGRAM);
	assert_int_equal(db_count_mms(db, &live, &detached), 0);
	assert_true(live == 0 && detached == 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_combinations), TEST(test_overlap), TEST(test_filters), TEST(test_stopped),
		TEST(test_unmounted),	 TEST(test_epochs),  TEST(test_notes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
