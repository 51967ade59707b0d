/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sets the environment that libwpfs_preload.so reads, and becomes the program: no process stays in
 * between. Since nothing of wpfs runs in a program that does not take the library, this is the one
 * place that can say so.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "ctl/ctl.h"
#include "ctl/exe.h"
#include "ctl/json.h"
#include "ctl/say.h"
#include "ctl/target.h"

#define PRELOAD "libwpfs_preload.so"

/*
 * The library that belongs to this wpctl: in the build tree it was built in, or under the prefix
 * it was installed to, wherever that was moved. 0, or a ctl_status, said.
 */
static int preload_find(char *buf, size_t size)
{
	static const char *const places[] = {
		"/../preload/" PRELOAD,		/* BUILD/src/ctl/wpctl */
		"/../" WPFS_LIBDIR "/" PRELOAD, /* PREFIX/bin/wpctl */
		"/../lib/" PRELOAD,
	};
	const char *given = getenv("WPFS_PRELOAD");
	char self[PATH_MAX], path[2 * PATH_MAX], real[PATH_MAX];
	ssize_t n;

	if (given) {
		if (!realpath(given, real)) {
			ctl_say("run: WPFS_PRELOAD=%s: %s", given, log_errstr(errno));
			return CTL_FAILED;
		}
		snprintf(buf, size, "%s", real);
		return 0;
	}
	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n > 0) {
		self[n] = '\0';
		*strrchr(self, '/') = '\0';
		for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
			snprintf(path, sizeof(path), "%s%s", self, places[i]);
			if (realpath(path, real)) {
				snprintf(buf, size, "%s", real);
				return 0;
			}
		}
	}
	ctl_say("run: no %s next to this wpctl: install wpfs completely, or name the library in "
		"WPFS_PRELOAD",
		PRELOAD);
	return CTL_FAILED;
}

/* Puts the library before what is preloaded already, unless it is. 0 or a ctl_status, said. */
static int preload_set(const char *library)
{
	const char *old = getenv("LD_PRELOAD");
	_cleanup_free_ char *value = NULL;

	if (strpbrk(library, ": ")) {
		ctl_say("run: %s: LD_PRELOAD cannot name a path with a blank or a colon: install "
			"wpfs elsewhere",
			library);
		return CTL_FAILED;
	}
	if (old && !strncmp(old, library, strlen(library)) && strchr(": ", old[strlen(library)]))
		return 0;
	if (asprintf(&value, "%s%s%s", library, old && old[0] ? ":" : "", old ?: "") < 0 ||
	    setenv("LD_PRELOAD", value, 1)) {
		ctl_say("run: %s", log_errstr(ENOMEM));
		return CTL_FAILED;
	}
	return 0;
}

static int set_or_unset(const char *name, const char *value)
{
	return value ? setenv(name, value, 1) : unsetenv(name);
}

static int environment_set(const struct ctl_args *args, const char *id)
{
	bool named = args->select.set & WPFS_SELECT_NAME;
	char library[PATH_MAX];
	int r;

	r = preload_find(library, sizeof(library));
	if (!r)
		r = preload_set(library);
	if (r)
		return r;
	if (set_or_unset("WPFS_NAME", named ? args->select.name : NULL) ||
	    set_or_unset("WPFS_PROTECT", args->protect ? "1" : NULL) ||
	    setenv("WPFS_MOUNT", id, 1)) {
		ctl_say("run: %s", log_errstr(errno));
		return CTL_FAILED;
	}
	return 0;
}

static bool env_is_on(const char *name)
{
	const char *value = getenv(name);

	return value && value[0] && strcmp(value, "0") != 0;
}

static void show_json(const struct ctl_args *args, const char *id, const char *why_not)
{
	struct json json;

	json_init(&json, stderr);
	json_object(&json, NULL);
	json_string(&json, "mount", id);
	if (args->select.set & WPFS_SELECT_NAME)
		json_string(&json, "name", args->select.name);
	else
		json_null(&json, "name");
	json_bool(&json, "protect", args->protect);
	json_bool(&json, "attach", !why_not);
	if (why_not)
		json_string(&json, "why", why_not);
	else
		json_null(&json, "why");
	json_end(&json);
}

int cmd_run(const struct ctl_args *args)
{
	_cleanup_(target_closep) struct target target = TARGET_INIT;
	bool quiet = env_is_on("WPFS_QUIET"), attach;
	char path[PATH_MAX], why[PATH_MAX + 128];
	int r, err;

	r = target_open(&target, "run", args->target, TARGET_NO_CONNECT);
	if (r)
		return r;
	r = exe_find(args->argv[0], path, sizeof(path));
	if (r) {
		ctl_say("run: %s: %s", args->argv[0],
			r == -ENOENT ? "no such program" : log_errstr(r));
		return r == -ENOENT ? CTL_NOT_FOUND : CTL_CANNOT_EXEC;
	}
	r = environment_set(args, target.id);
	if (r)
		return r;
	attach = exe_takes_preload(path, why, sizeof(why));
	if (!attach && env_is_on("WPFS_REQUIRE")) {
		ctl_say("run: %s: it would run untracked: not started, because WPFS_REQUIRE is set",
			why);
		return CTL_FAILED;
	}
	if (args->json)
		show_json(args, target.id, attach ? NULL : why);
	else if (!quiet && !attach)
		ctl_say("run: %s: it runs untracked, without marks", why);
	else if (!quiet && !(args->select.set & WPFS_SELECT_NAME))
		ctl_say("run: no --name: the marks of this program end with it");
	execvp(args->argv[0], args->argv); /* runs a script without "#!" by sh, as a shell does */
	err = errno;
	ctl_say("run: %s: %s", path, log_errstr(err));
	return err == ENOENT ? CTL_NOT_FOUND : CTL_CANNOT_EXEC;
}
