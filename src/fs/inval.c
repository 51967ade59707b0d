/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel is told to forget what it keeps of a file's contents or of a symbolic link's text. For
 * that it waits for pages that are locked, and locked is a page that a READ or a READLINK is going
 * to fill, which may be in our queue. If all FUSE threads waited there, nobody would answer it: so
 * only a few do, and when these are busy, one thread sees to the rest. With io_uring that request
 * may be the next one of the same thread, so none of them does.
 */
#include <errno.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/log.h"
#include "base/thread.h"
#include "fs/priv.h"

#define HERE_MAX (FS_THREADS / 8)

struct fs_inval_request {
	struct fs_inval_request *prev, *next;
	uint64_t ino;
	off_t off, len;
};

static void inval_do(struct fs *fs, uint64_t ino, off_t off, off_t len)
{
	fuse_lowlevel_notify_inval_inode(fs->session, ino, off, len);
}

static void *inval_thread(void *arg)
{
	struct fs *fs = arg;
	struct fs_invals *invals = &fs->invals;
	struct fs_inval_request *one;

	thread_anywhere(0);
	pthread_setname_np(pthread_self(), "wpfs-inval");
	pthread_mutex_lock(&invals->lock);
	while (!invals->over || invals->queue) {
		one = invals->queue;
		if (!one) {
			pthread_cond_wait(&invals->more, &invals->lock);
			continue;
		}
		DL_DELETE(invals->queue, one);
		pthread_mutex_unlock(&invals->lock);
		inval_do(fs, one->ino, one->off, one->len);
		free(one);
		pthread_mutex_lock(&invals->lock);
	}
	pthread_mutex_unlock(&invals->lock);
	return NULL;
}

/* With the lock held. The thread is made when it is needed first. */
static bool inval_queue(struct fs *fs, uint64_t ino, off_t off, off_t len)
{
	struct fs_invals *invals = &fs->invals;
	struct fs_inval_request *one = calloc(1, sizeof(*one));

	if (one && !invals->started) {
		fs_request_may_wait(); /* a new thread begins as this one */
		invals->started = pthread_create(&invals->thread, NULL, inval_thread, fs) == 0;
	}
	if (!one || !invals->started) {
		free(one);
		return false;
	}
	*one = (struct fs_inval_request){.ino = ino, .off = off, .len = len};
	DL_APPEND(invals->queue, one);
	pthread_cond_signal(&invals->more);
	return true;
}

void fs_inval(struct fs *fs, uint64_t ino, off_t off, off_t len)
{
	struct fs_invals *invals = &fs->invals;
	bool queued = false;

	pthread_mutex_lock(&invals->lock);
	if (fs->uring || invals->here >= HERE_MAX)
		queued = inval_queue(fs, ino, off, len);
	invals->here += !queued;
	pthread_mutex_unlock(&invals->lock);
	if (queued)
		return;
	fs_request_may_wait();
	inval_do(fs, ino, off, len);
	pthread_mutex_lock(&invals->lock);
	invals->here--;
	pthread_mutex_unlock(&invals->lock);
}

void fs_inval_init(struct fs *fs)
{
	pthread_mutex_init(&fs->invals.lock, NULL);
	pthread_cond_init(&fs->invals.more, NULL);
}

void fs_inval_end(struct fs *fs)
{
	pthread_mutex_lock(&fs->invals.lock);
	fs->invals.over = true;
	pthread_cond_signal(&fs->invals.more);
	pthread_mutex_unlock(&fs->invals.lock);
	if (fs->invals.started)
		pthread_join(fs->invals.thread, NULL);
	fs->invals.started = false;
}

void fs_inval_free(struct fs *fs)
{
	fs_inval_end(fs);
	pthread_cond_destroy(&fs->invals.more);
	pthread_mutex_destroy(&fs->invals.lock);
}
