/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A database whose rows say what no daemon wrote: checks of the schema are off while they are
 * changed, as a damaged or hostile file has none. What is read of it must be refused, or be a model
 * that keeps its own rules.
 *
 * The input is a list of changes, each: byte 0 table, byte 1 column, byte 2 row, byte 3 type (see
 * change_rows), then a value; table 255: patch the file itself, u64 offset and a byte.
 */
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "db/marks.h"
#include "db/report.h"
#include "db/tree.h"
#include "tests/fuzz/fuzz.h"

#define FILE_ID	    10
#define MAX_CHANGES 16

static char path[64];
static struct {
	void *bytes;
	size_t size;
} pristine;

static const char *const tables[] = {
	"meta",	   "inode",	 "dirent",	"xattr",       "file",	"mm",	       "vma",
	"mm_file", "mark_chunk", "armed_chunk", "dirty_chunk", "epoch", "epoch_chunk",
};
#define NR_TABLES (sizeof(tables) / sizeof(tables[0]))

/* ---- a database with a bit of everything ---- */

static int put_everything(struct db_tx *tx, void *arg)
{
	static const uint64_t starts[] = {0x7f0000000000, 0x7f0010000000, 0x7f0020000000};
	const struct db_mm row = {.id = 1,
				  .name = "db",
				  .state = WPFS_MM_LIVE,
				  .pid = 1 << 22,
				  .start_time = 5,
				  .boot_id = "00000000-0000-0000-0000-000000000000",
				  .witness_pid = (1 << 22) - 1,
				  .uffd_fd = 3,
				  .chan_fd = 4,
				  .lower_id = "lower",
				  .epoch = 2,
				  .comm = "prog"};
	struct mm mm;
	int r = db_mm_put(tx, &row);

	mm_init(&mm);
	mm.id = 1;
	mm.epoch = 2;
	mm.vmas = calloc(3, sizeof(*mm.vmas));
	for (mm.nr_vmas = 0; r == 0 && mm.vmas && mm.nr_vmas < 3; mm.nr_vmas++) {
		struct mm_vma *v = &mm.vmas[mm.nr_vmas];
		struct mm_file *f = mm_file_get(&mm, FILE_ID + mm.nr_vmas / 2);

		*v = (struct mm_vma){.start = starts[mm.nr_vmas],
				     .end = starts[mm.nr_vmas] + 0x100000,
				     .file = FILE_ID + mm.nr_vmas / 2,
				     .pgoff = 128 * mm.nr_vmas,
				     .prot = 3,
				     .registered = true,
				     .async = mm.nr_vmas != 2,
				     .owner = mm.nr_vmas == 2 ? MM_PROGRAM : MM_WPFS};
		r = mm_set_add_range(&v->marked, 3, 100) ?:
		    mm_set_add_range(&f->own[v->owner].armed, 128 * mm.nr_vmas, 200) ?:
		    mm_set_add_range(&f->own[v->owner].dirty, 128 * mm.nr_vmas, 3) ?:
		    db_file_put(tx, f->id, "handle", 6, "/dir/f");
	}
	r = r ?: db_model_put(tx, &mm);
	r = r ?: db_epoch_open(tx, 1, FILE_ID, 1, 1000, NULL, MM_WRITTEN_NO);
	if (r == 0) {
		struct mm_file *f = mm_file_find(&mm, FILE_ID);

		r = db_epoch_open(tx, 1, FILE_ID, 2, 2000, &f->own[MM_WPFS].dirty, MM_WRITTEN_NO);
	}
	mm_free(&mm);
	return r;
}

static int put_tree(struct db_tx *tx, void *arg)
{
	const struct db_inode root = {.id = DB_ROOT_ID, .mode = 0040755, .nlink = 3};
	const struct db_inode dir = {.id = 9, .mode = 0040755, .nlink = 2};
	const struct db_inode file = {.id = FILE_ID, .mode = 0100644, .nlink = 1, .size = 1 << 20};
	const struct db_inode link = {
		.id = 12, .mode = 0120777, .nlink = 1, .size = 1, .target = "f", .target_len = 1};
	int r = db_tree_put_inode(tx, &root);

	r = r ?: db_tree_put_inode(tx, &dir);
	r = r ?: db_tree_put_inode(tx, &file);
	r = r ?: db_tree_put_inode(tx, &link);
	r = r ?: db_tree_put_dirent(tx, DB_ROOT_ID, "dir", 3, 9);
	r = r ?: db_tree_put_dirent(tx, 9, "f", 1, FILE_ID);
	r = r ?: db_tree_put_dirent(tx, 9, "link", 4, 12);
	return r ?: db_tree_put_xattr(tx, FILE_ID, "user.a", 6, "v", 1);
}

static void remove_file(void)
{
	unlink(path);
}

static void make_pristine(void)
{
	_cleanup_close_ int fd = -1;
	struct db *db;

	snprintf(path, sizeof(path), "/dev/shm/wpfs-rows-fuzz.%d", (int)getpid());
	unlink(path);
	MUST(atexit(remove_file) == 0);
	MUST(db_open(path, DB_VOLATILE, &db, NULL) == 0);
	MUST(db_call(db, put_everything, NULL) == 0);
	MUST(db_tree_replace(db, put_tree, NULL) == 0);
	db_close(db);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	MUST(fd >= 0);
	pristine.size = (size_t)lseek(fd, 0, SEEK_END);
	pristine.bytes = malloc(pristine.size);
	MUST(pristine.bytes);
	MUST(pread(fd, pristine.bytes, pristine.size, 0) == (ssize_t)pristine.size);
}

/* ---- changes ---- */

/* One text that a query about the schema gives. */
static bool ask(sqlite3 *sql, char *text, size_t size, const char *query, const char *table)
{
	sqlite3_stmt *st;
	bool found = false;

	if (sqlite3_prepare_v2(sql, query, -1, &st, NULL) != SQLITE_OK)
		return false;
	sqlite3_bind_text(st, 1, table, -1, SQLITE_STATIC);
	if (sqlite3_step(st) == SQLITE_ROW && sqlite3_column_text(st, 0)) {
		snprintf(text, size, "%s", (const char *)sqlite3_column_text(st, 0));
		found = true;
	}
	sqlite3_finalize(st);
	return found;
}

static void bind_value(sqlite3_stmt *st, struct input *in)
{
	static uint8_t bytes[256];
	unsigned type = input_u8(in) % 6;
	size_t len;

	switch (type) {
	case 0:
		sqlite3_bind_int64(st, 1, (int64_t)input_u64(in));
		return;
	case 1: /* small ones are the likely ones */
		sqlite3_bind_int64(st, 1, (int8_t)input_u8(in));
		return;
	case 2:
		sqlite3_bind_int64(st, 1, (int64_t)((uint64_t)input_u8(in) << 12));
		return;
	case 3:
		sqlite3_bind_null(st, 1);
		return;
	}
	len = input_bytes(in, bytes, input_u8(in));
	if (type == 4)
		sqlite3_bind_blob(st, 1, bytes, (int)len, SQLITE_TRANSIENT);
	else
		sqlite3_bind_text(st, 1, (const char *)bytes, (int)len, SQLITE_TRANSIENT);
}

/* One column of one row. */
static void change_row(sqlite3 *sql, const char *table, struct input *in)
{
	char column[128], key[256], query[1024];
	unsigned wanted = input_u8(in), row = input_u8(in) % 4;
	sqlite3_stmt *st;

	snprintf(query, sizeof(query),
		 "SELECT name FROM pragma_table_info(?1) WHERE cid = %u %%"
		 " (SELECT count(*) FROM pragma_table_info(?1))",
		 wanted);
	if (!ask(sql, column, sizeof(column), query, table) ||
	    !ask(sql, key, sizeof(key),
		 "SELECT group_concat(name) FROM pragma_table_info(?1) WHERE pk > 0", table))
		return;
	snprintf(query, sizeof(query),
		 "UPDATE OR IGNORE %s SET %s = ?1"
		 " WHERE (%s) = (SELECT %s FROM %s LIMIT 1 OFFSET %u)",
		 table, column, key, key, table, row);
	if (sqlite3_prepare_v2(sql, query, -1, &st, NULL) != SQLITE_OK)
		return;
	bind_value(st, in);
	sqlite3_step(st);
	sqlite3_finalize(st);
}

static void write_pristine(void)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	MUST(fd >= 0);
	MUST(pwrite(fd, pristine.bytes, pristine.size, 0) == (ssize_t)pristine.size);
}

static void patch_file(struct input *in)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	uint64_t at = input_u64(in) % pristine.size;
	uint8_t byte = input_u8(in);

	MUST(fd >= 0);
	MUST(pwrite(fd, &byte, 1, (off_t)at) == 1);
}

static sqlite3 *open_unchecked(void)
{
	sqlite3 *sql;

	if (sqlite3_open_v2(path, &sql, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) {
		sqlite3_close(sql);
		return NULL;
	}
	sqlite3_exec(sql,
		     "PRAGMA ignore_check_constraints=ON; PRAGMA foreign_keys=OFF;"
		     "PRAGMA synchronous=OFF; PRAGMA locking_mode=EXCLUSIVE",
		     NULL, NULL, NULL);
	return sql;
}

static void change(struct input *in)
{
	sqlite3 *sql = NULL;

	for (int i = 0; i < MAX_CHANGES && in->left; i++) {
		unsigned table = input_u8(in);

		if (table == 255) {
			sqlite3_close(sql);
			sql = NULL;
			patch_file(in);
			continue;
		}
		if (!sql)
			sql = open_unchecked();
		if (!sql)
			return;
		change_row(sql, tables[table % NR_TABLES], in);
	}
	sqlite3_close(sql);
}

/* ---- reading ---- */

static int on_file(void *ctx, const struct db_file *file)
{
	MUST(file->handle_len <= DB_HANDLE_SIZE);
	MUST(file->path);
	return 0;
}

static int on_mm(void *ctx, const struct db_mm *row, struct mm *model)
{
	MUST(mm_check(model) == NULL);
	MUST((row->state == WPFS_MM_LIVE) == (row->pid > 0) || row->state == WPFS_MM_DETACHED);
	MUST(row->pid >= 0 && row->witness_pid >= 0);
	MUST(memchr(row->name, '\0', sizeof(row->name)));
	/* What is done with it at the next life of the name. */
	MUST(mm_lost(model) == 0);
	mm_forget_vmas(model);
	MUST(mm_check(model) == NULL);
	return 0;
}

static int on_inode(void *ctx, const struct db_inode *inode)
{
	MUST((inode->target == NULL) ||
	     strnlen(inode->target, inode->target_len + 1) <= inode->target_len);
	return 0;
}

static int on_dirent(void *ctx, uint64_t parent, const char *name, size_t len, uint64_t id)
{
	MUST(len >= 1 && len <= 255 && name[len] == '\0');
	MUST(!memchr(name, '/', len) && strlen(name) == len);
	MUST(strcmp(name, ".") != 0 && strcmp(name, "..") != 0);
	return 0;
}

static int on_xattr(void *ctx, uint64_t id, const char *name, size_t name_len, const void *value,
		    size_t value_len)
{
	MUST(name[name_len] == '\0');
	return 0;
}

static int on_record(void *ctx, uint32_t type, const void *body, size_t len)
{
	unsigned *records = ctx;

	if (type == WPFS_REC_MAP)
		MUST(memchr(((const struct wpfs_rec_map *)body)->path, '\0',
			    len - offsetof(struct wpfs_rec_map, path)));
	return ++*records > 100000 ? -E2BIG : 0; /* sets may be large, reports take their time */
}

static void read_all(struct db *db)
{
	const struct db_marks_visitor marks = {.file = on_file, .mm = on_mm};
	const struct db_tree_visitor tree = {
		.inode = on_inode, .dirent = on_dirent, .xattr = on_xattr};
	uint64_t id;

	MUST(db_marks_load(db, &marks) <= 0);
	MUST(db_mm_last_id(db, &id) <= 0);
	MUST(db_tree_load(db, &tree) <= 0);
	for (int kind = WPFS_REPORT_PS; kind <= WPFS_REPORT_DIRTY; kind++) {
		const struct db_report_query query = {.kind = kind, .all_uids = true};
		const struct db_report_query closed = {
			.kind = kind, .all_uids = true, .path = "/dir/f", .epoch = 1};
		char why[DB_WHY_SIZE];
		unsigned records = 0;

		MUST(db_report(db, &query, on_record, &records, why) <= 0);
		records = 0;
		MUST(db_report(db, &closed, on_record, &records, why) <= 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	char why[DB_WHY_SIZE];
	struct db *db;

	if (!pristine.bytes)
		make_pristine();
	write_pristine();
	change(&in);
	if (db_open(path, DB_READONLY, &db, why) < 0) {
		MUST(why[0] && memchr(why, '\0', sizeof(why)));
		return 0;
	}
	read_all(db);
	db_close(db);
	return 0;
}
