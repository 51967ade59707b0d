/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "db/db.h"
#include "db/marks.h"
#include "db/report.h"
#include "db/tree.h"

#define STORE_DB   "wpfs.db"
#define STORE_LOCK "lock"

_Static_assert(STORE_WHY_SIZE == DB_WHY_SIZE, "one buffer serves both");

int store_is(int dir_fd)
{
	if (faccessat(dir_fd, STORE_DB, F_OK, 0) == 0)
		return 1;
	return errno == ENOENT ? 0 : -errno;
}

static void db_closep(struct db **db)
{
	if (*db)
		db_close(*db);
}

static int store_open(const char *path, unsigned flags, struct db **db, char *why)
{
	char file[PATH_MAX];

	if ((size_t)snprintf(file, sizeof(file), "%s/%s", path, STORE_DB) >= sizeof(file))
		return -ENAMETOOLONG;
	return db_open(file, flags, db, why);
}

int store_id(const char *path, char *id, char *why)
{
	_cleanup_(db_closep) struct db *db = NULL;
	int r;

	r = store_open(path, DB_READONLY, &db, why);
	return r ?: db_meta_get(db, DB_META_UUID, id, WPFS_ID_MAX);
}

/* The lock for the time of one command. An fd, -EAGAIN, or -errno. */
static int store_lock(int dir_fd, int how)
{
	_cleanup_close_ int fd = openat(dir_fd, STORE_LOCK, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (flock(fd, how | LOCK_NB))
		return -errno;
	return steal_fd(&fd);
}

int store_lock_alone(int dir_fd)
{
	int fd = store_lock(dir_fd, LOCK_EX);

	if (fd != -ENOENT)
		return fd;
	fd = openat(dir_fd, STORE_LOCK, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	close(fd);
	return store_lock(dir_fd, LOCK_EX);
}

int store_is_locked(int dir_fd)
{
	_cleanup_close_ int fd = store_lock(dir_fd, LOCK_SH);

	if (fd >= 0 || fd == -ENOENT)
		return 0;
	return fd == -EAGAIN ? 1 : fd;
}

struct relay {
	ipc_record_fn fn;
	void *arg;
};

static int relay_record(void *ctx, uint32_t type, const void *body, size_t len)
{
	static const struct wpfs_rec_note stale = {
		.kind = WPFS_NOTE_GAP,
		.text = "the daemon of this store ended while it lived: shown as of its last "
			"harvest; "
			"mount the store to know more"};
	struct relay *relay = ctx;
	struct wpfs_rec_mm mm;
	bool live;
	int r;

	if (type != WPFS_REC_MM)
		return relay->fn(relay->arg, type, body);
	memcpy(&mm, body, sizeof(mm));
	live = mm.state == WPFS_MM_LIVE;
	mm.state = WPFS_MM_DETACHED;
	mm.pid = 0;
	r = relay->fn(relay->arg, type, &mm);
	if (r || !live)
		return r;
	return relay->fn(relay->arg, WPFS_REC_NOTE, &stale);
}

/* Is the memory gone that the marks are of: no daemon that comes will find contents there? */
static bool store_lower_is_lost(struct db *db)
{
	char id[WPFS_ID_MAX], marks_of[WPFS_ID_MAX], path[PATH_MAX];
	_cleanup_free_ char *there = NULL;

	if (db_meta_get(db, DB_META_UUID, id, sizeof(id)) < 0 ||
	    db_meta_get(db, DB_META_MARKS_LOWER, marks_of, sizeof(marks_of)) < 0)
		return true;
	snprintf(path, sizeof(path), "%s/%s/private/lower_id", WPFS_RUN_DIR, id);
	if (fdio_read_file(AT_FDCWD, path, &there, NULL) < 0)
		return true;
	return strncmp(there, marks_of, strlen(marks_of)) != 0;
}

int store_report(const char *path, const struct wpfs_select *select, ipc_record_fn fn, void *arg,
		 char *why)
{
	_cleanup_(db_closep) struct db *db = NULL;
	struct relay relay = {fn, arg};
	struct db_report_query query = {
		.kind = select->kind,
		.all_uids = geteuid() == 0,
		.uid = geteuid(),
		.name = select->set & WPFS_SELECT_NAME ? select->name : NULL,
		.path = select->set & WPFS_SELECT_FILE ? select->file : NULL,
		.epoch = select->set & WPFS_SELECT_EPOCH ? select->epoch : 0,
	};
	int r;

	r = store_open(path, DB_READONLY, &db, why);
	if (r)
		return r;
	query.lower_lost = store_lower_is_lost(db);
	return db_report(db, &query, relay_record, &relay, why);
}

int store_stat(const char *path, const char *file, uint64_t *id, uint64_t *size, char *why)
{
	_cleanup_(db_closep) struct db *db = NULL;
	struct db_inode inode;
	uint64_t ended = 0;
	int r;

	r = store_open(path, DB_READONLY, &db, why);
	if (r)
		return r;
	/* Set by a daemon that has stored all there is, and by no other. */
	r = db_meta_get_u64(db, DB_META_WRITTEN_KNOWN, &ended);
	if (r == -ENODATA || (r == 0 && ended != 1)) {
		snprintf(why, STORE_WHY_SIZE,
			 "its daemon did not end in order, contents may be older than marks: mount "
			 "the store first");
		return -ESTALE;
	}
	r = r ?: db_tree_stat(db, file, &inode);
	if (r)
		return r;
	if (!S_ISREG(inode.mode))
		return -EMEDIUMTYPE;
	*id = inode.id;
	*size = inode.size;
	return 0;
}

/* The mms to forget, collected while the database is read. */
struct doomed {
	const char *name;
	uid_t uid;
	uint64_t *ids;
	size_t nr;
};

static int doomed_collect(void *ctx, const struct db_mm *row, struct mm *model)
{
	struct doomed *doomed = ctx;
	size_t len = strlen(doomed->name);
	uint64_t *more;

	/* With its instances NAME/2 and children NAME/PID, as a daemon does. */
	if (strncmp(row->name, doomed->name, len) != 0 ||
	    (row->name[len] != '\0' && row->name[len] != '/') ||
	    (doomed->uid != 0 && row->uid != doomed->uid))
		return 0;
	more = realloc(doomed->ids, (doomed->nr + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	doomed->ids = more;
	doomed->ids[doomed->nr++] = row->id;
	return 0;
}

static int doomed_delete(struct db_tx *tx, void *arg)
{
	struct doomed *doomed = arg;
	int r = 0;

	for (size_t i = 0; i < doomed->nr && r == 0; i++)
		r = db_mm_delete(tx, doomed->ids[i]);
	return r;
}

int store_forget(int dir_fd, const char *path, const char *name, char *why)
{
	_cleanup_close_ int lock_fd = store_lock(dir_fd, LOCK_EX);
	_cleanup_(db_closep) struct db *db = NULL;
	struct doomed doomed = {.name = name, .uid = geteuid()};
	struct db_marks_visitor visitor = {.ctx = &doomed, .mm = doomed_collect};
	int r;

	if (lock_fd < 0)
		return lock_fd;
	r = store_open(path, 0, &db, why);
	r = r ?: db_marks_load(db, &visitor);
	if (!r)
		r = doomed.nr ? db_call(db, doomed_delete, &doomed) : -ENOENT;
	free(doomed.ids);
	return r;
}
