/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations on attributes: mode, owner, times, size, extended attributes and ACLs. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fsdiff.h"

#define PICK(list, number) ((list)[(number) % (sizeof(list) / sizeof((list)[0]))])

static const mode_t modes[] = {0644, 0600, 0666, 0777, 0755,  04755, 02755, 06777, 02644, 01777,
			       0,    0400, 0070, 0007, 02777, 02770, 03777, 0777,  0777,  06711};

/*
 * The one difference that is left (see wpfs(8)): a suid or sgid bit that comes while the file is
 * open for writing goes with the next write, whoever writes. Without such bits then.
 */
static mode_t mode_for(const struct side *s, mode_t mode, const struct stat *file)
{
	struct stat st;

	for (unsigned i = 0; i < SLOTS; i++) {
		if (s->fd[i] >= 0 && (s->flags[i] & O_ACCMODE) != O_RDONLY &&
		    fstat(s->fd[i], &st) == 0 && S_ISREG(st.st_mode) && st.st_ino == file->st_ino)
			return mode & 01777;
	}
	return mode;
}

static void op_chmod(struct side *s, const struct params *p, struct answer *a)
{
	mode_t mode = PICK(modes, p->n[0]);
	char full[PATH_MAX];
	struct stat st;

	if (stat(path_of(s, p->a, full), &st) == 0)
		mode = mode_for(s, mode, &st);
	say_result(a, chmod(full, mode), false);
}

static void op_fchmod(struct side *s, const struct params *p, struct answer *a)
{
	mode_t mode = PICK(modes, p->n[0]);
	struct stat st;

	if (fstat(s->fd[p->slot], &st) == 0)
		mode = mode_for(s, mode, &st);
	say_result(a, fchmod(s->fd[p->slot], mode), false);
}

static void op_chown(struct side *s, const struct params *p, struct answer *a)
{
	static const uid_t uids[] = {0, 1000, 1001, 1002, (uid_t)-1};
	static const gid_t gids[] = {0, 1000, 1002, 500, 501, (gid_t)-1};
	uid_t uid = PICK(uids, p->n[0]);
	gid_t gid = PICK(gids, p->n[1]);
	char full[PATH_MAX];

	/* FUSE: no suid bit goes with a chown to nobody else. */
	if (uid == (uid_t)-1 && gid == (gid_t)-1)
		uid = 0;

	if (p->n[2] % 4 == 0)
		say_result(a, fchown(s->fd[p->slot], uid, gid), false);
	else
		say_result(a, lchown(path_of(s, p->a, full), uid, gid), false);
}

static struct timespec some_time(uint32_t kind, uint32_t number)
{
	switch (kind % 5) {
	case 0:
		return (struct timespec){.tv_nsec = UTIME_NOW};
	case 1:
		return (struct timespec){.tv_nsec = UTIME_OMIT};
	case 2:
		return (struct timespec){.tv_sec = -(time_t)(number % 1000), .tv_nsec = 5};
	default:
		return (struct timespec){.tv_sec = number % 1500000000,
					 .tv_nsec = number % 1000000000};
	}
}

static void op_utimens(struct side *s, const struct params *p, struct answer *a)
{
	const struct timespec times[2] = {some_time(p->n[0], p->n[1]), some_time(p->n[2], p->n[3])};
	char full[PATH_MAX];

	if (p->n[4] % 4 == 0)
		say_result(a, futimens(s->fd[p->slot], times), false);
	else
		say_result(a,
			   utimensat(AT_FDCWD, path_of(s, p->a, full), p->n[5] % 8 ? times : NULL,
				     p->n[4] % 2 ? AT_SYMLINK_NOFOLLOW : 0),
			   false);
}

static void op_truncate(struct side *s, const struct params *p, struct answer *a)
{
	static const off_t sizes[] = {0, 1, 4096, 5000, 20000, 70000, 200000, -1};
	char full[PATH_MAX];

	if (p->n[0] % 2)
		say_result(a, truncate(path_of(s, p->a, full), PICK(sizes, p->n[1])), false);
	else
		say_result(a, ftruncate(s->fd[p->slot], PICK(sizes, p->n[1])), false);
}

/* ---- extended attributes ---------------------------------------------------------------- */

static size_t some_acl(unsigned char *buf, const struct params *p, bool may_be_bad)
{
	struct {
		uint32_t version;
		struct {
			uint16_t tag, perm;
			uint32_t id;
		} entries[7];
	} acl = {.version = 2};
	const uint32_t none = 0xffffffff;
	size_t nr = 0, size;
	bool named = p->n[1] % 3 != 0;

#define ENTRY(t, m, i)                                                                             \
	(acl.entries[nr].tag = (t), acl.entries[nr].perm = (m)&7, acl.entries[nr++].id = (i))
	ENTRY(1, p->n[2], none);
	if (named)
		ENTRY(2, p->n[2] >> 3, 1000);
	if (named && p->n[1] % 2)
		ENTRY(2, p->n[2] >> 6, 1001);
	ENTRY(4, p->n[2] >> 9, none);
	if (named && p->n[1] % 5 < 3)
		ENTRY(8, p->n[2] >> 12, 500);
	if (named && !(may_be_bad && p->n[3] % 16 == 0))
		ENTRY(16, p->n[2] >> 15, none);
	ENTRY(32, p->n[2] >> 18, none);
#undef ENTRY
	size = 4 + nr * 8;
	memcpy(buf, &acl, size);
	if (may_be_bad && p->n[3] % 16 == 1)
		buf[0] = 3;
	if (may_be_bad && p->n[3] % 16 == 2)
		size -= 1;
	return size;
}

static size_t some_value(unsigned char *buf, size_t room, const struct params *p)
{
	static const size_t sizes[] = {0, 1, 10, 100, 1000, 3000};
	size_t size = PICK(sizes, p->n[1]);

	if (strncmp(p->name, "system.posix_acl", 16) == 0)
		return some_acl(buf, p, true);
	if (strcmp(p->name, "security.capability") == 0) {
		const uint32_t capability[] = {0x02000001, 0x400, 0, 0, 0};

		memcpy(buf, capability, sizeof(capability));
		return p->n[1] % 8 ? sizeof(capability) : 7;
	}
	for (size_t i = 0; i < size && i < room; i++)
		buf[i] = (unsigned char)(p->n[2] + i * 7);
	return size;
}

static void op_setxattr(struct side *s, const struct params *p, struct answer *a)
{
	static const int flags[] = {0, 0, 0, XATTR_CREATE, XATTR_REPLACE};
	unsigned char value[4096];
	size_t size = some_value(value, sizeof(value), p);
	char full[PATH_MAX];

	if (p->n[4] % 4 == 0)
		say_result(a, fsetxattr(s->fd[p->slot], p->name, value, size, PICK(flags, p->n[5])),
			   false);
	else
		say_result(a,
			   (p->n[4] % 4 == 1 ? lsetxattr : setxattr)(path_of(s, p->a, full),
								     p->name, value, size,
								     PICK(flags, p->n[5])),
			   false);
}

static void op_getxattr(struct side *s, const struct params *p, struct answer *a)
{
	static const size_t rooms[] = {4096, 4096, 0, 5};
	char value[4096] = "", full[PATH_MAX];
	ssize_t n;

	if (p->n[0] % 4 == 0)
		n = fgetxattr(s->fd[p->slot], p->name, value, PICK(rooms, p->n[1]));
	else
		n = lgetxattr(path_of(s, p->a, full), p->name, value, PICK(rooms, p->n[1]));
	say_result(a, n, true);
	if (n > 0 && PICK(rooms, p->n[1]))
		say(a, " %llx", (unsigned long long)hash_bytes(value, (size_t)n));
}

static void op_listxattr(struct side *s, const struct params *p, struct answer *a)
{
	static const size_t rooms[] = {4096, 4096, 0, 5};
	char list[4096] = "", full[PATH_MAX];
	ssize_t n = llistxattr(path_of(s, p->a, full), list, PICK(rooms, p->n[1]));

	say_result(a, n, true);
	if (n > 0 && PICK(rooms, p->n[1]))
		for (ssize_t at = 0; at < n; at += (ssize_t)strlen(list + at) + 1)
			say(a, " %s", list + at);
}

static void op_removexattr(struct side *s, const struct params *p, struct answer *a)
{
	char full[PATH_MAX];

	say_result(a, (p->n[0] % 2 ? lremovexattr : removexattr)(path_of(s, p->a, full), p->name),
		   false);
}

const struct operation attr_operations[] = {
	{"chmod", op_chmod, 6, true, false, true, false},
	{"fchmod", op_fchmod, 2, true, false, true, false},
	{"chown", op_chown, 5, true, false, true, false},
	{"utimens", op_utimens, 5, true, false, true, false},
	{"truncate", op_truncate, 4, true, false, true, false},
	{"setxattr", op_setxattr, 5, true, false, true, false},
	{"getxattr", op_getxattr, 2, true, false, true, false},
	{"listxattr", op_listxattr, 2, true, false, false, false},
	{"removexattr", op_removexattr, 2, true, false, true, false},
	{.name = NULL},
};
