/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The FUSE session: mount, handshake, threads, end. mount(2) is called here and not by libfuse:
 * its own errors are printed, not returned, and its defaults are nosuid,nodev.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "fs/loop.h"
#include "fs/near.h"
#include "fs/priv.h"
#include "fs/store.h"

#ifndef FUSE_CAP_OVER_IO_URING
#define FUSE_CAP_OVER_IO_URING 0 /* libfuse 3.17: no kernel is ever found to have it */
#endif

static bool want(struct fuse_conn_info *conn, uint64_t flag)
{
	return fuse_set_feature_flag(conn, flag);
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct fs *fs = userdata;
	static const uint64_t needed[] = {
		FUSE_CAP_PASSTHROUGH, FUSE_CAP_HANDLE_KILLPRIV_V2, FUSE_CAP_POSIX_ACL,
		FUSE_CAP_DONT_MASK,   FUSE_CAP_ATOMIC_O_TRUNC,	   FUSE_CAP_IOCTL_DIR,
	};

	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
		if (!want(conn, needed[i]))
			fs->init_error = -EOPNOTSUPP;
	}
	want(conn, FUSE_CAP_PARALLEL_DIROPS);
	want(conn, FUSE_CAP_READDIRPLUS);
	want(conn, FUSE_CAP_READDIRPLUS_AUTO);
	if (!(fs->mount_flags & MS_STRICTATIME))
		want(conn, FUSE_CAP_CACHE_SYMLINKS);
	/* The lower file is the page cache: there is nothing to invalidate by mtime. */
	fuse_unset_feature_flag(conn, FUSE_CAP_AUTO_INVAL_DATA);
	/*
	 * Requests are some hundred bytes. A pipe for each, which we may not make as large as
	 * libfuse wants it without CAP_SYS_RESOURCE, costs eight calls and then the request is read
	 * anyway.
	 */
	fuse_unset_feature_flag(conn, FUSE_CAP_SPLICE_READ);
	conn->no_interrupt = 1; /* no request waits for another process */
	fs->uring = fs->uring_wanted && fuse_get_feature_flag(conn, FUSE_CAP_OVER_IO_URING);
	fs->init_seen = true;
	sem_post(&fs->ready);
}

static void fuse_log_line(enum fuse_log_level level, const char *fmt, va_list ap)
{
	char line[1024];

	vsnprintf(line, sizeof(line), fmt, ap);
	line[strcspn(line, "\n")] = '\0';
	if (line[0])
		log_line((int)level, "%s", line);
}

static int session_new(struct fs *fs)
{
	const char *options = NULL;
	char *argv[] = {(char *)"wpfs", NULL, NULL, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(1, argv);
	struct fuse_lowlevel_ops ops = {.init = op_init};

	if (fs->debug && fs->uring_wanted)
		options = "-odebug,io_uring";
	else if (fs->debug)
		options = "-odebug";
	else if (fs->uring_wanted)
		options = "-oio_uring";
	if (options) {
		argv[1] = (char *)options;
		args.argc = 2;
	}
	fs_ops_names(&ops);
	fs_ops_dirs(&ops);
	fs_ops_attrs(&ops);
	fs_ops_xattrs(&ops);
	fs_ops_files(&ops);
	fs_ops_io(&ops);
	fuse_set_log_func(fuse_log_line);
	fs->session = fuse_session_new(&args, &ops, sizeof(ops), fs);
	fuse_opt_free_args(&args);
	return fs->session ? 0 : -ENOMEM;
}

/* A flush must get its turn though requests never stop. */
static void names_lock_init(pthread_rwlock_t *lock)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(lock, &attr);
	pthread_rwlockattr_destroy(&attr);
}

/*
 * A quarter of the descriptors for files that are open or were, half for those that lost their name
 * and are not forgotten yet.
 */
static void backing_limits(struct fs *fs)
{
	struct rlimit limit = {.rlim_cur = 1024};

	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur > 1 << 20)
		limit.rlim_cur = 1 << 20;
	fs->max_backing_fds = (unsigned)limit.rlim_cur / 4;
	fs->max_nameless = (unsigned)limit.rlim_cur / 2;
	fs->max_idle = fs->max_backing_fds / 4 < 1024 ? fs->max_backing_fds / 4 : 1024;
}

int fs_new(const struct fs_config *config, struct fs **out)
{
	struct fs *fs = calloc(1, sizeof(*fs));
	ssize_t n;
	int r;

	if (!fs)
		return -ENOMEM;
	fs->lower_fd = config->lower_fd;
	fs->ids = config->ids;
	fs->absent = config->absent;
	fs->kind = config->kind;
	fs->generation = config->generation;
	fs->adopted = config->adopted;
	atomic_store(&fs->behind_end, config->adopted);
	fs->uring_wanted = config->uring && FUSE_CAP_OVER_IO_URING;
	fs->debug = config->debug;
	fs->dev_fd = -1;
	snprintf(fs->id, sizeof(fs->id), "%s", config->id);
	sem_init(&fs->ready, 0, 0);
	pthread_rwlock_init(&fs->hooks_lock, NULL);
	names_lock_init(&fs->names_lock);
	pthread_mutex_init(&fs->changes_lock, NULL);
	pthread_mutex_init(&fs->dirs_lock, NULL);
	pthread_mutex_init(&fs->idle_lock, NULL);
	pthread_mutex_init(&fs->nameless_lock, NULL);
	pthread_cond_init(&fs->nameless_fewer, NULL);
	fs_waits_init(fs);
	fs_inval_init(fs);
	fs_parents_init(fs);
	backing_limits(fs);
	signal(SIGIO, SIG_IGN); /* leases that are only asked for */
	fs->done_fd = eventfd(0, EFD_CLOEXEC);
	fs->changes_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	n = readlink(fs_proc_path(fs->lower_fd).s, fs->lower_path, sizeof(fs->lower_path) - 1);
	r = fs->done_fd < 0 || fs->changes_fd < 0 || n < 0 ? -errno : 0;
	if (!r) {
		fs->lower_path_len = (size_t)n;
		r = session_new(fs);
	}
	if (!r)
		r = fs_inodes_init(fs);
	if (r) {
		fs_free(fs);
		return r;
	}
	*out = fs;
	return 0;
}

int fs_mount(struct fs *fs, const char *source, const char *mountpoint, unsigned long flags,
	     const char **what)
{
	char options[128], dev[32];
	int r;

	*what = "open /dev/fuse";
	fs->dev_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fs->dev_fd < 0)
		return -errno;
	*what = "mount";
	fs->mount_flags = flags;
	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
		 fs->dev_fd);
	if (mount(source, mountpoint, "fuse.wpfs", flags, options) < 0) {
		r = -errno;
		close_fd(&fs->dev_fd);
		return r;
	}
	snprintf(dev, sizeof(dev), "/dev/fd/%d", fs->dev_fd);
	*what = "start the FUSE session";
	return fuse_session_mount(fs->session, dev) == 0 ? 0 : -EIO;
}

/* With io_uring libfuse has threads of its own, and ends them with its own loop. */
static int serve_uring(struct fs *fs)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int r = config ? 0 : -ENOMEM;

	if (!r) {
		fuse_loop_cfg_set_max_threads(config, FS_THREADS);
		r = fuse_session_loop_mt(fs->session, config);
	}
	fuse_loop_cfg_destroy(config);
	return r > 0 ? -r : r;
}

static int serve(struct fs *fs)
{
	const struct fs_loop_calls calls = {fs->dev_fd, fuse_session_receive_buf,
					    fuse_session_process_buf, near_is_alone};
	int r = creds_setup(fs->kind == WPFS_KIND_CAPPED);

	if (!r)
		r = fs_loop_first(fs->session, &calls);
	if (r <= 0)
		return r;
	if (fuse_session_exited(fs->session))
		return -EPROTO; /* libfuse has said why */
	if (fs->uring)
		return serve_uring(fs);
	return fs_loop_run(fs->session, &calls, FS_THREADS, fs_loop_processors());
}

static void *session_thread(void *arg)
{
	struct fs *fs = arg;
	uint64_t one = 1;
	int r = serve(fs);

	fs->session_error = r;
	if (!fs->init_seen)
		fs->init_error = r ? r : -ENODEV;
	sem_post(&fs->ready);
	if (write(fs->done_fd, &one, sizeof(one)) < 0)
		log_err("cannot tell the end of the session: %s", log_errstr(errno));
	return NULL;
}

int fs_serve(struct fs *fs)
{
	int r = pthread_create(&fs->thread, NULL, session_thread, fs);

	if (r)
		return -r;
	fs->thread_started = true;
	while (sem_wait(&fs->ready) < 0 && errno == EINTR)
		;
	return fs->init_error;
}

uint32_t fs_generation(const struct fs *fs)
{
	return fs->generation;
}

bool fs_uring(const struct fs *fs)
{
	return fs->uring;
}

int fs_wait_fd(const struct fs *fs)
{
	return fs->done_fd;
}

int fs_wait(struct fs *fs)
{
	if (fs->thread_started)
		pthread_join(fs->thread, NULL);
	fs->thread_started = false;
	fs_waits_end(fs);
	fs_inval_end(fs);
	return fs->session_error;
}

void fs_free(struct fs *fs)
{
	fs_wait(fs);
	fs_dirs_free(fs);
	fs_parents_free(fs);
	fs_inodes_free(fs);
	fs_backings_free(fs);
	if (fs->session)
		fuse_session_destroy(fs->session); /* closes dev_fd */
	if (fs->done_fd >= 0)
		close(fs->done_fd);
	if (fs->changes_fd >= 0)
		close(fs->changes_fd);
	fs_changes_free(&fs->changes);
	fs_change_set_free(&fs->touched);
	fs_waits_free(fs);
	fs_inval_free(fs);
	pthread_rwlock_destroy(&fs->names_lock);
	pthread_mutex_destroy(&fs->changes_lock);
	pthread_mutex_destroy(&fs->dirs_lock);
	pthread_mutex_destroy(&fs->idle_lock);
	pthread_mutex_destroy(&fs->nameless_lock);
	pthread_cond_destroy(&fs->nameless_fewer);
	pthread_rwlock_destroy(&fs->hooks_lock);
	sem_destroy(&fs->ready);
	free(fs);
}

void fs_set_hooks(struct fs *fs, const struct fs_hooks *hooks)
{
	pthread_rwlock_wrlock(&fs->hooks_lock);
	fs->hooks = hooks;
	pthread_rwlock_unlock(&fs->hooks_lock);
}

void fs_hook_drop_begin(struct fs *fs, struct fs_drop *drop)
{
	fs_store_cut(fs, drop->ino);
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->drop_begin)
		fs->hooks->drop_begin(fs->hooks->ctx, drop);
	pthread_rwlock_unlock(&fs->hooks_lock);
}

void fs_hook_drop_end(struct fs *fs, struct fs_drop *drop)
{
	fs_store_cut(fs, drop->ino);
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->drop_end)
		fs->hooks->drop_end(fs->hooks->ctx, drop);
	pthread_rwlock_unlock(&fs->hooks_lock);
}

void fs_hook_settle(struct fs *fs)
{
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->settle)
		fs->hooks->settle(fs->hooks->ctx);
	pthread_rwlock_unlock(&fs->hooks_lock);
}

int fs_hook_sync_file(struct fs *fs, uint64_t ino)
{
	int r = 0;

	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->sync_file)
		r = fs->hooks->sync_file(fs->hooks->ctx, ino);
	pthread_rwlock_unlock(&fs->hooks_lock);
	return r;
}

void fs_hook_contents_begin(struct fs *fs, uint64_t ino)
{
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->contents_begin)
		fs->hooks->contents_begin(fs->hooks->ctx, ino);
	pthread_rwlock_unlock(&fs->hooks_lock);
}

void fs_hook_contents_durable(struct fs *fs, uint64_t ino)
{
	pthread_rwlock_rdlock(&fs->hooks_lock);
	if (fs->hooks && fs->hooks->contents_durable)
		fs->hooks->contents_durable(fs->hooks->ctx, ino);
	pthread_rwlock_unlock(&fs->hooks_lock);
}
