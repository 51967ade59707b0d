/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "ctl/ctl.h"
#include "ctl/say.h"
#include "ctl/store.h"

/* A harvest of many large programs takes seconds; a daemon that is silent for this long is stuck.
 */
#define ANSWER_WAIT_MS 60000

/* What the errors of client calls mean, in words; the server's own words go before these. */
static const char *call_words(int err)
{
	switch (err) {
	case -ENOENT:
		return "no such name or file: wpctl ps lists the names";
	case -ERANGE:
		return "the range is outside the file";
	case -EPERM:
	case -EACCES:
		return "it belongs to another user: only root can";
	case -EOPNOTSUPP:
		return "only a capped mount has that: mount with -o resident=SIZE";
	case -ETIMEDOUT:
		return "its daemon does not answer: look at its log";
	case -EPIPE:
	case -ECONNRESET:
		return "the connection to its daemon broke: look whether it still runs; was the "
		       "answer too long, ask for one --name or --file";
	case -EPROTO:
		return "its daemon is of another version: use the wpctl that came with it";
	default:
		return log_errstr(err);
	}
}

int target_fail(const struct target *target, int err)
{
	const char *words = target->client ? ipc_client_error(target->client) : "";

	ctl_say("%s: %s: %s", target->command, target->arg, words[0] ? words : call_words(err));
	return CTL_FAILED;
}

static int fail_with(const struct target *target, const char *words)
{
	ctl_say("%s: %s: %s", target->command, target->arg, words);
	return CTL_FAILED;
}

const char *target_errstr(int err)
{
	if (err == -ENOTCONN || err == -ECONNABORTED) /* it went while it was asked */
		return "its daemon is gone: start it again with wpfs STORE MNT, or unmount it with "
		       "umount -l";
	return log_errstr(err);
}

static int fail_open(const struct target *target, int err)
{
	return fail_with(target, err == -ENOTDIR ? "not a directory: give the mountpoint, and a "
						   "file of it with --file"
						 : target_errstr(err));
}

static int connect_daemon(struct target *target)
{
	int r = ipc_client_connect(target->id, ANSWER_WAIT_MS, &target->client);

	switch (r) {
	case 0:
		return 0;
	case -ENOENT:
	case -ECONNREFUSED:
		return fail_with(target, "no daemon serves its socket below " WPFS_RUN_DIR
					 ": it is starting, or ending, or in another container");
	case -EPERM:
		return fail_with(target, "its socket is not root's: not asked");
	default:
		return target_fail_call(target, r);
	}
}

/* Is it the root of its mount, or a directory somewhere inside? */
static bool is_mount_root(int fd)
{
	struct statx stx;

	return statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx) != 0 ||
	       !(stx.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) ||
	       (stx.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}

static int open_mount(struct target *target, int fd, const struct wpfs_mount_info *info,
		      unsigned flags)
{
	if (!is_mount_root(fd))
		return fail_with(target, "a directory inside a wpfs mount: give the mountpoint");
	target->mounted = true;
	snprintf(target->id, sizeof(target->id), "%s", info->id);
	return flags & TARGET_NO_CONNECT ? 0 : connect_daemon(target);
}

/* A store: its daemon answers, if it has one. Only when nobody listens is the lock looked at. */
static int open_store(struct target *target, unsigned flags)
{
	char why[STORE_WHY_SIZE] = "";
	int r;

	r = store_id(target->arg, target->id, why);
	if (r)
		return fail_with(target, why[0] ? why : log_errstr(r));
	r = ipc_client_connect(target->id, ANSWER_WAIT_MS, &target->client);
	if (r == 0) {
		target->mounted = true;
		return 0;
	}
	r = store_is_locked(target->store_fd);
	if (r < 0)
		return fail_with(target, log_errstr(r));
	if (r)
		return fail_with(target,
				 "in use by a daemon that cannot be asked: it is starting, or "
				 "ending, or in another container");
	if (!(flags & TARGET_STORE_OK))
		return fail_with(target,
				 "a store that is not mounted: mount it with wpfs STORE MNT");
	return 0;
}

int target_open(struct target *target, const char *command, const char *arg, unsigned flags)
{
	_cleanup_close_ int fd = -1;
	struct wpfs_mount_info info;
	int r;

	*target = TARGET_INIT;
	target->command = command;
	target->arg = arg;
	fd = open(arg, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return fail_open(target, -errno);
	r = ipc_mount_info(fd, &info);
	if (r == 0)
		return open_mount(target, fd, &info, flags);
	if (r != -ENOTTY)
		return fail_open(target, r);
	r = store_is(fd);
	if (r < 0)
		return fail_open(target, r);
	if (!r)
		return fail_with(target,
				 flags & TARGET_STORE_OK
					 ? "neither a wpfs mount nor a store of one"
					 : "not a wpfs mount: mount one with wpfs STORE MNT");
	target->store_fd = steal_fd(&fd);
	return open_store(target, flags);
}

/* A store is not the mount: whether one was left behind is told by the run directory. */
static enum target_fate store_lost(const struct target *target)
{
	char run_dir[sizeof(WPFS_RUN_DIR) + 1 + WPFS_ID_MAX];

	snprintf(run_dir, sizeof(run_dir), "%s/%s", WPFS_RUN_DIR, target->id);
	if (store_is_locked(target->store_fd) > 0)
		return TARGET_ENDED; /* it is writing its store */
	return access(run_dir, F_OK) == 0 ? TARGET_KILLED : TARGET_ENDED;
}

enum target_fate target_lost(const struct target *target)
{
	_cleanup_close_ int fd = -1;
	struct wpfs_mount_info info;
	int r;

	if (target->store_fd >= 0)
		return store_lost(target);
	fd = open(target->arg, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = fd < 0 ? -errno : ipc_mount_info(fd, &info);
	if (r == -ENOTCONN || r == -ECONNABORTED)
		return TARGET_KILLED;
	return r == 0 && !strcmp(info.id, target->id) ? TARGET_DROPPED : TARGET_ENDED;
}

int target_say_lost(const struct target *target)
{
	switch (target_lost(target)) {
	case TARGET_ENDED:
		return fail_with(target, "it was unmounted");
	case TARGET_KILLED:
		return fail_open(target, -ENOTCONN);
	default:
		return target_fail(target, -EPIPE);
	}
}

int target_fail_call(const struct target *target, int err)
{
	return err == -EPIPE || err == -ECONNRESET ? target_say_lost(target)
						   : target_fail(target, err);
}

void target_closep(struct target *target)
{
	ipc_client_close(target->client);
	target->client = NULL;
	close_fd(&target->store_fd);
}

bool target_selects(const struct wpfs_select *select, const char *name)
{
	const size_t len = strlen(select->name);

	if (!(select->set & WPFS_SELECT_NAME))
		return true;
	return !strncmp(name, select->name, len) && (name[len] == '\0' || name[len] == '/');
}

int target_call(struct target *target, enum wpfs_op op, const struct wpfs_select *select,
		void *reply, ipc_record_fn fn, void *arg)
{
	int r = ipc_client_call(target->client, op, select, reply, fn, arg);

	return r < 0 ? target_fail_call(target, r) : 0;
}

int target_report(struct target *target, const struct wpfs_select *select, ipc_record_fn fn,
		  void *arg)
{
	char why[STORE_WHY_SIZE] = "";
	int r;

	if (target->mounted)
		return target_call(target, WPFS_OP_REPORT, select, NULL, fn, arg);
	r = store_report(target->arg, select, fn, arg, why);
	if (r)
		return why[0] ? fail_with(target, why) : target_fail(target, r);
	return 0;
}
