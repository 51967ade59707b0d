/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* map: the marks as a picture, in the terminal, in a file, or as numbers. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/units.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/picture.h"
#include "ctl/say.h"

#define JSON_CELLS 64

static int fail(const char *on, int err)
{
	ctl_say("map: %s: %s", on, log_errstr(err));
	return CTL_FAILED;
}

static void json_cells(struct json *json, const struct picture *picture,
		       const struct picture_map *map)
{
	size_t nr = map->pages < JSON_CELLS ? (size_t)map->pages : JSON_CELLS;
	struct picture_cell cell;

	json_array(json, "cells");
	for (size_t i = 0; i < nr; i++) {
		picture_cell(picture, map, i, nr, &cell);
		json_object(json, NULL);
		json_u64(json, "pgoff", picture_offset(map, i, nr) / WPFS_PAGE_SIZE);
		json_u64(json, "pages", cell.pages);
		json_u64(json, "dirty", cell.dirty);
		json_u64(json, "marked", cell.marked);
		json_u64(json, "spilled", cell.spilled);
		json_end(json);
	}
	json_end(json);
}

static void json_map(struct json *json, const struct picture *picture,
		     const struct picture_map *map)
{
	json_object(json, NULL);
	json_bytes(json, "file", map->path);
	if (map->end) {
		json_addr(json, "start", map->start);
		json_addr(json, "end", map->end);
	} else {
		json_null(json, "start");
		json_null(json, "end");
	}
	json_u64(json, "pgoff", map->pgoff);
	json_u64(json, "pages", map->pages);
	json_u64(json, "dirty", map->nr_dirty);
	json_u64(json, "marked", map->nr_marked);
	json_u64(json, "spilled", map->nr_spilled);
	json_cells(json, picture, map);
	json_end(json);
}

static void show_json(const struct picture *picture)
{
	struct json json;

	json_init(&json, stdout);
	json_object(&json, NULL);
	json_array(&json, "mms");
	for (size_t i = 0, m = 0; i < picture->nr_mms; i++) {
		const struct wpfs_rec_mm *mm = &picture->mms[i];

		json_object(&json, NULL);
		if (mm->name[0])
			json_string(&json, "name", mm->name);
		else
			json_null(&json, "name");
		json_string(&json, "state", out_state_name(mm->state));
		json_array(&json, "maps");
		for (; m < picture->nr_maps && picture->maps[m].mm == i; m++)
			json_map(&json, picture, &picture->maps[m]);
		json_end(&json);
		json_end(&json);
	}
	json_end(&json);
	json_array(&json, "notes");
	for (unsigned i = 0; i < picture->notes.nr; i++)
		json_string(&json, NULL, picture->notes.text[i]);
	json_end(&json);
	json_end(&json);
}

/* What stands above it: what was asked for. The caller frees. */
static char *make_title(const struct ctl_args *args)
{
	char *title = NULL;
	size_t len;
	FILE *f = open_memstream(&title, &len);

	if (!f)
		return NULL;
	fputs("Marks of ", f);
	say_text(f, args->target);
	if (args->select.set & WPFS_SELECT_FILE) {
		fputs(" : ", f);
		say_text(f, args->select.file);
	}
	if (fclose(f)) {
		free(title);
		return NULL;
	}
	return title;
}

/* All of it or nothing: a page that shows it never sees a half. */
static int draw(const struct picture *picture, const struct ctl_args *args)
{
	_cleanup_free_ char *title = make_title(args), *part = NULL;
	enum picture_format format = args->png ? PICTURE_PNG : PICTURE_SVG;
	FILE *f;
	int r;

	if (!title || asprintf(&part, "%s.part", args->output) < 0) {
		part = NULL;
		return fail(args->output, -ENOMEM);
	}
	f = fopen(part, "we");
	if (!f)
		return fail(args->output, -errno);
	r = picture_draw(picture, f, format, args->dark, title);
	if (fclose(f) && r == 0)
		r = -errno;
	if (r == 0 && rename(part, args->output))
		r = -errno;
	if (r) {
		unlink(part);
		return fail(args->output, r);
	}
	if (args->json) {
		struct json json;

		json_init(&json, stdout);
		json_object(&json, NULL);
		json_bytes(&json, "output", args->output);
		json_u64(&json, "maps", picture->nr_maps);
		json_end(&json);
	}
	return ctl_finish();
}

int cmd_map(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	_cleanup_(picture_free) struct picture picture = {0};
	int r;

	r = target_open(&target, "map", args->target, TARGET_STORE_OK);
	r = r ?: picture_load(&picture, &target, &args->select);
	if (r)
		return r;
	if (args->output)
		return draw(&picture, args);
	if (args->json)
		show_json(&picture);
	else
		picture_text(&picture);
	return ctl_finish();
}
