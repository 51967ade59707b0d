/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <errno.h>
#include <stdio.h>

#include "base/cleanup.h"
#include "ctl/ctl.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/store.h"
#include "ctl/target.h"

static int forget_in_store(const struct target *target, const char *name)
{
	char why[STORE_WHY_SIZE] = "";
	int r = store_forget(target->store_fd, target->arg, name, why);

	if (r == 0)
		return 0;
	if (r == -ENOENT)
		ctl_say("forget: %s: no name '%s': wpctl ps lists the names", target->arg, name);
	else if (r == -EAGAIN)
		ctl_say("forget: %s: in use by a daemon that has just started: try again",
			target->arg);
	else if (why[0])
		ctl_say("forget: %s: %s", target->arg, why);
	else
		return target_fail(target, r);
	return CTL_FAILED;
}

int cmd_forget(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	int r;

	r = target_open(&target, "forget", args->target, TARGET_STORE_OK);
	if (r)
		return r;
	if (target.mounted)
		r = target_call(&target, WPFS_OP_FORGET, &args->select, NULL, NULL, NULL);
	else
		r = forget_in_store(&target, args->select.name);
	if (r)
		return r;
	if (args->json) {
		struct json json;

		json_init(&json, stdout);
		json_object(&json, NULL);
		json_string(&json, "forgotten", args->select.name);
		json_end(&json);
	}
	return ctl_finish();
}
