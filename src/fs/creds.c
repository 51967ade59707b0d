/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/creds.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"

#define CAP_WORDS  2
#define MAX_GROUPS 65536

/* What a FUSE thread has when it does nothing special. Constant after creds_setup. */
static struct __user_cap_data_struct base_caps[CAP_WORDS];

static __thread bool own_fs;	   /* this thread's umask is its own, and fs_umask */
static __thread bool someone_else; /* between creds_become and creds_restore */
static __thread bool groups_changed;
static __thread bool caps_changed; /* they are not base_caps */
static __thread mode_t fs_umask;
static __thread uid_t fs_uid; /* as the kernel has it for this thread, and fs_gid */
static __thread gid_t fs_gid;

static int caps_get(struct __user_cap_data_struct caps[CAP_WORDS])
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

	return syscall(SYS_capget, &header, caps) < 0 ? -errno : 0;
}

static int caps_set(const struct __user_cap_data_struct caps[CAP_WORDS])
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};

	return syscall(SYS_capset, &header, caps) < 0 ? -errno : 0;
}

int creds_setup(bool fsetid)
{
	int bits, r;

	bits = prctl(PR_GET_SECUREBITS);
	if (bits < 0 || prctl(PR_SET_SECUREBITS, bits | SECBIT_NO_SETUID_FIXUP) < 0)
		return -errno;
	r = caps_get(base_caps);
	if (r)
		return r;
	base_caps[CAP_TO_INDEX(CAP_SYS_RESOURCE)].effective &= ~CAP_TO_MASK(CAP_SYS_RESOURCE);
	if (!fsetid)
		base_caps[CAP_TO_INDEX(CAP_FSETID)].effective &= ~CAP_TO_MASK(CAP_FSETID);
	return caps_set(base_caps);
}

/* The kernel lets a thread lower its own effective set always; a failure here would mean that a
 * bit survives which the caller may not keep. */
static void caps_set_or_die(const struct __user_cap_data_struct caps[CAP_WORDS])
{
	int r = caps_set(caps);

	if (r) {
		log_err("cannot change the capabilities of a FUSE thread: %s", log_errstr(r));
		abort();
	}
}

static void caps_set_fsetid(struct __user_cap_data_struct caps[CAP_WORDS], bool have)
{
	if (have)
		caps[CAP_TO_INDEX(CAP_FSETID)].effective |= CAP_TO_MASK(CAP_FSETID);
	else
		caps[CAP_TO_INDEX(CAP_FSETID)].effective &= ~CAP_TO_MASK(CAP_FSETID);
	caps_set_or_die(caps);
}

static bool has_fsetid(const struct __user_cap_data_struct caps[CAP_WORDS])
{
	return caps[CAP_TO_INDEX(CAP_FSETID)].effective & CAP_TO_MASK(CAP_FSETID);
}

/* Calls that would change nothing are spared, which is nearly all of them. */
static void fsetid_set(bool have)
{
	struct __user_cap_data_struct caps[CAP_WORDS];

	if (have == (has_fsetid(base_caps) != caps_changed))
		return;
	memcpy(caps, base_caps, sizeof(caps));
	caps_set_fsetid(caps, have);
	caps_changed = !caps_changed;
}

void creds_drop_fsetid(void)
{
	fsetid_set(false);
}

void creds_take_fsetid(void)
{
	fsetid_set(true);
}

void creds_back_fsetid(void)
{
	fsetid_set(has_fsetid(base_caps));
}

bool creds_borrow_fsetid(void)
{
	struct __user_cap_data_struct caps[CAP_WORDS];

	if (caps_get(caps) < 0 || has_fsetid(caps))
		return false;
	caps_set_fsetid(caps, true);
	return true;
}

void creds_return_fsetid(void)
{
	struct __user_cap_data_struct caps[CAP_WORDS];

	if (caps_get(caps) == 0)
		caps_set_fsetid(caps, false);
}

static bool caller_in_our_userns(pid_t pid)
{
	struct stat ours, theirs;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
	return stat("/proc/self/ns/user", &ours) == 0 && stat(path, &theirs) == 0 &&
	       ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev;
}

/* The value of a "Key:\t..." line of /proc/PID/status, in `text`; NULL when there is none. */
static const char *status_field(const char *text, const char *key)
{
	const char *at = strstr(text, key);

	return at ? at + strlen(key) : NULL;
}

static int caller_status(pid_t pid, char **text)
{
	char path[64];

	if (pid <= 0)
		return -ESRCH;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return fdio_read_file(AT_FDCWD, path, text, NULL);
}

static bool status_capable(const char *text, int cap)
{
	const char *field = status_field(text, "\nCapEff:");

	return field && (strtoull(field, NULL, 16) >> cap & 1);
}

bool creds_caller_capable(pid_t pid, int cap)
{
	_cleanup_free_ char *text = NULL;

	return caller_status(pid, &text) == 0 && status_capable(text, cap) &&
	       caller_in_our_userns(pid);
}

/* Takes the supplementary groups listed in a status text; 0 or -errno. */
static int groups_take(const char *text)
{
	_cleanup_free_ gid_t *groups = calloc(MAX_GROUPS, sizeof(gid_t));
	const char *field = status_field(text, "\nGroups:");
	size_t nr = 0;

	if (!groups)
		return -ENOMEM;
	while (field && nr < MAX_GROUPS) {
		char *end;
		unsigned long gid;

		while (*field == ' ' || *field == '\t')
			field++;
		if (*field < '0' || *field > '9')
			break;
		gid = strtoul(field, &end, 10);
		groups[nr++] = (gid_t)gid;
		field = end;
	}
	if (syscall(SYS_setgroups, nr, groups) < 0)
		return -errno;
	groups_changed = true;
	return 0;
}

static int become_exactly(const struct creds_caller *caller)
{
	_cleanup_free_ char *text = NULL;
	int r = caller_status(caller->pid, &text);

	/* A caller we cannot look at gets no benefit from groups or capabilities. */
	r = groups_take(r ? "" : text);
	if (!r)
		fsetid_set(text && status_capable(text, CAP_FSETID) &&
			   caller_in_our_userns(caller->pid));
	return r;
}

/* Calls that would change nothing are spared: most callers are root, or all one user. */
static void fs_ids_take(uid_t uid, gid_t gid)
{
	if (gid != fs_gid)
		setfsgid(gid);
	if (uid != fs_uid)
		setfsuid(uid);
	fs_gid = gid;
	fs_uid = uid;
}

static void umask_take(mode_t mask)
{
	if (mask != fs_umask)
		umask(mask);
	fs_umask = mask;
}

int creds_become(const struct creds_caller *caller, bool exact)
{
	if (!own_fs) {
		if (unshare(CLONE_FS) < 0)
			return -errno;
		own_fs = true;
		fs_umask = 0;
		umask(0);
	}
	someone_else = true;
	if (exact) {
		int r = become_exactly(caller);

		if (r)
			return r;
	}
	umask_take(caller->umask);
	fs_ids_take(caller->uid, caller->gid);
	return 0;
}

int creds_become_maker(const struct creds_caller *caller, mode_t mode)
{
	int r = creds_become(caller, false);

	if (!r && (mode & S_ISGID))
		creds_take_fsetid();
	return r;
}

int creds_become_writer(const struct creds_caller *caller, const struct stat *st)
{
	return st->st_mode & (S_ISUID | S_ISGID) ? creds_become(caller, true) : 0;
}

void creds_restore(void)
{
	if (!someone_else)
		return;
	someone_else = false;
	fs_ids_take(0, 0);
	/* The next one that makes a file has the same, most often. What is ours is only for root.
	 */
	if (fs_umask & 0700)
		umask_take(0);
	creds_back_fsetid();
	if (groups_changed) {
		if (syscall(SYS_setgroups, 0, NULL) < 0)
			log_warn("cannot drop supplementary groups: %s", log_errstr(errno));
		groups_changed = false;
	}
}
