/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table; what the hooks do not need themselves is here. */
#include "preload/core.h"

#include <errno.h>
#include <fcntl.h>

#include "base/compat.h"
#include "preload/attach.h"
#include "preload/client.h"
#include "preload/discover.h"
#include "preload/fds.h"
#include "preload/map.h"
#include "preload/uffd.h"

static int attach_locked(const char *id, const char *name)
{
	int index = mount_find(id), err;
	struct mount *mount;

	if (index < 0)
		return index;
	/* A library says what is wrong by what it returns. */
	if (!shim.hooks)
		shim.quiet = true;
	mount = &shim.mounts[index];
	if (name && !text_equal(name, mount->name)) {
		if (mount->state != MOUNT_KNOWN)
			return -EEXIST;
		text_copy(mount->name, name, sizeof(mount->name));
	}
	err = mount_ready(mount);
	return err ? err : index;
}

static int core_attach(const char *id, const char *name)
{
	struct shim_guard guard;
	int ret;

	if (!mount_id_valid(id) || (name && !shim_name_valid(name)))
		return -EINVAL;
	if (!shim_lock(&guard))
		return -EPERM;
	ret = attach_locked(id, name);
	shim_unlock(&guard);
	return ret;
}

/* Any request would do: what is lost is seen when it is used. */
static int core_revive(int mount)
{
	struct wpfs_range nothing = {0};
	struct shim_guard guard;
	int err, status = 0;

	if (!shim_lock(&guard))
		return -EPERM;
	err = mount_call(&shim.mounts[mount], WPFS_OP_MSYNC, &nothing, sizeof(nothing), NULL,
			 &status, NULL, 0, NULL);
	shim_unlock(&guard);
	return err ? err : status;
}

static int core_file(int mount, int fd, uint64_t *ino)
{
	struct shim_guard guard;
	struct mapping r;
	int found;

	if (raw_failed(raw(fcntl, fd, F_GETFD)))
		return -EBADF;
	if (!map_identify(fd, &r) || discover_is_other(r.dev, r.mnt))
		return -EXDEV;
	if (!shim_lock(&guard))
		return -EPERM;
	found = discover_fd(fd, r.dev, r.mnt);
	shim_unlock(&guard);
	if (found == DISCOVER_UNKNOWN)
		return -ENOTCONN;
	*ino = r.ino;
	return found == mount ? 0 : -EXDEV;
}

static long core_map(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	return map_shared(addr, len, prot, flags, fd, off, true);
}

static bool core_covers(int mount, uint64_t addr, uint64_t len)
{
	uint64_t end = addr + len;
	struct shim_guard guard;
	struct range piece;

	if (!mapping_span_valid(addr, len) || !shim_lock(&guard))
		return false;
	while (addr < end && ranges_next(addr, end, &piece) && piece.start == addr &&
	       piece.mount == (uint32_t)mount)
		addr = piece.end;
	shim_unlock(&guard);
	return addr >= end;
}

/* On a connection of its own: the HELLO of an attached one was said. */
static int new_uffd(const struct mount *mount)
{
	struct wpfs_hello hello = {0};
	struct wpfs_hello_reply reply = {0};
	struct client_call call = {
		.op = WPFS_OP_HELLO,
		.body = &hello,
		.body_len = sizeof(hello),
		.reply = &reply,
		.reply_len = sizeof(reply),
	};
	int sock = client_connect(mount->id), err;

	if (sock < 0)
		return sock;
	err = client_call(sock, 1, &call);
	if (!err && call.status < 0)
		err = call.status;
	if (!err && call.fds[0] < 0)
		err = -EPERM;
	if (!err)
		err = (int)raw(ioctl, call.fds[0], USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	for (int i = 0; i < CLIENT_FDS; i++) {
		if (call.fds[i] >= 0)
			raw(close, call.fds[i]);
	}
	raw(close, sock);
	return err;
}

static int core_new_uffd(int mount)
{
	struct shim_guard guard;
	int ret;

	if (!shim_lock(&guard))
		return -EPERM;
	ret = new_uffd(&shim.mounts[mount]);
	shim_unlock(&guard);
	return ret;
}

const struct core core = {
	.version = CORE_VERSION,
	.attach = core_attach,
	.revive = core_revive,
	.file = core_file,
	.map = core_map,
	.unmap = map_unmap,
	.remap = map_remap,
	.remove = map_remove,
	.covers = core_covers,
	.new_uffd = core_new_uffd,
	.uffd_register = uffd_register,
	.uffd_unregister = uffd_unregister,
	.close = fds_close,
};
