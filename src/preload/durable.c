/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * msync(MS_SYNC) waits for the daemon, and that for its disk. It asks on a connection of its own,
 * without the lock: other threads map, unmap and fork meanwhile. A daemon that is slow, or stands
 * still, is waited for as a disk is; what says no, or is not there, is EIO. Where there is no such
 * connection to be had (no descriptors, a chroot) it asks on the one that there is.
 */
#include <errno.h>

#include "preload/attach.h"
#include "preload/calls.h"
#include "preload/client.h"
#include "preload/map.h"

#define TRIES 3 /* a daemon may go, and another one come; somebody may want the number */

/* One mount that is asked. */
struct asked {
	int sock, place; /* -1: none is to be had */
	bool again;	 /* it went away meanwhile */
	bool done;	 /* it has answered, or does not in time */
	bool durable;
};

static void close_fds(const struct client_call *call)
{
	for (int i = 0; i < CLIENT_FDS; i++)
		client_close_if(call->fds[i]);
}

/* Connects. Where too many wait for the same it is tried again, for as long as a disk may take. */
static int join(const struct asked *asked, const char *id)
{
	int err = -ETIMEDOUT;

	for (int s = 0; err == -ETIMEDOUT && s < CLIENT_PATIENCE_S; s++) {
		if (calls_is_wanted(asked->place))
			return -EPIPE;
		err = client_join(asked->sock, id, 1);
	}
	return err;
}

/* 0 and *status, or -errno: nobody answered. Without the lock. */
static int ask_apart(const struct asked *asked, const char *id, const struct wpfs_range *range,
		     int *status)
{
	struct wpfs_hello hello = {.flags = WPFS_HELLO_CTL};
	struct wpfs_hello_reply reply;
	struct client_call greet = {
		.op = WPFS_OP_HELLO,
		.body = &hello,
		.body_len = sizeof(hello),
		.patient = true,
		.reply = &reply,
		.reply_len = sizeof(reply),
	};
	struct client_call call = {
		.op = WPFS_OP_MSYNC,
		.body = range,
		.body_len = sizeof(*range),
		.patient = true,
	};
	int err = join(asked, id);

	if (err)
		return err;
	err = client_call(asked->sock, 1, &greet);
	if (err)
		return err;
	close_fds(&greet);
	err = greet.status < 0 ? greet.status : client_call(asked->sock, 2, &call);
	if (err)
		return err;
	close_fds(&call);
	*status = call.status;
	return 0;
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
static bool ask_as_ever(struct mount *mount, const struct wpfs_range *range)
{
	int status = 0, err = mount_call(mount, WPFS_OP_MSYNC, range, sizeof(*range), NULL, &status,
					 NULL, 0, NULL);

	return err == 0 && status >= 0;
}

/* Asks one mount. The lock is taken over, and free afterwards if asked->place was one. */
static void ask(const struct mount *mount, const struct wpfs_range *range, struct asked *asked)
{
	int status = 0, err;

	*asked = (struct asked){.sock = client_socket(), .place = -1};
	if (asked->sock >= 0)
		asked->place = calls_begin(asked->sock);
	if (asked->place < 0) {
		client_close_if(asked->sock);
		return;
	}
	shim_lock_pause();
	err = ask_apart(asked, mount->id, range, &status);
	calls_end(asked->place);
	asked->again = err == -EPIPE;
	/* One that does not know of this, or does not understand, is asked as ever. */
	asked->done = err == -ETIMEDOUT || (!err && status != -ESRCH && status != -EPROTO);
	asked->durable = !err && status >= 0;
}

/* Are contents and marks durable of what these mounts have there? Takes the lock over. */
static bool durable(unsigned mounts, const struct wpfs_range *range, const struct shim_guard *guard)
{
	bool all = true, locked = true;

	for (int i = 0; i < SHIM_MOUNTS && all; i++) {
		struct asked asked = {.again = true};

		if (!(mounts & 1u << i))
			continue;
		/* The lock may be refused: then somebody waits for this thread. */
		for (int n = 0; n < TRIES && asked.again; n++) {
			if (locked || shim_lock_go_on()) {
				ask(&shim.mounts[i], range, &asked);
				locked = asked.place < 0;
			}
		}
		if (!asked.done && !locked)
			locked = shim_lock_go_on();
		all = asked.done ? asked.durable : locked && ask_as_ever(&shim.mounts[i], range);
	}
	if (locked)
		shim_lock_pause();
	shim_leave(guard);
	return all;
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
