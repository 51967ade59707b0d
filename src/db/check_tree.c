/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The tree by its rows: inodes a mount could not make, names that lead nowhere, counts of links.
 * Afterwards every name stands in a directory, names something, and no directory has two.
 */
#include <stdio.h>

#include "db/check_internal.h"

#define S_TYPE "(mode & 0xf000)"

static const struct check_rule inode_rules[] = {
	{"attributes", "file", "attributes out of range", "take the nearest ones that are valid",
	 "SELECT id FROM inode WHERE id > 0 AND NOT (mode BETWEEN 0 AND 0xffff AND uid BETWEEN 0"
	 " AND 0xffffffff AND gid BETWEEN 0 AND 0xffffffff AND rdev >= 0 AND size >= 0)",
	 "UPDATE inode SET mode = mode & 0xffff, uid = iif(uid BETWEEN 0 AND 0xffffffff, uid, 0),"
	 " gid = iif(gid BETWEEN 0 AND 0xffffffff, gid, 0), rdev = max(rdev, 0),"
	 " size = max(size, 0) WHERE id = ?1"},
	{"type", "file", "it is of no type of file", "make it a regular file",
	 "SELECT id FROM inode WHERE id > 1 AND " S_TYPE " NOT IN (0x1000, 0x2000, 0x4000,"
	 " 0x6000, 0x8000, 0xa000, 0xc000)",
	 "UPDATE inode SET mode = 0x8000 | (mode & 0xfff), target = NULL WHERE id = ?1"},
	{"target", "file", "a symbolic link that leads nowhere", "let it lead to '(lost)'",
	 "SELECT id FROM inode WHERE " S_TYPE " = 0xa000 AND (target IS NULL OR length(target)"
	 " NOT BETWEEN 1 AND 4095 OR instr(target, x'00'))",
	 "UPDATE inode SET target = CAST('(lost)' AS BLOB), size = 6 WHERE id = ?1"},
	{"target", "file", "it leads somewhere and is no symbolic link", "forget where to",
	 "SELECT id FROM inode WHERE " S_TYPE " <> 0xa000 AND target IS NOT NULL",
	 "UPDATE inode SET target = NULL WHERE id = ?1"},
	{"root", "file", "the root is no directory", "make it one",
	 "SELECT id FROM inode WHERE id = 1 AND " S_TYPE " <> 0x4000",
	 "UPDATE inode SET mode = 0x4000 | (mode & 0xfff), target = NULL WHERE id = ?1"},
	{"root", "file", "the root is missing", "make one, root's, with mode 0755",
	 "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inode WHERE id = 1)"
	 " AND (EXISTS (SELECT 1 FROM inode) OR EXISTS (SELECT 1 FROM dirent))",
	 "INSERT INTO inode (id, mode, uid, gid, nlink, rdev, size, atime_ns, mtime_ns, ctime_ns)"
	 " SELECT ?1, 0x41ed, 0, 0, 2 + count(*), 0, 0, 0, 0, 0 FROM dirent AS d"
	 " JOIN inode AS c ON c.id = d.id WHERE d.parent = ?1 AND c.mode & 0xf000 = 0x4000"},
};

/* As it was found: what is mended later changes counts, which is no damage of its own. */
static const struct check_rule nlink_rules[] = {
	{"nlink", "directory", "its link count is not that of the directories in it", "count again",
	 "SELECT id FROM inode AS i WHERE " S_TYPE " = 0x4000 AND nlink <> 2 + (SELECT count(*)"
	 " FROM dirent AS d JOIN inode AS c ON c.id = d.id WHERE d.parent = i.id"
	 " AND c.mode & 0xf000 = 0x4000)",
	 "UPDATE inode SET nlink = 2 + (SELECT count(*) FROM dirent AS d JOIN inode AS c"
	 " ON c.id = d.id WHERE d.parent = ?1 AND c.mode & 0xf000 = 0x4000) WHERE id = ?1"},
	{"nlink", "file", "its link count is not that of its names", "count again",
	 "SELECT id FROM inode AS i WHERE " S_TYPE " <> 0x4000 AND nlink <> (SELECT count(*)"
	 " FROM dirent AS d WHERE d.id = i.id) AND EXISTS (SELECT 1 FROM dirent AS d"
	 " WHERE d.id = i.id)",
	 "UPDATE inode SET nlink = (SELECT count(*) FROM dirent WHERE id = ?1) WHERE id = ?1"},
};

/* Names: parent, id, name. What then has no name at all is found afterwards. */
static const struct check_rule name_rules[] = {
	{"name", NULL, "no name that a file can have", "remove the name",
	 "SELECT parent, id, name FROM dirent WHERE length(name) NOT BETWEEN 1 AND 255"
	 " OR instr(name, x'2f') OR instr(name, x'00') OR name IN (x'2e', x'2e2e')",
	 NULL},
	{"no-inode", NULL, "there is no such file", "remove the name",
	 "SELECT parent, id, name FROM dirent WHERE id NOT IN (SELECT id FROM inode)", NULL},
	{"name", NULL, "the root has a name", "remove the name",
	 "SELECT parent, id, name FROM dirent WHERE id = 1", NULL},
	{"no-parent", NULL, "it stands in what is no directory", "remove the name",
	 "SELECT parent, id, name FROM dirent WHERE parent NOT IN"
	 " (SELECT id FROM inode WHERE " S_TYPE " = 0x4000)",
	 NULL},
	{"two-names", NULL, "a directory with a second name", "remove this one",
	 "SELECT d.parent, d.id, d.name FROM dirent AS d JOIN inode AS i ON i.id = d.id"
	 " WHERE i.mode & 0xf000 = 0x4000 AND EXISTS (SELECT 1 FROM dirent AS e"
	 " WHERE e.id = d.id AND (e.parent, e.name) < (d.parent, d.name))",
	 NULL},
};

static int run_name_rule(struct db_check *check, const struct check_rule *rule)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	char path[CHECK_PATH_SIZE];
	int r = check_rows_get(check, &rows, rule->find);

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		const struct check_row *row = &rows.rows[i];

		r = check_found(check, rule->kind, rule->what, rule->repair,
				"name '%s' of file %lld in directory %lld%s",
				row->bytes ? row->bytes : "", (long long)row->v[1],
				(long long)row->v[0], check_path(check, row->v[0], path));
		if (r == 0)
			r = sql_exec(&check->tx,
				     "DELETE FROM dirent WHERE parent = ?1 AND name = ?2", "ib",
				     row->v[0], row->bytes, row->len);
	}
	return r;
}

/* Attributes: of which file and under which name; a mount could not set those. */
static const struct check_rule xattr_rules[] = {
	{"no-inode", NULL, "there is no such file", "remove the attribute",
	 "SELECT id, name FROM xattr WHERE id NOT IN (SELECT id FROM inode)", NULL},
	{"xattr", NULL, "no attribute that a file can have", "remove the attribute",
	 "SELECT id, name FROM xattr WHERE length(name) NOT BETWEEN 1 AND 255"
	 " OR instr(name, x'00') OR length(value) > 65536"
	 " OR NOT (substr(CAST(name AS TEXT), 1, 5) = 'user.'"
	 " OR substr(CAST(name AS TEXT), 1, 8) = 'trusted.'"
	 " OR substr(CAST(name AS TEXT), 1, 9) = 'security.'"
	 " OR substr(CAST(name AS TEXT), 1, 7) = 'system.')",
	 NULL},
};

static int run_xattr_rule(struct db_check *check, const struct check_rule *rule)
{
	_cleanup_rows_ struct check_rows rows = {NULL};
	char path[CHECK_PATH_SIZE];
	int r = check_rows_get(check, &rows, rule->find);

	for (size_t i = 0; r == 0 && i < rows.nr; i++) {
		const struct check_row *row = &rows.rows[i];

		r = check_found(check, rule->kind, rule->what, rule->repair,
				"attribute '%s' of file %lld%s", row->bytes ? row->bytes : "",
				(long long)row->v[0], check_path(check, row->v[0], path));
		if (r == 0)
			r = sql_exec(&check->tx, "DELETE FROM xattr WHERE id = ?1 AND name = ?2",
				     "ib", row->v[0], row->bytes, row->len);
	}
	return r;
}

#define NR(rules) (sizeof(rules) / sizeof((rules)[0]))

int check_tree(struct db_check *check)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < NR(inode_rules); i++)
		r = check_rule_run(check, &inode_rules[i]);
	for (size_t i = 0; r == 0 && i < NR(nlink_rules); i++)
		r = check_rule_run(check, &nlink_rules[i]);
	for (size_t i = 0; r == 0 && i < NR(name_rules); i++)
		r = run_name_rule(check, &name_rules[i]);
	for (size_t i = 0; r == 0 && i < NR(xattr_rules); i++)
		r = run_xattr_rule(check, &xattr_rules[i]);
	return r;
}
