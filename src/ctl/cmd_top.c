/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* top: the tracked programs of a mount, live on a terminal; or one table, or JSON. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/table.h"
#include "ctl/target.h"
#include "ctl/top.h"

#define INTERVAL_MS 2000
#define SILENCE_MS  60000

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* One look, waited for. */
static int look(struct target *target, struct top *top)
{
	int r = target_call(target, WPFS_OP_TOP, NULL, top_begin(top), top_record, top);

	if (r == 0)
		top_done(top);
	return r;
}

/* ---- a table ---- */

static const char *text_of(const char *text, char **buf)
{
	size_t len;
	FILE *f = open_memstream(buf, &len);

	if (!f)
		return "?";
	say_text(f, text);
	return fclose(f) ? "?" : *buf;
}

static int table_row(struct table *t, const struct top_row *row)
{
	const struct wpfs_rec_mm *mm = &row->rec.mm;
	_cleanup_free_ char *comm = NULL;
	char a[40], b[40], c[40], d[40], rate[16];
	int r;

	r = table_add(t, TABLE_BOLD, "%s", mm->name[0] ? mm->name : "-");
	r = r ?: table_add(t, TABLE_PLAIN, "%" PRId32, mm->pid);
	r = r ?: table_add(t, TABLE_PLAIN, "%" PRIu32, mm->uid);
	r = r ?: table_add(t, TABLE_PLAIN, "%s", table_pages(row->rec.mapped, a, sizeof(a)));
	r = r ?: table_add(t, TABLE_PLAIN, "%s", table_pages(mm->armed, b, sizeof(b)));
	r = r ?: table_add(t, TABLE_PLAIN, "%s", table_pages(mm->marked, c, sizeof(c)));
	r = r
		    ?: table_add(t, mm->dirty ? TABLE_YELLOW : TABLE_PLAIN, "%s",
				 table_pages(mm->dirty, d, sizeof(d)));
	r = r
		    ?: table_add(t, TABLE_PLAIN, "%s",
				 top_per_second(row->rated ? row->dirty_rate : -1, rate));
	r = r
		    ?: table_add(t, TABLE_PLAIN, "%s",
				 top_per_second(row->rated ? row->fault_rate : -1, rate));
	return r ?: table_add(t, TABLE_PLAIN, "%s", text_of(mm->comm, &comm));
}

static int show_table(const struct top *top)
{
	static const char *const title[] = {"NAME",   "PID",   "UID",	  "MAPPED", "ARMED",
					    "MARKED", "DIRTY", "DIRTIED", "FAULTS", "COMMAND"};
	struct table t = {.columns = sizeof(title) / sizeof(title[0])};
	char age[24];
	int r = 0;

	for (size_t i = 0; i < t.columns; i++) {
		t.title[i] = title[i];
		t.right[i] = i > 0 && i + 1 < t.columns;
	}
	for (size_t i = 0; r == 0 && i < top->nr; i++)
		r = table_row(&t, &top->rows[i]);
	if (r == 0)
		table_print(&t);
	table_free(&t);
	if (r < 0) {
		ctl_say("top: %s", log_errstr(r));
		return CTL_FAILED;
	}
	if (!top->nr)
		printf("%s: %s\n", top_nothing(), top_nothing_do);
	printf("marks committed %s\n", top_age(&top->status, age));
	return ctl_finish();
}

static void json_rate(struct json *json, const char *key, bool rated, double rate)
{
	if (rated)
		json_u64(json, key, (uint64_t)(rate + 0.5));
	else
		json_null(json, key);
}

static int show_json(const struct top *top)
{
	const struct wpfs_status *s = &top->status, *b = &top->before;
	struct json json;

	json_init(&json, stdout);
	json_object(&json, NULL);
	json_array(&json, "mms");
	for (size_t i = 0; i < top->nr; i++) {
		const struct top_row *row = &top->rows[i];
		const struct wpfs_rec_mm *mm = &row->rec.mm;

		json_object(&json, NULL);
		if (mm->name[0])
			json_string(&json, "name", mm->name);
		else
			json_null(&json, "name");
		json_u64(&json, "uid", mm->uid);
		json_u64(&json, "pid", mm->pid > 0 ? (uint64_t)mm->pid : 0);
		json_bytes(&json, "comm", mm->comm);
		json_u64(&json, "mapped", row->rec.mapped);
		json_u64(&json, "armed", mm->armed);
		json_u64(&json, "marked", mm->marked);
		json_u64(&json, "dirty", mm->dirty);
		json_u64(&json, "faults", row->rec.faults);
		json_rate(&json, "dirty_rate", row->rated, row->dirty_rate);
		json_rate(&json, "fault_rate", row->rated, row->fault_rate);
		json_end(&json);
	}
	json_end(&json);
	json_u64(&json, "last_commit", s->last_commit);
	json_rate(&json, "served_fault_rate", top->before_ns, top_rate(top, s->faults, b->faults));
	json_rate(&json, "refault_rate", top->before_ns, top_rate(top, s->refaults, b->refaults));
	json_rate(&json, "eviction_rate", top->before_ns,
		  top_rate(top, s->evictions, b->evictions));
	json_end(&json);
	return ctl_finish();
}

static void pause_ms(unsigned ms)
{
	struct timespec left = {ms / 1000, (long)(ms % 1000) * 1000000};

	while (nanosleep(&left, &left) < 0 && errno == EINTR)
		;
}

/* Once, or with JSON for ever: a look more is needed before there are rates. */
static int run_plain(struct target *target, struct top *top, const struct ctl_args *args)
{
	unsigned interval = args->interval_ms ?: INTERVAL_MS;
	int r = look(target, top);

	if (r == 0 && args->interval_ms) {
		pause_ms(interval);
		r = look(target, top);
	}
	for (;;) {
		if (r)
			return r;
		top_sort(top, TOP_BY_DIRTY, false);
		r = args->json ? show_json(top) : show_table(top);
		if (r || args->once)
			return r;
		pause_ms(interval);
		r = look(target, top);
	}
}

/* ---- live ---- */

struct live {
	struct target *target;
	struct top top;
	struct top_view view;
	int signal_fd;
	bool asked;	 /* the daemon was, and has not answered */
	int64_t next_ms; /* when it is asked next, or has to have answered */
};

static int live_ask(struct live *l)
{
	l->asked = true;
	l->next_ms = now_ms() + SILENCE_MS;
	return ipc_client_ask(l->target->client, WPFS_OP_TOP, NULL);
}

static int live_answer(struct live *l)
{
	int r = ipc_client_answer(l->target->client, WPFS_OP_TOP, top_begin(&l->top), top_record,
				  &l->top);

	if (r < 0)
		return r;
	l->asked = false;
	l->next_ms = now_ms() + l->view.interval_ms;
	top_done(&l->top);
	top_sort(&l->top, l->view.by, l->view.reverse);
	top_screen_draw(&l->top, &l->view);
	return 0;
}

/* 1: it is to end. 0 or -errno. */
static int live_round(struct live *l)
{
	struct pollfd fds[] = {{ipc_client_fd(l->target->client), POLLIN, 0},
			       {l->signal_fd, POLLIN, 0},
			       {STDIN_FILENO, POLLIN, 0}};
	int64_t left = l->next_ms - now_ms();
	bool changed = false;
	int n = poll(fds, 3, left > 0 ? (int)left : 0);

	if (n < 0 && errno != EINTR)
		return -errno;
	if (n > 0 && (fds[1].revents || fds[2].revents & (POLLERR | POLLHUP)))
		return 1;
	/* Also after EINTR: a change of size comes as a key. */
	if (!top_screen_keys(&l->top, &l->view, &changed))
		return 1;
	if (changed && l->top.at_ns) {
		top_sort(&l->top, l->view.by, l->view.reverse);
		top_screen_draw(&l->top, &l->view);
	}
	if (n > 0 && fds[0].revents)
		return l->asked ? live_answer(l) : -EPIPE;
	if (n == 0 && left <= 0)
		return l->asked ? -ETIMEDOUT : live_ask(l);
	return 0;
}

static int run_live(struct target *target, const struct ctl_args *args)
{
	struct live l = {.target = target,
			 .view = {.interval_ms = args->interval_ms ?: INTERVAL_MS}};
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	l.signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
	r = l.signal_fd < 0 ? -errno : top_screen_open();
	if (r == -ENOTTY) {
		ctl_say("top: the terminal '%s' is not known here: --once prints one table",
			getenv("TERM") ?: "");
		close_fd(&l.signal_fd);
		return CTL_FAILED;
	}
	if (r == 0)
		r = live_ask(&l);
	while (r == 0)
		r = live_round(&l);
	top_screen_close();
	top_free(&l.top);
	close_fd(&l.signal_fd);
	return r < 0 ? target_fail_call(target, r) : CTL_DONE;
}

int cmd_top(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	_cleanup_(top_free) struct top top = {0};
	int r;

	if (!args->once && !args->json && (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))) {
		ctl_say("top: stdin and stdout are no terminal: --once prints one table");
		return CTL_FAILED;
	}
	r = target_open(&target, args->command->name, args->target, 0);
	if (r)
		return r;
	return args->once || args->json ? run_plain(&target, &top, args) : run_live(&target, args);
}
