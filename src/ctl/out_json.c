/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * {"mms":[{..., "maps":[{..., "runs":[...]}], "notes":[...]}], "notes":[...]}: the order of the
 * members follows the order of the records, so that nothing but notes has to be kept. wpctl(1)
 * documents every key; they are never renamed.
 */
#include "ctl/out.h"

/* Levels of the document that are open while ... is being written. */
enum { DEPTH_DOCUMENT = 1, DEPTH_MMS = 2, DEPTH_MM = 3, DEPTH_MAPS = 4, DEPTH_MAP = 5 };

static void put_notes(struct json *json, struct out_notes *notes)
{
	json_array(json, "notes");
	for (unsigned i = 0; i < notes->nr; i++)
		json_string(json, NULL, notes->text[i]);
	json_end(json);
	out_notes_free(notes);
}

static void begin(struct out *out)
{
	if (out->begun)
		return;
	out->begun = true;
	json_object(&out->writer, NULL);
	json_array(&out->writer, "mms");
}

static void end_mm(struct out *out)
{
	if (!out->in_mm)
		return;
	json_end_to(&out->writer, DEPTH_MM);
	put_notes(&out->writer, &out->notes);
	json_end_to(&out->writer, DEPTH_MMS);
	out->in_mm = out->in_map = false;
}

static void put_mm(struct out *out, const struct wpfs_rec_mm *mm)
{
	struct json *json = &out->writer;

	begin(out);
	end_mm(out);
	json_object(json, NULL);
	if (mm->name[0])
		json_string(json, "name", mm->name);
	else
		json_null(json, "name");
	json_u64(json, "uid", mm->uid);
	if (mm->pid > 0)
		json_u64(json, "pid", (uint64_t)mm->pid);
	else
		json_null(json, "pid");
	json_string(json, "state", out_state_name(mm->state));
	json_string(json, "comm", mm->comm);
	json_u64(json, "epoch", mm->epoch);
	json_u64(json, "files", mm->files);
	json_u64(json, "armed", mm->armed);
	json_u64(json, "marked", mm->marked);
	json_u64(json, "dirty", mm->dirty);
	if (out->kind != WPFS_REPORT_PS)
		json_array(json, "maps");
	out->in_mm = true;
}

static void put_written(struct json *json, unsigned written)
{
	const char *name = out_written_name(written);

	if (name)
		json_string(json, "write_calls", name);
	else
		json_null(json, "write_calls");
}

static void put_map(struct out *out, const struct wpfs_rec_map *map)
{
	struct json *json = &out->writer;
	bool mapped = map->end > map->start;

	json_end_to(json, DEPTH_MAPS);
	json_object(json, NULL);
	json_bytes(json, "file", map->path);
	if (mapped) {
		json_addr(json, "start", map->start);
		json_addr(json, "end", map->end);
	} else {
		json_null(json, "start");
		json_null(json, "end");
	}
	json_u64(json, "pgoff", map->pgoff);
	json_u64(json, "pages", map->pages);
	json_string(json, "owner", out_owner_name(map->owner));
	json_u64(json, "armed", map->armed);
	json_u64(json, "marked", map->marked);
	json_u64(json, "dirty", map->dirty);
	if (out->kind == WPFS_REPORT_DIRTY)
		put_written(json, map->written);
	json_array(json, "runs");
	out->in_map = true;
}

static void put_union(struct out *out, const struct wpfs_rec_map *map)
{
	struct json *json = &out->writer;

	begin(out);
	end_mm(out);
	json_end(json); /* of the mms */
	json_object(json, "union");
	json_bytes(json, "file", map->path);
	json_u64(json, "armed", map->armed);
	json_u64(json, "dirty", map->dirty);
	put_written(json, map->written);
	json_array(json, "runs");
	out->in_map = out->in_union = true;
}

static void put_run(struct json *json, const struct wpfs_rec_run *run)
{
	json_object(json, NULL);
	json_u64(json, "pgoff", run->pgoff);
	json_u64(json, "pages", run->pages);
	if (run->vaddr)
		json_addr(json, "vaddr", run->vaddr);
	else
		json_null(json, "vaddr");
	json_end(json);
}

int out_json_record(struct out *out, enum wpfs_rec_type type, const void *body)
{
	switch (type) {
	case WPFS_REC_MM:
		put_mm(out, body);
		break;
	case WPFS_REC_MAP:
		if (out->in_mm && out->kind != WPFS_REPORT_PS)
			put_map(out, body);
		break;
	case WPFS_REC_RUN:
		if (out->in_map)
			put_run(&out->writer, body);
		break;
	case WPFS_REC_UNION:
		if (out->kind == WPFS_REPORT_DIRTY)
			put_union(out, body);
		break;
	case WPFS_REC_NOTE:
		break; /* out_record keeps them */
	case WPFS_REC_EVENT:
	case WPFS_REC_TOP:
	case WPFS_REC_PART:
	case WPFS_REC_PROGRESS:
		break; /* of no such report */
	}
	return 0;
}

void out_json_finish(struct out *out)
{
	begin(out);
	end_mm(out);
	if (out->in_union)
		json_end_to(&out->writer, DEPTH_DOCUMENT);
	else
		json_end(&out->writer);
	put_notes(&out->writer, &out->all_notes);
	json_end(&out->writer);
}
