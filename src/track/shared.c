/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who else has the memory of a program: a child of clone(2) with CLONE_VM, or of vfork(2), can
 * outlive it. Its stores are stores to the same marks, and on a capped mount its pages have to come
 * from somewhere, so the mm does not end with the program: it goes on as that process's.
 *
 * Whether there is anybody is asked of the witness: for a task that shares its mm with another one
 * unshare(CLONE_VM) fails, and for one that is alone it does nothing. So the end of a program that
 * left nobody behind costs a message. Who it is only a look at every process tells; that look also
 * answers for a witness that does not (it is stopped), and for one that shares its mm with the
 * witness of another mount.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "track/residency.h"

#define SHARED_ASK_MS 20
#define SHARED_LOOKS  5

static int64_t shared_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* True only if the witness says so. */
static bool shared_witness_is_alone(struct tmm *tm)
{
	static int32_t last; /* track thread; an answer that came too late is another question's */
	const struct wpfs_witness_cmd cmd = {.op = WPFS_WITNESS_ALONE, .fd = ++last};
	_cleanup_close_ int chan = proc_borrow_fd(tm->witness_pidfd, tm->chan_fd);
	const int64_t until = shared_now_ms() + SHARED_ASK_MS;
	struct wpfs_witness_alone answer;

	tm->told++;
	if (chan < 0 || send(chan, &cmd, sizeof(cmd), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return false;
	for (;;) {
		struct pollfd pfd = {.fd = chan, .events = POLLIN};
		int64_t left = until - shared_now_ms();

		if (left <= 0 || poll(&pfd, 1, (int)left) <= 0)
			return false;
		if (recv(chan, &answer, sizeof(answer), MSG_DONTWAIT) != (ssize_t)sizeof(answer))
			return false;
		if (answer.question == cmd.fd)
			return answer.alone == 1;
	}
}

/* A process but the witnesses whose mm is that of the (living) witness. False: there is none. */
static bool shared_find(const struct tmm *tm, struct proc_id *id)
{
	_cleanup_dir_ DIR *proc = opendir("/proc");
	struct dirent *de;

	while (proc && (de = readdir(proc))) {
		const pid_t pid = atoi(de->d_name);
		char comm[16];

		if (pid <= 0 || pid == tm->witness.pid || proc_same_mm(pid, tm->witness.pid) != 1 ||
		    proc_comm(pid, comm) < 0 || strcmp(comm, "wpfs-witness") == 0)
			continue;
		if (proc_identify(pid, id) == 0)
			return true;
	}
	return false;
}

/* The mm is the process's from now on; nothing will be heard from it. */
static int shared_take(struct track *t, struct tmm *tm, const struct proc_id *id, int *pidfd)
{
	track_watch_remove(t, &tm->program_watch);
	tm->program = *id;
	tm->program_watch.fd = steal_fd(pidfd);
	residency_moved(t, tm);
	return track_watch_add(t, &tm->program_watch, EPOLLIN);
}

bool shared_go_on(struct track *t, struct tmm *tm)
{
	if (tm->witness_pidfd < 0)
		return false;
	for (int looks = 0; looks < SHARED_LOOKS; looks++) {
		_cleanup_close_ int pidfd = -1;
		struct proc_id id;

		if (proc_is_dead(tm->witness_pidfd) || shared_witness_is_alone(tm) ||
		    !shared_find(tm, &id))
			return false;
		pidfd = proc_open(&id);
		if (pidfd < 0 || proc_is_dead(pidfd))
			continue; /* it has ended meanwhile */
		log_info("track: pid %d goes on in the memory of %s", id.pid,
			 tm->name[0] ? tm->name : tm->comm);
		if (shared_take(t, tm, &id, &pidfd) < 0)
			return false;
		/* A daemon after this one must not take the mm for ended. */
		if (persist_mm_lazy(t, tm) < 0)
			log_err("track: that pid %d has the memory of %s is not stored", id.pid,
				tm->name[0] ? tm->name : tm->comm);
		return true;
	}
	return false;
}
