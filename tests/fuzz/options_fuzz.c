/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line of wpfs, one word to a line. */
#include <errno.h>

#include "base/cleanup.h"
#include "tests/fuzz/fuzz.h"
#include "wpfs/options.h"

#define MAX_WORDS 32

/* The options that mount(2) of the tmpfs is given: nothing but what tmpfs(5) has, each whole. */
static void check_lower(const char *lower)
{
	static const char *const keys[] = {
		"size=", "nr_inodes=", "huge=", "mode=", "uid=", "gid=", "inode64"};
	_cleanup_free_ char *copy = strdup(lower);
	char *save = NULL;

	MUST(copy);
	for (char *word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		bool known = false;

		for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
			known |= strncmp(word, keys[i], strlen(keys[i])) == 0;
		MUST(known);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *text = malloc(size + 1);
	char error[OPTIONS_ERROR_SIZE] = "", program[] = "wpfs", *argv[MAX_WORDS + 2] = {program};
	struct options o;
	int argc = 1, r;

	MUST(text);
	if (size)
		memcpy(text, data, size);
	text[size] = '\0';
	for (char *word = text; word && argc <= MAX_WORDS;) {
		char *end = strchr(word, '\n');

		if (end)
			*end++ = '\0';
		argv[argc++] = word;
		word = end;
	}
	r = options_parse(argc, argv, &o, error);
	MUST(r == 0 || r == -EINVAL);
	if (r < 0) {
		MUST(error[0] && memchr(error, '\0', sizeof(error)) && !strchr(error, '\n'));
		return 0;
	}
	MUST(memchr(o.lower, '\0', sizeof(o.lower)));
	check_lower(o.lower);
	if (o.action != OPTIONS_MOUNT)
		return 0;
	MUST(o.store && o.store[0] && o.mountpoint && o.mountpoint[0]);
	MUST(!o.resident || (strcmp(o.store, "none") != 0 && strstr(o.lower, "huge=never")));
	return 0;
}
