/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One line on a terminal about long work, rewritten in place: how much of how much, how fast, how
 * long it will take. Only where stderr is a terminal, only after half a second, and nothing is left
 * of it at the end. Elsewhere all of this does nothing. One thread for each.
 */
#ifndef WPFS_BASE_PROGRESS_H
#define WPFS_BASE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

enum progress_unit { PROGRESS_BYTES, PROGRESS_THINGS };

struct progress {
	const char *what; /* borrowed: "load", "check"; short, and ASCII */
	enum progress_unit unit;
	uint64_t total; /* 0: not known */
	bool on, shown;
	uint64_t begin_ms, last_ms;
};

void progress_begin(struct progress *p, const char *what, enum progress_unit unit, uint64_t total);

/* So much is done now; to be called as often as convenient. */
void progress_update(struct progress *p, uint64_t done);

/* Takes the line away. Also before anything else is written to the terminal. */
void progress_end(struct progress *p);

/*
 * "load: 1.2G of 3.4G, 35 %, 210.0M/s, 0:10 left", or "check: 0:03" when nothing but the time is
 * known, cut to `columns`, into buf. `ms`: since it began.
 */
void progress_format(const struct progress *p, uint64_t done, uint64_t ms, unsigned columns,
		     char *buf, unsigned size);

#endif
