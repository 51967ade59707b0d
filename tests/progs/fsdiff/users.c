/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Per-thread credentials, by raw calls: the C library's would change every thread. */
#include <linux/capability.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fsdiff.h"

static const struct {
	uid_t uid;
	gid_t gid;
	int nr_groups;
	gid_t groups[2];
	uint32_t without; /* capabilities dropped */
} users[USERS] = {
	{.uid = 0},
	{.uid = 1000, .gid = 1000, .nr_groups = 2, .groups = {500, 501}},
	{.uid = 1001, .gid = 1000},
	{.uid = 1002, .gid = 1002, .nr_groups = 1, .groups = {500}},
	{.uid = 0,
	 .without = 1u << CAP_FSETID | 1u << CAP_DAC_OVERRIDE | 1u << CAP_DAC_READ_SEARCH |
		    1u << CAP_FOWNER | 1u << CAP_CHOWN | 1u << CAP_MKNOD},
	{.uid = 1000, .gid = 501},
};

static void must(long r)
{
	if (r < 0)
		abort();
}

static void set_caps(uint32_t without)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2];

	must(syscall(SYS_capget, &header, caps));
	caps[0].effective = caps[0].permitted & ~without;
	caps[1].effective = caps[1].permitted;
	must(syscall(SYS_capset, &header, caps));
}

void become(unsigned user)
{
	/* root first, for the right to become another; the saved uid stays 0 */
	must(syscall(SYS_setresuid, 0, 0, 0));
	set_caps(0);
	must(syscall(SYS_setgroups, users[user].nr_groups, users[user].groups));
	must(syscall(SYS_setresgid, users[user].gid, users[user].gid, 0));
	if (users[user].without)
		set_caps(users[user].without);
	if (users[user].uid)
		must(syscall(SYS_setresuid, users[user].uid, users[user].uid, 0));
}
