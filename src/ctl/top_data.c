/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl/top.h"

struct wpfs_status *top_begin(struct top *top)
{
	free(top->old);
	top->old = top->rows;
	top->nr_old = top->nr;
	top->rows = NULL;
	top->nr = top->room = 0;
	top->before = top->status;
	top->before_ns = top->at_ns;
	return &top->status;
}

int top_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	struct top *top = arg;

	if (type != WPFS_REC_TOP)
		return 0;
	if (top->nr == top->room) {
		size_t room = top->room ? top->room * 2 : 64;
		struct top_row *rows = realloc(top->rows, room * sizeof(*rows));

		if (!rows)
			return -ENOMEM;
		top->rows = rows;
		top->room = room;
	}
	top->rows[top->nr++] = (struct top_row){.rec = *(const struct wpfs_rec_top *)body};
	return 0;
}

static int by_mm(const void *a, const void *b)
{
	const struct top_row *x = a, *y = b;

	return (x->rec.mm.id > y->rec.mm.id) - (x->rec.mm.id < y->rec.mm.id);
}

double top_rate(const struct top *top, uint64_t now, uint64_t before)
{
	if (!top->before_ns || top->at_ns <= top->before_ns || now < before)
		return 0;
	return (double)(now - before) * 1e9 / (double)(top->at_ns - top->before_ns);
}

static void rate(const struct top *top, struct top_row *row, const struct wpfs_rec_top *old)
{
	const bool turned = old->mm.epoch != row->rec.mm.epoch; /* nothing was dirty in between */

	row->rated = true;
	row->dirty_rate = top_rate(top, row->rec.mm.dirty, turned ? 0 : old->mm.dirty);
	row->fault_rate = top_rate(top, row->rec.faults, old->faults);
}

void top_done(struct top *top)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	top->at_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	top->status.store[sizeof(top->status.store) - 1] = '\0';
	top->status.mountpoint[sizeof(top->status.mountpoint) - 1] = '\0';
	if (top->nr_old)
		qsort(top->old, top->nr_old, sizeof(*top->old), by_mm);
	for (size_t i = 0; i < top->nr; i++) {
		const struct top_row *old = top->nr_old
						    ? bsearch(&top->rows[i], top->old, top->nr_old,
							      sizeof(*top->old), by_mm)
						    : NULL;

		if (old && top->before_ns)
			rate(top, &top->rows[i], &old->rec);
	}
}

/* What a column of numbers is sorted by. */
static double value(const struct top_row *row, enum top_sort by)
{
	switch (by) {
	case TOP_BY_RATE:
		return row->dirty_rate;
	case TOP_BY_MAPPED:
		return (double)row->rec.mapped;
	case TOP_BY_MARKED:
		return (double)row->rec.mm.marked;
	case TOP_BY_FAULTS:
		return row->fault_rate;
	default:
		return (double)row->rec.mm.dirty;
	}
}

struct order {
	enum top_sort by;
	bool reverse;
};

/* Numbers downwards, names and pids upwards; what is equal by name, instance and pid. */
static int compare(const void *a, const void *b, void *arg)
{
	const struct top_row *x = a, *y = b;
	const struct order *order = arg;
	int r = 0;

	if (order->by != TOP_BY_NAME && order->by != TOP_BY_PID) {
		double v = value(x, order->by), w = value(y, order->by);

		r = (v < w) - (v > w);
	}
	if (r == 0 && order->by != TOP_BY_PID)
		r = strverscmp(x->rec.mm.name, y->rec.mm.name);
	if (r == 0)
		r = (x->rec.mm.pid > y->rec.mm.pid) - (x->rec.mm.pid < y->rec.mm.pid);
	return order->reverse ? -r : r;
}

void top_sort(struct top *top, enum top_sort by, bool reverse)
{
	struct order order = {by, reverse};

	if (top->nr)
		qsort_r(top->rows, top->nr, sizeof(*top->rows), compare, &order);
}

void top_free(struct top *top)
{
	free(top->rows);
	free(top->old);
	top->rows = top->old = NULL;
	top->nr = top->nr_old = 0;
}

const char *top_per_second(double rate_, char buf[16])
{
	static const char unit[] = {0, 'k', 'M', 'G', 'T'};
	size_t i = 0;

	if (rate_ < 0) {
		strcpy(buf, "-");
		return buf;
	}
	for (; rate_ >= 999.5 && i + 1 < sizeof(unit); i++)
		rate_ /= 1000;
	if (i == 0)
		snprintf(buf, 16, "%.0f/s", rate_);
	else
		snprintf(buf, 16, "%.*f%c/s", rate_ < 9.95 ? 1 : 0, rate_, unit[i]);
	return buf;
}

const char top_nothing_do[] = "start one with wpctl run; it has to map a file of the mount shared";

const char *top_nothing(void)
{
	return geteuid() == 0
		       ? "no program is tracked"
		       : "no program of yours is tracked; only root sees those of other users";
}

const char *top_age(const struct wpfs_status *status, char buf[24])
{
	const uint64_t now = (uint64_t)time(NULL), at = status->last_commit;
	const uint64_t age = now > at ? now - at : 0;

	if (!at)
		strcpy(buf, "never");
	else if (age < 120)
		snprintf(buf, 24, "%" PRIu64 " s ago", age);
	else if (age < 7200)
		snprintf(buf, 24, "%" PRIu64 " min ago", age / 60);
	else
		snprintf(buf, 24, "%" PRIu64 " h ago", age / 3600);
	return buf;
}
