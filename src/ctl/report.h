/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What ps, marks and dirty have in common. */
#ifndef WPFS_CTL_REPORT_H
#define WPFS_CTL_REPORT_H

#include "ctl/ctl.h"

/* Asks for the report and shows it as args say. Gives a ctl_status. */
int report_show(const struct ctl_args *args, enum wpfs_report_kind kind);

#endif
