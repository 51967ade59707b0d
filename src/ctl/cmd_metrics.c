/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * metrics: what a monitoring system wants to know of a mount, in the OpenMetrics text format
 * (https://openmetrics.io): base units, names that end in their unit, counters in _total. Every
 * sample has the label mount, so that the files of several mounts can stand side by side.
 *
 * Not chosen: a listener of the daemon's own. A timer and the node exporter's textfile directory do
 * the same without another door into a daemon that runs as root.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/target.h"

struct metrics {
	FILE *f;
	const char *mount;
	struct wpfs_status status;
	uint64_t mapped, armed, marked, dirty; /* pages, over the live programs that we may see */
};

/* A label's value: what is no UTF-8 cannot be said in this format. */
static void put_label(FILE *f, const char *text)
{
	putc('"', f);
	while (*text) {
		unsigned len = say_utf8_len(text);

		if (len == 0)
			fputs("\xef\xbf\xbd", f);
		else if (*text == '\n')
			fputs("\\n", f);
		else if (*text == '"' || *text == '\\')
			fprintf(f, "\\%c", *text);
		else
			fwrite(text, 1, len, f);
		text += len ?: 1;
	}
	putc('"', f);
}

enum metric_type { GAUGE, COUNTER };

/* unit: the name's last word, or NULL. */
static void family(const struct metrics *m, enum metric_type type, const char *name,
		   const char *unit, const char *help)
{
	fprintf(m->f, "# TYPE wpfs_%s %s\n", name, type == GAUGE ? "gauge" : "counter");
	if (unit)
		fprintf(m->f, "# UNIT wpfs_%s %s\n", name, unit);
	fprintf(m->f, "# HELP wpfs_%s %s\n", name, help);
}

/* Up to the value; more: further labels, as they are written. */
static void sample(const struct metrics *m, const char *name, const char *suffix, const char *more)
{
	fprintf(m->f, "wpfs_%s%s{mount=", name, suffix);
	put_label(m->f, m->mount);
	fprintf(m->f, "%s} ", more);
}

static void gauge(const struct metrics *m, const char *name, const char *unit, uint64_t value,
		  const char *help)
{
	family(m, GAUGE, name, unit, help);
	sample(m, name, "", "");
	fprintf(m->f, "%" PRIu64 "\n", value);
}

static void counter(const struct metrics *m, const char *name, const char *unit, uint64_t value,
		    const char *help)
{
	family(m, COUNTER, name, unit, help);
	sample(m, name, "_total", "");
	fprintf(m->f, "%" PRIu64 "\n", value);
}

static void put_up(const struct metrics *m, bool up)
{
	gauge(m, "up", NULL, up, "Whether the daemon of the mount answers.");
}

static void put_info(const struct metrics *m)
{
	const struct wpfs_status *s = &m->status;

	/* No `info`: the node exporter reads the older text format, which has no such type. */
	fputs("# TYPE wpfs_mount_info gauge\n# HELP wpfs_mount_info What the mount is.\n", m->f);
	fputs("wpfs_mount_info{mount=", m->f);
	put_label(m->f, m->mount);
	fputs(",store=", m->f);
	put_label(m->f, s->store);
	fputs(",id=", m->f);
	put_label(m->f, s->id);
	fprintf(m->f, ",kind=\"%s\"} 1\n", s->kind == WPFS_KIND_CAPPED ? "capped" : "native");
}

static void put_space(const struct metrics *m)
{
	const struct wpfs_status *s = &m->status;

	gauge(m, "size_bytes", "bytes", s->size, "How much the files of the mount may hold.");
	gauge(m, "used_bytes", "bytes", s->used, "Memory that the files of the mount take.");
	gauge(m, "inodes", NULL, s->inodes, "How many files there may be.");
	gauge(m, "inodes_used", NULL, s->inodes_used, "How many files there are.");
}

static void put_marks(const struct metrics *m)
{
	const struct wpfs_status *s = &m->status;

	family(m, GAUGE, "programs", NULL, "Tracked address spaces.");
	sample(m, "programs", "", ",state=\"live\"");
	fprintf(m->f, "%" PRIu64 "\n", s->mms_live);
	sample(m, "programs", "", ",state=\"detached\"");
	fprintf(m->f, "%" PRIu64 "\n", s->mms_detached);
	gauge(m, "mapped_bytes", "bytes", m->mapped << WPFS_PAGE_SHIFT,
	      "Shared mappings of live programs.");
	gauge(m, "armed_bytes", "bytes", m->armed << WPFS_PAGE_SHIFT,
	      "Pages of live programs that were protected in their open epochs.");
	gauge(m, "marked_bytes", "bytes", m->marked << WPFS_PAGE_SHIFT,
	      "Pages of live programs that are protected and not written since.");
	gauge(m, "dirty_bytes", "bytes", m->dirty << WPFS_PAGE_SHIFT,
	      "Armed pages of live programs that were written or dropped since.");
	counter(m, "harvests", NULL, s->harvests, "Times that a program's marks were read.");
	counter(m, "doubted_pages", NULL, s->conservative,
		"Pages that were called dirty for want of proof.");
	if (s->last_commit)
		gauge(m, "last_commit_timestamp_seconds", "seconds", s->last_commit,
		      "When marks were last written to the database, since 1970.");
	gauge(m, "unsaved_programs", NULL, s->unsaved,
	      "Tracked address spaces whose marks are in memory only.");
	gauge(m, "database_failing", NULL, s->db_error != 0,
	      "Whether the database cannot be written.");
	gauge(m, "store_failing", NULL, s->store_error != 0,
	      "Whether the last attempt to write contents or names to the store failed.");
	gauge(m, "store_failing_files", NULL, s->store_files,
	      "Files whose contents could not be written to the store.");
}

static void put_capped(const struct metrics *m)
{
	const struct wpfs_status *s = &m->status;

	gauge(m, "resident_bytes", "bytes", s->resident, "Contents in memory.");
	gauge(m, "resident_limit_bytes", "bytes", s->cap, "How much of them may be.");
	gauge(m, "spilled_bytes", "bytes", s->spilled, "Contents out of memory.");
	counter(m, "faults", NULL, s->faults, "Page faults served.");
	counter(m, "faults_throttled", NULL, s->throttled,
		"Page faults and requests that waited for room.");
	gauge(m, "faults_failing", NULL, s->failing,
	      "Page faults that wait for a store that fails.");
	counter(m, "refaulted_bytes", "bytes", s->refaults << WPFS_PAGE_SHIFT,
		"Contents brought back into memory.");
	counter(m, "read_ahead_bytes", "bytes", s->ahead << WPFS_PAGE_SHIFT,
		"Contents brought back before they were asked for.");
	counter(m, "evicted_bytes", "bytes", s->evictions << WPFS_PAGE_SHIFT,
		"Contents that left memory.");
	counter(m, "evicted_zero_bytes", "bytes", s->zeros << WPFS_PAGE_SHIFT,
		"Of these, pages of zeros, which cost no I/O.");
	counter(m, "fences", NULL, s->fences,
		"Batches of pages fenced off while they were written.");
	family(m, COUNTER, "fence_seconds", "seconds", "Time that these fences stood.");
	sample(m, "fence_seconds", "_total", "");
	fprintf(m->f, "%" PRIu64 ".%09" PRIu64 "\n", s->fence_ns / 1000000000u,
		s->fence_ns % 1000000000u);
	counter(m, "store_errors", NULL, s->store_errors, "Reads and writes of pages that failed.");
}

static void put_all(const struct metrics *m)
{
	put_up(m, true);
	put_info(m);
	put_space(m);
	put_marks(m);
	if (m->status.kind == WPFS_KIND_CAPPED)
		put_capped(m);
}

static int add_program(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_top *top = body;
	struct metrics *m = arg;

	if (type != WPFS_REC_TOP)
		return 0;
	m->mapped += top->mapped;
	m->armed += top->mm.armed;
	m->marked += top->mm.marked;
	m->dirty += top->mm.dirty;
	return 0;
}

static int ask(struct metrics *m, const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	struct wpfs_status *s = &m->status;
	int r = target_open(&target, args->command->name, args->target, 0);

	r = r ?: target_call(&target, WPFS_OP_TOP, NULL, s, add_program, m);
	s->store[sizeof(s->store) - 1] = s->mountpoint[sizeof(s->mountpoint) - 1] =
		s->id[sizeof(s->id) - 1] = '\0';
	return r;
}

static int fail(const char *on, int err)
{
	ctl_say("metrics: %s: %s", on, log_errstr(err));
	return CTL_FAILED;
}

/* A reader of the directory sees the file of before or this one, and nothing of another name. */
static int put_file(const char *path, const char *text, size_t len)
{
	_cleanup_free_ char *part = NULL;
	_cleanup_close_ int fd = -1;
	int r = 0;

	if (asprintf(&part, "%s.XXXXXX", path) < 0) {
		part = NULL;
		return fail(path, -ENOMEM);
	}
	fd = mkstemp(part);
	if (fd < 0)
		return fail(path, -errno);
	if (fchmod(fd, 0644) < 0)
		r = -errno;
	for (size_t at = 0; r == 0 && at < len;) {
		ssize_t n = write(fd, text + at, len - at);

		if (n < 0 && errno != EINTR)
			r = -errno;
		at += n > 0 ? (size_t)n : 0;
	}
	if (r == 0 && rename(part, path) < 0)
		r = -errno;
	if (r == 0)
		return CTL_DONE;
	unlink(part);
	return fail(path, r);
}

static void show_json(const struct ctl_args *args, const char *text)
{
	struct json json;

	json_init(&json, stdout);
	json_object(&json, NULL);
	if (args->output)
		json_bytes(&json, "output", args->output);
	else
		json_string(&json, "text", text);
	json_end(&json);
}

int cmd_metrics(const struct ctl_args *args)
{
	_cleanup_free_ char *text = NULL;
	struct metrics m = {.mount = args->target};
	int asked = ask(&m, args), r;
	size_t len;

	if (asked && !args->output)
		return asked;
	if (!asked)
		m.mount = m.status.mountpoint;
	m.f = open_memstream(&text, &len);
	if (!m.f)
		return fail(args->target, -ENOMEM);
	/* A file that stays as it was would go on telling that all is well. */
	if (asked)
		put_up(&m, false);
	else
		put_all(&m);
	fputs("# EOF\n", m.f);
	if (fclose(m.f))
		return fail(args->target, -ENOMEM);
	r = args->output ? put_file(args->output, text, len) : CTL_DONE;
	if (asked || r)
		return asked ?: r;
	if (args->json)
		show_json(args, text);
	else if (!args->output)
		fwrite(text, 1, len, stdout);
	return ctl_finish();
}
