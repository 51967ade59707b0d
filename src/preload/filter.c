/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A filter may be for all threads (SECCOMP_FILTER_FLAG_TSYNC): none of them may be inside the shim
 * when it comes, so it is said first, and then waited for those that are. A call that fails takes
 * it back. Only filters that come through libc are seen.
 */
#include "preload/filter.h"

#include <linux/seccomp.h>
#include <linux/time_types.h>
#include <sys/prctl.h>

#include "preload/client.h"

/* More than a daemon that hangs takes: a REGISTER asks it twice, waits for it as long and tells it.
 */
#define WAIT_MS	 (4 * CLIENT_TIMEOUT_S * 1000 + 2000)
#define LEAVE_MS 50 /* one system call */

_Atomic uint32_t filters;

static void begin(void)
{
	struct __kernel_timespec ms = {.tv_nsec = 1000000};

	atomic_fetch_add(&filters, 1);
	/* Who waits for a disk is waited for. */
	for (int i = 0; i < WAIT_MS && shim_others_inside(); i += !client_is_patient())
		raw(nanosleep, &ms, NULL);
	for (int i = 0; i < LEAVE_MS && shim_others_leave(); i++)
		raw(nanosleep, &ms, NULL);
}

static long made(long ret)
{
	if (raw_failed(ret))
		atomic_fetch_sub(&filters, 1);
	return ret;
}

long filter_prctl(const long args[5])
{
	/* In a vfork child the filter is not this program's, though the memory is. */
	bool installs = args[0] == PR_SET_SECCOMP && !filtered() && shim_is_owner();
	long ret;

	if (installs)
		begin();
	ret = raw(prctl, args[0], args[1], args[2], args[3], args[4]);
	return installs ? made(ret) : ret;
}

long filter_syscall(long nr, const long args[6])
{
	bool installs = nr == SYS_seccomp && (unsigned)args[0] <= SECCOMP_SET_MODE_FILTER &&
			!filtered() && shim_is_owner();
	long ret;

	if (nr == SYS_prctl)
		return filter_prctl(args);
	if (installs)
		begin();
	ret = raw_call(nr, args[0], args[1], args[2], args[3], args[4], args[5]);
	return installs ? made(ret) : ret;
}
