/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/report.h"

#include <errno.h>

#include "base/cleanup.h"
#include "ctl/out.h"
#include "ctl/target.h"

int report_show(const struct ctl_args *args, enum wpfs_report_kind kind)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	_cleanup_(out_free) struct out out;
	struct wpfs_select select = args->select;
	int r;

	out_init(&out, kind, args->json);
	r = target_open(&target, args->command->name, args->target, TARGET_STORE_OK);
	if (r)
		return r;
	select.kind = kind;
	r = target_report(&target, &select, out_record, &out);
	if (r)
		return r;
	if (out_finish(&out))
		return target_fail(&target, -ENOMEM);
	return ctl_finish();
}
