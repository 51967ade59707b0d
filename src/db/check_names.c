/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What cannot be reached from the root gets a name in /lost+found: first what has none, with all
 * below it; what is left then hangs on a loop of directories, which is cut at one of them.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "db/check_internal.h"
#include "db/tree.h"

#define LOST "lost+found"

struct lost {
	struct db_check *check;
	int64_t dir; /* /lost+found; 0: not needed yet */
};

/* The temporary table `reach` gets `id` and all that is below it. */
static int reach_add(struct db_check *check, int64_t id)
{
	return sql_exec(&check->tx,
			"INSERT OR IGNORE INTO reach WITH RECURSIVE walk(id) AS (SELECT ?1 UNION"
			" SELECT d.id FROM walk JOIN dirent AS d ON d.parent = walk.id)"
			" SELECT id FROM walk",
			"i", id);
}

static int free_id(struct db_check *check, int64_t *id)
{
	uint64_t base = 0;
	int r = db_tx_meta_get_u64(&check->tx, DB_META_ID_BASE, &base);

	if (r < 0 && r != -ENODATA)
		return r;
	r = sql_get_i64(&check->tx, id,
			"SELECT 1 + max(?1, (SELECT coalesce(max(id), 1) FROM inode),"
			" (SELECT coalesce(max(id), 1) FROM file))",
			"i", (int64_t)base);
	return r ? r : db_tx_meta_set_u64(&check->tx, DB_META_ID_BASE, (uint64_t)*id);
}

static int put_name(struct lost *lost, int64_t parent, const char *name, int64_t id)
{
	return sql_exec(&lost->check->tx, "INSERT OR IGNORE INTO dirent VALUES (?1, ?2, ?3)", "ibi",
			parent, name, strlen(name), id)
		       ?: sqlite3_changes(lost->check->tx.sql);
}

static int make_dir(struct lost *lost, const char *name)
{
	struct db_inode inode = {.mode = 0x4000 | 0700, .nlink = 2};
	int64_t id;
	int r = free_id(lost->check, &id);

	inode.id = (uint64_t)id;
	if (r == 0)
		r = db_tree_put_inode(&lost->check->tx, &inode);
	if (r == 0)
		r = put_name(lost, DB_ROOT_ID, name, id);
	if (r <= 0)
		return r < 0 ? r : -EEXIST;
	lost->dir = id;
	return reach_add(lost->check, id);
}

/* /lost+found, or when something else has that name, /lost+found.1 and so on. */
static int find_dir(struct lost *lost)
{
	char name[32] = LOST;

	for (unsigned i = 1; !lost->dir; i++) {
		int64_t id, mode;
		int r = sql_get_i64(&lost->check->tx, &id,
				    "SELECT id FROM dirent WHERE parent = 1 AND name = ?1", "b",
				    name, strlen(name));

		if (r == -ENODATA)
			return make_dir(lost, name);
		if (r == 0)
			r = sql_get_i64(&lost->check->tx, &mode,
					"SELECT mode & 0xf000 FROM inode WHERE id = ?1", "i", id);
		if (r < 0)
			return r;
		if (mode == 0x4000)
			lost->dir = id;
		snprintf(name, sizeof(name), LOST ".%u", i);
	}
	return 0;
}

static int lose(struct lost *lost, int64_t id, const char *kind, const char *what)
{
	char name[48], repair[80];
	int r = find_dir(lost), n = 0;

	snprintf(name, sizeof(name), "%lld", (long long)id);
	while (r == 0 && (r = put_name(lost, lost->dir, name, id)) == 0)
		snprintf(name, sizeof(name), "%lld.%d", (long long)id, ++n);
	snprintf(repair, sizeof(repair), "name it /" LOST "/%s", name);
	if (r > 0)
		r = check_found(lost->check, kind, what, repair, "file %lld", (long long)id);
	return r ? r : reach_add(lost->check, id);
}

static int lose_nameless(struct lost *lost)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	int r = check_rows_get(
		lost->check, &rows,
		"SELECT id FROM inode WHERE id > 1 AND id NOT IN (SELECT id FROM reach)"
		" AND NOT EXISTS (SELECT 1 FROM dirent WHERE dirent.id = inode.id)");

	for (size_t i = 0; r == 0 && i < rows.nr; i++)
		r = lose(lost, rows.rows[i].v[0], "no-name", "no directory has it");
	return r;
}

/* One directory that is below itself. -ENODATA: there is none. */
static int find_loop(struct db_check *check, int64_t *id)
{
	return sql_get_i64(&check->tx, id,
			   "SELECT i.id FROM inode AS i WHERE i.id > 1"
			   " AND i.id NOT IN (SELECT id FROM reach) AND i.mode & 0xf000 = 0x4000"
			   " AND i.id IN (WITH RECURSIVE up(id) AS ("
			   "SELECT parent FROM dirent WHERE id = i.id UNION"
			   " SELECT d.parent FROM up JOIN dirent AS d ON d.id = up.id)"
			   " SELECT id FROM up) ORDER BY i.id LIMIT 1",
			   "");
}

static int cut_loops(struct lost *lost)
{
	int64_t id;
	int r;

	while ((r = find_loop(lost->check, &id)) == 0) {
		r = sql_exec(&lost->check->tx, "DELETE FROM dirent WHERE id = ?1", "i", id);
		if (r == 0)
			r = lose(lost, id, "loop", "a directory that is below itself");
		if (r < 0)
			break;
	}
	return r == -ENODATA ? 0 : r;
}

/* Counts of links after all that was mended, which were told of when they were wrong before. */
static int count_links(struct db_check *check)
{
	int r = sql_exec(&check->tx,
			 "UPDATE inode SET nlink = n.n FROM (SELECT i.id,"
			 " 2 + (SELECT count(*) FROM dirent AS d JOIN inode AS c ON c.id = d.id"
			 " WHERE d.parent = i.id AND c.mode & 0xf000 = 0x4000) AS n FROM inode AS i"
			 " WHERE i.mode & 0xf000 = 0x4000) AS n WHERE n.id = inode.id"
			 " AND nlink <> n.n",
			 "");

	return r ? r
		 : sql_exec(&check->tx,
			    "UPDATE inode SET nlink = n.n FROM (SELECT i.id, (SELECT count(*)"
			    " FROM dirent AS d WHERE d.id = i.id) AS n FROM inode AS i"
			    " WHERE i.mode & 0xf000 <> 0x4000) AS n WHERE n.id = inode.id"
			    " AND nlink <> n.n",
			    "");
}

int check_names(struct db_check *check)
{
	struct lost lost = {.check = check};
	int r = sql_exec_text(&check->tx, "CREATE TEMP TABLE reach (id INTEGER PRIMARY KEY)");

	if (r == 0)
		r = reach_add(check, DB_ROOT_ID);
	if (r == 0)
		r = lose_nameless(&lost);
	if (r == 0)
		r = cut_loops(&lost);
	return r ? r : count_links(check);
}
