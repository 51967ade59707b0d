/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clang-format off */
/*
 * A program that uses libwpfs, taking orders one line at a time on stdin and answering each with
 * one line: "ok [TEXT]" or "err ENAME". F and M are numbers of its own for files and mappings, PAGE
 * and COUNT pages of M, OFF and LEN bytes. Runs are answered as pages: 0-3 7-7.
 *
 *   attach PATH NAME|-             open F PATH         mapped at ADDR -> M's address
 *   map M F OFF LEN [fixed=M2]     size F BYTES        store M PAGE BYTE [COUNT]
 *   rawmap M F OFF LEN             close F             load M PAGE -> BYTE
 *   unmap M [PAGE COUNT]           protect F OFF LEN -> epoch      (F -1: all)
 *   move M                         unprotect F OFF LEN
 *   remove M PAGE COUNT            dirty F OFF LEN FROM TO -> runs
 *   watch M PAGE COUNT [resume]    clean F OFF LEN -> runs
 *   unwatch M PAGE COUNT           watched F OFF LEN -> runs
 *   calls -> PAGE:OLD ...          sync F
 *   fork F M PAGE -> of a child that stores there: dirty runs
 *   readinto M PAGE                read(2) into the page
 *   detach                         error -> wpfs_error()
 *   second -> wpfs_attach of another copy of the library in this process
 *   closeall                       every descriptor from 3 on
 */
/* clang-format on */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wpfs.h"

#define PAGE	  4096ul
#define SLOTS	  16
#define WORDS_MAX 8
#define CALLS_MAX 4096

static struct wpfs *handle;
static int files[SLOTS];
static struct {
	char *addr;
	size_t len;
} maps[SLOTS];
static char path_given[4096];

static pthread_mutex_t calls_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
	unsigned long page;
	unsigned char old;
} calls[CALLS_MAX];
static unsigned nr_calls;

static char *word[WORDS_MAX + 1];
static int words;
static char answer[1 << 16];

static unsigned long number(int i)
{
	return i < words ? strtoul(word[i], NULL, 0) : 0;
}

static int file_at(int i)
{
	return i < words && word[i][0] == '-' ? -1 : files[number(i) % SLOTS];
}

static unsigned long slot(int i)
{
	return number(i) % SLOTS;
}

static char *page_at(int map, int page)
{
	return maps[slot(map)].addr + number(page) * PAGE;
}

static int put_runs(int err, struct wpfs_runs *runs)
{
	size_t used = 0;

	for (size_t i = 0; !err && i < runs->nr && used + 64 < sizeof(answer); i++)
		used += (size_t)sprintf(
			answer + used, "%llu-%llu ",
			(unsigned long long)(runs->run[i].offset / PAGE),
			(unsigned long long)((runs->run[i].offset + runs->run[i].len) / PAGE - 1));
	wpfs_runs_free(runs);
	return err;
}

static int do_attach(void)
{
	snprintf(path_given, sizeof(path_given), "%s", word[1]);
	return wpfs_attach(word[1], word[2][0] == '-' ? NULL : word[2], &handle);
}

static int do_open(void)
{
	int fd = open(word[2], O_RDWR | O_CREAT | O_CLOEXEC, 0666);

	files[slot(1)] = fd;
	return fd < 0 ? -errno : 0;
}

static int do_size(void)
{
	return ftruncate(file_at(1), (off_t)number(2)) < 0 ? -errno : 0;
}

static int do_map(void)
{
	int flags = MAP_SHARED, err;
	void *at = NULL;

	if (words > 5) {
		at = maps[strtoul(word[5] + 6, NULL, 0) % SLOTS].addr;
		flags |= MAP_FIXED;
	}
	err = wpfs_map(handle, &at, number(4), PROT_READ | PROT_WRITE, flags, file_at(2),
		       number(3));
	if (err)
		return err;
	maps[slot(1)].addr = at;
	maps[slot(1)].len = number(4);
	return 0;
}

static int do_rawmap(void)
{
	void *at = mmap(NULL, number(4), PROT_READ | PROT_WRITE, MAP_SHARED, file_at(2),
			(off_t)number(3));

	if (at == MAP_FAILED)
		return -errno;
	maps[slot(1)].addr = at;
	maps[slot(1)].len = number(4);
	return 0;
}

static int do_unmap(void)
{
	if (words > 2)
		return wpfs_unmap(handle, page_at(1, 2), number(3) * PAGE);
	return wpfs_unmap(handle, maps[slot(1)].addr, maps[slot(1)].len);
}

/* To a place that something else has just left. */
static int do_move(void)
{
	size_t len = maps[slot(1)].len;
	void *at = maps[slot(1)].addr;
	void *to = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err = wpfs_remap(handle, &at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	maps[slot(1)].addr = at;
	return err;
}

static int do_store(void)
{
	unsigned long count = words > 4 ? number(4) : 1;

	for (unsigned long i = 0; i < count; i++)
		((volatile char *)page_at(1, 2))[i * PAGE + 8] = (char)number(3);
	return 0;
}

static int do_load(void)
{
	sprintf(answer, "%u", ((volatile unsigned char *)page_at(1, 2))[8]);
	return 0;
}

static int do_readinto(void)
{
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, page_at(1, 2), 16);
	int err = n < 0 ? -errno : n != 16;

	close(fd);
	return err;
}

static int do_protect(void)
{
	uint64_t epoch;
	int err = wpfs_protect(handle, file_at(1), number(2), number(3), &epoch);

	sprintf(answer, "%llu", (unsigned long long)epoch);
	return err;
}

static int do_dirty(void)
{
	struct wpfs_runs runs;

	return put_runs(
		wpfs_dirty(handle, file_at(1), number(2), number(3), number(4), number(5), &runs),
		&runs);
}

static int do_clean(void)
{
	struct wpfs_runs runs;

	return put_runs(wpfs_clean(handle, file_at(1), number(2), number(3), &runs), &runs);
}

static int do_watched(void)
{
	struct wpfs_runs runs;

	return put_runs(wpfs_watched(handle, file_at(1), number(2), number(3), &runs), &runs);
}

static void on_write(void *page, void *arg)
{
	char *base = arg;

	pthread_mutex_lock(&calls_lock);
	if (nr_calls < CALLS_MAX) {
		calls[nr_calls].page = (unsigned long)((char *)page - base) / PAGE;
		calls[nr_calls++].old = ((volatile unsigned char *)page)[8];
	}
	pthread_mutex_unlock(&calls_lock);
}

static int do_watch(void)
{
	return wpfs_watch(handle, page_at(1, 2), number(3) * PAGE,
			  words > 4 ? WPFS_WATCH_RESUME : 0, on_write, maps[slot(1)].addr);
}

static int do_calls(void)
{
	size_t used = 0;

	pthread_mutex_lock(&calls_lock);
	for (unsigned i = 0; i < nr_calls; i++)
		used += (size_t)sprintf(answer + used, "%lu:%u ", calls[i].page, calls[i].old);
	nr_calls = 0;
	pthread_mutex_unlock(&calls_lock);
	return 0;
}

static int do_fork(void)
{
	int ends[2], status;
	ssize_t n;
	pid_t pid;

	if (pipe(ends) < 0)
		return -errno;
	pid = fork();
	if (pid == 0) {
		struct wpfs_runs runs;
		int err;

		((volatile char *)page_at(2, 3))[8] = 99;
		err = put_runs(wpfs_dirty(handle, file_at(1), 0, 0, 0, 0, &runs), &runs);
		if (err)
			strcpy(answer, strerrorname_np(-err));
		n = write(ends[1], answer, strlen(answer) + 1);
		_exit(n < 0);
	}
	close(ends[1]);
	n = read(ends[0], answer, sizeof(answer));
	close(ends[0]);
	waitpid(pid, &status, 0);
	return n <= 0 || status ? -ECHILD : 0;
}

static int do_second(void)
{
	void *lib = dlmopen(LM_ID_NEWLM, "libwpfs.so.0", RTLD_NOW);
	int (*attach)(const char *, const char *, struct wpfs **);
	struct wpfs *other;

	if (!lib)
		return -ENOEXEC;
	attach = (int (*)(const char *, const char *, struct wpfs **))dlsym(lib, "wpfs_attach");
	return attach(path_given, NULL, &other);
}

static int order(void)
{
	const char *verb = word[0];

	if (!strcmp(verb, "attach"))
		return do_attach();
	if (!strcmp(verb, "open"))
		return do_open();
	if (!strcmp(verb, "close"))
		return close(file_at(1)) < 0 ? -errno : 0;
	if (!strcmp(verb, "size"))
		return do_size();
	if (!strcmp(verb, "map"))
		return do_map();
	if (!strcmp(verb, "rawmap"))
		return do_rawmap();
	if (!strcmp(verb, "unmap"))
		return do_unmap();
	if (!strcmp(verb, "move"))
		return do_move();
	if (!strcmp(verb, "remove"))
		return wpfs_remove(handle, page_at(1, 2), number(3) * PAGE);
	if (!strcmp(verb, "store"))
		return do_store();
	if (!strcmp(verb, "load"))
		return do_load();
	if (!strcmp(verb, "readinto"))
		return do_readinto();
	if (!strcmp(verb, "protect"))
		return do_protect();
	if (!strcmp(verb, "unprotect"))
		return wpfs_unprotect(handle, file_at(1), number(2), number(3));
	if (!strcmp(verb, "dirty"))
		return do_dirty();
	if (!strcmp(verb, "clean"))
		return do_clean();
	if (!strcmp(verb, "watched"))
		return do_watched();
	if (!strcmp(verb, "sync"))
		return wpfs_sync(handle, file_at(1));
	if (!strcmp(verb, "watch"))
		return do_watch();
	if (!strcmp(verb, "unwatch"))
		return wpfs_unwatch(handle, page_at(1, 2), number(3) * PAGE);
	if (!strcmp(verb, "calls"))
		return do_calls();
	if (!strcmp(verb, "fork"))
		return do_fork();
	if (!strcmp(verb, "second"))
		return do_second();
	if (!strcmp(verb, "closeall"))
		return close_range(3, ~0U, 0) < 0 ? -errno : 0;
	if (!strcmp(verb, "error")) {
		snprintf(answer, sizeof(answer), "%s", wpfs_error());
		return 0;
	}
	if (!strcmp(verb, "detach")) {
		wpfs_detach(handle);
		handle = NULL;
		return 0;
	}
	return -ENOSYS;
}

int main(void)
{
	static char line[8192];

	while (fgets(line, sizeof(line), stdin)) {
		char *save = NULL;
		int err;

		words = 0;
		answer[0] = '\0';
		for (char *w = strtok_r(line, " \n", &save); w && words < WORDS_MAX;
		     w = strtok_r(NULL, " \n", &save))
			word[words++] = w;
		err = order();
		if (err)
			printf("err %s\n", strerrorname_np(-err));
		else
			printf("ok %s\n", answer);
		fflush(stdout);
	}
	return 0;
}
