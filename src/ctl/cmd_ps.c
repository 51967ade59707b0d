/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/report.h"

int cmd_ps(const struct ctl_args *args)
{
	return report_show(args, WPFS_REPORT_PS);
}
