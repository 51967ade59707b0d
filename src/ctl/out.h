/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A report shown as it comes, record by record: as one JSON object or as text for people. What is
 * kept: the notes of the mm at hand (at most OUT_NOTES_MAX), and for `ps` its rows, whose widths
 * are known only at the end.
 */
#ifndef WPFS_CTL_OUT_H
#define WPFS_CTL_OUT_H

#include <stdbool.h>

#include "ctl/json.h"
#include "ctl/table.h"
#include "ipc/wire.h"

#define OUT_NOTES_MAX 64

struct out_notes {
	char *text[OUT_NOTES_MAX];
	unsigned nr;
};

struct out {
	enum wpfs_report_kind kind;
	bool json;
	bool begun;		    /* something is on stdout */
	bool in_mm;		    /* an mm came and is not finished */
	bool in_map;		    /* the same of a map */
	bool in_union;		    /* a union came, the last of the document */
	struct wpfs_rec_mm mm;	    /* the last, when in_mm */
	struct out_notes notes;	    /* of the mm at hand */
	struct out_notes all_notes; /* of none */
	struct json writer;
	struct table table; /* ps */
};

void out_init(struct out *out, enum wpfs_report_kind kind, bool json);

/* An ipc_record_fn whose arg is a struct out. 0 or -ENOMEM. */
int out_record(void *arg, enum wpfs_rec_type type, const void *body);

/* Writes what is left. 0 or -ENOMEM. */
int out_finish(struct out *out);

/* Frees what the report still holds; nothing is written. */
void out_free(struct out *out);

/* The two writers behind it. */
int out_json_record(struct out *out, enum wpfs_rec_type type, const void *body);
void out_json_finish(struct out *out);
int out_table_record(struct out *out, enum wpfs_rec_type type, const void *body);
int out_table_finish(struct out *out);

/* Keeps a copy of a note; beyond OUT_NOTES_MAX it is dropped. 0 or -ENOMEM. */
int out_notes_add(struct out_notes *notes, const char *text);
void out_notes_free(struct out_notes *notes);

/* The words for wire values. */
const char *out_state_name(unsigned state);
const char *out_owner_name(unsigned owner);
const char *out_written_name(unsigned written); /* NULL: none */

#endif
