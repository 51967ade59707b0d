/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * wpfs, the mount program.
 *
 * Lock order of the daemon, outermost first; a thread takes a later one only while holding
 * earlier ones, and none of them twice:
 *
 *   1. fs.hooks_lock   (fs/session.c)  read: for the time of a hook; write: fs_set_hooks
 *   2. the track room's queue, on which its one thread is asked; it owns all mms (track/track.c)
 *   3. the writer's queue of the database (db/db.h)
 *   4. fs.names_lock  (fs/names.c)  read: a change of names; write: the walk of a flush, with
 *      fs.hooks_lock for reading (no hook asks for names_lock) and, of a capped mount, its lock
 *   5. leaves, held over no call into another room: fs_dir.lock and fs.dirs_lock (fs/dirs.c),
 *      shard.backing and shard.lock (fs/priv.h), fs.touched_lock (fs/changes.c)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "wpfs/daemon.h"
#include "wpfs/needs.h"
#include "wpfs/options.h"
#include "wpfs/remount.h"

#define EXIT_USAGE 2

struct ready_ctx {
	const struct options *options;
	int pipe; /* write end; the parent waits on the other. -1 in the foreground */
};

/* The mount works: the parent may return, and nobody reads our stderr any more. */
static void on_ready(void *arg)
{
	struct ready_ctx *ctx = arg;
	int null;

	if (ctx->pipe < 0)
		return;
	log_init("wpfs", LOG_INFO, true);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0) {
		for (int fd = 0; fd <= 2; fd++)
			dup2(null, fd);
		close_fd(&null);
	}
	if (write(ctx->pipe, "", 1) < 0)
		log_warn("cannot tell that the mount is ready: %s", log_errstr(errno));
	close_fd(&ctx->pipe);
}

static int run_foreground(const struct options *options)
{
	struct ready_ctx ctx = {.options = options, .pipe = -1};

	return daemon_run(options, on_ready, &ctx) ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* The child is the daemon; the parent lives until the mount works or has failed. */
static int run_daemonised(const struct options *options)
{
	struct ready_ctx ctx = {.options = options, .pipe = -1};
	int ends[2], status;
	ssize_t n;
	pid_t pid;
	char c;

	if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
		log_err("cannot become a daemon: %s", log_errstr(errno));
		return EXIT_FAILURE;
	}
	if (pid == 0) {
		close(ends[0]);
		ctx.pipe = ends[1];
		setsid();
		if (chdir("/") < 0)
			log_warn("cannot change to /: %s", log_errstr(errno));
		return daemon_run(options, on_ready, &ctx) ? EXIT_FAILURE : EXIT_SUCCESS;
	}
	close(ends[1]);
	do
		n = read(ends[0], &c, 1);
	while (n < 0 && errno == EINTR);
	close(ends[0]);
	if (n == 1)
		return EXIT_SUCCESS;
	/* It has said why, unless it was killed. */
	if (waitpid(pid, &status, 0) == pid && WIFSIGNALED(status))
		log_err("the daemon was ended by signal %d before the mount worked",
			WTERMSIG(status));
	return EXIT_FAILURE;
}

/* Paths are kept from before chdir("/"). */
static int make_absolute(const char **path, char *buf)
{
	char cwd[PATH_MAX];

	if ((*path)[0] == '/')
		return 0;
	if (!getcwd(cwd, sizeof(cwd)))
		return -errno;
	if (snprintf(buf, PATH_MAX, "%s/%s", strcmp(cwd, "/") == 0 ? "" : cwd, *path) >= PATH_MAX)
		return -ENAMETOOLONG;
	*path = buf;
	return 0;
}

static int mount_main(struct options *options)
{
	static char store[PATH_MAX], mountpoint[PATH_MAX];
	int r = make_absolute(&options->mountpoint, mountpoint);

	if (!r && strcmp(options->store, "none") != 0)
		r = make_absolute(&options->store, store);
	if (!r && strcmp(options->store, "none") != 0)
		options->source = options->store;
	if (r) {
		log_err("cannot find the working directory: %s", log_errstr(r));
		return EXIT_FAILURE;
	}
	return options->foreground ? run_foreground(options) : run_daemonised(options);
}

int main(int argc, char **argv)
{
	char error[OPTIONS_ERROR_SIZE];
	struct options options;

	log_init("wpfs", LOG_INFO, false);
	if (options_parse(argc, argv, &options, error)) {
		log_err("%s", error);
		return EXIT_USAGE;
	}
	switch (options.action) {
	case OPTIONS_PROBE:
		return needs_print() ? EXIT_FAILURE : EXIT_SUCCESS;
	case OPTIONS_HELP:
		fputs(options_help, stdout);
		return EXIT_SUCCESS;
	case OPTIONS_VERSION:
		puts("wpfs " WPFS_VERSION);
		return EXIT_SUCCESS;
	case OPTIONS_REMOUNT:
		return remount_run(&options) ? EXIT_FAILURE : EXIT_SUCCESS;
	case OPTIONS_MOUNT:
		break;
	}
	if (options.debug)
		log_init("wpfs", LOG_DEBUG, false);
	return mount_main(&options);
}
