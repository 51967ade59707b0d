/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * metrics: what a monitoring system wants to know of a mount: base units, names that end in their
 * unit, counters in _total. Every sample has the label mount, so that the files of several mounts
 * can stand side by side.
 *
 * In the text format of Prometheus, 0.0.4, which the node exporter's textfile directory wants, or
 * in OpenMetrics text. They differ: of a counter the one describes the sample, with its _total, the
 * other the family, without; a reader of the one takes the counters of the other for untyped.
 *
 * Not chosen: a listener of the daemon's own. A timer and the node exporter's textfile directory do
 * the same without another door into a daemon that runs as root.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
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
	bool openmetrics;
	struct wpfs_status status;
	uint64_t up; /* 0 or 1, as the next two */
	uint64_t db_failing, store_failing;
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

static const char *suffix(enum metric_type type)
{
	return type == COUNTER ? "_total" : "";
}

/* unit: the name's last word, or NULL. */
static void family(const struct metrics *m, enum metric_type type, const char *name,
		   const char *unit, const char *help)
{
	const char *end = m->openmetrics ? "" : suffix(type);

	fprintf(m->f, "# TYPE wpfs_%s%s %s\n", name, end, type == GAUGE ? "gauge" : "counter");
	if (unit && m->openmetrics)
		fprintf(m->f, "# UNIT wpfs_%s %s\n", name, unit);
	fprintf(m->f, "# HELP wpfs_%s%s %s\n", name, end, help);
}

/* Up to the value; more: further labels, as they are written. */
static void sample(const struct metrics *m, enum metric_type type, const char *name,
		   const char *more)
{
	fprintf(m->f, "wpfs_%s%s{mount=", name, suffix(type));
	put_label(m->f, m->mount);
	fprintf(m->f, "%s} ", more);
}

/* A family of one sample that is a number of struct metrics. */
struct metric {
	enum metric_type type;
	const char *name, *unit; /* as of family() */
	size_t at;		 /* an uint64_t of struct metrics */
	bool pages;		 /* which are told in bytes */
	const char *help;
};

/* Does not compile for a member of another type. */
#define AT(member)                                                                                 \
	(offsetof(struct metrics, member) +                                                        \
	 0 * sizeof(char[_Generic(((struct metrics *)0)->member, uint64_t : 1, default             \
				  : -1)]))

static const struct metric metrics_up[] = {
	{GAUGE, "up", NULL, AT(up), false, "Whether the daemon of the mount answers."},
	{0},
};

static const struct metric metrics_all[] = {
	{GAUGE, "size_bytes", "bytes", AT(status.size), false,
	 "How much the files of the mount may hold."},
	{GAUGE, "used_bytes", "bytes", AT(status.used), false,
	 "Memory that the files of the mount take."},
	{GAUGE, "inodes", NULL, AT(status.inodes), false, "How many files there may be."},
	{GAUGE, "inodes_used", NULL, AT(status.inodes_used), false, "How many files there are."},
	{GAUGE, "mapped_bytes", "bytes", AT(mapped), true, "Shared mappings of live programs."},
	{GAUGE, "armed_bytes", "bytes", AT(armed), true,
	 "Pages of live programs that were protected in their open epochs."},
	{GAUGE, "marked_bytes", "bytes", AT(marked), true,
	 "Pages of live programs that are protected and not written since."},
	{GAUGE, "dirty_bytes", "bytes", AT(dirty), true,
	 "Armed pages of live programs that were written or dropped since."},
	{COUNTER, "harvests", NULL, AT(status.harvests), false,
	 "Times that a program's marks were read."},
	{COUNTER, "doubted_pages", NULL, AT(status.conservative), false,
	 "Pages that were called dirty for want of proof."},
	{GAUGE, "unsaved_programs", NULL, AT(status.unsaved), false,
	 "Tracked address spaces whose marks are in memory only."},
	{GAUGE, "database_failing", NULL, AT(db_failing), false,
	 "Whether the database cannot be written."},
	{GAUGE, "store_failing", NULL, AT(store_failing), false,
	 "Whether the last attempt to write contents or names to the store failed."},
	{GAUGE, "store_failing_files", NULL, AT(status.store_files), false,
	 "Files whose contents could not be written to the store."},
	{0},
};

static const struct metric metrics_capped[] = {
	{GAUGE, "resident_bytes", "bytes", AT(status.resident), false, "Contents in memory."},
	{GAUGE, "resident_limit_bytes", "bytes", AT(status.cap), false, "How much of them may be."},
	{GAUGE, "spilled_bytes", "bytes", AT(status.spilled), false, "Contents out of memory."},
	{COUNTER, "faults", NULL, AT(status.faults), false, "Page faults served."},
	{COUNTER, "faults_throttled", NULL, AT(status.throttled), false,
	 "Page faults and requests that waited for room."},
	{GAUGE, "faults_failing", NULL, AT(status.failing), false,
	 "Page faults that wait for a store that fails."},
	{COUNTER, "refaulted_bytes", "bytes", AT(status.refaults), true,
	 "Contents brought back into memory."},
	{COUNTER, "read_ahead_bytes", "bytes", AT(status.ahead), true,
	 "Contents brought back before they were asked for."},
	{COUNTER, "evicted_bytes", "bytes", AT(status.evictions), true,
	 "Contents that left memory."},
	{COUNTER, "evicted_zero_bytes", "bytes", AT(status.zeros), true,
	 "Of these, pages of zeros, which cost no I/O."},
	{COUNTER, "fences", NULL, AT(status.fences), false,
	 "Batches of pages fenced off while they were written."},
	{COUNTER, "store_errors", NULL, AT(status.store_errors), false,
	 "Reads and writes of pages that failed."},
	{0},
};

static const struct metric metrics_commit[] = {
	{GAUGE, "last_commit_timestamp_seconds", "seconds", AT(status.last_commit), false,
	 "When marks were last written to the database, since 1970."},
	{0},
};

static void put_metrics(const struct metrics *m, const struct metric *metric)
{
	for (; metric->name; metric++) {
		uint64_t value = *(const uint64_t *)((const char *)m + metric->at);

		family(m, metric->type, metric->name, metric->unit, metric->help);
		sample(m, metric->type, metric->name, "");
		fprintf(m->f, "%" PRIu64 "\n", metric->pages ? value << WPFS_PAGE_SHIFT : value);
	}
}

static void put_info(const struct metrics *m)
{
	const struct wpfs_status *s = &m->status;

	/* No `info`: the node exporter's text format has no such type. */
	family(m, GAUGE, "mount_info", NULL, "What the mount is.");
	fputs("wpfs_mount_info{mount=", m->f);
	put_label(m->f, m->mount);
	fputs(",store=", m->f);
	put_label(m->f, s->store);
	fputs(",id=", m->f);
	put_label(m->f, s->id);
	fprintf(m->f, ",kind=\"%s\"} 1\n", s->kind == WPFS_KIND_CAPPED ? "capped" : "native");
}

static void put_programs(const struct metrics *m)
{
	family(m, GAUGE, "programs", NULL, "Tracked address spaces.");
	sample(m, GAUGE, "programs", ",state=\"live\"");
	fprintf(m->f, "%" PRIu64 "\n", m->status.mms_live);
	sample(m, GAUGE, "programs", ",state=\"detached\"");
	fprintf(m->f, "%" PRIu64 "\n", m->status.mms_detached);
}

static void put_fences(const struct metrics *m)
{
	uint64_t ns = m->status.fence_ns;

	family(m, COUNTER, "fence_seconds", "seconds", "Time that these fences stood.");
	sample(m, COUNTER, "fence_seconds", "");
	fprintf(m->f, "%" PRIu64 ".%09" PRIu64 "\n", ns / 1000000000u, ns % 1000000000u);
}

static void put_all(const struct metrics *m)
{
	put_info(m);
	put_programs(m);
	put_metrics(m, metrics_all);
	if (m->status.last_commit)
		put_metrics(m, metrics_commit);
	if (m->status.kind != WPFS_KIND_CAPPED)
		return;
	put_metrics(m, metrics_capped);
	put_fences(m);
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
	m->up = r == 0;
	m->db_failing = s->db_error != 0;
	m->store_failing = s->store_error != 0;
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
	struct metrics m = {.mount = args->target, .openmetrics = args->openmetrics};
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
	put_metrics(&m, metrics_up);
	if (!asked)
		put_all(&m);
	if (m.openmetrics)
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
