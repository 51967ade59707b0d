/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The database: opening, migrations, the writer's groups and failures, meta, the tree. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "db/db_internal.h"
#include "db/tree.h"

static char dir[64];
static char path[96]; /* of the database of this test */

static int remove_entry(const char *entry, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(entry);
}

static int set_up(void **state)
{
	strcpy(dir, "/tmp/wpfs-db-test.XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/a b%%?#.db", dir);
	return 0;
}

static int tear_down(void **state)
{
	return nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static struct db *open_ok(unsigned flags)
{
	char why[DB_WHY_SIZE] = "";
	struct db *db = NULL;
	int r = db_open(path, flags, &db, why);

	if (r < 0)
		fail_msg("db_open: %d, %s", r, why);
	return db;
}

/* Statements by a connection that knows nothing of wpfs. */
static void stranger(const char *text)
{
	char *message = NULL;
	sqlite3 *sql;

	assert_int_equal(sqlite3_open(path, &sql), SQLITE_OK);
	if (sqlite3_exec(sql, text, NULL, NULL, &message) != SQLITE_OK)
		fail_msg("%s: %s", text, message);
	sqlite3_close(sql);
}

static void write_file(const char *bytes)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(fputs(bytes, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

/* ---- opening ---- */

static void test_meta(void **state)
{
	struct db *db = open_ok(0);
	char buf[8];
	uint64_t value;

	assert_int_equal(db_meta_get(db, DB_META_UUID, buf, sizeof(buf)), -ENODATA);
	assert_int_equal(db_meta_set(db, DB_META_UUID, "abc"), 0);
	assert_int_equal(db_meta_set_u64(db, DB_META_ID_BASE, 1), 0);
	assert_int_equal(db_meta_set_u64(db, DB_META_ID_BASE, 0x7fffffffffffffff), 0);
	db_close(db);
	for (unsigned flags = 0; flags <= DB_READONLY; flags += DB_READONLY) {
		db = open_ok(flags);
		assert_int_equal(db_meta_get(db, DB_META_UUID, buf, sizeof(buf)), 0);
		assert_string_equal(buf, "abc");
		assert_int_equal(db_meta_get(db, DB_META_UUID, buf, 3), -ERANGE);
		assert_int_equal(db_meta_get_u64(db, DB_META_ID_BASE, &value), 0);
		assert_int_equal(value, 0x7fffffffffffffff);
		if (flags & DB_READONLY)
			assert_int_equal(db_meta_set(db, DB_META_UUID, "x"), -EROFS);
		db_close(db);
	}
	snprintf(path, sizeof(path), "%s/a b%%?#.db-wal", dir);
	assert_int_equal(access(path, F_OK), -1); /* nothing is left beside it */
}

static void test_refused(void **state)
{
	char why[DB_WHY_SIZE] = "", text[32] = "";
	struct db *db = NULL;
	int fd;

	assert_int_equal(db_open(path, DB_READONLY, &db, why), -ENOENT);
	assert_int_equal(access(path, F_OK), -1);
	for (unsigned flags = 0; flags <= DB_READONLY; flags += DB_READONLY) {
		write_file("this is a letter, not a database of any kind whatsoever");
		assert_int_equal(db_open(path, flags, &db, why), -EMEDIUMTYPE);
		assert_non_null(strstr(why, "not a database of wpfs"));
		fd = open(path, O_RDONLY);
		assert_int_equal(read(fd, text, 6), 6);
		assert_string_equal(text, "this i");
		close(fd);
		unlink(path);

		stranger("CREATE TABLE recipes (cake)");
		assert_int_equal(db_open(path, flags, &db, why), -EMEDIUMTYPE);
		stranger("DROP TABLE recipes; PRAGMA user_version=1");
		assert_int_equal(db_open(path, flags, &db, why), -EMEDIUMTYPE);
		unlink(path);

		db_close(open_ok(0));
		stranger("PRAGMA user_version=99");
		assert_int_equal(db_open(path, flags, &db, why), -EPROTONOSUPPORT);
		assert_non_null(strstr(why, path));
		assert_non_null(strstr(why, "newer version"));
		unlink(path);
	}
	snprintf(path, sizeof(path), "%s/none/x.db", dir);
	assert_int_equal(db_open(path, 0, &db, why), -ENOENT);
}

static void test_corrupt(void **state)
{
	char why[DB_WHY_SIZE] = "", buf[64];
	struct db *db = NULL;
	int fd, r;

	db_close(open_ok(0));
	fd = open(path, O_RDWR);
	memset(buf, 0x5a, sizeof(buf));
	for (off_t at = 100; at < 100000; at += 512) {
		if (pwrite(fd, buf, sizeof(buf), at) != sizeof(buf))
			fail();
	}
	close(fd);
	r = db_open(path, 0, &db, why);
	if (r == 0) {
		r = db_meta_get(db, DB_META_UUID, buf, sizeof(buf));
		db_close(db);
	}
	assert_int_equal(r, -EUCLEAN);
}

/* ---- migrations ---- */

static const struct db_migration good[] = {
	{1, "001", "CREATE TABLE meta (key TEXT PRIMARY KEY, value); CREATE TABLE one (x);"},
	{2, "002", "CREATE TABLE two (x); INSERT INTO two VALUES (2);"},
};

static const struct db_migration bad[] = {
	{1, "001", "CREATE TABLE meta (key TEXT PRIMARY KEY, value); CREATE TABLE one (x);"},
	{2, "002", "CREATE TABLE half (x); INSERT INTO nowhere VALUES (2);"},
};

static int count_tables(struct db_tx *tx, void *arg)
{
	return sql_get_i64(tx, arg, "SELECT count(*) FROM sqlite_master WHERE type = 'table'", "");
}

static int64_t read_i64(struct db *db, db_job_fn fn)
{
	int64_t value = -1;

	assert_int_equal(db_read(db, fn, &value), 0);
	return value;
}

static void test_migrations(void **state)
{
	char why[DB_WHY_SIZE] = "";
	struct db *db = NULL;

	assert_int_equal(db_open_schema(path, 0, bad, 2, &db, why), -EINVAL);
	assert_int_equal(db_open_schema(path, DB_READONLY, good, 2, &db, why), -ESTALE);
	assert_int_equal(db_open_schema(path, 0, good, 1, &db, why), 0);
	assert_int_equal(read_i64(db, count_tables), 2); /* nothing of the bad one is left */
	db_close(db);
	for (int i = 0; i < 2; i++) { /* the second time there is nothing to do */
		assert_int_equal(db_open_schema(path, 0, good, 2, &db, why), 0);
		assert_int_equal(read_i64(db, count_tables), 3);
		db_close(db);
	}
	assert_int_equal(db_open_schema(path, 0, good, 1, &db, why), -EPROTONOSUPPORT);
}

/* ---- the writer ---- */

static atomic_int nr_syncs;

/* Instead of libc's, for SQLite too. */
int fdatasync(int fd)
{
	nr_syncs++;
	return (int)syscall(SYS_fdatasync, fd);
}

static int job_insert(struct db_tx *tx, void *arg)
{
	return db_tx_meta_set_u64(tx, arg, 1);
}

static int job_insert_and_fail(struct db_tx *tx, void *arg)
{
	int r = db_tx_meta_set_u64(tx, arg, 1);

	return r < 0 ? r : -ECANCELED;
}

static bool has(struct db *db, const char *key)
{
	uint64_t value;
	int r = db_meta_get_u64(db, key, &value);

	assert_true(r == 0 || r == -ENODATA);
	return r == 0;
}

struct gate {
	sem_t reached, go;
};

static int job_gate(struct db_tx *tx, void *arg)
{
	struct gate *gate = arg;

	sem_post(&gate->reached);
	while (sem_wait(&gate->go))
		;
	return 0;
}

static void gate_shut(struct db *db, struct gate *gate)
{
	sem_init(&gate->reached, 0, 0);
	sem_init(&gate->go, 0, 0);
	assert_int_equal(db_post(db, job_gate, gate, NULL), 0);
	while (sem_wait(&gate->reached))
		;
}

static int count_commit(void *arg)
{
	(*(int *)arg)++;
	return 0;
}

static int job_count_commits(struct db_tx *tx, void *arg)
{
	sqlite3_commit_hook(tx->sql, arg ? count_commit : NULL, arg);
	return 0;
}

static int job_fail_set(struct db_tx *tx, void *arg)
{
	tx->fail = *(struct sql_fail *)arg;
	return 0;
}

static int nr_freed; /* writer thread; read after a flush */

static void count_free(void *arg)
{
	nr_freed++;
}

/* All that was queued behind a busy writer is one commit; one that fails takes nothing with it. */
static void test_group(void **state)
{
	struct db *db = open_ok(0);
	int commits = 0;
	struct gate gate;

	assert_int_equal(db_call(db, job_count_commits, &commits), 0);
	gate_shut(db, &gate);
	commits = 0;
	assert_int_equal(db_post(db, job_insert, (void *)"a", count_free), 0);
	assert_int_equal(db_post(db, job_insert_and_fail, (void *)"b", count_free), 0);
	for (int i = 0; i < 20; i++)
		assert_int_equal(db_post(db, job_insert, (void *)"c", count_free), 0);
	sem_post(&gate.go);
	assert_int_equal(db_flush(db), -ECANCELED);
	assert_true(commits <= 3); /* the gate's, theirs, perhaps the flush's own */
	assert_int_equal(nr_freed, 22);
	assert_int_equal(db_flush(db), 0);
	assert_true(has(db, "a") && !has(db, "b") && has(db, "c"));
	assert_int_equal(db_call(db, job_insert_and_fail, (void *)"d"), -ECANCELED);
	assert_false(has(db, "d"));
	assert_int_equal(db_call(db, job_count_commits, NULL), 0);
	db_close(db);
}

static void test_commit_fails(void **state)
{
	struct db *db = open_ok(0);
	struct sql_fail commit_fails = {.commit = 1, .rc = SQLITE_IOERR_FSYNC};
	struct sql_fail step_fails = {.step = 2, .rc = SQLITE_FULL};
	struct gate gate;

	gate_shut(db, &gate);
	assert_int_equal(db_post(db, job_insert, (void *)"before", NULL), 0);
	assert_int_equal(db_post(db, job_fail_set, &commit_fails, NULL), 0);
	assert_int_equal(db_post(db, job_insert, (void *)"after", NULL), 0);
	sem_post(&gate.go);
	assert_int_equal(db_flush(db), -EIO);
	assert_true(!has(db, "before") && !has(db, "after"));
	assert_int_equal(db_call(db, job_insert, (void *)"next"), 0);
	assert_true(has(db, "next"));

	gate_shut(db, &gate);
	assert_int_equal(db_post(db, job_insert, (void *)"before", NULL), 0);
	assert_int_equal(db_post(db, job_fail_set, &step_fails, NULL), 0);
	/* its RELEASE is the first step, the next job's SAVEPOINT the second */
	assert_int_equal(db_post(db, job_insert, (void *)"unlucky", NULL), 0);
	assert_int_equal(db_post(db, job_insert, (void *)"after", NULL), 0);
	sem_post(&gate.go);
	assert_int_equal(db_flush(db), -ENOSPC);
	assert_true(has(db, "before") && !has(db, "unlucky") && has(db, "after"));
	db_close(db);
}

static int job_limit(struct db_tx *tx, void *arg)
{
	return sql_exec_text(tx, *(bool *)arg ? "PRAGMA max_page_count=1"
					      : "PRAGMA max_page_count=1000000");
}

static int job_big(struct db_tx *tx, void *arg)
{
	return sql_exec(tx, "INSERT INTO meta VALUES (?1, zeroblob(1000000))", "t", arg);
}

/* A disk that is really full: SQLite may roll back all by itself. */
static void test_full(void **state)
{
	struct db *db = open_ok(0);
	bool on = true, off = false;

	assert_int_equal(db_call(db, job_limit, &on), 0);
	assert_int_equal(db_call(db, job_big, (void *)"big"), -ENOSPC);
	assert_int_equal(db_call(db, job_limit, &off), 0);
	assert_int_equal(db_call(db, job_big, (void *)"big2"), 0);
	assert_true(!has(db, "big") && has(db, "big2"));
	db_close(db);
}

static int job_increment(struct db_tx *tx, void *arg)
{
	uint64_t value = 0;
	int r = db_tx_meta_get_u64(tx, "n", &value);

	return r == 0 || r == -ENODATA ? db_tx_meta_set_u64(tx, "n", value + 1) : r;
}

static void *increment_main(void *db)
{
	uint64_t value;

	for (int i = 0; i < 50; i++) {
		if (db_call(db, job_increment, NULL) || db_meta_get_u64(db, "n", &value))
			return db;
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct db *db = open_ok(DB_VOLATILE);
	pthread_t threads[4];
	uint64_t value = 0;
	void *failed;

	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, increment_main, db), 0);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
	assert_int_equal(db_meta_get_u64(db, "n", &value), 0);
	assert_int_equal(value, 200);
	db_close(db);
}

static void *increment_lazily(void *db)
{
	for (int i = 0; i < 50; i++) {
		if (db_call_lazy(db, job_increment, NULL))
			return db;
	}
	return NULL;
}

/* Plain memory: what is done beside is this thread's, and over when the call returns. */
static void count_beside(void *arg)
{
	++*(int *)arg;
}

/* Beside the others: each job is done once, by the writer or here, and what is beside it once. */
static void test_beside(void **state)
{
	struct db *db = open_ok(DB_VOLATILE);
	pthread_t threads[4];
	uint64_t value = 0;
	int beside = 0;
	void *failed;

	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL,
						i % 2 ? increment_main : increment_lazily, db),
				 0);
	for (int i = 0; i < 200; i++)
		assert_int_equal(db_call_beside(db, job_increment, NULL, count_beside, &beside), 0);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
	/* Nobody else is there: most of these are taken back. */
	for (int i = 0; i < 200; i++)
		assert_int_equal(db_call_beside(db, job_increment, NULL, count_beside, &beside), 0);
	assert_int_equal(
		db_call_beside(db, job_insert_and_fail, (void *)"none", count_beside, &beside),
		-ECANCELED);
	assert_int_equal(beside, 401);
	assert_int_equal(db_meta_get_u64(db, "n", &value), 0);
	assert_int_equal(value, 600);
	assert_false(has(db, "none"));
	db_close(db);
}

/* What a call has returned for is there after a kill. */
static void test_killed(void **state)
{
	pid_t pid = fork();
	struct db *db;
	int status;

	assert_true(pid >= 0);
	if (pid == 0) {
		if (db_open(path, 0, &db, NULL) || db_call(db, job_insert, (void *)"kept"))
			_exit(1);
		_exit(0); /* without db_close */
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	db = open_ok(DB_READONLY);
	assert_true(has(db, "kept"));
	db_close(db);
}

static size_t entries_of(const char *name)
{
	DIR *d = opendir(name);
	size_t nr = 0;

	assert_non_null(d);
	while (readdir(d))
		nr++;
	closedir(d);
	return nr - 2;
}

/* The directory is moved away, and another one put in its place, with nothing or a link in it. */
static void test_another_directory(void **state)
{
	char here[80], away[80], link[96], why[DB_WHY_SIZE] = "";
	struct db *db = NULL;
	uint64_t value;
	int fd;

	snprintf(here, sizeof(here), "%s/here", dir);
	snprintf(away, sizeof(away), "%s/away", dir);
	snprintf(path, sizeof(path), "%s/wpfs.db", here);
	assert_int_equal(mkdir(here, 0700), 0);
	fd = open(here, O_RDONLY | O_DIRECTORY);
	assert_int_equal(db_open_at(fd, path, 0, &db, why), 0);
	assert_int_equal(db_meta_set_u64(db, "n", 1), 0);
	assert_int_equal(rename(here, away), 0);
	assert_int_equal(mkdir(here, 0700), 0);
	assert_int_equal(db_meta_get_u64(db, "n", &value), 0);
	assert_int_equal(value, 1);
	assert_int_equal(db_meta_set_u64(db, "n", 2), 0);
	db_close(db);
	assert_int_equal(entries_of(here), 0);
	assert_int_equal(entries_of(away), 1);
	assert_int_equal(db_open_at(fd, path, 0, &db, why), 0);
	assert_int_equal(db_meta_get_u64(db, "n", &value), 0);
	assert_int_equal(value, 2);
	db_close(db);

	snprintf(link, sizeof(link), "%s/link.db", away);
	assert_int_equal(symlink(path, link), 0);
	snprintf(path, sizeof(path), "%s/link.db", here);
	assert_true(db_open_at(fd, path, 0, &db, why) < 0);
	assert_non_null(strstr(why, path));
	assert_int_equal(entries_of(here), 0);
	close(fd);
}

static int job_read_only(struct db_tx *tx, void *arg)
{
	return job_insert(tx, arg);
}

static void test_read_only(void **state)
{
	struct db *db = open_ok(0), *second;

	assert_int_equal(db_read(db, job_read_only, (void *)"x"), -EROFS);
	assert_int_equal(db_call(db, job_insert, (void *)"y"), 0);
	second = open_ok(DB_READONLY); /* beside a living daemon */
	assert_int_equal(db_read(second, job_read_only, (void *)"x"), -EROFS);
	assert_true(has(second, "y"));
	assert_int_equal(db_call(db, job_insert, (void *)"z"), 0);
	assert_true(has(second, "z"));
	db_close(second);
	db_close(db);
}

/* ---- the tree ---- */

static int put_dir(struct db_tx *tx, uint64_t id)
{
	const struct db_inode inode = {.id = id, .mode = S_IFDIR | 0755, .nlink = 2};

	return db_tree_put_inode(tx, &inode);
}

/* /b/ (id 9), /b/a/ (id 3), /b/a/file = /link2 (id 4), /sym (id 5), "\xff\n" (id 6, a fifo) */
static int produce(struct db_tx *tx, void *arg)
{
	const struct db_inode file = {.id = 4,
				      .mode = S_IFREG | 04755,
				      .uid = 4294967294,
				      .gid = 7,
				      .nlink = 2,
				      .size = 1ULL << 44,
				      .atime_ns = -1,
				      .mtime_ns = INT64_MAX,
				      .ctime_ns = 5};
	const struct db_inode sym = {
		.id = 5, .mode = S_IFLNK | 0777, .nlink = 1, .target = "b/a", .target_len = 3};
	const struct db_inode fifo = {.id = 6, .mode = S_IFIFO | 0600, .nlink = 1, .rdev = 3};
	int r = 0;

	r = r ?: db_tree_put_dirent(tx, 3, "file", 4, 4);
	r = r ?: db_tree_put_dirent(tx, 9, "a", 1, 3);
	r = r ?: db_tree_put_dirent(tx, 1, "b", 1, 9);
	r = r ?: db_tree_put_dirent(tx, 1, "link2", 5, 4);
	r = r ?: db_tree_put_dirent(tx, 1, "sym", 3, 5);
	r = r ?: db_tree_put_dirent(tx, 1, "\xff\n", 2, 6);
	r = r ?: put_dir(tx, 1);
	r = r ?: put_dir(tx, 9);
	r = r ?: put_dir(tx, 3);
	r = r ?: db_tree_put_inode(tx, &file);
	r = r ?: db_tree_put_inode(tx, &sym);
	r = r ?: db_tree_put_inode(tx, &fifo);
	r = r ?: db_tree_put_xattr(tx, 4, "user.x", 6, "v\0w", 3);
	r = r ?: db_tree_put_xattr(tx, 4, "user.empty", 10, "", 0);
	return r ?: *(int *)arg;
}

static int produce_orphan(struct db_tx *tx, void *arg)
{
	int r = put_dir(tx, 1);

	return r ?: db_tree_put_dirent(tx, 1, "ghost", 5, 1000);
}

static char seen[1024];

static int see(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int see(const char *fmt, ...)
{
	size_t used = strlen(seen);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(seen + used, sizeof(seen) - used, fmt, ap);
	va_end(ap);
	return 0;
}

static int see_inode(void *ctx, const struct db_inode *i)
{
	if (i->id == 4) {
		assert_int_equal(i->mode, S_IFREG | 04755);
		assert_int_equal(i->uid, 4294967294);
		assert_int_equal(i->size, 1ULL << 44);
		assert_int_equal(i->atime_ns, -1);
		assert_int_equal(i->mtime_ns, INT64_MAX);
	}
	return see("%d%s%s ", (int)i->id, i->target ? ">" : "", i->target ? i->target : "");
}

static int see_dirent(void *ctx, uint64_t parent, const char *name, size_t len, uint64_t id)
{
	return see("%d/%.*s=%d ", (int)parent, (int)len, name, (int)id);
}

static int see_xattr(void *ctx, uint64_t id, const char *name, size_t len, const void *value,
		     size_t value_len)
{
	if (value_len == 3)
		assert_memory_equal(value, "v\0w", 3);
	return see("%d.%.*s:%zu ", (int)id, (int)len, name, value_len);
}

static const struct db_tree_visitor visitor = {NULL, see_inode, see_dirent, see_xattr};

static void test_tree(void **state)
{
	static const char whole[] = "1 3 4 5>b/a 6 9 1/b=9 1/link2=4 1/sym=5 1/\xff\n=6 9/a=3 "
				    "3/file=4 4.user.empty:0 4.user.x:3 ";
	struct db *db = open_ok(0);
	int ok = 0, cancel = -ECANCELED;

	seen[0] = '\0';
	assert_int_equal(db_tree_load(db, &visitor), 0);
	assert_string_equal(seen, "");
	for (int i = 0; i < 2; i++) {
		assert_int_equal(db_tree_replace(db, produce, &ok), 0);
		seen[0] = '\0';
		assert_int_equal(db_tree_load(db, &visitor), 0);
		assert_string_equal(seen, whole);
	}
	assert_int_equal(db_tree_replace(db, produce, &cancel), -ECANCELED);
	assert_int_equal(db_tree_replace(db, produce_orphan, NULL), -ENOENT);
	seen[0] = '\0';
	assert_int_equal(db_tree_load(db, &visitor), 0);
	assert_string_equal(seen, whole);
	db_close(db);
}

static int job_orphan(struct db_tx *tx, void *arg)
{
	return db_tx_tree_replace(tx, produce_orphan, arg);
}

/* A name without inode is only noticed at the end of its job; others must not pay for it. */
static void test_orphan(void **state)
{
	struct db *db = open_ok(0);
	struct gate gate;

	gate_shut(db, &gate);
	assert_int_equal(db_post(db, job_insert, (void *)"before", NULL), 0);
	assert_int_equal(db_post(db, job_orphan, NULL, NULL), 0);
	assert_int_equal(db_post(db, job_insert, (void *)"after", NULL), 0);
	sem_post(&gate.go);
	assert_int_equal(db_flush(db), -ENOENT);
	assert_true(has(db, "before") && has(db, "after"));
	seen[0] = '\0';
	assert_int_equal(db_tree_load(db, &visitor), 0);
	assert_string_equal(seen, "");
	db_close(db);
}

/* Names that would lead out of the tree, written by somebody who does not care for constraints. */
static void test_hostile_tree(void **state)
{
	static const char *const names[] = {"x'2e2e'", "x'2e'",	  "x'612f62'",
					    "x''",     "x'6100'", "zeroblob(300)"};
	int ok = 0;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct db *db = open_ok(0);
		char text[160];

		assert_int_equal(db_tree_replace(db, produce, &ok), 0);
		db_close(db);
		snprintf(text, sizeof(text),
			 "PRAGMA ignore_check_constraints=1; INSERT INTO dirent VALUES (1, %s, 4)",
			 names[i]);
		stranger(text);
		db = open_ok(DB_READONLY); /* a mount refuses some of these before */
		assert_int_equal(db_tree_load(db, &visitor), -EUCLEAN);
		db_close(db);
		stranger("DELETE FROM dirent WHERE id = 4");
	}
	stranger("DELETE FROM dirent; INSERT INTO dirent VALUES (1, x'61', 9), (9, x'62', 3),"
		 " (3, x'63', 9)"); /* a loop must come to an end */
	struct db *db = open_ok(DB_READONLY);

	seen[0] = '\0';
	assert_int_equal(db_tree_load(db, &visitor), 0);
	assert_non_null(strstr(seen, "1/a=9 9/b=3 3/c=9 4.user"));
	db_close(db);
}

static int syncs_of(int (*fn)(struct db *db, db_job_fn job, void *arg), struct db *db,
		    db_job_fn job, const char *key)
{
	nr_syncs = 0;
	assert_int_equal(fn(db, job, (void *)key), 0);
	return nr_syncs;
}

static int job_look(struct db_tx *tx, void *arg)
{
	uint64_t value;

	return db_tx_meta_get_u64(tx, arg, &value);
}

static int call_sync(struct db *db, db_job_fn job, void *arg)
{
	return db_sync(db);
}

/* What is lazy costs no sync, and the next job that is not makes all of it durable. */
static void test_lazy(void **state)
{
	struct db *db = open_ok(0);

	assert_int_equal(syncs_of(call_sync, db, NULL, NULL), 1); /* of a process before */
	assert_int_equal(syncs_of(db_call_lazy, db, job_insert, "a"), 0);
	assert_true(has(db, "a"));
	assert_int_equal(syncs_of(db_call, db, job_insert, "b"), 1);
	assert_int_equal(syncs_of(call_sync, db, NULL, NULL), 0);
	/* also one that has nothing to write itself */
	assert_int_equal(syncs_of(db_call_lazy, db, job_insert, "c"), 0);
	assert_int_equal(syncs_of(db_call_lazy, db, job_look, "c"), 0);
	assert_int_equal(syncs_of(db_call, db, job_look, "c"), 1);
	assert_int_equal(syncs_of(db_call_lazy, db, job_insert, "d"), 0);
	assert_int_equal(syncs_of(call_sync, db, NULL, NULL), 1);
	assert_int_equal(syncs_of(db_call, db, job_look, "c"), 0);
	db_close(db);

	db = open_ok(DB_VOLATILE);
	assert_true(has(db, "d"));
	assert_int_equal(syncs_of(db_call_lazy, db, job_insert, "g"), 0);
	assert_int_equal(syncs_of(db_call, db, job_insert, "h"), 0);
	assert_int_equal(syncs_of(call_sync, db, NULL, NULL), 0);
	db_close(db);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_meta),      TEST(test_refused),
		TEST(test_corrupt),   TEST(test_migrations),
		TEST(test_group),     TEST(test_commit_fails),
		TEST(test_full),      TEST(test_threads),
		TEST(test_beside),    TEST(test_killed),
		TEST(test_read_only), TEST(test_tree),
		TEST(test_orphan),    TEST(test_hostile_tree),
		TEST(test_lazy),      TEST(test_another_directory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
