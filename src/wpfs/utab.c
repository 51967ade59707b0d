/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wpfs/utab.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"

#define UMOUNT_HELPER "/sbin/umount.fuse.wpfs"

/* The child has none of our blocked signals and says nothing: there is nothing to be done. */
static bool run(const char *const argv[])
{
	static char path[] = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
	char *const envp[] = {path, NULL};
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	sigset_t none, pipe;
	int r, status = -1;
	pid_t pid;

	sigemptyset(&none);
	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &pipe);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	r = posix_spawnp(&pid, argv[0], &files, &attr, (char *const *)argv, envp);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&files);
	if (r) {
		log_debug("cannot run %s: %s", argv[0], log_errstr(r));
		return false;
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool utab_add(const char *source, const char *mountpoint)
{
	/* -f: no mount(2), -i: no helper, so what is left is the entry */
	const char *const argv[] = {"mount", "-i",	  "-f", "--no-canonicalize",
				    "-t",    "fuse.wpfs", "-o", "uhelper=fuse.wpfs",
				    source,  mountpoint,  NULL};

	return access(UMOUNT_HELPER, X_OK) == 0 && run(argv);
}

void utab_remove(const char *mountpoint)
{
	const char *const argv[] = {"umount",	"-i", "--fake", "--no-canonicalize",
				    mountpoint, NULL};

	run(argv);
}
