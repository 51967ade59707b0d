/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/table.h"
#include "ctl/target.h"
#include "db/db.h"

static const char *kind_name(uint32_t kind)
{
	return kind == WPFS_KIND_CAPPED ? "capped" : "native";
}

static void show_capped_json(struct json *json, const struct wpfs_status *s)
{
	json_u64(json, "cap", s->cap);
	json_u64(json, "pinned", s->pinned);
	json_u64(json, "read_ahead", s->ahead);
	json_u64(json, "probes", s->probes);
	json_u64(json, "throttled", s->throttled);
	json_u64(json, "zero_pages", s->zeros);
	json_u64(json, "fences", s->fences);
	json_u64(json, "fence_ns", s->fence_ns);
	json_u64(json, "io_depth", s->io_depth);
	json_u64(json, "io_depth_max", s->io_depth_max);
	json_bool(json, "store_io_uring", s->store_uring);
	json_u64(json, "store_errors", s->store_errors);
	json_u64(json, "failing", s->failing);
}

static void show_json(const struct wpfs_status *s)
{
	struct json json;

	json_init(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "state", "mounted");
	json_bytes(&json, "mountpoint", s->mountpoint);
	json_bytes(&json, "store", s->store);
	json_string(&json, "id", s->id);
	json_string(&json, "kind", kind_name(s->kind));
	json_u64(&json, "pid", s->pid > 0 ? (uint64_t)s->pid : 0);
	json_bool(&json, "passthrough", s->passthrough);
	json_bool(&json, "io_uring", s->uring);
	json_u64(&json, "size", s->size);
	json_u64(&json, "used", s->used);
	json_u64(&json, "inodes", s->inodes);
	json_u64(&json, "inodes_used", s->inodes_used);
	json_u64(&json, "resident", s->resident);
	json_u64(&json, "spilled", s->spilled);
	json_u64(&json, "faults", s->faults);
	json_u64(&json, "refaults", s->refaults);
	json_u64(&json, "evictions", s->evictions);
	if (s->kind == WPFS_KIND_CAPPED)
		show_capped_json(&json, s);
	json_u64(&json, "clients", s->clients);
	json_u64(&json, "mms_live", s->mms_live);
	json_u64(&json, "mms_detached", s->mms_detached);
	json_u64(&json, "last_commit", s->last_commit);
	json_u64(&json, "harvests", s->harvests);
	json_u64(&json, "conservative", s->conservative);
	json_u64(&json, "unsaved", s->unsaved);
	if (s->db_error)
		json_string(&json, "database_error", db_errstr(s->db_error));
	else
		json_null(&json, "database_error");
	if (s->store_error)
		json_string(&json, "store_error", db_errstr(s->store_error));
	else
		json_null(&json, "store_error");
	json_u64(&json, "store_files", s->store_files);
	json_end(&json);
}

static void put(const char *key, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void put(const char *key, const char *fmt, ...)
{
	va_list ap;

	printf("%s%-12s%s  ", table_paint(TABLE_BOLD), key, table_paint(TABLE_PLAIN));
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

static void put_path(const char *key, const char *path)
{
	printf("%s%-12s%s  ", table_paint(TABLE_BOLD), key, table_paint(TABLE_PLAIN));
	say_text(stdout, path);
	putchar('\n');
}

static void put_commit(uint64_t when)
{
	time_t t = (time_t)when;
	struct tm tm;
	char text[64];

	if (when == 0 || !localtime_r(&t, &tm)) {
		put("last commit", "never");
		return;
	}
	strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm);
	put("last commit", "%s, %" PRIu64 " s ago", text,
	    (uint64_t)time(NULL) > when ? (uint64_t)time(NULL) - when : 0);
}

static void show_capped(const struct wpfs_status *s)
{
	char a[16], b[16];

	put("resident", "%s of %s", units_format_size(s->resident, a, sizeof(a)),
	    units_format_size(s->cap, b, sizeof(b)));
	if (s->pinned)
		put("pinned", "%s, which programs that are not tracked have open or mapped",
		    units_format_size(s->pinned, a, sizeof(a)));
	put("spilled", "%s", units_format_size(s->spilled, a, sizeof(a)));
	put("faults", "%" PRIu64 ", %" PRIu64 " had to wait for room", s->faults, s->throttled);
	put("refaults", "%" PRIu64 " pages, %" PRIu64 " of them read ahead", s->refaults, s->ahead);
	put("evictions", "%" PRIu64 " pages, %" PRIu64 " of them zeros, after %" PRIu64 " probes",
	    s->evictions, s->zeros, s->probes);
	put("fences", "%" PRIu64 ", %.1f ms each", s->fences,
	    s->fences ? (double)s->fence_ns / 1e6 / (double)s->fences : 0);
	put("store I/O", "%s, depth %" PRIu64 ", at most %" PRIu64 " so far",
	    s->store_uring ? "io_uring" : "pread and pwrite", s->io_depth, s->io_depth_max);
	if (s->store_errors || s->failing)
		put("store errors", "%" PRIu64 ", %" PRIu64 " faults wait for a page",
		    s->store_errors, s->failing);
}

static void show_text(const struct wpfs_status *s)
{
	const char *what = s->kind == WPFS_KIND_CAPPED ? "contents" : "memory";
	char a[40], b[16];

	put_path("mounted at", s->mountpoint);
	put_path("store", s->store);
	put("id", "%s", s->id);
	put("kind", "%s", kind_name(s->kind));
	put("daemon", "pid %" PRId32, s->pid);
	put("passthrough", "%s", s->passthrough ? "on" : "off");
	put("io_uring", "%s", s->uring ? "on" : "off");
	if (s->size)
		put(what, "%s of %s", units_format_size(s->used, a, sizeof(a)),
		    units_format_size(s->size, b, sizeof(b)));
	else
		put(what, "%s, no limit", units_format_size(s->used, a, sizeof(a)));
	if (s->inodes)
		put("files", "%" PRIu64 " of %" PRIu64, s->inodes_used, s->inodes);
	else
		put("files", "%" PRIu64 ", no limit", s->inodes_used);
	if (s->kind == WPFS_KIND_CAPPED) {
		show_capped(s);
	}
	put("programs", "%" PRIu64 " live, %" PRIu64 " detached", s->mms_live, s->mms_detached);
	put("clients", "%" PRIu64, s->clients);
	put_commit(s->last_commit);
	if (s->store_files)
		put("contents", "not all are in the store: %s: %s",
		    table_count(s->store_files, "file", a, sizeof(a)), db_errstr(s->store_error));
	else if (s->store_error)
		put("contents", "not all are in the store: %s", db_errstr(s->store_error));
	if (s->db_error) {
		uint64_t now = (uint64_t)time(NULL);

		put("database", "cannot be written for %" PRIu64 " s: %s",
		    now > s->db_since ? now - s->db_since : 0, db_errstr(s->db_error));
		put("in memory", "the marks of %s, until it can",
		    table_count(s->unsaved, "program", (char[40]){0}, 40));
	}
	put("harvests", "%" PRIu64, s->harvests);
	put("in doubt", "%s counted as dirty without proof",
	    table_count(s->conservative, "page", (char[40]){0}, 40));
}

/* What the database of a store that is not mounted has of it. */
struct tally {
	uint64_t mms, armed, marked, dirty;
};

static int count_mm(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_mm *mm = body;
	struct tally *tally = arg;

	if (type != WPFS_REC_MM)
		return 0;
	tally->mms++;
	tally->armed += mm->armed;
	tally->marked += mm->marked;
	tally->dirty += mm->dirty;
	return 0;
}

static int show_store(struct target *target, const struct ctl_args *args)
{
	struct wpfs_select select = {.kind = WPFS_REPORT_PS};
	struct tally tally = {0};
	struct json json;
	char buf[40];
	int r;

	r = target_report(target, &select, count_mm, &tally);
	if (r)
		return r;
	if (!args->json) {
		put_path("store", args->target);
		put("id", "%s", target->id);
		put("state", "detached: not mounted");
		put("programs", "%" PRIu64 " detached", tally.mms);
		put("armed", "%s", table_pages(tally.armed, buf, sizeof(buf)));
		put("marked", "%s", table_pages(tally.marked, buf, sizeof(buf)));
		put("dirty", "%s", table_pages(tally.dirty, buf, sizeof(buf)));
		return ctl_finish();
	}
	json_init(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "state", "detached");
	json_null(&json, "mountpoint");
	json_bytes(&json, "store", args->target);
	json_string(&json, "id", target->id);
	json_u64(&json, "mms_live", 0);
	json_u64(&json, "mms_detached", tally.mms);
	json_u64(&json, "armed", tally.armed);
	json_u64(&json, "marked", tally.marked);
	json_u64(&json, "dirty", tally.dirty);
	json_end(&json);
	return ctl_finish();
}

int cmd_status(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	struct wpfs_status status;
	int r;

	r = target_open(&target, "status", args->target, TARGET_STORE_OK);
	if (r)
		return r;
	if (!target.mounted)
		return show_store(&target, args);
	r = target_call(&target, WPFS_OP_STATUS, NULL, &status, NULL, NULL);
	if (r)
		return r;
	/* strings of the daemon: ended here once, for all that show them */
	status.store[sizeof(status.store) - 1] = '\0';
	status.mountpoint[sizeof(status.mountpoint) - 1] = '\0';
	status.id[sizeof(status.id) - 1] = '\0';
	if (args->json)
		show_json(&status);
	else
		show_text(&status);
	return ctl_finish();
}
