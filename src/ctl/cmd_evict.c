/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* evict and load: the pages of one file of a capped mount, out of memory and back. */
#include <stdio.h>

#include "base/cleanup.h"
#include "base/progress.h"
#include "base/units.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/table.h"
#include "ctl/target.h"

static int on_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_progress *at = body;
	struct progress *line = arg;

	if (type != WPFS_REC_PROGRESS)
		return 0;
	line->total = at->total << WPFS_PAGE_SHIFT;
	progress_update(line, at->done << WPFS_PAGE_SHIFT);
	return 0;
}

static int move(const struct ctl_args *args, enum wpfs_op op)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	struct wpfs_evict_reply reply;
	struct progress line;
	char pages[40], size[16];
	int r;

	r = target_open(&target, args->command->name, args->target, 0);
	if (r)
		return r;
	progress_begin(&line, args->command->name, PROGRESS_BYTES, 0);
	r = ipc_client_call(target.client, op, &args->select, &reply, on_record, &line);
	progress_end(&line); /* before anything is said */
	if (r < 0)
		return target_fail_call(&target, r);
	if (args->json) {
		struct json json;

		json_init(&json, stdout);
		json_object(&json, NULL);
		json_bytes(&json, "file", args->select.file);
		json_u64(&json, "pages", reply.pages);
		json_u64(&json, "bytes", reply.pages << WPFS_PAGE_SHIFT);
		json_end(&json);
	} else {
		printf("%s %s (%s)\n", op == WPFS_OP_EVICT ? "evicted" : "loaded",
		       table_count(reply.pages, "page", pages, sizeof(pages)),
		       units_format_size(reply.pages << WPFS_PAGE_SHIFT, size, sizeof(size)));
	}
	return ctl_finish();
}

int cmd_evict(const struct ctl_args *args)
{
	return move(args, WPFS_OP_EVICT);
}

int cmd_load(const struct ctl_args *args)
{
	return move(args, WPFS_OP_LOAD);
}
