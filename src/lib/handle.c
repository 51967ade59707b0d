/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Attach and detach, errors, and the one way to ask the daemon. */
#include "lib/handle.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

#define ASK_TIMEOUT_MS                                                                             \
	60000 /* a harvest takes milliseconds per GiB, a commit what the disk takes */

static __thread char error_text[sizeof(((struct wpfs_error *)0)->text)];

const char *wpfs_error(void)
{
	return error_text;
}

int lib_fail(int err, const char *what, const char *fmt, ...)
{
	int used = snprintf(error_text, sizeof(error_text), "%s: ", what);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(error_text + used, sizeof(error_text) - (size_t)used, fmt, ap);
	va_end(ap);
	return err;
}

static const char *meaning(int err)
{
	switch (err) {
	case -ECONNREFUSED:
		return "the mount's daemon is not running: start wpfs on its store again";
	case -ECONNRESET:
		return "the mount's daemon went away: start wpfs on its store again, then ask "
		       "again";
	case -ETIMEDOUT:
		return "the mount's daemon does not answer";
	case -EPROTO:
	case -EPROTONOSUPPORT:
		return "the mount's daemon is of another version than this library";
	case -EPERM:
		return "not allowed to this process (a vfork child, behind a seccomp filter, or no "
		       "userfaultfd for its user: wpfs -o uffd=)";
	case -EACCES:
		return "this process is not tracked there: a seccomp filter was there before, or "
		       "an "
		       "earlier attempt failed for good";
	case -EEXIST:
		return "this process is attached to that mount already, by another name";
	case -ENOTCONN:
		return "its daemon was started again since it was opened: open it anew";
	case -EXDEV:
		return "not a regular file of this mount";
	case -ENOTTY:
		return "not on a wpfs mount";
	default:
		return strerror(-err);
	}
}

int lib_fail_errno(int err, const char *what)
{
	return lib_fail(err, what, "%s", meaning(err));
}

/* A socket that is not there and one that nobody listens on are the same to who asks; and ENOENT
 * has another meaning as an answer. */
static int no_daemon(int err)
{
	return err == -ENOENT ? -ECONNREFUSED : err;
}

/* The preloaded library's, if there is one: a process attaches once. */
static const struct core *pick_core(void)
{
	const struct core *(*preload)(void) =
		(const struct core *(*)(void))dlsym(RTLD_DEFAULT, "wpfs_preload_core");

	if (!preload)
		return &core;
	return preload()->version == CORE_VERSION ? preload() : NULL;
}

/* The id of the mount that a path is on. */
static int mount_id_of(const char *path, char id[WPFS_ID_MAX])
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct wpfs_mount_info info;
	int err;

	if (fd < 0)
		return -errno;
	err = ipc_mount_info(fd, &info);
	if (err == 0)
		memcpy(id, info.id, sizeof(info.id));
	return err;
}

int wpfs_attach(const char *path, const char *name, struct wpfs **handle)
{
	struct wpfs *made;
	int err;

	*handle = NULL;
	made = calloc(1, sizeof(*made));
	if (!made)
		return lib_fail_errno(-ENOMEM, path);
	made->core = pick_core();
	err = made->core ? mount_id_of(path, made->id) : -EPROTO;
	if (err) {
		free(made);
		return err == -ENOTTY || err == -EPROTO ? lib_fail_errno(err, path)
							: lib_fail(err, path, "%s", strerror(-err));
	}
	made->mount = made->core->attach(made->id, name);
	if (made->mount < 0) {
		err = no_daemon(made->mount);
		free(made);
		return err == -EINVAL
			       ? lib_fail(err, path, "the name is not 1 to %d of A-Z a-z 0-9 . _ -",
					  WPFS_NAME_MAX)
			       : lib_fail_errno(err, path);
	}
	*handle = made;
	return 0;
}

void wpfs_detach(struct wpfs *handle)
{
	if (!handle)
		return;
	watch_end_all(handle);
	free(handle);
}

static int ask_once(struct wpfs *handle, enum wpfs_op op, const struct wpfs_self *self, void *reply,
		    ipc_record_fn fn, void *arg, char *said, size_t size)
{
	_cleanup_(ipc_client_closep) struct ipc_client *client = NULL;
	int status = ipc_client_connect(handle->id, ASK_TIMEOUT_MS, &client);

	if (status < 0)
		return no_daemon(status);
	status = ipc_client_call(client, op, self, reply, fn, arg);
	snprintf(said, size, "%s", ipc_client_error(client));
	return status;
}

int lib_ask(struct wpfs *handle, const char *what, enum wpfs_op op, const struct wpfs_self *self,
	    void *reply, ipc_record_fn fn, void *arg)
{
	char said[sizeof(error_text)] = "";
	bool lost = false;
	int status = 0;

	for (int i = 0; i < 2; i++) {
		if (fn)
			fn(arg, 0, NULL);
		status = ask_once(handle, op, self, reply, fn, arg, said, sizeof(said));
		lost |= status == -EPIPE;
		if (status == -ESRCH)
			handle->core->revive(handle->mount);
		else if (status != -EPIPE)
			break;
	}
	if (status >= 0)
		return status;
	if (status == -EPIPE || (lost && status == -ECONNREFUSED))
		status = -ECONNRESET;
	return said[0] ? lib_fail(status, what, "%s", said) : lib_fail_errno(status, what);
}

int lib_file(struct wpfs *handle, const char *what, int fd, uint64_t *ino)
{
	int err = handle->core->file(handle->mount, fd, ino);

	return err ? lib_fail_errno(err, what) : 0;
}
