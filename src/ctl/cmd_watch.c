/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * watch: a line for each thing that happens on a mount, as it happens. Ends when the mount does,
 * when it is interrupted, or when nobody reads its lines any more; it does not wait for the next
 * event to notice.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/table.h"
#include "ctl/target.h"
#include "db/db.h"

#define SILENCE_MS ((WPFS_WATCH_WAIT_S + 50) * 1000) /* a daemon that says nothing is stuck */

struct watching {
	bool json;
	const struct wpfs_select *select; /* --name */
	bool ended;			  /* the mount has */
};

static const char *event_name(uint32_t kind)
{
	static const char *const name[] = {
		[WPFS_EVENT_ATTACH] = "attach",	  [WPFS_EVENT_DETACH] = "detach",
		[WPFS_EVENT_HARVEST] = "harvest", [WPFS_EVENT_COMMIT] = "commit",
		[WPFS_EVENT_EVICT] = "evict",	  [WPFS_EVENT_END] = "end",
		[WPFS_EVENT_LOST] = "lost",
	};

	return kind < sizeof(name) / sizeof(name[0]) ? name[kind] : NULL;
}

/* ---- for people ---- */

static void text_begin(uint64_t time_ns, const char *what)
{
	time_t seconds = (time_t)(time_ns / 1000000000u);
	char text[16] = "";
	struct tm tm;

	if (localtime_r(&seconds, &tm))
		strftime(text, sizeof(text), "%H:%M:%S", &tm);
	printf("%s.%03u  %s%-8s%s", text, (unsigned)(time_ns / 1000000 % 1000),
	       table_paint(TABLE_BOLD), what, table_paint(TABLE_PLAIN));
}

static void text_program(const struct wpfs_rec_event *e)
{
	if (e->name[0])
		say_text(stdout, e->name);
	else
		fputs("(unnamed)", stdout);
	printf("  pid %" PRId32 "  ", e->pid);
	say_text(stdout, e->comm);
}

static void text_marks(const struct wpfs_rec_event *e)
{
	char armed[40], dirty[16];

	if (!e->armed) {
		fputs("  nothing armed", stdout);
		return;
	}
	printf("  %s%" PRIu64 "%s of %s dirty", e->dirty ? table_paint(TABLE_YELLOW) : "", e->dirty,
	       e->dirty ? table_paint(TABLE_PLAIN) : "",
	       table_count(e->armed, "armed page", armed, sizeof(armed)));
	if (e->dirty)
		printf(" (%s)",
		       units_format_size(e->dirty << WPFS_PAGE_SHIFT, dirty, sizeof(dirty)));
}

static void text_commit(const struct wpfs_rec_event *e)
{
	char programs[40];

	printf("marks of %s of uid %" PRIu32,
	       table_count(e->programs, "program", programs, sizeof(programs)), e->uid);
	if (e->error)
		printf(": failed: %s: they are kept in memory", db_errstr(e->error));
	else if (e->flags & WPFS_EVENT_LAZY)
		fputs(", not synced", stdout);
}

static void text_event(const struct wpfs_rec_event *e)
{
	char pages[40], size[16];

	text_begin(e->time_ns, event_name(e->kind));
	switch (e->kind) {
	case WPFS_EVENT_ATTACH:
		text_program(e);
		break;
	case WPFS_EVENT_HARVEST:
		text_program(e);
		text_marks(e);
		break;
	case WPFS_EVENT_DETACH:
		text_program(e);
		text_marks(e);
		if (e->doubted)
			printf(", %s in doubt counted",
			       table_count(e->doubted, "page", pages, sizeof(pages)));
		fputs(e->flags & WPFS_EVENT_KEPT ? ", kept" : ", not kept", stdout);
		break;
	case WPFS_EVENT_COMMIT:
		text_commit(e);
		break;
	case WPFS_EVENT_EVICT:
		printf("%s (%s)", table_count(e->pages, "page", pages, sizeof(pages)),
		       units_format_size(e->pages << WPFS_PAGE_SHIFT, size, sizeof(size)));
		if (e->zeros)
			printf(", %" PRIu64 " of them zeros", e->zeros);
		break;
	case WPFS_EVENT_LOST:
		printf("%s: too many came at once",
		       table_count(e->pages, "event", pages, sizeof(pages)));
		break;
	default:
		fputs("unmounted", stdout);
	}
	putchar('\n');
}

/* ---- for programs ---- */

static void json_program(struct json *json, const struct wpfs_rec_event *e)
{
	if (e->name[0])
		json_string(json, "name", e->name);
	else
		json_null(json, "name");
	json_u64(json, "uid", e->uid);
	json_u64(json, "pid", e->pid > 0 ? (uint64_t)e->pid : 0);
	json_bytes(json, "comm", e->comm);
	if (e->kind == WPFS_EVENT_ATTACH)
		return;
	json_u64(json, "armed", e->armed);
	json_u64(json, "marked", e->marked);
	json_u64(json, "dirty", e->dirty);
	if (e->kind == WPFS_EVENT_DETACH) {
		json_u64(json, "conservative", e->doubted);
		json_bool(json, "kept", e->flags & WPFS_EVENT_KEPT);
	}
}

static void json_event(const struct wpfs_rec_event *e)
{
	struct json json;

	json_init(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "event", event_name(e->kind));
	json_u64(&json, "time_ms", e->time_ns / 1000000);
	if (e->kind == WPFS_EVENT_COMMIT) {
		json_u64(&json, "uid", e->uid);
		json_u64(&json, "programs", e->programs);
		json_bool(&json, "synced", !e->error && !(e->flags & WPFS_EVENT_LAZY));
		if (e->error)
			json_string(&json, "error", db_errstr(e->error));
		else
			json_null(&json, "error");
	} else if (e->kind == WPFS_EVENT_EVICT) {
		json_u64(&json, "pages", e->pages);
		json_u64(&json, "bytes", e->pages << WPFS_PAGE_SHIFT);
		json_u64(&json, "zero_pages", e->zeros);
	} else if (e->kind == WPFS_EVENT_LOST) {
		json_u64(&json, "events", e->pages);
	} else if (e->kind != WPFS_EVENT_END) {
		json_program(&json, e);
	}
	json_end(&json);
}

/* ---- what comes ---- */

/* With --name: what is of that program, or of the watching itself. */
static bool watch_wants(const struct watching *w, const struct wpfs_rec_event *e)
{
	switch (e->kind) {
	case WPFS_EVENT_ATTACH:
	case WPFS_EVENT_DETACH:
	case WPFS_EVENT_HARVEST:
		return target_selects(w->select, e->name);
	case WPFS_EVENT_COMMIT:
	case WPFS_EVENT_EVICT:
		return !(w->select->set & WPFS_SELECT_NAME);
	default:
		return true;
	}
}

static int watch_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_event *e = body;
	struct watching *w = arg;

	if (type != WPFS_REC_EVENT || !event_name(e->kind))
		return 0; /* of a newer daemon */
	if (!watch_wants(w, e))
		return 0;
	if (w->json)
		json_event(e);
	else
		text_event(e);
	w->ended |= e->kind == WPFS_EVENT_END;
	return 0;
}

/* What the mount itself says now that the connection broke. */
static int watch_lost(const struct target *target, const struct watching *w)
{
	struct wpfs_rec_event e = {.kind = WPFS_EVENT_END};
	struct timespec now;

	if (target_lost(target) != TARGET_ENDED)
		return target_say_lost(target);
	clock_gettime(CLOCK_REALTIME, &now);
	e.time_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	if (w->json)
		json_event(&e);
	else
		text_event(&e);
	return ctl_finish();
}

/* 1: something has come. 0: it is to end. Else -errno. */
static int watch_wait(int daemon_fd, int signal_fd)
{
	struct pollfd fds[] = {{daemon_fd, POLLIN, 0},
			       {signal_fd, POLLIN, 0},
			       {STDOUT_FILENO, 0, 0}}; /* POLLERR: its reader has gone */
	int n;

	do
		n = poll(fds, 3, SILENCE_MS);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (n == 0)
		return -ETIMEDOUT;
	return !(fds[1].revents || fds[2].revents & (POLLERR | POLLHUP));
}

/* 0 to go on; else *status is how it ends. */
static int watch_once(struct target *target, struct watching *w, int signal_fd, int *status)
{
	int r = ipc_client_ask(target->client, WPFS_OP_WATCH, NULL);

	if (r == 0)
		r = watch_wait(ipc_client_fd(target->client), signal_fd);
	if (r == 0) {
		*status = CTL_DONE;
		return 1;
	}
	if (r > 0)
		r = ipc_client_answer(target->client, WPFS_OP_WATCH, NULL, watch_record, w);
	if (r == -EPIPE || r == -ECONNRESET)
		*status = watch_lost(target, w);
	else if (r < 0)
		*status = target_fail(target, r);
	if (r < 0)
		return 1;
	if (fflush(stdout) || ferror(stdout)) {
		*status = errno == EPIPE ? CTL_DONE : ctl_finish();
		return 1;
	}
	*status = CTL_DONE;
	return w->ended;
}

int cmd_watch(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	struct watching w = {.json = args->json, .select = &args->select};
	_cleanup_close_ int signal_fd = -1;
	int r = target_open(&target, args->command->name, args->target, 0);
	sigset_t set;

	if (r)
		return r;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (signal_fd < 0)
		return target_fail(&target, -errno);
	while (!watch_once(&target, &w, signal_fd, &r))
		;
	return r;
}
