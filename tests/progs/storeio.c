// SPDX-License-Identifier: LGPL-2.1-or-later
/*
 * Preloaded into a daemon under test: what it, and SQLite in it, do to the files of its store
 *passes through here. It is written down for tests that cut it off at any point
 *(tests/e2e/powerloss.py), the process is killed before the nth of these calls, or they fail.
 *
 *	STOREIO_STORE	the store: an absolute path without symbolic links
 *	STOREIO_LOG	gets a record for each call that was done, in their order
 *	STOREIO_CTL	a struct control, which the test may write to at any time
 *
 * One lock is held across a call and its record, so the order is that of the calls. The -shm file
 *of SQLite is not looked at: it holds nothing that has to survive.
 */
/* Both names of a call that has two: with and without 64. */
#undef _FILE_OFFSET_BITS
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FAIL_WRITE 1u /* of contents: write, truncate, punch, make */
#define FAIL_SYNC  2u /* of contents */
#define FAIL_DB	   4u /* all of the database */

struct control {
	uint32_t calls;	     /* so far */
	uint32_t kill_at;    /* before this one; 0: never */
	uint32_t fail;	     /* FAIL_* */
	uint32_t fail_errno; /* with which */
	uint32_t failed;     /* how often */
	uint32_t kill_op;    /* the letter of a record: killed before the nth of these */
	uint32_t kill_db;    /* 1: on files of the database, 0: on others */
	uint32_t kill_nth;   /* 0: never */
	uint32_t spare;	     /* so many of the calls that would fail are done all the same */
	uint32_t lose;	     /* a sync that fails loses what was written, as a kernel does: below */
	uint32_t pause_op; /* as kill_*: it waits before that call and those after it, until this is
			      0 */
	uint32_t pause_db;
	uint32_t pause_nth;
	uint32_t paused; /* so many threads wait */
};

/* As powerloss.py reads it; then the path and its data. */
struct record {
	uint32_t op, path_len;
	uint64_t off, len; /* len: of the data, or of the range */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *store;
static size_t store_len;
static int log_fd = -1;
static struct control *control;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
	const char *log = getenv("STOREIO_LOG"), *ctl = getenv("STOREIO_CTL");
	int fd;

	store = getenv("STOREIO_STORE");
	if (!store || !ctl)
		return;
	store_len = strlen(store);
	if (log)
		log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	fd = REAL(open)(ctl, O_RDWR | O_CLOEXEC);
	control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || control == MAP_FAILED)
		abort();
	REAL(close)(fd);
}

/* Where `name` (may be NULL) at `fd` is within the store; false: elsewhere. */
static bool inside(int fd, const char *name, char path[PATH_MAX])
{
	char link[40], at[PATH_MAX] = "";
	ssize_t n = 0;
	size_t len;
	int below = 0;

	if (!control)
		return false;
	/* A name in the directory behind a descriptor. */
	if (name && sscanf(name, "/proc/self/fd/%d/%n", &fd, &below) == 1 && below)
		name += below;
	if (!name || name[0] != '/') {
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		n = readlink(fd == AT_FDCWD ? "/proc/self/cwd" : link, at, sizeof(at) - 1);
		if (n < 0)
			return false;
		at[n] = '\0';
	}
	if (name)
		snprintf(at + n, sizeof(at) - (size_t)n, "%s%s", n ? "/" : "", name);
	if (strncmp(at, store, store_len) != 0 || (at[store_len] && at[store_len] != '/'))
		return false;
	snprintf(path, PATH_MAX, "%s", at[store_len] ? at + store_len + 1 : "");
	len = strlen(path);
	return len < 4 || strcmp(path + len - 4, "-shm") != 0;
}

/* ---- what a sync that fails has lost: in memory there is more than on disk ---- */

/*
 * Beside the log, for a data file: NAME.safe, what the disk has while more was written; NAME.lost,
 * the same when the kernel has given up on writing it. Then the pages in memory count as clean, and
 * who reads gets them until they leave the cache.
 */
static void kept_path(char kept[PATH_MAX], const char *path, const char *kind)
{
	int n = snprintf(kept, PATH_MAX, "%s.", getenv("STOREIO_LOG"));

	for (; *path && n < PATH_MAX - 8; path++)
		kept[n++] = *path == '/' ? '_' : *path;
	snprintf(kept + n, PATH_MAX - (size_t)n, ".%s", kind);
}

static void copy_file(int from, int to)
{
	char buf[1 << 16];
	struct stat st;
	ssize_t n;

	if (fstat(from, &st) < 0 || REAL(ftruncate)(to, st.st_size) < 0)
		abort();
	for (off_t off = 0; (n = pread(from, buf, sizeof(buf), off)) > 0; off += n) {
		if (REAL(pwrite)(to, buf, (size_t)n, off) != n)
			abort();
	}
}

static void keep_safe(int fd, const char *path)
{
	char safe[PATH_MAX], lost[PATH_MAX];
	int to;

	if (!control->lose || strncmp(path, "data/", 5) != 0)
		return;
	kept_path(safe, path, "safe");
	kept_path(lost, path, "lost");
	if (access(lost, F_OK) == 0)
		return;
	to = REAL(open)(safe, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (to >= 0) {
		copy_file(fd, to);
		REAL(close)(to);
	}
}

static void each_kept(const char *path, void (*fn)(const char *safe))
{
	char dir[PATH_MAX], safe[PATH_MAX + 256];
	const char *log = getenv("STOREIO_LOG");
	struct dirent *de;
	DIR *d;

	if (path) {
		kept_path(safe, path, "safe");
		fn(safe);
		return;
	}
	snprintf(dir, sizeof(dir), "%s", log);
	*strrchr(dir, '/') = '\0';
	d = opendir(dir);
	while (d && (de = readdir(d))) {
		size_t len = strlen(de->d_name);

		snprintf(safe, sizeof(safe), "%s/%s", dir, de->d_name);
		if (len > 5 && strcmp(de->d_name + len - 5, ".safe") == 0)
			fn(safe);
	}
	if (d)
		closedir(d);
}

static void is_safe(const char *safe)
{
	REAL(unlink)(safe);
}

static void is_lost(const char *safe)
{
	char lost[PATH_MAX + 256];

	snprintf(lost, sizeof(lost), "%.*s.lost", (int)strlen(safe) - 5, safe);
	rename(safe, lost);
}

/* With the lock held. */
static void waits(const char *path, char op)
{
	bool db = strncmp(path, "wpfs.db", 7) == 0;

	if (!control->pause_nth || control->pause_op != (uint32_t)op || control->pause_db != db)
		return;
	if (control->pause_nth > 1) {
		control->pause_nth--;
		return;
	}
	__atomic_add_fetch(&control->paused, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&lock);
	while (__atomic_load_n(&control->pause_op, __ATOMIC_SEQ_CST))
		usleep(1000);
	pthread_mutex_lock(&lock);
	__atomic_sub_fetch(&control->paused, 1, __ATOMIC_SEQ_CST);
}

/* With the lock held: is this the last call, or one that fails? */
static bool fails(const char *path, bool sync, char op)
{
	bool db = strncmp(path, "wpfs.db", 7) == 0;
	uint32_t fail = __atomic_load_n(&control->fail, __ATOMIC_SEQ_CST);

	if (++control->calls == control->kill_at ||
	    (control->kill_nth && control->kill_op == (uint32_t)op && control->kill_db == db &&
	     --control->kill_nth == 0))
		kill(getpid(), SIGKILL);
	if (!(fail & (db ? FAIL_DB : sync ? FAIL_SYNC : FAIL_WRITE)))
		return false;
	if (control->spare) {
		control->spare--;
		return false;
	}
	control->failed++;
	errno = (int)control->fail_errno;
	return true;
}

static void note(char op, const char *path, uint64_t off, uint64_t len, const void *data)
{
	struct record rec = {(uint32_t)op, (uint32_t)strlen(path), off, len};
	int err = errno;

	if (log_fd >= 0 && (REAL(write)(log_fd, &rec, sizeof(rec)) < 0 ||
			    REAL(write)(log_fd, path, rec.path_len) < 0 ||
			    (data && REAL(write)(log_fd, data, len) < 0)))
		abort();
	errno = err;
}

static void before(int fd, const char *path, char op)
{
	if (op == 'W' || op == 'T' || op == 'P')
		keep_safe(fd, path);
}

/* A sync of data files that failed is noted too: nothing of what was pending will come. */
static void after(const char *path, char op, bool ok)
{
	int err = errno;

	if (!control->lose || (op != 'S' && op != 'Y') || strncmp(path, "wpfs.db", 7) == 0)
		return;
	each_kept(op == 'Y' ? NULL : path, ok ? is_safe : is_lost);
	if (!ok)
		note('L', op == 'Y' ? "" : path, 0, 0, NULL);
	errno = err;
}

/* A call: `real` as it would be done, noted if it succeeded. */
#define CALL(type, fd, name, sync, real, ok, op, ...)                                              \
	char path[PATH_MAX];                                                                       \
	type r;                                                                                    \
                                                                                                   \
	if (!inside(fd, name, path))                                                               \
		return real;                                                                       \
	pthread_mutex_lock(&lock);                                                                 \
	waits(path, op);                                                                           \
	before(fd, path, op);                                                                      \
	r = fails(path, sync, op) ? -1 : real;                                                     \
	after(path, op, r >= 0);                                                                   \
	if (ok)                                                                                    \
		note(op, __VA_ARGS__);                                                             \
	pthread_mutex_unlock(&lock);                                                               \
	return r

/* Reads change nothing, so they are not counted and not written down: they only wait. */
static ssize_t read_at(int fd, void *buf, size_t len, off_t off)
{
	char path[PATH_MAX];

	if (control && control->pause_op == 'R' && inside(fd, NULL, path)) {
		pthread_mutex_lock(&lock);
		waits(path, 'R');
		pthread_mutex_unlock(&lock);
	}
	return REAL(pread)(fd, buf, len, off);
}

ssize_t pread(int fd, void *buf, size_t len, off_t off)
{
	return read_at(fd, buf, len, off);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t off)
{
	return read_at(fd, buf, len, off);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
	CALL(ssize_t, fd, NULL, false, REAL(pwrite)(fd, buf, len, off), r >= 0, 'W', path,
	     (uint64_t)off, (uint64_t)r, buf);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off)
{
	CALL(ssize_t, fd, NULL, false, REAL(pwrite)(fd, buf, len, off), r >= 0, 'W', path,
	     (uint64_t)off, (uint64_t)r, buf);
}

/* Of one piece. */
ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t off, int flags)
{
	if (control && count != 1)
		abort();
	CALL(ssize_t, fd, NULL, false, REAL(pwritev2)(fd, iov, count, off, flags), r >= 0, 'W',
	     path, (uint64_t)off, (uint64_t)r, iov->iov_base);
}

ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off64_t off, int flags)
{
	return pwritev2(fd, iov, count, off, flags);
}

/* SQLite may seek first. */
ssize_t write(int fd, const void *buf, size_t len)
{
	off_t off = control && fd != log_fd ? lseek(fd, 0, SEEK_CUR) : -1;

	if (off < 0)
		return REAL(write)(fd, buf, len);
	CALL(ssize_t, fd, NULL, false, REAL(write)(fd, buf, len), r >= 0, 'W', path, (uint64_t)off,
	     (uint64_t)r, buf);
}

int ftruncate(int fd, off_t size)
{
	CALL(int, fd, NULL, false, REAL(ftruncate)(fd, size), r == 0, 'T', path, 0, (uint64_t)size,
	     NULL);
}

int ftruncate64(int fd, off64_t size)
{
	CALL(int, fd, NULL, false, REAL(ftruncate)(fd, size), r == 0, 'T', path, 0, (uint64_t)size,
	     NULL);
}

/* Only holes are punched. */
int fallocate(int fd, int mode, off_t off, off_t len)
{
	CALL(int, fd, NULL, false, REAL(fallocate)(fd, mode, off, len), r == 0, 'P', path,
	     (uint64_t)off, (uint64_t)len, NULL);
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	CALL(int, fd, NULL, false, REAL(fallocate)(fd, mode, off, len), r == 0, 'P', path,
	     (uint64_t)off, (uint64_t)len, NULL);
}

int fsync(int fd)
{
	CALL(int, fd, NULL, true, REAL(fsync)(fd), r == 0, 'S', path, 0, 0, NULL);
}

int fdatasync(int fd)
{
	CALL(int, fd, NULL, true, REAL(fdatasync)(fd), r == 0, 'S', path, 0, 0, NULL);
}

int syncfs(int fd)
{
	CALL(int, fd, NULL, true, REAL(syncfs)(fd), r == 0, 'Y', path, 0, 0, NULL);
}

/* Pages leave the cache: what was lost is not to be read any more. */
int posix_fadvise(int fd, off_t off, off_t len, int advice)
{
	char path[PATH_MAX], lost[PATH_MAX], link[40];
	int from, to;

	if (advice == POSIX_FADV_DONTNEED && inside(fd, NULL, path) && control->lose) {
		kept_path(lost, path, "lost");
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		pthread_mutex_lock(&lock);
		from = REAL(open)(lost, O_RDONLY | O_CLOEXEC);
		to = from < 0 ? -1 : REAL(open)(link, O_WRONLY | O_CLOEXEC);
		if (to >= 0) {
			copy_file(from, to);
			REAL(unlink)(lost);
			REAL(close)(to);
		}
		if (from >= 0)
			REAL(close)(from);
		pthread_mutex_unlock(&lock);
	}
	return REAL(posix_fadvise)(fd, off, len, advice);
}

int posix_fadvise64(int fd, off64_t off, off64_t len, int advice)
{
	return posix_fadvise(fd, off, len, advice);
}

int unlink(const char *name)
{
	CALL(int, AT_FDCWD, name, false, REAL(unlink)(name), r == 0, 'U', path, 0, 0, NULL);
}

int unlinkat(int fd, const char *name, int flags)
{
	CALL(int, fd, name, false, REAL(unlinkat)(fd, name, flags), r == 0, 'U', path, 0, 0, NULL);
}

int mkdirat(int fd, const char *name, mode_t mode)
{
	CALL(int, fd, name, false, REAL(mkdirat)(fd, name, mode), r == 0, 'M', path, 0, 0, NULL);
}

/* An open counts only where it makes a file. */
static int open_at(int fd, const char *name, int flags, mode_t mode)
{
	struct stat st;

	if (!(flags & O_CREAT) || fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return REAL(openat)(fd, name, flags, mode);
	CALL(int, fd, name, false, REAL(openat)(fd, name, flags, mode), r >= 0, 'C', path, 0, 0,
	     NULL);
}

#define OPEN(fd, name)                                                                             \
	mode_t mode = 0;                                                                           \
	va_list ap;                                                                                \
                                                                                                   \
	va_start(ap, flags);                                                                       \
	if (flags & (O_CREAT | __O_TMPFILE))                                                       \
		mode = va_arg(ap, mode_t);                                                         \
	va_end(ap);                                                                                \
	return open_at(fd, name, flags, mode)

int open(const char *name, int flags, ...)
{
	OPEN(AT_FDCWD, name);
}

int open64(const char *name, int flags, ...)
{
	OPEN(AT_FDCWD, name);
}

int openat(int fd, const char *name, int flags, ...)
{
	OPEN(fd, name);
}

int openat64(int fd, const char *name, int flags, ...)
{
	OPEN(fd, name);
}
