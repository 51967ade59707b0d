/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/ending.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "wpfs/notify.h"

#define NOTE_MS 100
#define TELL_MS 2000

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void ending_begin(struct ending *ending, const char *path, bool terminal)
{
	*ending = (struct ending){.terminal = terminal};
	ending->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

/* One write of always the same length: a reader sees the old numbers or the new ones. */
static void note(const struct ending *ending, uint64_t done, uint64_t total)
{
	char text[48];
	int n = snprintf(text, sizeof(text), "%20" PRIu64 " %20" PRIu64 "\n", done, total);

	if (ending->fd >= 0 && pwrite(ending->fd, text, (size_t)n, 0) < 0)
		return; /* nobody learns of it */
}

void ending_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct ending *ending = ctx;
	const uint64_t now = now_ms();
	char a[16], b[16];

	notify_alive();
	if (ending->terminal) {
		if (ending->line.total != total)
			progress_begin(&ending->line, "flush", PROGRESS_BYTES, total);
		progress_update(&ending->line, done);
	}
	if (now - ending->noted_ms >= NOTE_MS) {
		ending->noted_ms = now;
		note(ending, done, total);
	}
	if (now - ending->told_ms >= TELL_MS) {
		ending->told_ms = now;
		notify_send("STATUS=Writing the store: %s of %s",
			    units_format_size(done, a, sizeof(a)),
			    units_format_size(total, b, sizeof(b)));
	}
}

void ending_end(struct ending *ending)
{
	progress_end(&ending->line);
	close_fd(&ending->fd);
}
