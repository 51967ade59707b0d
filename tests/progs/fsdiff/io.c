/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations on contents: reading and writing, allocation, copies, locks. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fsdiff.h"

#define PICK(list, number) ((list)[(number) % (sizeof(list) / sizeof((list)[0]))])

static const size_t lengths[] = {1, 10, 4096, 5000, 20000, 65536, 0};
/* FUSE: reading nothing does not move the access time. */
static const size_t read_lengths[] = {1, 10, 4096, 5000, 20000, 65536};
static const off_t offsets[] = {0, 1, 4095, 4096, 8192, 10000, 50000, 131072};

static _Thread_local _Alignas(4096) char buffer[65536];

static void fill(uint32_t number, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buffer[i] = (char)(number + i * 13 + (i >> 8));
}

static void say_read(struct answer *a, ssize_t n)
{
	say_result(a, n, true);
	if (n > 0)
		say(a, " %llx", (unsigned long long)hash_bytes(buffer, (size_t)n));
}

static void op_pread(struct side *s, const struct params *p, struct answer *a)
{
	say_read(a, pread(s->fd[p->slot], buffer, PICK(read_lengths, p->n[0]),
			  PICK(offsets, p->n[1])));
}

static void op_pwrite(struct side *s, const struct params *p, struct answer *a)
{
	size_t len = PICK(lengths, p->n[0]);

	fill(p->n[2], len);
	say_result(a, pwrite(s->fd[p->slot], buffer, len, PICK(offsets, p->n[1])), true);
}

static void op_read(struct side *s, const struct params *p, struct answer *a)
{
	say_read(a, read(s->fd[p->slot], buffer, PICK(read_lengths, p->n[0])));
	say(a, " at %lld", (long long)lseek(s->fd[p->slot], 0, SEEK_CUR));
}

static void op_write(struct side *s, const struct params *p, struct answer *a)
{
	size_t len = PICK(lengths, p->n[0]);

	fill(p->n[2], len);
	say_result(a, write(s->fd[p->slot], buffer, len), true);
	say(a, " at %lld", (long long)lseek(s->fd[p->slot], 0, SEEK_CUR));
}

/* Through an iovec, with the flags that a file system may honour. */
static void op_writev2(struct side *s, const struct params *p, struct answer *a)
{
	static const int flags[] = {0, RWF_APPEND, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_HIPRI};
	const struct iovec iov[2] = {{buffer, PICK(lengths, p->n[0])}, {buffer + 7, 5}};

	fill(p->n[2], sizeof(buffer));
	say_result(a,
		   pwritev2(s->fd[p->slot], iov, 2, PICK(offsets, p->n[1]), PICK(flags, p->n[3])),
		   true);
}

static void op_lseek(struct side *s, const struct params *p, struct answer *a)
{
	static const int whence[] = {SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE, 9};
	off_t off = PICK(offsets, p->n[1]) - (p->n[2] % 8 == 0 ? 20000 : 0);
	struct stat st;

	/* FUSE: the kernel has its own seek for a directory, and asks nobody. */
	if (fstat(s->fd[p->slot], &st) == 0 && S_ISDIR(st.st_mode))
		return;
	say_result(a, lseek(s->fd[p->slot], off, PICK(whence, p->n[0])), true);
}

static void op_fallocate(struct side *s, const struct params *p, struct answer *a)
{
	static const int kinds[] = {
		0,
		FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE,
		FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_INSERT_RANGE,
		FALLOC_FL_UNSHARE_RANGE,
		0x100,
	};
	off_t len = (off_t)PICK(lengths, p->n[2]) - (p->n[3] % 16 == 0 ? 30000 : 0);

	int kind = PICK(kinds, p->n[0]), r;

	/* FUSE: file capabilities go before the file system can refuse. */
	if ((kind & FALLOC_FL_ZERO_RANGE) &&
	    fgetxattr(s->fd[p->slot], "security.capability", NULL, 0) >= 0)
		return;
	r = fallocate(s->fd[p->slot], kind, PICK(offsets, p->n[1]), len);
	say_result(a, r, false);
	/* FUSE: says that it clears suid bits before the file system refuses. */
	if (r < 0)
		forget_events(s);
}

static void op_copy(struct side *s, const struct params *p, struct answer *a)
{
	off_t from = PICK(offsets, p->n[1]), to = PICK(offsets, p->n[2]);

	if (s->through_us[p->slot])
		return;
	say_result(a,
		   copy_file_range(s->fd[p->slot], &from, s->fd[p->slot2], &to,
				   PICK(read_lengths, p->n[0]), 0),
		   true);
}

/*
 * What a copy onto itself gives depends on how much is under way at once. FUSE: the attempt to send
 * a directory does not move its access time.
 */
static bool cannot_splice(const struct side *s, const struct params *p)
{
	struct stat in, out;

	return s->through_us[p->slot] || fstat(s->fd[p->slot], &in) < 0 || S_ISDIR(in.st_mode) ||
	       fstat(s->fd[p->slot2], &out) < 0 || in.st_ino == out.st_ino;
}

static void op_sendfile(struct side *s, const struct params *p, struct answer *a)
{
	off_t from = PICK(offsets, p->n[1]);

	if (cannot_splice(s, p))
		return;
	say_result(a, sendfile(s->fd[p->slot2], s->fd[p->slot], &from, PICK(read_lengths, p->n[0])),
		   true);
}

/* There and back through a pipe, without a copy in between. */
static void op_splice(struct side *s, const struct params *p, struct answer *a)
{
	loff_t from = PICK(offsets, p->n[1]), to = PICK(offsets, p->n[2]);
	int ends[2];
	ssize_t n;

	if (cannot_splice(s, p) || pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
		return;
	n = splice(s->fd[p->slot], &from, ends[1], NULL, 4096, 0);
	say_result(a, n, true);
	if (n > 0)
		say_result(a, splice(ends[0], NULL, s->fd[p->slot2], &to, (size_t)n, 0), true);
	close(ends[0]);
	close(ends[1]);
}

static void op_sync(struct side *s, const struct params *p, struct answer *a)
{
	int fd = s->fd[p->slot];

	switch (p->n[0] % 5) {
	case 0:
		say_result(a, fsync(fd), false);
		break;
	case 1:
		say_result(a, fdatasync(fd), false);
		break;
	case 2:
		say_result(a, syncfs(fd), false);
		break;
	case 3:
		say_result(a, sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE), false);
		break;
	default:
		if (s->through_us[p->slot]) /* FUSE: it reads, and that moves the access time */
			return;
		say_result(a, posix_fadvise(fd, 0, 0, (int)(p->n[1] % 7)), true);
	}
}

static void op_flags(struct side *s, const struct params *p, struct answer *a)
{
	static const int flags[] = {0, O_APPEND, O_DIRECT, O_SYNC};
	int fd = s->fd[p->slot], kept = s->flags[p->slot] & (O_APPEND | O_NOATIME);

	/* FUSE: the lower file keeps the flags that it was opened with. */
	if (p->n[0] % 4 == 0)
		say_result(a, fcntl(fd, F_SETFL, PICK(flags, p->n[1]) | kept | O_NONBLOCK), false);
	say_result(a, fcntl(fd, F_GETFL), true);
}

/* ---- locks ------------------------------------------------------------------------------ */

/* FUSE: a mapping does not keep the locks of the descriptor it was made from. */
static bool is_mapped(const struct side *s, int fd)
{
	struct stat st;

	for (unsigned i = 0; i < MAPS; i++) {
		if (s->map[i] && fstat(fd, &st) == 0 && st.st_ino == s->map_ino[i])
			return true;
	}
	return false;
}

static void op_flock(struct side *s, const struct params *p, struct answer *a)
{
	static const int kinds[] = {LOCK_SH, LOCK_EX, LOCK_UN};

	if (is_mapped(s, s->fd[p->slot]))
		return;
	say_result(a, flock(s->fd[p->slot], PICK(kinds, p->n[0]) | LOCK_NB), false);
}

static void op_lock(struct side *s, const struct params *p, struct answer *a)
{
	static const short types[] = {F_RDLCK, F_WRLCK, F_UNLCK};
	static const int commands[] = {F_OFD_SETLK, F_OFD_SETLK, F_OFD_GETLK, F_GETLK, F_SETLK};
	struct flock lock = {.l_type = PICK(types, p->n[0]),
			     .l_whence = SEEK_SET,
			     .l_start = PICK(offsets, p->n[1]),
			     .l_len = (off_t)PICK(lengths, p->n[2])};
	int command = PICK(commands, p->n[3]);

	if (is_mapped(s, s->fd[p->slot]))
		return;
	if (lock.l_type == F_UNLCK && (command == F_OFD_GETLK || command == F_GETLK))
		lock.l_type = F_WRLCK;
	say_result(a, fcntl(s->fd[p->slot], command, &lock), false);
	if (command == F_OFD_GETLK || command == F_GETLK)
		say(a, " %d %lld+%lld", lock.l_type, (long long)lock.l_start,
		    (long long)lock.l_len);
}

const struct operation io_operations[] = {
	{"pread", op_pread, 5, false, false, true, false},
	{"pwrite", op_pwrite, 8, false, false, true, false},
	{"read", op_read, 4, false, false, true, false},
	{"write", op_write, 6, false, false, true, false},
	{"writev2", op_writev2, 2, false, false, true, false},
	{"lseek", op_lseek, 4, false, false, true, false},
	{"fallocate", op_fallocate, 5, false, false, true, false},
	{"copy", op_copy, 3, false, false, true, true},
	{"sendfile", op_sendfile, 2, false, false, true, true},
	{"splice", op_splice, 2, false, false, true, true},
	{"sync", op_sync, 2, false, false, true, false},
	{"flags", op_flags, 2, false, false, true, false},
	{"flock", op_flock, 2, false, false, false, false},
	{"lock", op_lock, 3, false, false, false, false},
	{.name = NULL},
};
