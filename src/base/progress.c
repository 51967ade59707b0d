/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/units.h"

#define FIRST_MS 500 /* what is done by then needs no line */
#define EVERY_MS 100

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static unsigned columns(void)
{
	struct winsize size;

	return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

void progress_begin(struct progress *p, const char *what, enum progress_unit unit, uint64_t total)
{
	const char *term = getenv("TERM");

	*p = (struct progress){.what = what, .unit = unit, .total = total};
	p->on = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
	p->begin_ms = now_ms();
}

static const char *amount(const struct progress *p, uint64_t nr, char buf[24])
{
	if (p->unit == PROGRESS_BYTES)
		units_format_size(nr, buf, 24);
	else
		snprintf(buf, 24, "%" PRIu64, nr);
	return buf;
}

void progress_format(const struct progress *p, uint64_t done, uint64_t ms, unsigned width,
		     char *buf, unsigned size)
{
	char text[160], a[24], b[24];
	size_t used;

	if (!p->total && !done) {
		const uint64_t seconds = ms / 1000;

		snprintf(text, sizeof(text), "%.32s: %" PRIu64 ":%02" PRIu64, p->what, seconds / 60,
			 seconds % 60);
		snprintf(buf, size, "%.*s", width > 1 ? (int)width - 1 : 0, text);
		return;
	}
	if (p->total && done > p->total)
		done = p->total; /* it grew meanwhile */
	used = (size_t)snprintf(text, sizeof(text), "%.32s: %s", p->what, amount(p, done, a));
	if (p->total)
		used += (size_t)snprintf(text + used, sizeof(text) - used, " of %s, %u %%",
					 amount(p, p->total, b),
					 (unsigned)((double)done * 100 / (double)p->total));
	if (done && ms) {
		const double rate = (double)done * 1000 / (double)ms;
		const uint64_t left = p->total ? (uint64_t)((double)(p->total - done) / rate) : 0;

		used += (size_t)snprintf(text + used, sizeof(text) - used, ", %s/s",
					 amount(p, (uint64_t)rate, a));
		if (p->total && left < 360000)
			used += (size_t)snprintf(text + used, sizeof(text) - used,
						 ", %" PRIu64 ":%02" PRIu64 " left", left / 60,
						 left % 60);
	}
	/* The last column stays free: a letter there makes some terminals wrap. */
	snprintf(buf, size, "%.*s", width > 1 ? (int)width - 1 : 0, text);
}

void progress_update(struct progress *p, uint64_t done)
{
	char text[160], line[176];
	uint64_t now;
	int n;

	if (!p->on)
		return;
	now = now_ms();
	if (now - p->begin_ms < FIRST_MS || now - p->last_ms < EVERY_MS)
		return;
	p->last_ms = now;
	progress_format(p, done, now - p->begin_ms, columns(), text, sizeof(text));
	n = snprintf(line, sizeof(line), "\r%s\033[K", text);
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		p->on = false;
	p->shown = true;
}

void progress_end(struct progress *p)
{
	if (p->shown && write(STDERR_FILENO, "\r\033[K", 4) < 0)
		p->on = false;
	p->shown = false;
}
