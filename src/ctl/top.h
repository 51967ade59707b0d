/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * wpctl top in three parts: what was seen (top_data.c), how it is drawn (top_screen.c), and when
 * (cmd_top.c). One thread.
 */
#ifndef WPFS_CTL_TOP_H
#define WPFS_CTL_TOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ctl/target.h"
#include "ipc/wire.h"

struct top_row {
	struct wpfs_rec_top rec;
	bool rated;	   /* it was there at the look before, too */
	double dirty_rate; /* pages a second that became dirty, at least: twice counts once */
	double fault_rate; /* page faults a second */
};

struct top {
	struct wpfs_status status, before; /* of this look and the one before */
	uint64_t at_ns, before_ns;	   /* CLOCK_MONOTONIC; 0: there was none */
	struct top_row *rows;
	size_t nr, room;
	struct top_row *old; /* of the look before, ascending by mm */
	size_t nr_old;
};

enum top_sort {
	TOP_BY_DIRTY,
	TOP_BY_RATE,
	TOP_BY_MAPPED,
	TOP_BY_MARKED,
	TOP_BY_FAULTS,
	TOP_BY_NAME,
	TOP_BY_PID,
};

/*
 * A look is begun, its records come, and it is done: then rows and rates are as of now. top_begin
 * gives where the status goes; top_record is an ipc_record_fn for a struct top.
 */
struct wpfs_status *top_begin(struct top *top);
int top_record(void *arg, enum wpfs_rec_type type, const void *body);
void top_done(struct top *top);

void top_sort(struct top *top, enum top_sort by, bool reverse);
void top_free(struct top *top);

/* Growth of one of the status's counters, a second; 0 at the first look. */
double top_rate(const struct top *top, uint64_t now, uint64_t before);

/* "12.3/s", "1.2k/s", "-" for less than nothing: returns buf, of 16 bytes. */
const char *top_per_second(double rate, char buf[16]);

/* Why no row is there, as two lines, each for a terminal of 80 columns. */
extern const char top_nothing_do[];
const char *top_nothing(void);

/* How long ago marks were committed: "3 s", "4 min", "never": returns buf, of 24 bytes. */
const char *top_age(const struct wpfs_status *status, char buf[24]);

/* ---- the screen ---- */

/* Takes the terminal over. 0 or -errno: -ENOTTY for one that is not known. */
int top_screen_open(void);
void top_screen_close(void);

struct top_view {
	enum top_sort by;
	bool reverse, help;
	size_t first; /* row at the top */
	unsigned interval_ms;
};

void top_screen_draw(const struct top *top, struct top_view *view);

/* Takes what was typed. False: to end. *changed: the view is. */
bool top_screen_keys(const struct top *top, struct top_view *view, bool *changed);

#endif
