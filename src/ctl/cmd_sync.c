/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>

#include "base/cleanup.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/target.h"

/* A person gets no line: like sync(1), it has said all when it returns. */
int cmd_sync(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	int r;

	r = target_open(&target, args->command->name, args->target, 0);
	if (r)
		return r;
	r = target_call(&target, WPFS_OP_SYNC, &args->select, NULL, NULL, NULL);
	if (r)
		return r;
	if (args->json) {
		struct json json;

		json_init(&json, stdout);
		json_object(&json, NULL);
		json_bool(&json, "committed", true);
		json_end(&json);
	}
	return ctl_finish();
}
