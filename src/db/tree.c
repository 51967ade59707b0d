/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The stored tree. The rows come from disk and are believed no further than their columns' types:
 * what would be dangerous as a name is refused here.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "db/sql.h"
#include "db/tree.h"

#define NAME_BYTES   255
#define TARGET_BYTES 4095
#define PATH_BYTES   4096

/* ---- load ---- */

static const char SELECT_INODES[] = "SELECT id, mode, uid, gid, nlink, rdev, size, atime_ns, "
				    "mtime_ns, ctime_ns, target"
				    " FROM inode ORDER BY id";

static const char SELECT_PARENTS[] = "SELECT DISTINCT parent FROM dirent ORDER BY parent";

static const char SELECT_DIRENTS[] =
	"SELECT parent, name, id FROM dirent WHERE parent = ?1 ORDER BY name";

static const char SELECT_XATTRS[] = "SELECT id, name, value FROM xattr ORDER BY id, name";

static bool name_is_safe(const char *name, size_t len)
{
	return len >= 1 && len <= NAME_BYTES && !memchr(name, '/', len) && !memchr(name, 0, len) &&
	       !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

static int load_inode(const struct db_tree_visitor *v, sqlite3_stmt *st)
{
	struct db_inode inode = {
		.id = (uint64_t)sqlite3_column_int64(st, 0),
		.mode = (uint32_t)sqlite3_column_int64(st, 1),
		.uid = (uint32_t)sqlite3_column_int64(st, 2),
		.gid = (uint32_t)sqlite3_column_int64(st, 3),
		.nlink = (uint32_t)sqlite3_column_int64(st, 4),
		.rdev = (uint64_t)sqlite3_column_int64(st, 5),
		.size = (uint64_t)sqlite3_column_int64(st, 6),
		.atime_ns = sqlite3_column_int64(st, 7),
		.mtime_ns = sqlite3_column_int64(st, 8),
		.ctime_ns = sqlite3_column_int64(st, 9),
	};

	if (S_ISLNK(inode.mode)) {
		inode.target = sql_text(st, 10); /* of a blob: its bytes and a NUL */
		inode.target_len = (size_t)sqlite3_column_bytes(st, 10);
		if (inode.target_len == 0 || inode.target_len > TARGET_BYTES ||
		    strlen(inode.target) != inode.target_len)
			return -EUCLEAN;
	}
	return v->inode(v->ctx, &inode);
}

static int load_dirent(const struct db_tree_visitor *v, sqlite3_stmt *st)
{
	const char *name = sql_text(st, 1);
	size_t len = (size_t)sqlite3_column_bytes(st, 1);

	if (!name_is_safe(name, len))
		return -EUCLEAN;
	return v->dirent(v->ctx, (uint64_t)sqlite3_column_int64(st, 0), name, len,
			 (uint64_t)sqlite3_column_int64(st, 2));
}

static int load_xattr(const struct db_tree_visitor *v, sqlite3_stmt *st)
{
	const char *name = sql_text(st, 1);
	size_t len = (size_t)sqlite3_column_bytes(st, 1);
	const void *value = sqlite3_column_blob(st, 2);
	size_t value_len = (size_t)sqlite3_column_bytes(st, 2);

	if (len == 0 || len > NAME_BYTES || strlen(name) != len)
		return -EUCLEAN;
	return v->xattr(v->ctx, (uint64_t)sqlite3_column_int64(st, 0), name, len,
			value ? value : "", value_len);
}

static int load_rows(struct db_tx *tx, const char *text, const struct db_tree_visitor *v,
		     int (*row)(const struct db_tree_visitor *v, sqlite3_stmt *st))
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, text, "");

	if (r < 0)
		return r;
	while ((r = sql_step(tx, st)) > 0) {
		r = row(v, st);
		if (r < 0) {
			sql_reset(st);
			return r;
		}
	}
	return r;
}

/*
 * The directories with names in them, and in which order they are reached. Not chosen: one
 * recursive query, which keeps each name twice to find loops, and takes three times as long.
 */
struct walk {
	struct walk_dir {
		int64_t id;
		bool reached;
	} * dirs; /* ascending */
	int64_t *queue;
	size_t nr, room, queued;
};

static int walk_init(struct db_tx *tx, struct walk *w)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, SELECT_PARENTS, "");

	while (r >= 0 && (r = sql_step(tx, st)) > 0) {
		if (w->nr == w->room) {
			size_t room = w->room ? w->room * 2 : 256;
			void *dirs = reallocarray(w->dirs, room, sizeof(*w->dirs));

			if (!dirs) {
				sql_reset(st);
				return -ENOMEM;
			}
			w->dirs = dirs;
			w->room = room;
		}
		w->dirs[w->nr++] = (struct walk_dir){.id = sqlite3_column_int64(st, 0)};
	}
	w->queue = calloc(w->nr + 1, sizeof(*w->queue));
	return w->queue ? r : -ENOMEM;
}

static int walk_compare(const void *a, const void *b)
{
	const struct walk_dir *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

/* Once each: ends even if the rows form a loop. */
static void walk_reach(struct walk *w, int64_t id)
{
	const struct walk_dir key = {.id = id};
	struct walk_dir *dir =
		w->nr ? bsearch(&key, w->dirs, w->nr, sizeof(key), walk_compare) : NULL;

	if (!dir || dir->reached)
		return;
	dir->reached = true;
	w->queue[w->queued++] = id;
}

static int load_names(struct db_tx *tx, const struct db_tree_visitor *v, struct walk *w,
		      int64_t dir)
{
	sqlite3_stmt *st;
	int r = sql_query(tx, &st, SELECT_DIRENTS, "i", dir);

	if (r < 0)
		return r;
	while ((r = sql_step(tx, st)) > 0) {
		r = load_dirent(v, st);
		if (r < 0) {
			sql_reset(st);
			return r;
		}
		walk_reach(w, sqlite3_column_int64(st, 2));
	}
	return r;
}

/* Breadth first. */
static int load_dirents(struct db_tx *tx, const struct db_tree_visitor *v)
{
	struct walk w = {.nr = 0};
	int r = walk_init(tx, &w);

	if (r >= 0)
		walk_reach(&w, DB_ROOT_ID);
	for (size_t i = 0; r >= 0 && i < w.queued; i++)
		r = load_names(tx, v, &w, w.queue[i]);
	free(w.dirs);
	free(w.queue);
	return r;
}

static int load_job(struct db_tx *tx, void *arg)
{
	const struct db_tree_visitor *v = arg;
	int r = 0;

	if (v->inode)
		r = load_rows(tx, SELECT_INODES, v, load_inode);
	if (r == 0 && v->dirent)
		r = load_dirents(tx, v);
	if (r == 0 && v->xattr)
		r = load_rows(tx, SELECT_XATTRS, v, load_xattr);
	return r;
}

int db_tree_load(struct db *db, const struct db_tree_visitor *visitor)
{
	return db_read(db, load_job, (void *)visitor);
}

/* ---- replace ---- */

struct replace {
	int (*produce)(struct db_tx *tx, void *ctx);
	void *ctx;
};

int db_tx_tree_replace(struct db_tx *tx, int (*produce)(struct db_tx *tx, void *ctx), void *ctx)
{
	int r = sql_exec(tx, "DELETE FROM xattr", "");

	if (r == 0)
		r = sql_exec(tx, "DELETE FROM dirent", "");
	if (r == 0)
		r = sql_exec(tx, "DELETE FROM inode", "");
	return r < 0 ? r : produce(tx, ctx);
}

static int replace_job(struct db_tx *tx, void *arg)
{
	struct replace *replace = arg;

	return db_tx_tree_replace(tx, replace->produce, replace->ctx);
}

int db_tree_replace(struct db *db, int (*produce)(struct db_tx *tx, void *ctx), void *ctx)
{
	struct replace replace = {produce, ctx};

	return db_call(db, replace_job, &replace);
}

int db_tree_put_inode(struct db_tx *tx, const struct db_inode *i)
{
	if (!i->target)
		return sql_exec(tx,
				"INSERT INTO inode VALUES"
				" (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, NULL)",
				"iiiiiiiiii", (int64_t)i->id, (int64_t)i->mode, (int64_t)i->uid,
				(int64_t)i->gid, (int64_t)i->nlink, (int64_t)i->rdev,
				(int64_t)i->size, i->atime_ns, i->mtime_ns, i->ctime_ns);
	return sql_exec(tx,
			"INSERT INTO inode VALUES"
			" (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
			"iiiiiiiiiib", (int64_t)i->id, (int64_t)i->mode, (int64_t)i->uid,
			(int64_t)i->gid, (int64_t)i->nlink, (int64_t)i->rdev, (int64_t)i->size,
			i->atime_ns, i->mtime_ns, i->ctime_ns, i->target, i->target_len);
}

int db_tree_put_dirent(struct db_tx *tx, uint64_t parent, const char *name, size_t name_len,
		       uint64_t id)
{
	return sql_exec(tx, "INSERT INTO dirent VALUES (?1, ?2, ?3)", "ibi", (int64_t)parent, name,
			name_len, (int64_t)id);
}

int db_tree_put_xattr(struct db_tx *tx, uint64_t id, const char *name, size_t name_len,
		      const void *value, size_t value_len)
{
	return sql_exec(tx, "INSERT INTO xattr VALUES (?1, ?2, ?3)", "ibb", (int64_t)id, name,
			name_len, value, value_len);
}

/* ---- change ---- */

struct change {
	int (*produce)(struct db_tx *tx, void *ctx);
	void *ctx;
};

static int change_job(struct db_tx *tx, void *arg)
{
	struct change *change = arg;

	return change->produce(tx, change->ctx);
}

int db_tree_change(struct db *db, int (*produce)(struct db_tx *tx, void *ctx), void *ctx)
{
	struct change change = {produce, ctx};

	return db_call(db, change_job, &change);
}

/* Does the row exist? What is not told with it stays. 1, 0 or -errno. */
static int change_known(struct db_tx *tx, const struct db_inode *i, bool keep_size)
{
	int r = sql_exec(tx,
			 "UPDATE inode SET mode = ?2, uid = ?3, gid = ?4, nlink = ?5, rdev = ?6,"
			 " size = iif(?7 < 0, size, ?7), atime_ns = ?8, mtime_ns = ?9,"
			 " ctime_ns = ?10 WHERE id = ?1",
			 "iiiiiiiiii", (int64_t)i->id, (int64_t)i->mode, (int64_t)i->uid,
			 (int64_t)i->gid, (int64_t)i->nlink, (int64_t)i->rdev,
			 keep_size ? (int64_t)-1 : (int64_t)i->size, i->atime_ns, i->mtime_ns,
			 i->ctime_ns);

	return r < 0 ? r : sqlite3_changes(tx->sql) > 0;
}

int db_tree_set_inode(struct db_tx *tx, const struct db_inode *inode, bool keep_size)
{
	struct db_inode fresh = *inode;
	int r = change_known(tx, inode, keep_size);

	if (r == 0) {
		if (keep_size)
			fresh.size = 0;
		r = db_tree_put_inode(tx, &fresh);
	} else if (r > 0) {
		r = sql_exec(tx, "DELETE FROM xattr WHERE id = ?1", "i", (int64_t)inode->id);
	}
	return r;
}

int db_tree_set_dirent(struct db_tx *tx, uint64_t parent, const char *name, size_t name_len,
		       uint64_t id)
{
	return sql_exec(tx,
			"INSERT INTO dirent VALUES (?1, ?2, ?3)"
			" ON CONFLICT DO UPDATE SET id = ?3 WHERE id <> ?3",
			"ibi", (int64_t)parent, name, name_len, (int64_t)id);
}

int db_tree_remove_dirent(struct db_tx *tx, uint64_t parent, const char *name, size_t name_len)
{
	return sql_exec(tx, "DELETE FROM dirent WHERE parent = ?1 AND name = ?2", "ib",
			(int64_t)parent, name, name_len);
}

int db_tree_remove_inode(struct db_tx *tx, uint64_t id)
{
	int r = sql_exec(tx, "DELETE FROM xattr WHERE id = ?1", "i", (int64_t)id);

	return r < 0 ? r : sql_exec(tx, "DELETE FROM inode WHERE id = ?1", "i", (int64_t)id);
}

int db_tx_tree_find(struct db_tx *tx, const char *path, uint64_t *id)
{
	int64_t at = DB_ROOT_ID;

	for (;;) {
		size_t len;
		int r;

		path += strspn(path, "/");
		len = strcspn(path, "/");
		if (len == 0)
			break;
		r = sql_get_i64(tx, &at, "SELECT id FROM dirent WHERE parent = ?1 AND name = ?2",
				"ib", at, path, len);
		if (r < 0)
			return r;
		path += len;
	}
	*id = (uint64_t)at;
	return 0;
}

struct tree_stat {
	const char *path;
	struct db_inode *inode;
};

static int tree_stat_job(struct db_tx *tx, void *arg)
{
	struct tree_stat *job = arg;
	sqlite3_stmt *st;
	int r = db_tx_tree_find(tx, job->path, &job->inode->id);

	if (r == 0)
		r = sql_query(tx, &st, "SELECT mode, size FROM inode WHERE id = ?1", "i",
			      (int64_t)job->inode->id);
	if (r == 0)
		r = sql_step(tx, st);
	if (r <= 0)
		return r < 0 ? r : -ENODATA;
	job->inode->mode = (uint32_t)sqlite3_column_int64(st, 0);
	job->inode->size = (uint64_t)sqlite3_column_int64(st, 1);
	sql_reset(st);
	return 0;
}

int db_tree_stat(struct db *db, const char *path, struct db_inode *inode)
{
	struct tree_stat job = {path, inode};
	int r;

	*inode = (struct db_inode){0};
	r = db_read(db, tree_stat_job, &job);
	return r == -ENODATA ? -ENOENT : r;
}

struct tree_size {
	uint64_t id, *size;
};

static int tree_size_job(struct db_tx *tx, void *arg)
{
	struct tree_size *job = arg;
	int64_t size = 0;
	int r = sql_get_i64(tx, &size, "SELECT size FROM inode WHERE id = ?1", "i",
			    (int64_t)job->id);

	*job->size = r == 0 ? (uint64_t)size : 0;
	return r == -ENODATA ? 0 : r;
}

int db_tree_size(struct db *db, uint64_t id, uint64_t *size)
{
	struct tree_size job = {id, size};

	return db_read(db, tree_size_job, &job);
}

/* Climbs from the file to the root and writes the path backwards. */
int db_tx_tree_path(struct db_tx *tx, uint64_t id, char *path, size_t size)
{
	char buf[PATH_BYTES];
	size_t at = sizeof(buf) - 1;

	buf[at] = '\0';
	while (id != DB_ROOT_ID) {
		sqlite3_stmt *st;
		size_t len;
		int r = sql_query(tx, &st, "SELECT parent, name FROM dirent WHERE id = ?1 LIMIT 1",
				  "i", (int64_t)id);

		if (r == 0)
			r = sql_step(tx, st);
		if (r <= 0)
			return r < 0 ? r : -ENODATA;
		id = (uint64_t)sqlite3_column_int64(st, 0);
		len = (size_t)sqlite3_column_bytes(st, 1);
		if (len == 0 || len + 1 > at) {
			sql_reset(st);
			return -ENODATA; /* too long, or rows that form a loop */
		}
		at -= len;
		memcpy(buf + at, sqlite3_column_blob(st, 1), len);
		buf[--at] = '/';
		sql_reset(st);
	}
	snprintf(path, size, "%s", buf + at);
	return 0;
}
