/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fs/absent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <linux/xattr.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/units.h"
#include "fs/priv.h"
#include "fs/store_data.h"

#define ABSENT_FILE "absent"
#define LOOKING_MAX (FS_THREADS / 4)
#define NOTE_PREFIX "trusted.wpfs." /* and the number of a file: an attribute of ABSENT_FILE */

enum absent_state {
	ABSENT_STORED,	/* in the store only */
	ABSENT_HELD,	/* its attributes are changing; as STORED to a new daemon */
	ABSENT_LOADING, /* its contents come, and its times are only noted here */
	ABSENT_PRESENT, /* for good */
};

struct absent_entry {
	uint64_t ino;
	struct fs_handle handle;
	_Atomic uint32_t state;
	_Atomic uint32_t loads;	  /* begun and ended so far: odd while LOADING */
	struct timespec times[2]; /* of access and change, while LOADING */
};

_Static_assert(sizeof(struct absent_entry) == 80, "a file that another daemon reads");

/* Of a file while LOADING: its capabilities, which writing the contents takes away. */
struct absent_caps {
	struct absent_caps *prev, *next;
	uint64_t ino;
	ssize_t size; /* at most 0: none */
	char value[XATTR_CAPS_SZ];
};

struct fs_absent {
	int private_fd, data_fd, lower_fd; /* constant */
	int table_fd;			   /* -1: no table; constant once complete or adopted */
	/* Constant once complete or adopted: ascending by ino. On the heap before, then mapped. */
	struct absent_entry *entries;
	size_t nr, room;
	bool mapped;
	/* With the entries: 1 + the st_blocks that each is going to have; 0: not looked at yet. */
	_Atomic uint64_t *blocks;

	_Atomic unsigned looking; /* threads that may wait for a disk to tell it */

	_Atomic uint64_t left; /* entries that are not PRESENT */
	pthread_mutex_t lock;  /* moves of states, and the next; innermost */
	struct absent_caps *loading;
	pthread_cond_t moved;
	pthread_t thread;
	bool started;
	_Atomic bool stop;
};

int fs_absent_new(int private_fd, int data_fd, int lower_fd, struct fs_absent **absent)
{
	struct fs_absent *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	a->private_fd = private_fd;
	a->data_fd = data_fd;
	a->lower_fd = lower_fd;
	a->table_fd = -1;
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->moved, NULL);
	*absent = a;
	return 0;
}

int fs_absent_take(void *absent, uint64_t ino, const struct fs_handle *handle, int data_fd,
		   uint64_t size)
{
	struct fs_absent *a = absent;

	if (a->nr == a->room) {
		size_t room = a->room ? a->room * 2 : 1024;
		struct absent_entry *entries = reallocarray(a->entries, room, sizeof(*entries));

		if (!entries)
			return -ENOMEM;
		a->entries = entries;
		a->room = room;
	}
	a->entries[a->nr++] = (struct absent_entry){.ino = ino, .handle = *handle};
	return 1;
}

static int entry_compare(const void *a, const void *b)
{
	const struct absent_entry *x = a, *y = b;

	return (x->ino > y->ino) - (x->ino < y->ino);
}

static int absent_map(struct fs_absent *a, int fd, size_t nr)
{
	void *map;

	if (nr == 0)
		return 0;
	map = mmap(NULL, nr * sizeof(struct absent_entry), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		   0);
	if (map == MAP_FAILED)
		return -errno;
	a->entries = map;
	a->nr = nr;
	a->mapped = true;
	a->blocks = calloc(nr, sizeof(*a->blocks));
	return a->blocks ? 0 : -ENOMEM;
}

int fs_absent_complete(struct fs_absent *a)
{
	_cleanup_free_ struct absent_entry *made = a->entries;
	_cleanup_close_ int fd = -1;
	int r;

	a->entries = NULL;
	if (made)
		qsort(made, a->nr, sizeof(*made), entry_compare);
	fd = openat(a->private_fd, ABSENT_FILE, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = fdio_pwrite_full(fd, made, a->nr * sizeof(*made), 0);
	if (!r)
		r = absent_map(a, fd, a->nr);
	if (r)
		a->nr = 0;
	a->table_fd = steal_fd(&fd);
	atomic_store(&a->left, a->nr);
	return r;
}

static struct absent_entry *entry_find(const struct fs_absent *a, uint64_t ino)
{
	const struct absent_entry key = {.ino = ino};

	return a->nr ? bsearch(&key, a->entries, a->nr, sizeof(key), entry_compare) : NULL;
}

/* ---- what a daemon that is killed must leave of a file that is LOADING ---- */

struct note_name {
	char s[sizeof(NOTE_PREFIX) + 20];
};

static struct note_name note_name(uint64_t ino)
{
	struct note_name name;

	snprintf(name.s, sizeof(name.s), NOTE_PREFIX "%" PRIu64, ino);
	return name;
}

/* Before they go. They outlive a kill only if this works; else the contents matter more. */
static void caps_note(const struct fs_absent *a, const struct absent_caps *caps)
{
	if (caps->size > 0 &&
	    fsetxattr(a->table_fd, note_name(caps->ino).s, caps->value, (size_t)caps->size, 0) < 0)
		log_warn("the capabilities of file %" PRIu64 " cannot be noted: %s", caps->ino,
			 log_errstr(errno));
}

/* When they are back: they may change after that. */
static void caps_unnote(const struct fs_absent *a, const struct absent_caps *caps)
{
	if (caps->size > 0)
		fremovexattr(a->table_fd, note_name(caps->ino).s);
}

/* The daemon that was bringing it was killed. */
static void absent_restore_times(const struct fs_absent *a, const struct absent_entry *e)
{
	_cleanup_close_ int fd = fs_handle_open_at(a->lower_fd, &e->handle, O_RDWR);

	if (fd >= 0 && futimens(fd, e->times) < 0)
		log_warn("the times of file %" PRIu64 " are lost: %s", e->ino, log_errstr(errno));
}

/* The note of one that was about to be brought, and was not begun, only goes. */
static void absent_restore_caps(const struct fs_absent *a, const char *note)
{
	const struct absent_entry *e =
		entry_find(a, strtoull(note + strlen(NOTE_PREFIX), NULL, 10));
	_cleanup_close_ int fd = -1;
	char value[XATTR_CAPS_SZ];
	ssize_t size = fgetxattr(a->table_fd, note, value, sizeof(value));

	if (e && size > 0 && atomic_load(&e->state) == ABSENT_LOADING)
		fd = fs_handle_open_at(a->lower_fd, &e->handle, O_RDWR);
	if (fd >= 0 && fsetxattr(fd, XATTR_NAME_CAPS, value, (size_t)size, 0) < 0)
		log_warn("the capabilities of file %" PRIu64 " are lost: %s", e->ino,
			 log_errstr(errno));
	fremovexattr(a->table_fd, note);
}

static void absent_restore_all_caps(const struct fs_absent *a)
{
	_cleanup_free_ char *list = malloc(XATTR_LIST_MAX);
	ssize_t n = list ? flistxattr(a->table_fd, list, XATTR_LIST_MAX) : 0;

	for (ssize_t at = 0; at < n; at += (ssize_t)strlen(list + at) + 1)
		if (strncmp(list + at, NOTE_PREFIX, strlen(NOTE_PREFIX)) == 0)
			absent_restore_caps(a, list + at);
}

int fs_absent_adopt(struct fs_absent *a)
{
	_cleanup_close_ int fd = openat(a->private_fd, ABSENT_FILE, O_RDWR | O_CLOEXEC);
	struct stat st;
	int r;

	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	r = absent_map(a, fd, (size_t)st.st_size / sizeof(struct absent_entry));
	a->table_fd = steal_fd(&fd);
	if (!r)
		absent_restore_all_caps(a);
	for (size_t i = 0; !r && i < a->nr; i++) {
		struct absent_entry *e = &a->entries[i];

		if (atomic_load(&e->state) == ABSENT_PRESENT)
			continue;
		if (atomic_load(&e->state) == ABSENT_LOADING)
			absent_restore_times(a, e);
		atomic_fetch_add(&e->loads, atomic_load(&e->loads) & 1);
		atomic_store(&e->state, ABSENT_STORED);
		atomic_fetch_add(&a->left, 1);
	}
	return r;
}

/* ---- one file ---- */

/* NULL: it is all there, or never was in the table. */
static struct absent_entry *absent_find(struct fs_absent *a, uint64_t ino)
{
	struct absent_entry *e;

	if (!a || atomic_load(&a->left) == 0)
		return NULL;
	e = entry_find(a, ino);
	return e && atomic_load(&e->state) != ABSENT_PRESENT ? e : NULL;
}

/* Waits until nobody is busy with it, and is that; false: it is present by now. */
static bool absent_begin(struct fs_absent *a, struct absent_entry *e)
{
	bool begun;

	pthread_mutex_lock(&a->lock);
	while (atomic_load(&e->state) == ABSENT_HELD || atomic_load(&e->state) == ABSENT_LOADING)
		pthread_cond_wait(&a->moved, &a->lock);
	begun = atomic_load(&e->state) == ABSENT_STORED;
	if (begun)
		atomic_store(&e->state, ABSENT_HELD);
	pthread_mutex_unlock(&a->lock);
	return begun;
}

/* From HELD: writing the contents moves the times and takes `caps` away, which stays to the end. */
static void absent_begin_load(struct fs_absent *a, struct absent_entry *e, const struct stat *st,
			      struct absent_caps *caps)
{
	pthread_mutex_lock(&a->lock);
	e->times[0] = st->st_atim;
	e->times[1] = st->st_mtim;
	DL_APPEND(a->loading, caps);
	atomic_fetch_add(&e->loads, 1);
	atomic_store(&e->state, ABSENT_LOADING);
	pthread_mutex_unlock(&a->lock);
}

static void absent_end(struct fs_absent *a, struct absent_entry *e, enum absent_state state)
{
	struct absent_caps *caps = NULL;

	pthread_mutex_lock(&a->lock);
	if (atomic_load(&e->state) == ABSENT_LOADING) {
		DL_SEARCH_SCALAR(a->loading, caps, ino, e->ino);
		DL_DELETE(a->loading, caps);
		atomic_fetch_add(&e->loads, 1);
	}
	if (state == ABSENT_PRESENT)
		atomic_fetch_sub(&a->left, 1);
	atomic_store(&e->state, state);
	pthread_cond_broadcast(&a->moved);
	pthread_mutex_unlock(&a->lock);
}

static int caps_put_back(int fd, const struct absent_caps *caps)
{
	return caps->size > 0 && fsetxattr(fd, XATTR_NAME_CAPS, caps->value, (size_t)caps->size,
					   0) < 0
		       ? -errno
		       : 0;
}

/* The contents, and capabilities and times as they were. */
static int absent_load(struct fs_absent *a, struct absent_entry *e, struct absent_caps *caps)
{
	_cleanup_close_ int fd = fs_handle_open_at(a->lower_fd, &e->handle, O_RDWR);
	struct stat st;
	bool borrowed;
	int r, put;

	if (fd < 0)
		return fd == -ESTALE ? 0 : fd; /* removed: nobody will ask */
	if (fstat(fd, &st) < 0)
		return -errno;
	caps->size = fgetxattr(fd, XATTR_NAME_CAPS, caps->value, sizeof(caps->value));
	caps_note(a, caps);
	absent_begin_load(a, e, &st, caps);
	borrowed = creds_borrow_fsetid(); /* set-user-id bits are to stay */
	r = store_data_read(a->data_fd, e->ino, fd, (uint64_t)st.st_size, &a->stop);
	/* Half of a file is of no use to anybody, and its room may be. */
	if (r && st.st_size)
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, st.st_size);
	if (borrowed)
		creds_return_fsetid();
	put = caps_put_back(fd, caps);
	caps_unnote(a, caps);
	r = r ? r : put;
	if (futimens(fd, e->times) < 0 && !r)
		r = -errno;
	return r;
}

static int absent_bring(struct fs_absent *a, struct absent_entry *e)
{
	struct absent_caps caps = {.ino = e->ino};
	int r;

	fs_request_may_wait();
	if (!absent_begin(a, e))
		return 0;
	r = absent_load(a, e, &caps);
	absent_end(a, e, r ? ABSENT_STORED : ABSENT_PRESENT);
	return r;
}

int fs_absent_bring(struct fs_absent *absent, uint64_t ino)
{
	struct absent_entry *e = absent_find(absent, ino);
	int r = e ? absent_bring(absent, e) : 0;

	if (r)
		log_err("cannot bring the contents of file %" PRIu64 " from the store: %s", ino,
			r == -ENOSPC ? "no space: remove files or mount with a larger size="
				     : log_errstr(r));
	return r == 0 || r == -ENOSPC || r == -ENOMEM ? r : -EIO;
}

bool fs_absent_hold(struct fs_absent *absent, uint64_t ino)
{
	struct absent_entry *e = absent_find(absent, ino);

	return e && absent_begin(absent, e);
}

void fs_absent_release(struct fs_absent *absent, uint64_t ino)
{
	absent_end(absent, absent_find(absent, ino), ABSENT_STORED);
}

void fs_absent_release_empty(struct fs_absent *absent, uint64_t ino)
{
	absent_end(absent, absent_find(absent, ino), ABSENT_PRESENT);
}

/*
 * The room that it is going to take: so du(1) tells the same before and after. Not `exactly`, or on
 * a disk that is so slow that many wait for it: the room that it takes without holes.
 */
static void absent_blocks(struct fs_absent *a, const struct absent_entry *e, bool exactly,
			  struct stat *st)
{
	_Atomic uint64_t *known = &a->blocks[e - a->entries];
	uint64_t pages = ((uint64_t)st->st_size + WPFS_PAGE_SIZE - 1) / WPFS_PAGE_SIZE;
	uint64_t blocks = atomic_load(known);

	st->st_blocks = (blkcnt_t)(pages * (WPFS_PAGE_SIZE / 512));
	if (!blocks && exactly) {
		/* What cannot be read now may be at the open, which then says so. */
		if (atomic_fetch_add(&a->looking, 1) < LOOKING_MAX &&
		    store_data_blocks(a->data_fd, e->ino, (uint64_t)st->st_size, &blocks) == 0)
			atomic_store(known, ++blocks);
		atomic_fetch_sub(&a->looking, 1);
	}
	if (blocks)
		st->st_blocks = (blkcnt_t)(blocks - 1);
}

/*
 * What was asked of a file since `loads` may be of before, while or after its contents came: true,
 * with the lock held, if nothing began or ended meanwhile.
 */
static bool absent_same_lock(struct fs_absent *a, const struct absent_entry *e, uint32_t loads)
{
	pthread_mutex_lock(&a->lock);
	if (atomic_load(&e->loads) == loads && atomic_load(&e->state) != ABSENT_PRESENT)
		return true;
	pthread_mutex_unlock(&a->lock);
	return false;
}

int fs_absent_stat(struct fs_absent *absent, uint64_t ino, int fd, bool exactly, struct stat *st)
{
	struct absent_entry *e;
	uint32_t loads;

	do {
		e = absent_find(absent, ino);
		loads = e ? atomic_load(&e->loads) : 0;
		if (fstat(fd, st) < 0)
			return -errno;
		if (!e)
			return 0;
	} while (!absent_same_lock(absent, e, loads));
	if (loads & 1) {
		st->st_atim = e->times[0];
		st->st_mtim = e->times[1];
	}
	pthread_mutex_unlock(&absent->lock);
	absent_blocks(absent, e, exactly, st);
	return 0;
}

ssize_t fs_absent_caps(struct fs_absent *absent, uint64_t ino, int fd, char *value, size_t size)
{
	const struct absent_caps *caps = NULL;
	struct absent_entry *e;
	uint32_t loads;
	ssize_t n;

	do {
		e = absent_find(absent, ino);
		loads = e ? atomic_load(&e->loads) : 0;
		n = getxattr(fs_proc_path(fd).s, XATTR_NAME_CAPS, value, size);
		if (n < 0)
			n = -errno;
		if (!e)
			return n;
	} while (!absent_same_lock(absent, e, loads));
	if (loads & 1)
		DL_SEARCH_SCALAR(absent->loading, caps, ino, ino);
	if (caps && caps->size > 0) {
		n = caps->size;
		memcpy(value, caps->value, (size_t)n);
	}
	pthread_mutex_unlock(&absent->lock);
	return n;
}

bool fs_absent_is(struct fs_absent *absent, uint64_t ino)
{
	return absent_find(absent, ino) != NULL;
}

uint64_t fs_absent_count(struct fs_absent *absent)
{
	return absent ? atomic_load(&absent->left) : 0;
}

/* ---- in the background ---- */

/* A tenth of the room is for who writes; and a file that does not fit takes none on the way. */
static bool prefetch_has_room(const struct fs_absent *a, const struct absent_entry *e)
{
	_cleanup_close_ int fd = fs_handle_open_at(a->lower_fd, &e->handle, O_PATH);
	struct statvfs room;
	struct stat st;

	if (fd == -ESTALE)
		return true; /* removed */
	if (fd < 0 || fstat(fd, &st) < 0 || fstatvfs(a->lower_fd, &room) < 0)
		return false;
	return room.f_bavail >=
	       room.f_blocks / 10 + ((uint64_t)st.st_size + room.f_frsize - 1) / room.f_frsize;
}

static void *prefetch_main(void *arg)
{
	struct fs_absent *a = arg;

	setpriority(PRIO_PROCESS, (id_t)gettid(), 19);
	for (size_t i = 0; i < a->nr && !atomic_load(&a->stop); i++) {
		struct absent_entry *e = &a->entries[i];

		if (atomic_load(&e->state) == ABSENT_PRESENT)
			continue;
		if (prefetch_has_room(a, e) && absent_bring(a, e) == 0)
			continue;
		if (!atomic_load(&a->stop))
			log_info("the contents of %" PRIu64
				 " files stay in the store until they are asked for",
				 fs_absent_count(a));
		break;
	}
	return NULL;
}

int fs_absent_prefetch(struct fs_absent *a)
{
	int r;

	if (fs_absent_count(a) == 0)
		return 0;
	r = pthread_create(&a->thread, NULL, prefetch_main, a);
	a->started = r == 0;
	return -r;
}

void fs_absent_free(struct fs_absent *a)
{
	if (!a)
		return;
	atomic_store(&a->stop, true);
	if (a->started)
		pthread_join(a->thread, NULL);
	if (a->mapped)
		munmap(a->entries, a->nr * sizeof(*a->entries));
	else
		free(a->entries);
	free(a->blocks);
	close_fd(&a->table_fd);
	pthread_cond_destroy(&a->moved);
	pthread_mutex_destroy(&a->lock);
	free(a);
}
