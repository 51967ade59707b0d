/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which pages of a file a backup has to copy, and whether these are all. */
#ifndef WPFS_CTL_CHANGED_H
#define WPFS_CTL_CHANGED_H

#include <stdbool.h>
#include <stdint.h>

#include "ctl/ctl.h"
#include "ctl/target.h"
#include "mm/set.h"

struct changed {
	struct mm_set pages;
	uint64_t file;	/* file id; 0: nothing is known of it */
	uint64_t epoch; /* that they are of */
	char gap[512];	/* why pages may be missing, for people; "" = they do not */
};

/*
 * The pages of --file that are dirty in the open epoch, or in --epoch, of the programs that --name
 * means, or of all. 0 or a ctl_status, said: without anything protected that is an error. To be
 * freed in either case.
 */
int changed_find(struct changed *changed, struct target *target, const struct ctl_args *args);

void changed_free(struct changed *changed);

#endif
