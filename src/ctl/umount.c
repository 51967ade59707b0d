/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * umount.fuse.wpfs: what umount(8) runs for a mount of type fuse.wpfs.
 *
 * umount(2) alone would do, but for three things that people stumble over: a program that has just
 * been killed keeps the mount busy until the daemon has harvested it (SETTLE), EBUSY does not say
 * who, and when umount(2) returns the daemon has not written the store yet.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/pidfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "ctl/holders.h"
#include "base/mountinfo.h"
#include "base/progress.h"
#include "ctl/say.h"
#include "ipc/client.h"
#include "uffd/proc.h"

#define BUSY_WAIT_MS   10000  /* for those that are about to go */
#define BUSY_PAUSE_MS  50     /* between two tries with nobody to wait for */
#define BUSY_LOOKS_MAX 20     /* so often nobody may be seen */
#define FLUSH_WAIT_MS  300000 /* for the daemon's last flush to get on */
#define FLUSH_SAY_MS   3000   /* after this it is said that we wait */
#define FLUSH_LOOK_MS  100    /* how often it is looked how far it is */
#define ANSWER_WAIT_MS 60000
#define NAMES_MAX      64 /* tracked programs that are named in a message */

struct unmounter {
	const char *target;
	int flags; /* of umount2(2) */
	bool verbose;
	dev_t dev;
	dev_t lower; /* capped mounts: of the lower tmpfs, which programs map; else 0 */
	char id[WPFS_ID_MAX];
	struct ipc_client *client; /* NULL: no daemon to ask */
	int daemon_pidfd;
	int daemon_pid;
	unsigned empty_looks; /* how often it was busy and nobody was seen */
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Finds the mount and its daemon. 0 or -errno, said. A dead mount has no client. */
static int find_mount(struct unmounter *u)
{
	struct mountinfo_list list;
	const struct mountinfo *mount;
	int r;

	r = mountinfo_read(&list);
	if (r) {
		ctl_say("cannot read /proc/self/mountinfo: %s", log_errstr(r));
		goto out;
	}
	mount = mountinfo_at(&list, u->target);
	if (!mount) {
		ctl_say("%s: not mounted", u->target);
		r = -EINVAL;
	} else if (strcmp(mount->fstype, "fuse.wpfs") != 0) {
		ctl_say("%s: a mount of type %s, not of wpfs: use umount(8)", u->target,
			mount->fstype);
		r = -EINVAL;
	} else {
		u->dev = mount->dev;
	}
out:
	mountinfo_free(&list);
	return r;
}

/* 0: not to be seen, which only root can. */
static dev_t lower_dev(const char *id)
{
	char path[sizeof(WPFS_RUN_DIR) + WPFS_ID_MAX + 16];
	struct stat st;

	snprintf(path, sizeof(path), WPFS_RUN_DIR "/%s/private/lower", id);
	return stat(path, &st) == 0 ? st.st_dev : 0;
}

/*
 * Connects, so that there is someone to ask and to wait for. The pidfd is the daemon's for sure: it
 * answered on this connection after the pidfd had been opened.
 */
static void find_daemon(struct unmounter *u)
{
	_cleanup_close_ int fd = open(u->target, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct wpfs_mount_info info;
	struct wpfs_status status;

	if (fd < 0 || ipc_mount_info(fd, &info))
		return;
	snprintf(u->id, sizeof(u->id), "%s", info.id);
	if (ipc_client_connect(u->id, ANSWER_WAIT_MS, &u->client))
		return;
	if (ipc_client_call(u->client, WPFS_OP_STATUS, NULL, &status, NULL, NULL) < 0)
		return;
	u->daemon_pid = status.pid;
	if (status.kind == WPFS_KIND_CAPPED)
		u->lower = lower_dev(u->id);
	u->daemon_pidfd = pidfd_open(status.pid, 0);
}

static void settle(struct unmounter *u)
{
	if (!u->client)
		return;
	if (u->verbose)
		ctl_say("%s: waiting for the harvest of programs that have ended", u->target);
	if (ipc_client_call(u->client, WPFS_OP_SETTLE, NULL, NULL, NULL, NULL) < 0) {
		ipc_client_close(u->client); /* of no use any more; umount2 will tell */
		u->client = NULL;
	}
}

/* The live tracked programs by pid, as the daemon numbers them. */
struct names {
	struct {
		pid_t pid;
		char name[WPFS_NAME_MAX + 16];
	} entry[NAMES_MAX];
	size_t nr;
};

static int names_add(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_mm *mm = body;
	struct names *names = arg;

	if (type != WPFS_REC_MM || mm->state != WPFS_MM_LIVE || names->nr == NAMES_MAX)
		return 0;
	names->entry[names->nr].pid = mm->pid;
	snprintf(names->entry[names->nr].name, sizeof(names->entry[0].name), "%s", mm->name);
	names->nr++;
	return 0;
}

static const char *names_find(const struct names *names, pid_t pid)
{
	for (size_t i = 0; i < names->nr; i++) {
		if (names->entry[i].pid == pid)
			return names->entry[i].name;
	}
	return NULL;
}

/* One line that names everybody: there is no other place where a user could learn it. */
static void say_busy(struct unmounter *u, const struct holder_list *list)
{
	struct wpfs_select select = {.kind = WPFS_REPORT_PS};
	struct names names = {.nr = 0};
	_cleanup_free_ char *text = NULL;
	char how[128];
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return;
	if (u->client)
		ipc_client_call(u->client, WPFS_OP_REPORT, &select, NULL, names_add, &names);
	for (size_t i = 0; i < list->nr; i++) {
		const struct holder *holder = &list->holders[i];
		const char *name = names_find(&names, holder->pid);
		const char *tracked = !name ? "" : name[0] ? ", tracked as " : ", tracked, no name";

		if (holder->ending || holder->witness || !holder->how)
			continue;
		/* the umount(8) that runs us shares the working directory of its shell */
		if (holder->pid == getppid() && !strcmp(holder->comm, "umount") && list->nr > 1)
			continue;
		fprintf(f, "%s %s (pid %d%s%s) %s", ftell(f) ? ";" : "", holder->comm, holder->pid,
			tracked, name ?: "", holder_how(holder->how, how, sizeof(how)));
	}
	fclose(f);
	ctl_say("%s: in use:%s: end them first, or unmount with -l", u->target, text);
}

static bool say_mount_below(struct unmounter *u)
{
	struct mountinfo_list list;
	const struct mountinfo *mount, *below = NULL;

	if (mountinfo_read(&list) == 0) {
		mount = mountinfo_at(&list, u->target);
		below = mount ? mountinfo_below(&list, mount) : NULL;
	}
	if (below)
		ctl_say("%s: in use: %s is mounted on it: unmount that first", u->target,
			below->mountpoint);
	mountinfo_free(&list);
	return below != NULL;
}

/*
 * After EBUSY: waits for one of those that are about to go. 0: try again. -EBUSY, said: somebody
 * stays, or it takes too long, or nobody is to be seen.
 */
static int wait_busy(struct unmounter *u, int64_t deadline)
{
	const struct holders_of of = {u->dev, u->lower, u->lower ? u->daemon_pid : 0};
	struct holder_list list;
	struct pollfd *going = NULL;
	int64_t left = deadline - now_ms();
	nfds_t nr = 0;
	size_t staying = 0;
	int r = 0;

	r = holders_find(&of, &list);
	going = calloc(list.nr ?: 1, sizeof(*going));
	if (r || !going) {
		ctl_say("%s: in use: cannot look by whom: %s", u->target, log_errstr(r ?: ENOMEM));
		r = -EBUSY;
		goto out;
	}
	for (size_t i = 0; i < list.nr; i++) {
		if (list.holders[i].ending || list.holders[i].witness)
			going[nr++] = (struct pollfd){list.holders[i].pidfd, POLLIN, 0};
		else
			staying++;
	}
	u->empty_looks = list.nr ? 0 : u->empty_looks + 1;
	if (staying) {
		say_busy(u, &list);
		r = -EBUSY;
	} else if (say_mount_below(u)) {
		r = -EBUSY;
	} else if (left <= 0 || u->empty_looks > BUSY_LOOKS_MAX) {
		ctl_say("%s: in use, but by no process that can be seen here and stays: look for "
			"processes in other containers, swap files and loop devices, or unmount "
			"with -l",
			u->target);
		r = -EBUSY;
	} else {
		/* nobody: it went between the two looks, or holds it elsewhere */
		poll(going, nr, nr ? (int)left : BUSY_PAUSE_MS);
	}
out:
	holders_free(&list);
	free(going);
	return r;
}

static bool is_last_mount(const struct unmounter *u)
{
	struct mountinfo_list list;
	bool last;

	last = mountinfo_read(&list) == 0 && mountinfo_count(&list, u->dev) == 0;
	mountinfo_free(&list);
	return last;
}

/*
 * With -f a first try has ended the connection, though it was EBUSY: what others have open gives
 * them errors only. So it is detached then, as the daemon does when it sees that, at the same time.
 */
static int unmount(struct unmounter *u)
{
	int64_t deadline = now_ms() + BUSY_WAIT_MS;
	int r, flags = u->flags;

	for (;;) {
		settle(u);
		if (umount2(u->target, flags | UMOUNT_NOFOLLOW) == 0)
			return 0;
		if (errno == EBUSY && (flags & MNT_FORCE) && !(flags & MNT_DETACH)) {
			flags |= MNT_DETACH;
			continue;
		}
		if (errno == EINVAL && (flags & MNT_FORCE) && is_last_mount(u))
			return 0;
		if (errno != EBUSY) {
			ctl_say("%s: cannot unmount: %s%s", u->target, log_errstr(errno),
				errno == EPERM ? ": only root can" : "");
			return -EPERM;
		}
		r = wait_busy(u, deadline);
		if (r)
			return r;
	}
}

/* How far its last flush is, as src/wpfs/ending.c notes it. False: it has not begun. */
static bool flush_read(const struct unmounter *u, uint64_t *done, uint64_t *total)
{
	char path[sizeof(WPFS_RUN_DIR) + WPFS_ID_MAX + 32], text[64];
	_cleanup_close_ int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "%s/%s/private/flush", WPFS_RUN_DIR, u->id);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	return sscanf(text, "%" SCNu64 " %" SCNu64, done, total) == 2;
}

/* As long as it gets on, it is waited for. Gives what poll(2) does. */
static int wait_daemon(const struct unmounter *u)
{
	struct pollfd daemon = {u->daemon_pidfd, POLLIN, 0};
	struct progress line = {.total = UINT64_MAX};
	int64_t deadline = now_ms() + FLUSH_WAIT_MS, say = now_ms() + FLUSH_SAY_MS;
	uint64_t done, total, before = UINT64_MAX;
	bool said = false;
	int n;

	while ((n = poll(&daemon, 1, FLUSH_LOOK_MS)) == 0 && now_ms() < deadline) {
		if (!said && (u->verbose || now_ms() >= say)) {
			progress_end(&line);
			ctl_say("%s: unmounted; waiting for wpfs (pid %d) to write its store",
				u->target, u->daemon_pid);
			said = true;
		}
		if (!flush_read(u, &done, &total))
			continue;
		if (line.total != total)
			progress_begin(&line, "flush", PROGRESS_BYTES, total);
		if (done != before)
			deadline = now_ms() + FLUSH_WAIT_MS;
		before = done;
		progress_update(&line, done);
	}
	progress_end(&line);
	return n;
}

/* The store is whole when the daemon has ended and has taken its run directory with it. */
static int wait_flush(struct unmounter *u)
{
	char run_dir[sizeof(WPFS_RUN_DIR) + 1 + WPFS_ID_MAX];
	int n;

	if (u->daemon_pidfd < 0 || !is_last_mount(u))
		return 0;
	n = wait_daemon(u);
	if (n <= 0) {
		ctl_say("%s: unmounted, but wpfs (pid %d) is still there: it writes its store, or "
			"the mount lives on in another container: wait until it has ended",
			u->target, u->daemon_pid);
		return -ETIMEDOUT;
	}
	snprintf(run_dir, sizeof(run_dir), "%s/%s", WPFS_RUN_DIR, u->id);
	if (access(run_dir, F_OK) == 0) {
		ctl_say("%s: unmounted, but wpfs (pid %d) ended before its store was written: "
			"mount "
			"the store again, it goes on from %s",
			u->target, u->daemon_pid, run_dir);
		return -EIO;
	}
	return 0;
}

static int usage(void)
{
	ctl_say("usage: umount.fuse.wpfs [-flnrv] [-t TYPE] [-N NAMESPACE] MOUNTPOINT");
	return 2;
}

/* The options are those that umount(8) hands on; -n and -t mean nothing here. */
static int parse(struct unmounter *u, int argc, char **argv)
{
	int option;

	opterr = 0;
	while ((option = getopt(argc, argv, "flnrvst:N:")) != -1) {
		switch (option) {
		case 'f':
			u->flags |= MNT_FORCE;
			break;
		case 'l':
			u->flags |= MNT_DETACH;
			break;
		case 'v':
			u->verbose = true;
			break;
		case 'n':
		case 't':
		case 's':
			break;
		case 'r':
			ctl_say("-r: a busy wpfs is not made read-only instead");
			break;
		case 'N':
			ctl_say("-N: run umount in that mount namespace instead, with nsenter(1)");
			return 2;
		default:
			return usage();
		}
	}
	if (optind + 1 != argc)
		return usage();
	u->target = argv[optind];
	return 0;
}

int main(int argc, char **argv)
{
	struct unmounter u = {.daemon_pidfd = -1};
	_cleanup_free_ char *real = NULL;
	int r;

	r = parse(&u, argc, argv);
	if (r)
		return r;
	real = realpath(u.target,
			NULL); /* does not ask a dead mount: the last step is a readlink */
	if (real)
		u.target = real;
	r = find_mount(&u);
	if (r)
		return 1;
	find_daemon(&u);
	r = unmount(&u);
	if (!r && !(u.flags & MNT_DETACH))
		r = wait_flush(&u);
	ipc_client_close(u.client);
	close_fd(&u.daemon_pidfd);
	return r ? 1 : 0;
}
