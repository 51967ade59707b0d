/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * msync(MS_SYNC) waits for the daemon's disk. It asks on a connection of its own, without the lock:
 * other threads map, unmap and fork meanwhile. Where there is no such connection to be had it asks
 * on the one that there is.
 */
#include <errno.h>

#include "preload/attach.h"
#include "preload/client.h"
#include "preload/map.h"

static void close_fds(const struct client_call *call)
{
	for (int i = 0; i < CLIENT_FDS; i++) {
		if (call->fds[i] >= 0)
			raw(close, call->fds[i]);
	}
}

/* 0 and *status, or -errno: nobody answered. */
static int ask_apart(const char *id, const struct wpfs_range *range, int *status)
{
	struct wpfs_hello hello = {.flags = WPFS_HELLO_CTL};
	struct wpfs_hello_reply reply;
	struct client_call greet = {
		.op = WPFS_OP_HELLO,
		.body = &hello,
		.body_len = sizeof(hello),
		.reply = &reply,
		.reply_len = sizeof(reply),
	};
	struct client_call call = {
		.op = WPFS_OP_MSYNC,
		.body = range,
		.body_len = sizeof(*range),
		.patient = true,
	};
	int sock = client_connect(id), err;

	if (sock < 0)
		return sock;
	err = client_call(sock, 1, &greet);
	if (!err)
		err = greet.status < 0 ? greet.status : client_call(sock, 2, &call);
	if (!err) {
		*status = call.status;
		close_fds(&call);
	}
	close_fds(&greet);
	raw(close, sock);
	return err;
}

/* The mounts that have mappings in the range, a bit each. Under the lock. */
static unsigned mounts_in(const struct wpfs_range *range)
{
	uint64_t at = range->addr, end = range->addr + range->len;
	struct range piece;
	unsigned mounts = 0;

	for (; at < end && ranges_next(at, end, &piece); at = piece.end)
		mounts |= 1u << piece.mount;
	return mounts;
}

/* On the connection that there is. Under the lock. */
static int ask_as_ever(struct mount *mount, const struct wpfs_range *range)
{
	int status = 0, err = mount_call(mount, WPFS_OP_MSYNC, range, sizeof(*range), NULL, &status,
					 NULL, 0, NULL);

	return err ? err : status;
}

/* Are contents and marks durable of what these mounts have there? Takes the lock over. */
static bool durable(unsigned mounts, const struct wpfs_range *range, const struct shim_guard *guard)
{
	unsigned ready = 0, again = 0;
	bool all = true;

	for (int i = 0; i < SHIM_MOUNTS; i++) {
		if (mounts & 1u << i)
			ready |= (unsigned)(mount_ready(&shim.mounts[i]) == 0) << i;
	}
	shim_lock_pause();
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		int status = 0, err;

		if (!(ready & 1u << i))
			continue;
		err = ask_apart(shim.mounts[i].id, range, &status);
		/* One that hangs is waited for once. */
		if ((err && err != -ETIMEDOUT) || status == -ESRCH || status == -EPROTO)
			again |= 1u << i;
		else
			all &= err == 0 && status >= 0;
	}
	/* It may be refused: then somebody waits for this thread. */
	if (!again || !shim_lock_go_on()) {
		shim_leave(guard);
		return all && !again && ready == mounts;
	}
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		if (again & 1u << i)
			all &= ask_as_ever(&shim.mounts[i], range) >= 0;
	}
	shim_unlock(guard);
	return all && ready == mounts;
}

long map_msync(uint64_t addr, uint64_t len, int flags)
{
	const struct wpfs_range range = {.addr = addr, .len = page_align_up(len)};
	long ret = raw(msync, addr, len, flags);
	struct shim_guard guard;

	/* ENOMEM says that there are holes in it; what is around them was synced all the same. */
	if ((ret && ret != -ENOMEM) || !mapping_span_valid(addr, len) ||
	    !ranges_overlap(addr, range.len) || !shim_lock(&guard))
		return ret;
	/* Whoever asks for durable must not be told so when it is not. */
	return durable(mounts_in(&range), &range, &guard) || ret ? ret : -EIO;
}
