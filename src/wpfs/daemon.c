/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The order of a start, each step undone in reverse: names and locks, database, lower, socket,
 * mount, tracking, FUSE threads. Requests are answered only when tracking listens to them: a punch
 * in between would be missed. The daemon never opens, stats or maps anything on its own mount: it
 * would wait for itself. The watchdog's thread does (wpfs/notify.c), which has nothing else to do.
 */
#include "wpfs/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/fdio.h"
#include "base/log.h"
#include "base/mountinfo.h"
#include "db/db.h"
#include "db/marks.h"
#include "fs/absent.h"
#include "fs/fs.h"
#include "fs/store.h"
#include "ipc/server.h"
#include "track/capped.h"
#include "track/track.h"
#include "wpfs/ending.h"
#include "wpfs/hooks.h"
#include "wpfs/mountpoint.h"
#include "wpfs/needs.h"
#include "wpfs/notify.h"
#include "wpfs/rundir.h"
#include "wpfs/storedir.h"
#include "wpfs/utab.h"

struct daemon {
	const struct options *options;
	char mountpoint[PATH_MAX];
	bool has_store, dead_mount;
	bool stashed; /* contents that did not fit are with the pages out of memory */
	bool in_utab; /* umount(8) is told of our helper */
	char id[WPFS_ID_MAX];
	struct storedir store;
	struct rundir run;
	struct db *db;
	int listen_fd;
	struct fs_absent *absent; /* NULL: contents do not come later */
	struct fs *fs;
	bool mounted;
	struct mountinfo mount; /* valid when mounted */
	struct track *track;
	struct capped *capped; /* NULL on a native mount */
	struct hooks hooks;
};

/* Backing files are descriptors: one for every file that is in use. */
static void raise_limits(void)
{
	struct rlimit limit = {.rlim_cur = 1048576, .rlim_max = 1048576};

	if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
		return;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/*
 * To kill the daemon frees no memory, for files are not its own, and takes the mount away. Unless
 * somebody has said what it is worth.
 */
static void keep_from_oom_killer(void)
{
	_cleanup_close_ int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	char now[16] = "";

	if (fd >= 0 && read(fd, now, sizeof(now) - 1) > 0 && strcmp(now, "0\n") == 0 &&
	    write(fd, "-900", 4) < 0)
		log_debug("cannot set oom_score_adj: %s", log_errstr(errno));
}

static int ignore_mm(void *ctx, const struct db_mm *row, struct mm *model)
{
	return 0;
}

static int open_database(struct daemon *d, const char *dir, int dir_fd, unsigned flags)
{
	char path[PATH_MAX + 16], why[DB_WHY_SIZE] = "";
	int r;

	snprintf(path, sizeof(path), "%s/wpfs.db", dir);
	r = db_open_at(dir_fd, path, flags, &d->db, why);
	/* Before anything is done with it: sets of pages that are none are found by reading them.
	 */
	if (!r)
		r = db_marks_load(d->db, &(struct db_marks_visitor){.mm = ignore_mm});
	if (r == -EBADMSG || r == -EUCLEAN)
		db_why_damaged(path, why);
	if (r)
		log_err("cannot open the database %s", why[0] ? why : log_errstr(r));
	return r;
}

/* The id of a store, made with it. */
static int store_id(struct daemon *d)
{
	_cleanup_free_ char *uuid = NULL;
	int r = db_meta_get(d->db, DB_META_UUID, d->id, sizeof(d->id));

	if (r != -ENODATA)
		return r;
	r = fdio_read_file(AT_FDCWD, "/proc/sys/kernel/random/uuid", &uuid, NULL);
	if (r)
		return r;
	uuid[strcspn(uuid, "\n")] = '\0';
	snprintf(d->id, sizeof(d->id), "%s", uuid);
	return db_meta_set(d->db, DB_META_UUID, d->id);
}

static int open_run(struct daemon *d)
{
	struct lockfile_holder holder;
	int r = rundir_open(d->id, d->mountpoint, &d->run, &holder);

	if (r == -EBUSY)
		log_err("the mountpoint %s is in use by wpfs with pid %d: unmount it first",
			d->mountpoint, holder.pid);
	return r;
}

static int open_store(struct daemon *d)
{
	int r = storedir_open(d->options->store, d->mountpoint, &d->store);

	if (!r)
		r = open_database(d, d->store.path, d->store.dir_fd,
				  storedir_has_contents(&d->store) ? DB_MUST_EXIST : 0);
	if (r)
		return r;
	r = store_id(d);
	if (!r && !rundir_id_is_valid(d->id))
		r = -EUCLEAN;
	if (r)
		log_err("cannot read the id of the store %s: %s", d->store.path, log_errstr(r));
	if (!r)
		r = open_run(d);
	return r ? r : rundir_lower_open(&d->run, d->options->lower, d->options->mount_flags);
}

static int open_volatile(struct daemon *d)
{
	XXH128_hash_t hash = XXH3_128bits(d->mountpoint, strlen(d->mountpoint));
	char private_path[PATH_MAX];
	int r;

	snprintf(d->id, sizeof(d->id), "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64,
		 (uint64_t)hash.low64);
	r = open_run(d);
	if (!r)
		r = rundir_lower_open(&d->run, d->options->lower, d->options->mount_flags);
	if (r)
		return r;
	rundir_private_path(&d->run, "", private_path, sizeof(private_path));
	return open_database(d, private_path, d->run.private_fd, DB_VOLATILE);
}

/* On a native mount contents come when they are asked for. */
static int load_tree(struct daemon *d)
{
	const struct fs_store_elsewhere later = {
		.ctx = d->absent, .take = fs_absent_take, .unseen = true};
	int r = fs_store_load(d->db, d->store.data_fd, d->run.lower_fd, d->options->has_root_attrs,
			      &d->run.ids, &later);

	return r ? r : fs_absent_complete(d->absent);
}

/* A capped mount takes contents up to half of what may be in memory; the rest stays on disk. */
static int load_tree_capped(struct daemon *d)
{
	struct capped_stash stash = {.private_fd = d->run.private_fd,
				     .spill_fd = d->store.spill_fd,
				     .room = d->options->resident / 2};
	const struct fs_store_elsewhere elsewhere = {.ctx = &stash, .take = capped_stash_file};
	int r = fs_store_load(d->db, d->store.data_fd, d->run.lower_fd, d->options->has_root_attrs,
			      &d->run.ids, &elsewhere);

	d->stashed = stash.begun;
	return r;
}

static int start_absent(struct daemon *d)
{
	int r;

	if (!d->has_store || d->options->resident)
		return 0;
	r = fs_absent_new(d->run.private_fd, d->store.data_fd, d->run.lower_fd, &d->absent);
	if (!r && d->run.adopted)
		r = fs_absent_adopt(d->absent);
	if (r)
		log_err("cannot tell which contents are still in the store: %s", log_errstr(r));
	return r;
}

/* Restores the tree into a lower that is new. */
static int fill_lower(struct daemon *d)
{
	int r = start_absent(d);

	if (r || d->run.adopted)
		return r;
	if (d->has_store)
		r = d->options->resident ? load_tree_capped(d) : load_tree(d);
	if (!r)
		r = rundir_lower_complete(&d->run);
	if (!r) {
		r = db_meta_set(d->db, DB_META_LOWER_ID, d->run.lower_id);
		if (r)
			log_err("cannot write to the database: %s", log_errstr(r));
	}
	return r;
}

static int open_socket(struct daemon *d)
{
	char path[sizeof(d->run.path) + 8];

	snprintf(path, sizeof(path), "%s/sock", d->run.path);
	d->listen_fd = ipc_listen(path);
	if (d->listen_fd < 0)
		log_err("cannot listen on %s: %s", path, log_errstr(d->listen_fd));
	return d->listen_fd < 0 ? d->listen_fd : 0;
}

/* As good as its own: the name is random. Of a restarted daemon it is the same. */
static uint32_t lower_generation(const struct rundir *rd)
{
	char part[9];
	uint32_t generation;

	snprintf(part, sizeof(part), "%.8s", rd->lower_id);
	generation = (uint32_t)strtoul(part, NULL, 16);
	return generation ? generation : 1;
}

static int mount_fuse(struct daemon *d)
{
	const struct fs_config config = {
		.lower_fd = d->run.lower_fd,
		.ids = &d->run.ids,
		.absent = d->absent,
		.id = d->id,
		.generation = lower_generation(&d->run),
		.kind = d->options->resident ? WPFS_KIND_CAPPED : WPFS_KIND_NATIVE,
		.adopted = d->run.adopted,
		.uring = d->options->uring,
		.debug = d->options->debug,
	};
	const char *what = "prepare";
	int r = fs_new(&config, &d->fs);

	if (!r && d->has_store)
		r = fs_store_attach(d->fs, d->db, d->store.data_fd, d->run.adopted);
	if (!r && d->dead_mount && umount2(d->mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW) < 0) {
		what = "detach the dead mount";
		r = -errno;
	} else if (!r) {
		r = fs_mount(d->fs, d->options->source, d->mountpoint, d->options->mount_flags,
			     &what);
		d->mounted = r == 0;
	}
	if (!r) {
		what = "find the mount";
		r = mountinfo_find(d->mountpoint, &d->mount);
	}
	if (r)
		log_err("cannot mount on %s: %s: %s", d->mountpoint, what, log_errstr(r));
	return r;
}

/* A lower that is taken over keeps its kind: its programs and its pages are set up for it. */
static int start_capped(struct daemon *d)
{
	const struct capped_config config = {
		.fs = d->fs,
		.lower_fd = d->run.lower_fd,
		.private_fd = d->run.private_fd,
		.spill_fd = d->store.spill_fd,
		.adopted = d->run.adopted || d->stashed,
		.resident = d->options->resident,
		.size = d->options->size,
		.settle_ms = d->options->settle_ms,
		.sigbus = d->options->sigbus,
	};
	bool was_capped = capped_was(d->run.private_fd), is_capped = d->options->resident != 0;

	if (d->run.adopted && was_capped != is_capped) {
		log_err("the mount on %s that was killed was %scapped: start it %s resident= "
			"again, or unmount it first",
			d->mountpoint, was_capped ? "" : "not ", was_capped ? "with" : "without");
		return -EINVAL;
	}
	return is_capped ? capped_new(&config, &d->capped) : 0;
}

static int start_tracking(struct daemon *d)
{
	const struct options *o = d->options;
	char aside[PATH_MAX];
	const struct track_config config = {
		.db = d->db,
		.fs = d->fs,
		.listen_fd = d->listen_fd,
		.id = d->id,
		.lower_id = d->run.lower_id,
		.store = d->has_store ? d->store.path : "none",
		.mountpoint = d->mountpoint,
		.aside = rundir_private_path(&d->run, "unsaved.db", aside, sizeof(aside)),
		.dev = d->mount.dev,
		.kind = o->resident ? WPFS_KIND_CAPPED : WPFS_KIND_NATIVE,
		.capped = d->capped,
		.uffd_policy = o->uffd_policy,
		.uffd_gid = o->uffd_gid,
		.harvest_s = o->harvest_s,
	};
	int r;

	d->listen_fd = -1; /* taken over */
	r = track_start(&config, &d->track);
	if (r) {
		log_err("cannot start tracking: %s", db_errstr(r));
		return r;
	}
	fs_set_hooks(d->fs, hooks_make(&d->hooks, d->fs, d->track, d->capped));
	return 0;
}

static int serve(struct daemon *d)
{
	int r = fs_serve(d->fs);

	if (r == -EOPNOTSUPP)
		log_err("cannot mount on %s: the kernel has no FUSE passthrough: use Linux 6.9 or "
			"newer "
			"with CONFIG_FUSE_PASSTHROUGH",
			d->mountpoint);
	else if (r)
		log_err("cannot serve %s: %s", d->mountpoint, log_errstr(r));
	else if (d->options->uring && !fs_uring(d->fs))
		log_warn("FUSE over io_uring is not in use: it needs Linux 6.14 and "
			 "/sys/module/fuse/parameters/enable_uring set to Y");
	return r;
}

static int start(struct daemon *d)
{
	int r;

	r = needs_check();
	if (!r)
		r = mountpoint_resolve(d->options->mountpoint, d->mountpoint);
	if (!r)
		r = mountpoint_check(d->mountpoint, &d->dead_mount);
	if (!r)
		r = d->has_store ? open_store(d) : open_volatile(d);
	if (!r)
		r = fill_lower(d);
	if (!r)
		r = open_socket(d);
	if (!r)
		r = mount_fuse(d);
	if (!r)
		r = start_capped(d);
	if (!r)
		r = start_tracking(d);
	if (!r)
		r = serve(d);
	if (!r)
		r = track_serving(d->track);
	if (!r && d->absent)
		r = fs_absent_prefetch(d->absent);
	return r;
}

/* SIGTERM and SIGINT unmount, as umount(8) would; in use it stays, and says so. */
static void try_unmount(struct daemon *d)
{
	int err;

	track_settle(d->track);
	if (umount2(d->mountpoint, UMOUNT_NOFOLLOW) == 0)
		return;
	err = -errno;
	notify_send("STATUS=Mounted on %s; asked to end, and cannot: %s", d->mountpoint,
		    log_errstr(err));
	log_warn("cannot unmount %s: %s: end what uses it (see fuser -vm %s), then send the signal "
		 "again",
		 d->mountpoint, log_errstr(err), d->mountpoint);
}

static int flush_timer(unsigned seconds)
{
	const struct itimerspec every = {.it_interval = {.tv_sec = seconds},
					 .it_value = {.tv_sec = seconds}};
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	if (fd >= 0)
		timerfd_settime(fd, 0, &every, NULL);
	return fd;
}

/* Waits for the end of the mount; signals and the flush timer on the way. */
static void serve_until_unmounted(struct daemon *d, int signal_fd)
{
	_cleanup_close_ int timer = -1;
	struct pollfd fds[4];

	if (d->has_store && d->options->flush_s)
		timer = flush_timer(d->options->flush_s);
	fds[0] = (struct pollfd){.fd = fs_wait_fd(d->fs), .events = POLLIN};
	fds[1] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
	fds[2] = (struct pollfd){.fd = timer, .events = POLLIN};
	fds[3] = (struct pollfd){.fd = fs_store_wake_fd(d->fs), .events = POLLIN};
	for (;;) {
		struct signalfd_siginfo info;
		uint64_t ticks;

		if (poll(fds, 4, -1) < 0)
			continue;
		if (fds[0].revents)
			return;
		if (fds[1].revents && read(signal_fd, &info, sizeof(info)) == sizeof(info) &&
		    info.ssi_signo != SIGHUP)
			try_unmount(d);
		if (fds[2].revents && read(timer, &ticks, sizeof(ticks)) == sizeof(ticks))
			fs_store_flush(d->fs, false);
		if (fds[3].revents && eventfd_read(fds[3].fd, &ticks) == 0)
			fs_store_flush_names(d->fs);
	}
}

/* What is mounted on the mountpoint is ours and dead, when the connection was aborted. */
static void unmount_rest(struct daemon *d)
{
	struct mountinfo entry;

	if (d->mounted && mountinfo_find(d->mountpoint, &entry) == 0 && entry.dev == d->mount.dev)
		umount2(d->mountpoint, MNT_DETACH | UMOUNT_NOFOLLOW);
	d->mounted = false;
}

static int last_flush(struct daemon *d)
{
	struct ending ending;
	char path[PATH_MAX];
	int r;

	ending_begin(&ending, rundir_private_path(&d->run, "flush", path, sizeof(path)),
		     d->options->foreground);
	fs_store_progress(d->fs, ending_progress, &ending);
	r = fs_store_flush(d->fs, true);
	fs_store_progress(d->fs, NULL, NULL);
	ending_end(&ending);
	return r;
}

/* Undoes what start() did, as far as it came. -errno: the last flush failed. */
static int stop(struct daemon *d, bool served)
{
	int r = 0;

	unmount_rest(d);
	if (d->in_utab)
		utab_remove(d->mountpoint);
	if (d->fs)
		fs_wait(d->fs);
	if (d->fs)
		fs_set_hooks(d->fs, NULL);
	if (d->track)
		r = track_stop(d->track);
	d->track = NULL;
	if (r && !d->has_store)
		r = 0; /* nothing is to be kept */
	if (r)
		log_err("cannot write the last marks to the store %s: %s", d->store.path,
			log_errstr(r));
	if (d->capped)
		fs_set_hooks(d->fs, hooks_make(&d->hooks, d->fs, NULL, d->capped));
	if (served && d->has_store && r == 0) /* no contents without the marks they cost */
		r = last_flush(d);
	if (served && d->has_store && r == 0)
		r = db_settle_all(d->db);
	if (d->capped) {
		fs_set_hooks(d->fs, NULL);
		capped_free(d->capped, served && r == 0);
	}
	if (d->fs) {
		fs_store_detach(d->fs);
		fs_free(d->fs);
	}
	fs_absent_free(d->absent);
	if (d->db)
		db_close(d->db);
	if (d->listen_fd >= 0)
		close(d->listen_fd);
	return r;
}

/* What nothing else has must not go with the lower; the next start takes it over. */
static void keep_lower(struct daemon *d)
{
	log_err("the changes since the last flush are kept in memory, in %s/private: see to it "
		"that "
		"the store %s can be written, start wpfs on it again and unmount",
		d->run.path, d->store.path);
	rundir_close(&d->run);
}

static int signals_block(void)
{
	sigset_t set;
	int fd;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGIO, SIG_IGN); /* of leases; nobody waits for it */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0)
		return -EINVAL;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int daemon_run(const struct options *options, void (*ready)(void *ctx), void *ctx)
{
	struct daemon d = {.options = options,
			   .has_store = strcmp(options->store, "none") != 0,
			   .store = STOREDIR_INIT,
			   .run = RUNDIR_INIT,
			   .listen_fd = -1};
	_cleanup_close_ int signal_fd = signals_block();
	int r, flushed;

	umask(0);
	raise_limits();
	keep_from_oom_killer();
	notify_open();
	r = signal_fd < 0 ? signal_fd : start(&d);
	if (!r) {
		if (d.dead_mount)
			utab_remove(d.mountpoint); /* of the daemon that was killed */
		d.in_utab = utab_add(options->source, d.mountpoint);
		ready(ctx);
		notify_send("READY=1\nMAINPID=%d\nSTATUS=Mounted on %s, %s", getpid(), d.mountpoint,
			    d.capped ? "capped" : "native");
		r = notify_watch(d.mountpoint, d.mount.dev, d.track);
		if (r)
			log_warn("there is no watchdog: %s", log_errstr(r));
		serve_until_unmounted(&d, signal_fd);
		r = 0;
		notify_send("STOPPING=1\nSTATUS=Writing the store");
	}
	notify_unwatch();
	if (!r)
		notify_ending();
	flushed = stop(&d, r == 0);
	/* A lower that was taken over from a killed daemon holds data that nothing else has. */
	if (flushed)
		keep_lower(&d);
	else if (r && d.run.adopted)
		rundir_close(&d.run);
	else if (d.run.lock_fd >= 0)
		rundir_remove(&d.run);
	storedir_close(&d.store);
	notify_close();
	return r ? r : flushed;
}
