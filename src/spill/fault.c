/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "spill/fault.h"

/*
 * MISSING, resident: another thread or process had it brought in.
 * WP, not resident: evicted after the fault. The mark must not go before the write is sure to come;
 * waking makes it a MISSING fault, and after that a WP fault again.
 */
static const enum fault_action fault_table[FAULT_NR_KINDS][FAULT_NR_RESIDENCIES] = {
	[FAULT_MISSING] =
		{
			[FAULT_RESIDENT] = FAULT_WAKE,
			[FAULT_ABSENT] = FAULT_ZERO,
			[FAULT_SPILLED] = FAULT_LOAD,
		},
	[FAULT_WP] =
		{
			[FAULT_RESIDENT] = FAULT_UNPROTECT,
			[FAULT_ABSENT] = FAULT_WAKE,
			[FAULT_SPILLED] = FAULT_WAKE,
		},
};

enum fault_action fault_decide(enum fault_kind kind, enum fault_residency residency, bool fenced)
{
	return fenced ? FAULT_HOLD : fault_table[kind][residency];
}
