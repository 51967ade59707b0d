/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Cheapest question first, and a foreign FUSE file system is asked nothing until the kernel's mount
 * table calls it fuse.wpfs, or is not there to be read. Anybody can mount one that says so: what it
 * answers is only an id, and the id only names a socket below /run/wpfs that root must hold.
 *
 * The cache is read without the lock: one word holds a dev and what it is. The mount id beside it
 * is written first; who sees a new one with an old word asks once more than needed.
 */
#include "preload/discover.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/prctl.h>
#include <sys/statfs.h>

#include "base/compat.h"
#include "preload/attach.h"
#include "preload/mapping.h"

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

#define CACHE_SIZE  32
#define CACHE_OTHER 1 /* low byte: 0 = free, 1 = not wpfs, 2 + i = mount i */
#define CACHE_MOUNT 2

static _Atomic uint64_t cache[CACHE_SIZE];
static _Atomic uint64_t cache_mnt[CACHE_SIZE]; /* of what is not wpfs */

int discover_cached(uint64_t dev)
{
	for (int i = 0; i < CACHE_SIZE; i++) {
		uint64_t word = atomic_load_explicit(&cache[i], memory_order_relaxed);
		unsigned what = word & 0xff;

		if (!what)
			break;
		if (word >> 8 == dev)
			return what == CACHE_OTHER ? DISCOVER_OTHER : (int)what - CACHE_MOUNT;
	}
	return DISCOVER_UNKNOWN;
}

bool discover_is_other(uint64_t dev, uint64_t mnt)
{
	for (int i = 0; i < CACHE_SIZE; i++) {
		uint64_t word = atomic_load_explicit(&cache[i], memory_order_acquire);

		if (word == (dev << 8 | CACHE_OTHER))
			return atomic_load_explicit(&cache_mnt[i], memory_order_relaxed) == mnt;
	}
	return false;
}

bool discover_any_wpfs(void)
{
	for (int i = 0; i < CACHE_SIZE; i++) {
		if ((atomic_load_explicit(&cache[i], memory_order_relaxed) & 0xff) >= CACHE_MOUNT)
			return true;
	}
	return false;
}

static void cache_set(int slot, uint64_t dev, unsigned what, uint64_t mnt)
{
	atomic_store(&cache_mnt[slot], mnt);
	atomic_store(&cache[slot], dev << 8 | what);
}

/*
 * In the place of what was not wpfs and had the same number, else in a free one. When it is full,
 * what is not wpfs makes room: forgetting that costs a question, no more.
 */
static void cache_put(uint64_t dev, unsigned what, uint64_t mnt)
{
	static unsigned next; /* guarded by the shim's lock */

	for (int i = 0; i < CACHE_SIZE; i++) {
		uint64_t word = atomic_load(&cache[i]);

		if ((word & 0xff) == 0 || word == (dev << 8 | CACHE_OTHER)) {
			cache_set(i, dev, what, mnt);
			return;
		}
	}
	for (int i = 0; i < CACHE_SIZE; i++) {
		unsigned slot = next++ % CACHE_SIZE;

		if ((atomic_load(&cache[slot]) & 0xff) == CACHE_OTHER) {
			cache_set((int)slot, dev, what, mnt);
			return;
		}
	}
}

void discover_add(uint64_t dev, int mount)
{
	if (discover_cached(dev) < 0)
		cache_put(dev, CACHE_MOUNT + (unsigned)mount, 0);
}

/* A line of /proc/thread-self/mountinfo, seen one character at a time: lines may be of any length.
 */
struct mountinfo_line {
	unsigned field;	    /* counted by spaces, 0 = mount id */
	bool optional_over; /* the "-" was seen: the next field is the type */
	bool type_next;
	char word[24]; /* the current field, cut */
	unsigned word_len;
	bool dev_matches;
};

static void word_done(struct mountinfo_line *line, const char *dev_text, bool *found)
{
	line->word[line->word_len] = '\0';
	if (line->field == 2)
		line->dev_matches = text_equal(line->word, dev_text);
	if (line->type_next) {
		*found |= line->dev_matches && text_equal(line->word, "fuse.wpfs");
		line->type_next = false;
	}
	if (line->field >= 6 && !line->optional_over && text_equal(line->word, "-"))
		line->optional_over = line->type_next = true;
	line->field++;
	line->word_len = 0;
}

static size_t put_number(char *to, unsigned number)
{
	char digits[12];
	size_t len = 0, i = 0;

	do {
		digits[len++] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	while (len)
		to[i++] = digits[--len];
	return i;
}

/* What the mount table says of a FUSE file. */
enum table { TABLE_OTHER, TABLE_WPFS, TABLE_UNKNOWN };

/*
 * The same where there is no /proc, after a chroot(2): the kernel is asked about that one mount. It
 * may not tell (what is above the new root is not everybody's to know), and a filter that was there
 * before may kill for a call that it has not heard of.
 */
static enum table mount_is_wpfs(uint64_t mnt)
{
	struct compat_mnt_id_req req = {
		.size = sizeof(req),
		.mnt_id = mnt,
		.param = COMPAT_STATMOUNT_FS_TYPE | COMPAT_STATMOUNT_FS_SUBTYPE,
	};
	struct compat_statmount stat = {0};

	if (raw(prctl, PR_GET_SECCOMP, 0, 0, 0, 0) != 0 ||
	    raw(statmount, &req, &stat, sizeof(stat), 0) != 0 ||
	    (stat.mask & COMPAT_STATMOUNT_FS_TYPE) == 0 || stat.fs_type >= sizeof(stat.str))
		return TABLE_UNKNOWN;
	if (!text_equal(stat.str + stat.fs_type, "fuse"))
		return TABLE_OTHER;
	if ((stat.mask & COMPAT_STATMOUNT_FS_SUBTYPE) == 0) /* none, or a kernel before 6.13 */
		return TABLE_UNKNOWN;
	return stat.fs_subtype < sizeof(stat.str) && text_equal(stat.str + stat.fs_subtype, "wpfs")
		       ? TABLE_WPFS
		       : TABLE_OTHER;
}

/* Does the mount table call the file system with this st_dev fuse.wpfs? */
static enum table mount_table_says(uint64_t dev, uint64_t mnt)
{
	unsigned major = (unsigned)(dev >> 8 & 0xfff) | (unsigned)(dev >> 32 & ~0xfffull);
	unsigned minor = (unsigned)(dev & 0xff) | (unsigned)(dev >> 12 & ~0xffull);
	struct mountinfo_line line = {0};
	bool found = false;
	char dev_text[32], buf[1024];
	size_t at;
	int fd;

	at = put_number(dev_text, major);
	dev_text[at++] = ':';
	at += put_number(dev_text + at, minor);
	dev_text[at] = '\0';

	fd = (int)raw(openat, AT_FDCWD, "/proc/thread-self/mountinfo", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return mount_is_wpfs(mnt);
	for (;;) {
		long n = raw(read, fd, buf, sizeof(buf));

		if (n == -EINTR)
			continue;
		if (n <= 0 || found)
			break;
		for (long i = 0; i < n; i++) {
			if (buf[i] == ' ' || buf[i] == '\n')
				word_done(&line, dev_text, &found);
			else if (line.word_len + 1 < sizeof(line.word))
				line.word[line.word_len++] = buf[i];
			if (buf[i] == '\n')
				line = (struct mountinfo_line){0};
		}
	}
	raw(close, fd);
	return found ? TABLE_WPFS : TABLE_OTHER;
}

/*
 * A dead mount tells nobody what it was, but each daemon knows the numbers that its mounts have
 * had. Those are asked that this program knows of: the one it was started under is among them.
 */
int discover_dead(const struct mapping *r)
{
	struct statfs fs;
	long err = raw(fstatfs, r->fd, &fs);

	if (err != -ENOTCONN && err != -ECONNABORTED)
		return DISCOVER_UNKNOWN;
	for (uint32_t i = 0; i < SHIM_MOUNTS && shim.mounts[i].state != MOUNT_NONE; i++) {
		struct mapping asked = *r;
		uint64_t armed;

		asked.mount = i;
		if (shim.mounts[i].state == MOUNT_UNTRACKED ||
		    mapping_tell(&asked, 0, 0, true, &armed) != 0)
			continue;
		cache_put(r->dev, CACHE_MOUNT + i, 0);
		return (int)i;
	}
	return DISCOVER_UNKNOWN;
}

bool discover_may_be_wpfs(uint64_t dev, uint64_t mnt)
{
	return mount_table_says(dev, mnt) != TABLE_OTHER;
}

/*
 * Of one that may be any: does this answer say that it is no wpfs? What may be for now does not,
 * nor what a bad inode says (EIO); and a filter that does not kill says what it likes.
 */
static bool answer_of_other(long err)
{
	switch (err) {
	case -ENOTTY:
	case -ENOSYS:
	case -EINVAL:
	case -EOPNOTSUPP:
		return true;
	case -EPERM:
	case -EACCES:
		return raw(prctl, PR_GET_SECCOMP, 0, 0, 0, 0) == 0;
	default:
		return false;
	}
}

int discover_fd(int fd, uint64_t dev, uint64_t mnt)
{
	struct wpfs_mount_info info = {0};
	int known = discover_cached(dev), mount;
	enum table table = TABLE_OTHER;
	struct statfs fs;
	long err = 0;

	if (known >= 0 || discover_is_other(dev, mnt))
		return known;
	if (raw(fstatfs, fd, &fs) != 0)
		return DISCOVER_UNKNOWN;
	if (fs.f_type == FUSE_SUPER_MAGIC)
		table = mount_table_says(dev, mnt);
	if (table != TABLE_OTHER)
		err = raw(ioctl, fd, WPFS_IOC_MOUNT_INFO, &info);
	if (table == TABLE_UNKNOWN && answer_of_other(err))
		table = TABLE_OTHER;
	if (table == TABLE_OTHER) {
		cache_put(dev, CACHE_OTHER, mnt);
		return DISCOVER_OTHER;
	}
	/* Its daemon may be away just now: not an answer for ever. */
	if (err)
		return DISCOVER_UNKNOWN;
	info.id[sizeof(info.id) - 1] = '\0';
	if (info.version != 1 || !mount_id_valid(info.id)) {
		cache_put(dev, CACHE_OTHER, mnt);
		return DISCOVER_OTHER;
	}
	mount = mount_find(info.id);
	if (mount < 0) {
		shim_say("this program maps files of too many wpfs mounts: not tracked on mount ",
			 info.id, "");
		cache_put(dev, CACHE_OTHER, mnt);
		return DISCOVER_OTHER;
	}
	cache_put(dev, CACHE_MOUNT + (unsigned)mount, 0);
	return mount;
}
