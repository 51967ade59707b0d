/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Without libFuzzer: gives every file of the directories named to the fuzz target, and then every
 * file once more with each of some thousand small changes that depend on nothing but the file.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tests/fuzz/fuzz.h"

#define INPUT_MAX 65536

static unsigned changes; /* of each file */

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* In a buffer of its own of just that length, so that a read past its end is seen. */
static void run(const uint8_t *bytes, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	MUST(copy);
	memcpy(copy, bytes, size);
	LLVMFuzzerTestOneInput(copy, size);
	free(copy);
}

static void run_changed(const uint8_t *bytes, size_t size)
{
	uint64_t random = 0x9e3779b97f4a7c15u ^ size;
	uint8_t *changed = malloc(size + 1);

	MUST(changed);
	for (unsigned i = 0; size && i < changes; i++) {
		size_t now = size;

		memcpy(changed, bytes, size);
		for (unsigned n = next_random(&random) % 4; n < 4; n++)
			changed[next_random(&random) % size] = (uint8_t)next_random(&random);
		if (next_random(&random) % 8 == 0)
			now = next_random(&random) % size;
		run(changed, now);
	}
	free(changed);
}

static int run_file(int dir, const char *name)
{
	static uint8_t bytes[INPUT_MAX];
	_cleanup_close_ int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, bytes, sizeof(bytes));

	if (size < 0) {
		fprintf(stderr, "%s: %s\n", name, strerror(errno));
		return 1;
	}
	run(bytes, (size_t)size);
	run_changed(bytes, (size_t)size);
	return 0;
}

static int run_directory(const char *path, unsigned *files)
{
	_cleanup_dir_ DIR *dir = opendir(path);
	struct dirent *entry;
	int failed = 0;

	if (!dir) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		return 1;
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		failed |= run_file(dirfd(dir), entry->d_name);
		(*files)++;
	}
	return failed;
}

int main(int argc, char **argv)
{
	unsigned files = 0;
	int failed = 0;

	if (argc < 3) {
		fprintf(stderr, "usage: %s CHANGES DIRECTORY...\n", argv[0]);
		return 2;
	}
	changes = (unsigned)strtoul(argv[1], NULL, 10);
	/* For tools/check, which counts the cases of cmocka programs. */
	printf("[ RUN      ] corpus\n");
	fflush(stdout);
	for (int i = 2; i < argc; i++)
		failed |= run_directory(argv[i], &files);
	if (files == 0) {
		fprintf(stderr, "no corpus\n");
		failed = 1;
	}
	printf("[  %s ] corpus\n", failed ? "FAILED" : "     OK");
	return failed;
}
