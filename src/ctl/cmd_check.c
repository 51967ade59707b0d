/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * wpctl check: a line for each finding as it is found. The store is locked meanwhile, so that no
 * daemon starts on it. Contents move before the rows are committed, and those of no file only:
 * either may be all that is done when it is killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/progress.h"
#include "ctl/check_data.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/store.h"
#include "ctl/table.h"
#include "db/check.h"

struct check {
	const struct ctl_args *args;
	struct json json;
	uint64_t found, mended;
	struct progress progress;
};

static int fail(const struct check *check, const char *why)
{
	ctl_say("check: %s: %s", check->args->target, why);
	return CTL_FAILED;
}

static void show_text(const struct db_finding *f, bool mended)
{
	printf("%s: ", f->kind);
	say_text(stdout, f->where);
	fputs(": ", stdout);
	say_text(stdout, f->what);
	if (f->repair)
		printf("; %s: %s", mended ? "repaired" : "--repair", f->repair);
	else
		fputs("; not repaired: see wpfs(5)", stdout);
	putchar('\n');
}

static void show_json(struct json *json, const struct db_finding *f, bool mended)
{
	json_object(json, NULL);
	json_string(json, "kind", f->kind);
	json_bytes(json, "where", f->where);
	json_bytes(json, "what", f->what);
	if (f->repair)
		json_string(json, "repair", f->repair);
	else
		json_null(json, "repair");
	json_bool(json, "repaired", mended);
	json_end(json);
}

static int on_finding(void *ctx, const struct db_finding *f)
{
	struct check *check = ctx;
	bool mended = check->args->repair && f->repair;

	progress_end(&check->progress);
	check->found++;
	check->mended += mended;
	if (check->args->json)
		show_json(&check->json, f, mended);
	else
		show_text(f, mended);
	return 0;
}

static void show_end(struct check *check, uint64_t leftovers)
{
	char buf[40];

	if (check->args->json) {
		json_end(&check->json);
		json_u64(&check->json, "found", check->found);
		json_u64(&check->json, "repaired", check->mended);
		json_u64(&check->json, "leftovers", leftovers);
		json_end(&check->json);
		return;
	}
	if (leftovers)
		printf("left by a crash: contents of %s that had no name yet, or none any more; "
		       "the next mount removes them\n",
		       table_count(leftovers, "file", buf, sizeof(buf)));
	if (!check->found)
		printf("nothing is wrong\n");
	else
		printf("%s, %" PRIu64 " repaired\n",
		       table_count(check->found, "finding", buf, sizeof(buf)), check->mended);
}

static void on_tick(void *ctx)
{
	progress_update(ctx, 0);
}

static int run(struct check *check, int dir_fd, struct db_check *db)
{
	struct check_data data = {.dir_fd = dir_fd,
				  .repair = check->args->repair,
				  .db = db,
				  .fn = on_finding,
				  .ctx = check,
				  .progress = &check->progress};
	bool unreadable;
	int r, end;

	if (check->args->json) {
		json_init(&check->json, stdout);
		json_object(&check->json, NULL);
		json_array(&check->json, "findings");
	}
	progress_begin(&check->progress, "check: database", PROGRESS_THINGS, 0);
	db_check_tick(db, on_tick, &check->progress);
	r = db_check_run(db, on_finding, check);
	unreadable = r > 0;
	progress_end(&check->progress);
	if (!r)
		r = check_data_run(&data);
	progress_end(&check->progress);
	end = db_check_finish(db, !r && check->args->repair);
	r = unreadable ? 0 : r;
	if (r || end) {
		char why[160];

		snprintf(why, sizeof(why), "%s: nothing is repaired in the database",
			 db_errstr(r ? r : end));
		return fail(check, why);
	}
	show_end(check, data.leftovers);
	end = ctl_finish();
	return end ? end : check->found > check->mended ? CTL_FAILED : CTL_DONE;
}

/* Files that are in memory, of a daemon that was killed, will be stored over all that is mended. */
static bool has_lower(const char *path)
{
	char id[WPFS_ID_MAX], lower[sizeof(WPFS_RUN_DIR) + WPFS_ID_MAX + 16], why[STORE_WHY_SIZE];

	if (store_id(path, id, why))
		return false;
	snprintf(lower, sizeof(lower), WPFS_RUN_DIR "/%s/private", id);
	return access(lower, F_OK) == 0;
}

/* The part of the store that is a link, which no mount follows; NULL: none. */
static const char *linked_part(int dir_fd)
{
	static const char *const parts[] = {"wpfs.db", "data", "spill"};
	struct stat st;

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (fstatat(dir_fd, parts[i], &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode))
			return parts[i];
	}
	return NULL;
}

static int fail_linked(const struct check *check, const char *part)
{
	char why[80];

	snprintf(why, sizeof(why),
		 "%s is a symbolic link, which is not followed: move what it leads to there", part);
	return fail(check, why);
}

int cmd_check(const struct ctl_args *args)
{
	struct check check = {.args = args};
	_cleanup_close_ int dir_fd = open(args->target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int lock_fd = -1;
	char path[PATH_MAX], why[DB_WHY_SIZE] = "";
	struct db_check *db;
	int r = dir_fd < 0 ? -errno : store_is(dir_fd);

	if (linked_part(dir_fd))
		return fail_linked(&check, linked_part(dir_fd));
	if (r <= 0)
		return fail(&check, r ? log_errstr(r) : "not a store: there is no wpfs.db in it");
	lock_fd = store_lock_alone(dir_fd);
	if (lock_fd == -EAGAIN)
		return fail(&check, "it is in use: unmount it first");
	if (lock_fd < 0)
		return fail(&check, log_errstr(lock_fd));
	if (args->repair && has_lower(args->target))
		return fail(&check, "its daemon was killed and its files are still in memory: "
				    "mount it again and unmount it, then repair");
	if ((size_t)snprintf(path, sizeof(path), "%s/wpfs.db", args->target) >= sizeof(path))
		return fail(&check, log_errstr(-ENAMETOOLONG));
	r = db_check_open(path, &db, why);
	if (r)
		return fail(&check, why[0] ? why : db_errstr(r));
	return run(&check, dir_fd, db);
}
