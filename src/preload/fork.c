/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fork() happens with the lock held, so that the child's copy of the state is whole and no
 * descriptor of an attach in progress is copied: a copy of wpfs's uffd that nobody reads would make
 * the next fork wait for ever. Another handler of fork may call a hook meanwhile; the lock refuses
 * it.
 *
 * A child made by a raw clone, and a vfork child, is told by its pid: shim_lock() refuses both.
 */
#include "preload/shim.h"

#include <pthread.h>

#include "preload/attach.h"
#include "preload/calls.h"
#include "preload/client.h"
#include "preload/fds.h"
#include "preload/ranges.h"
#include "preload/witness.h"

static struct shim_guard guard; /* of the thread that forks; it holds the lock */

/* Which thread that is, in the child too. Others fork meanwhile to which the lock was refused. */
static _Atomic pthread_t holder;
static _Atomic bool held;

static bool is_mine(void)
{
	return atomic_load(&held) && pthread_equal(atomic_load(&holder), pthread_self());
}

static void before(void)
{
	struct shim_guard mine;

	/* Under a filter nothing is done before or after, and the child asks nobody. */
	if (!shim_lock(&mine))
		return;
	guard = mine;
	atomic_store(&holder, pthread_self());
	atomic_store(&held, true);
	shim_lock_waits(true);
}

/* Only the process whose state this is took the lock: the child of a raw clone may fork too. */
static void after_in_parent(void)
{
	struct shim_guard mine;

	if (!is_mine() || (int)raw(getpid) != shim.pid)
		return;
	mine = guard;
	atomic_store(&held, false);
	shim_lock_waits(false);
	shim_unlock(&mine);
}

static void after_in_child(void)
{
	struct shim_guard mine;

	if (!is_mine()) {
		/* Who had it is not here; a thread of this process may be given its number. */
		atomic_store(&held, false);
		return;
	}
	mine = guard;
	atomic_store(&held, false);
	shim_adopt();
	fds_forget_uffds();
	calls_forget();
	client_forked();
	witness_forget();
	for (uint32_t i = 0; i < SHIM_MOUNTS; i++)
		mount_forked(&shim.mounts[i], ranges_of_mount(i, false));
	shim_unlock(&mine);
}

void fork_watch(void)
{
	pthread_atfork(before, after_in_parent, after_in_child);
}
