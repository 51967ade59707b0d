/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/out.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void out_init(struct out *out, enum wpfs_report_kind kind, bool json)
{
	*out = (struct out){.kind = kind, .json = json};
	if (json)
		json_init(&out->writer, stdout);
}

int out_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	struct out *out = arg;

	if (type == WPFS_REC_NOTE) {
		const struct wpfs_rec_note *note = body;

		return out_notes_add(out->in_mm ? &out->notes : &out->all_notes, note->text);
	}
	return out->json ? out_json_record(out, type, body) : out_table_record(out, type, body);
}

int out_finish(struct out *out)
{
	if (!out->json)
		return out_table_finish(out);
	out_json_finish(out);
	return 0;
}

void out_free(struct out *out)
{
	out_notes_free(&out->notes);
	out_notes_free(&out->all_notes);
	table_free(&out->table);
}

int out_notes_add(struct out_notes *notes, const char *text)
{
	if (notes->nr == OUT_NOTES_MAX)
		return 0;
	notes->text[notes->nr] = strdup(text);
	if (!notes->text[notes->nr])
		return -ENOMEM;
	notes->nr++;
	return 0;
}

void out_notes_free(struct out_notes *notes)
{
	while (notes->nr)
		free(notes->text[--notes->nr]);
}

const char *out_state_name(unsigned state)
{
	switch (state) {
	case WPFS_MM_LIVE:
		return "live";
	case WPFS_MM_DETACHED:
		return "detached";
	default:
		return "unknown";
	}
}

const char *out_written_name(unsigned written)
{
	switch (written) {
	case WPFS_WRITTEN_NO:
		return "no";
	case WPFS_WRITTEN_YES:
		return "yes";
	case WPFS_WRITTEN_UNKNOWN:
		return "unknown";
	default:
		return NULL;
	}
}

const char *out_owner_name(unsigned owner)
{
	switch (owner) {
	case WPFS_OWNER_WPFS:
		return "wpfs";
	case WPFS_OWNER_PROGRAM:
		return "program";
	default:
		return "unknown";
	}
}
