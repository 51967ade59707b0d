/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Start-up and the lock. The environment is read once, by whoever comes first: the constructor in
 * hooks.c, a hook called from the constructor of another library, or libwpfs.
 */
#include "preload/shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/time_types.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "preload/attach.h"
#include "preload/filter.h"

struct shim shim;

/* 0 = free, 1 = held, 2 = held and somebody may wait. */
static _Atomic uint32_t lock_word;
static _Atomic int lock_owner;	/* thread id, 0 = nobody */
static _Atomic uint32_t inside; /* threads that have it or wait for it */

/* Those that get their signals back. One that is let in then may leave with longjmp(3), and is
 * counted for ever. */
static _Atomic uint32_t leaving;

_Atomic bool shim_own_uffds;
static _Atomic bool lock_waits; /* as shim_lock_waits says */

#define LOCK_MOMENT_NS 50000000

/* False: whoever has it may be waiting for this thread. */
static bool lock_take(void)
{
	const struct __kernel_timespec moment = {.tv_nsec = LOCK_MOMENT_NS};
	uint32_t seen = 0;

	if (atomic_compare_exchange_strong(&lock_word, &seen, 1))
		return true;
	while (atomic_exchange(&lock_word, 2) != 0) {
		long ret = raw(futex, &lock_word, FUTEX_WAIT_PRIVATE, 2, &moment);

		if (ret == -ETIMEDOUT && atomic_load(&lock_waits))
			return false;
	}
	return true;
}

void shim_lock_waits(bool waits)
{
	if (atomic_load_explicit(&shim_own_uffds, memory_order_relaxed))
		atomic_store(&lock_waits, waits);
}

static void lock_drop(void)
{
	if (atomic_exchange(&lock_word, 0) == 2)
		raw(futex, &lock_word, FUTEX_WAKE_PRIVATE, 1);
}

static const char *env_get(const char *name)
{
	for (char **env = environ; env && *env; env++) {
		const char *at = *env, *key = name;

		for (; *key && *at == *key; at++, key++)
			;
		if (!*key && *at == '=')
			return at + 1;
	}
	return NULL;
}

static bool env_flag(const char *name)
{
	const char *value = env_get(name);

	return value && *value && !text_equal(value, "0");
}

bool shim_name_valid(const char *name)
{
	size_t len = 0;

	for (; name[len]; len++) {
		char c = name[len];

		if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
		      c == '.' || c == '_' || c == '-'))
			return false;
	}
	return len > 0 && len <= WPFS_NAME_MAX;
}

static void init_locked(void)
{
	const char *name, *mount_id;
	struct stat st;

	shim.initialised = true;
	shim.pid = (int)raw(getpid);
	shim.protect = env_flag("WPFS_PROTECT");
	shim.quiet = env_flag("WPFS_QUIET");
	shim.require = env_flag("WPFS_REQUIRE");
	for (int i = 0; i < SHIM_MOUNTS; i++) {
		atomic_store(&shim.mounts[i].sock, -1);
		atomic_store(&shim.mounts[i].keep, -1);
	}
	if (raw(fstat, STDERR_FILENO, &st) == 0) {
		shim.stderr_dev = st.st_dev;
		shim.stderr_ino = st.st_ino;
	}
	name = env_get("WPFS_NAME");
	if (name && *name) {
		shim.bad_name = !shim_name_valid(name);
		if (!shim.bad_name)
			text_copy(shim.name, name, sizeof(shim.name));
	}
	mount_id = env_get("WPFS_MOUNT");
	if (mount_id && mount_id_valid(mount_id))
		text_copy(shim.mount_id, mount_id, sizeof(shim.mount_id));
	fork_watch();
}

void shim_leave(const struct shim_guard *guard)
{
	atomic_fetch_add(&leaving, 1);
	atomic_fetch_sub(&inside, 1);
	raw(rt_sigprocmask, SIG_SETMASK, &guard->mask, NULL, RAW_SIGSET_BYTES);
	atomic_fetch_sub(&leaving, 1);
}

bool shim_lock(struct shim_guard *guard)
{
	uint64_t all = ~(uint64_t)0;
	int tid;

	if (filtered())
		return false;
	tid = (int)raw(gettid);
	if (shim.initialised && (int)raw(getpid) != shim.pid)
		return false;
	if (atomic_load(&lock_owner) == tid)
		return false;
	raw(rt_sigprocmask, SIG_SETMASK, &all, &guard->mask, RAW_SIGSET_BYTES);
	atomic_fetch_add(&inside, 1);
	if (atomic_load(&filters) != 0 || !lock_take()) {
		shim_leave(guard);
		return false;
	}
	atomic_store(&lock_owner, tid);
	if (!shim.initialised)
		init_locked();
	return true;
}

void shim_unlock(const struct shim_guard *guard)
{
	shim_lock_pause();
	shim_leave(guard);
}

void shim_lock_pause(void)
{
	atomic_store(&lock_owner, 0);
	lock_drop();
}

bool shim_lock_go_on(void)
{
	if (!lock_take())
		return false;
	atomic_store(&lock_owner, (int)raw(gettid));
	return true;
}

bool shim_is_owner(void)
{
	return !shim.initialised || (int)raw(getpid) == shim.pid;
}

bool shim_others_inside(void)
{
	bool mine = atomic_load(&lock_owner) == (int)raw(gettid);

	return atomic_load(&inside) > (mine ? 1u : 0u);
}

bool shim_others_leave(void)
{
	return atomic_load(&leaving) > 0;
}

void shim_adopt(void)
{
	shim.pid = (int)raw(getpid);
	atomic_store(&lock_owner, (int)raw(gettid));
	atomic_store(&inside, 1);
	atomic_store(&leaving, 0);
	atomic_store(&lock_word, 1); /* who waited for it is not in this process */
	atomic_store(&lock_waits, false);
}

/*
 * Is descriptor 2 still a place for messages? A daemon may have given the number to its database:
 * a regular file or a socket that was not there at start is left alone.
 */
static bool stderr_is_safe(void)
{
	struct stat st;

	if (raw(fstat, STDERR_FILENO, &st) != 0)
		return false;
	if (st.st_dev == shim.stderr_dev && st.st_ino == shim.stderr_ino)
		return true;
	if (S_ISREG(st.st_mode))
		return (raw(fcntl, STDERR_FILENO, F_GETFL) & O_APPEND) != 0;
	return S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode);
}

void shim_say(const char *a, const char *b, const char *c)
{
	char line[512];
	size_t len;

	if (shim.quiet || !stderr_is_safe())
		return;
	len = text_copy(line, "wpfs: ", sizeof(line));
	len += text_copy(line + len, a, sizeof(line) - 1 - len);
	len += text_copy(line + len, b, sizeof(line) - 1 - len);
	len += text_copy(line + len, c, sizeof(line) - 1 - len);
	line[len++] = '\n';
	raw(write, STDERR_FILENO, line, len);
}

void shim_say_mount(struct mount *mount, const char *text)
{
	if (!mount->said)
		shim_say("mount ", mount->id, text);
	mount->said = true;
}
