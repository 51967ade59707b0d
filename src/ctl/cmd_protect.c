/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* protect, which begins an epoch, and unprotect, its opposite. */
#include <inttypes.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/table.h"
#include "ctl/target.h"

static void show_json(const struct wpfs_protect_reply *reply)
{
	struct json json;

	json_init(&json, stdout);
	json_object(&json, NULL);
	json_u64(&json, "epoch", reply->epoch);
	json_u64(&json, "mms", reply->mms);
	json_u64(&json, "files", reply->files);
	json_u64(&json, "pages", reply->pages);
	json_array(&json, "notes");
	if (reply->note[0])
		json_string(&json, NULL, reply->note);
	json_end(&json);
	json_end(&json);
}

static void show_text(enum wpfs_op op, const struct wpfs_protect_reply *reply)
{
	char pages[40], files[40], mms[40], size[16];

	printf("%s %s (%s) in %s of %s", op == WPFS_OP_PROTECT ? "protected" : "unprotected",
	       table_count(reply->pages, "page", pages, sizeof(pages)),
	       units_format_size(reply->pages << WPFS_PAGE_SHIFT, size, sizeof(size)),
	       table_count(reply->files, "file", files, sizeof(files)),
	       table_count(reply->mms, "program", mms, sizeof(mms)));
	if (op == WPFS_OP_PROTECT && reply->epoch)
		printf(", epoch %" PRIu64, reply->epoch);
	putchar('\n');
	if (reply->note[0]) {
		say_text(stdout, reply->note);
		putchar('\n');
	}
}

static int change(const struct ctl_args *args, enum wpfs_op op)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	struct wpfs_protect_reply reply;
	int r;

	r = target_open(&target, args->command->name, args->target, 0);
	if (r)
		return r;
	r = target_call(&target, op, &args->select, &reply, NULL, NULL);
	if (r)
		return r;
	reply.note[sizeof(reply.note) - 1] = '\0';
	if (args->json)
		show_json(&reply);
	else
		show_text(op, &reply);
	return ctl_finish();
}

int cmd_protect(const struct ctl_args *args)
{
	return change(args, WPFS_OP_PROTECT);
}

int cmd_unprotect(const struct ctl_args *args)
{
	return change(args, WPFS_OP_UNPROTECT);
}
