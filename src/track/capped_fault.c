/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The messages of every mm's uffd, and how they are served: each with the lock held from before the
 * read to the end. An eviction that has the lock therefore knows that no event was read and not yet
 * dealt with; one that was not read makes its ioctls fail with EAGAIN. Only while a page is read
 * from the store the lock is let go of (capped_load.c), and then another thread reads the next
 * message (capped_threads.c).
 *
 * A missing page is filled in the lower file and the thread woken; it faults again, and the kernel
 * maps the page with the mark that is in its entry. UFFDIO_CONTINUE is not used: it would need the
 * mark from us, and write over it.
 *
 * What cannot be served at once is kept: a page under the fence or that somebody else is bringing
 * in, one to be read while enough are, an event unread, no room, a store that fails. It is looked
 * at again when one of those ends; the store is asked again after a while, and then less and less
 * often. The thread waits as long.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#include "base/cleanup.h"
#include "base/compat.h"
#include "base/log.h"
#include "base/units.h"
#include "spill/fault.h"
#include "track/capped_evict.h"
#include "track/capped_internal.h"
#include "track/capped_load.h"
#include "track/capped_mm.h"
#include "track/capped_room.h"
#include "track/capped_track.h"
#include "track/capped_test.h"
#include "uffd/proc.h"
#include "uffd/uffd.h"

#define RETRY_MS     20
#define RETRY_MAX_MS 2000
#define REFUSED_MS   100
#define SAY_MS	     60000

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* ---- one fault ---- */

/*
 * A child that was found has mapped and unmapped since its birth, and so has its parent: who asks
 * has it right. In a pid namespace of its own that is another one's number, or none, and what is at
 * this address there another file's, or nothing: at worst the thread waits, or asks again.
 */
static bool fault_vma_of_thread(const struct capped *c, pid_t tid, uint64_t addr,
				struct maps_vma *vma)
{
	_cleanup_close_ int fd = tid > 0 ? maps_open_fd(tid) : -1;

	return fd >= 0 && maps_at(fd, addr, vma) == 0 && vma->shared && vma->dev == c->lower_dev;
}

static int fault_vma(const struct capped *c, const struct capped_mm *mm, uint64_t addr, pid_t tid,
		     struct maps_vma *vma)
{
	if (mm->maps_fd >= 0)
		return maps_at(mm->maps_fd, addr, vma);
	if (mm->found && fault_vma_of_thread(c, tid, addr, vma))
		return 0;
	for (size_t i = 0; i < mm->inherited.nr; i++) {
		if (mm->inherited.vmas[i].start <= addr && addr < mm->inherited.vmas[i].end) {
			*vma = mm->inherited.vmas[i];
			return 0;
		}
	}
	return -ENOENT;
}

/*
 * Which page of which file is at an address. 0 or -errno: -ENXIO: of none that anything is known
 * of, so it is not in a batch.
 */
static int fault_resolve(struct capped *c, struct capped_mm *mm, uint64_t addr, pid_t tid,
			 struct capped_file **f, uint64_t *page)
{
	struct maps_vma vma = {0};
	int r = fault_vma(c, mm, addr, tid, &vma);

	if (r < 0)
		return r;
	if (vma.dev != c->lower_dev)
		return -ENXIO;
	*f = capped_file_find(c, fs_ino_of_lower(c->config.fs, vma.ino));
	*page = vma.pgoff + ((addr - vma.start) >> WPFS_PAGE_SHIFT);
	return *f ? 0 : -ENXIO;
}

static enum fault_residency fault_residency(const struct capped_file *f, uint64_t page)
{
	if (spill_bits_test(&f->bits, page))
		return FAULT_SPILLED;
	return capped_in_memory(f->fd, page, 1) ? FAULT_RESIDENT : FAULT_ABSENT;
}

/*
 * A page cannot be had: of each mm one is told of, at most once a minute. Who is refused asks again
 * ten times a second, as a new wait.
 */
static void fault_say(struct capped_mm *mm, const struct capped_wait *w)
{
	const uint64_t now = now_ms();

	if (mm->said_addr && now - mm->said_ms < SAY_MS)
		return;
	log_err("a page that pid %d waits for cannot be had: %s: it is tried again", mm->pid,
		log_errstr(w->err));
	mm->said_addr = w->addr;
	mm->said_ms = now;
}

static void fault_had(struct capped_mm *mm, const struct capped_wait *w)
{
	if (mm->said_addr != w->addr)
		return;
	log_info("a page that could not be had is there now");
	mm->said_addr = 0;
}

/*
 * Brings a page in: a wait for the store, in which the mm can go. 0 or -errno. A store that answers
 * nobody must not have all threads: whoever waits for a mark only does not wait for it.
 */
static int fault_fill(struct capped *c, struct capped_mm **mm, struct capped_file *f,
		      const struct capped_wait *w, enum fault_action action)
{
	uint64_t id = (*mm)->id;
	int r;

	if (capped_is_full(c)) {
		c->counts.throttled++;
		return -EAGAIN;
	}
	if (action == FAULT_ZERO)
		return capped_zero_fault(c, f, w->page);
	if (c->loaders == CAPPED_LOADERS)
		return -EAGAIN;
	c->loaders++;
	capped_mm_lend(c, *mm);
	r = capped_load_fault(c, f, w->page);
	c->loaders--;
	*mm = capped_mm_find(c, id);
	if (*mm)
		capped_mm_reclaim(c, *mm);
	if (*mm && r == 0)
		fault_had(*mm, w);
	return r;
}

static int fault_unprotect(const struct capped_mm *mm, uint64_t addr)
{
	int r = uffd_writeprotect_once(mm->uffd, addr, addr + WPFS_PAGE_SIZE, false);

	if (r == -EAGAIN)
		return r;
	/* Not registered any more, or not mapped: whoever waits finds out by itself. */
	return r == 0 ? 0 : uffd_wake(mm->uffd, addr, addr + WPFS_PAGE_SIZE);
}

/*
 * 0: served, or nobody waits any more; else -errno: to be tried again. w->full is set if that is
 * since there is no room for a page more: only for one of zeros, which nobody has written yet. One
 * that exists has its room, and waits for it.
 */
static int fault_serve(struct capped *c, struct capped_mm *mm, struct capped_wait *w)
{
	const uint64_t addr = w->addr;
	const bool wp = w->wp;
	enum fault_residency residency = FAULT_RESIDENT;
	struct capped_file *f = NULL;
	uint64_t page = 0;
	enum fault_action action;
	bool held = false;
	int r;

	w->full = false;
	/*
	 * With no batch under way nothing is held. Should the page have left since the thread
	 * asked, its mark goes a little before its store: nobody can tell.
	 */
	if (wp && !c->batch)
		return fault_unprotect(mm, addr);
	r = fault_resolve(c, mm, addr, (pid_t)w->ptid, &f, &page);

	if (r == 0) {
		w->ino = f->ino;
		w->page = page;
		held = capped_batch_has(c, f, page, page + 1);
		if (capped_used(c, f->ino, page, page + 1,
				1 << CAPPED_USE_DROP | 1 << CAPPED_USE_LOAD))
			return -EAGAIN;
		residency = fault_residency(f, page);
	} else if (wp && r != -ENXIO) {
		return -EAGAIN; /* it may be in the batch: until that ends */
	} else if (!wp && (r == -ENXIO || r == -ENOENT || r == -ESRCH) && mm->maps_fd >= 0) {
		return uffd_wake(mm->uffd, addr, addr + WPFS_PAGE_SIZE); /* unmapped meanwhile */
	} else if (!wp) {
		return r;
	}
	/* A write-protect fault in a file that nothing was ever spilled of: the page is there. */
	action = fault_decide(wp ? FAULT_WP : FAULT_MISSING, residency, held);
	switch (action) {
	case FAULT_HOLD:
		return -EAGAIN;
	case FAULT_UNPROTECT:
		return fault_unprotect(mm, addr);
	case FAULT_LOAD:
	case FAULT_ZERO:
		r = fault_fill(c, &mm, f, w, action);
		if (!mm)
			return 0;
		/* A page that is coming back is counted twice until it has come. */
		if (r == -ENOSPC && action == FAULT_ZERO && c->loading)
			r = -EAGAIN;
		w->full = r == -ENOSPC && action == FAULT_ZERO && capped_is_exhausted(c);
		break;
	case FAULT_WAKE:
		r = 0;
		break;
	}
	return r < 0 ? r : uffd_wake(mm->uffd, addr, addr + WPFS_PAGE_SIZE);
}

/*
 * onerror=sigbus and a store that fails, or a new page and no room for it, which is SIGBUS on tmpfs
 * too: the thread that asked gets the signal; what is in its entry stays.
 */
static bool fault_refuse(struct capped *c, const struct capped_mm *mm, struct capped_wait *w)
{
	pid_t tid = (pid_t)w->ptid;

	/* Its number in a pid namespace of its own says nothing here: such a thread waits. */
	if (!(w->full || (c->config.sigbus && w->err != -ENOSPC)) || w->err == -EAGAIN ||
	    w->err == -ENOMEM || tid <= 0 || proc_same_mm(tid, proc_thread(mm->pid)) != 1)
		return false;
	return syscall(SYS_tkill, tid, SIGBUS) == 0;
}

/* Keeps a fault that ended with w->err for later. Takes w over. */
static void fault_keep(struct capped *c, struct capped_mm *mm, struct capped_wait *w)
{
	if (w->err != -EAGAIN && !w->said && !w->full) {
		fault_say(mm, w);
		w->said = true;
	}
	if (fault_refuse(c, mm, w)) {
		/*
		 * Not all waits are ended by it: not one within read(2) or direct I/O, of a program
		 * that handles the signal. Such a thread is woken after a while, and asks again.
		 */
		w->refused = true;
		w->delay_ms = REFUSED_MS;
	} else if (w->err == -EAGAIN) {
		w->delay_ms = 0;
	} else {
		w->delay_ms = w->delay_ms ? w->delay_ms * 2 : RETRY_MS;
		if (w->delay_ms > RETRY_MAX_MS)
			w->delay_ms = RETRY_MAX_MS;
	}
	w->due_ms = now_ms() + w->delay_ms;
	DL_APPEND(c->waits, w);
}

/* Keeps a new one, if its mm is there still. */
static void fault_later(struct capped *c, const struct capped_wait *fault)
{
	struct capped_mm *mm = capped_mm_find(c, fault->mm);
	struct capped_wait *w;

	if (!mm)
		return;
	w = calloc(1, sizeof(*w));
	if (!w) {
		log_err("out of memory"); /* a thread would wait for ever */
		abort();
	}
	*w = *fault;
	fault_keep(c, mm, w);
}

/*
 * What was looked up may have been unmapped or moved since: then somebody is woken for nothing, and
 * faults again.
 */
void capped_fault_arrived(struct capped *c, const struct capped_file *f, uint64_t first,
			  uint64_t nr)
{
	struct capped_wait *w, *next;

	DL_FOREACH_SAFE(c->waits, w, next)
	{
		struct capped_mm *mm = capped_mm_find(c, w->mm);

		if (w->ino != f->ino || w->page < first || w->page - first >= nr || w->wp ||
		    (w->err != -EAGAIN && !w->refused) || !mm)
			continue;
		DL_DELETE(c->waits, w);
		uffd_wake(mm->uffd, w->addr, w->addr + WPFS_PAGE_SIZE);
		free(w);
	}
}

uint64_t capped_failing(struct capped *c)
{
	struct capped_wait *w;
	uint64_t nr;

	pthread_mutex_lock(&c->lock);
	nr = c->trying;
	DL_FOREACH (c->waits, w)
		nr += w->err != -EAGAIN && !w->refused;
	pthread_mutex_unlock(&c->lock);
	return nr;
}

/* ---- messages ---- */

static void on_message(struct capped *c, struct capped_mm *mm, const struct uffd_msg *msg)
{
	struct capped_wait fault = {
		.mm = mm->id,
		.addr = msg->arg.pagefault.address & ~(WPFS_PAGE_SIZE - 1),
		.wp = msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP,
		.ptid = msg->arg.pagefault.feat.ptid,
	};

	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		c->counts.faults++;
		fault.err = fault_serve(c, mm, &fault);
		if (fault.err < 0)
			fault_later(c, &fault);
		break;
	case UFFD_EVENT_FORK:
		capped_mm_forked(c, mm, (int)msg->arg.fork.ufd);
		break;
	case UFFD_EVENT_REMAP:
		maps_move(&mm->inherited, msg->arg.remap.from, msg->arg.remap.to,
			  msg->arg.remap.len);
		capped_batch_moved(c, mm, msg->arg.remap.from, msg->arg.remap.to,
				   msg->arg.remap.len);
		/* Who waits for a page under the fence waits at the old address. */
		uffd_wake(mm->uffd, msg->arg.remap.from, msg->arg.remap.from + msg->arg.remap.len);
		break;
	default:
		break;
	}
}

/*
 * The program has the same struct file and may make it a blocking one, by mistake or not: nobody
 * may wait here, with the lock held. The uffd of a fork child knows no RWF_NOWAIT.
 */
static bool message_read(const struct capped_mm *mm, struct uffd_msg *msg)
{
	const struct iovec iov = {msg, sizeof(*msg)};
	ssize_t n = preadv2(mm->uffd, &iov, 1, -1, RWF_NOWAIT);

	if (n < 0 && errno == EOPNOTSUPP && fcntl(mm->uffd, F_SETFL, O_NONBLOCK) == 0)
		n = read(mm->uffd, msg, sizeof(*msg));
	return n == sizeof(*msg);
}

bool capped_fault_read(struct capped *c, uint64_t id)
{
	struct capped_mm *mm;
	struct uffd_msg msg;
	bool any = false, retry;

	capped_test_point("message");
	pthread_mutex_lock(&c->lock);
	mm = capped_mm_find(c, id);
	if (mm && capped_mm_is_mine(mm) && message_read(mm, &msg)) {
		any = true;
		on_message(c, mm, &msg);
	}
	/* Messages without end must not keep those waiting that were before them. */
	retry = any && c->waits && now_ms() >= c->retry_ms;
	pthread_mutex_unlock(&c->lock);
	if (retry)
		capped_fault_retry(c);
	return any;
}

/*
 * Serving can let go of the lock, so each is taken off the list first; one that comes back to its
 * end is not looked at again in this round.
 */
void capped_fault_retry(struct capped *c)
{
	struct capped_wait *w;
	uint64_t now = now_ms();
	size_t nr = 0;

	pthread_mutex_lock(&c->lock);
	c->retry_ms = now + RETRY_MS;
	DL_FOREACH (c->waits, w)
		nr++;
	for (; nr && c->waits; nr--) {
		struct capped_mm *mm;
		bool failed;

		w = c->waits;
		DL_DELETE(c->waits, w);
		if (w->due_ms > now) {
			DL_APPEND(c->waits, w);
			continue;
		}
		mm = capped_mm_find(c, w->mm);
		if (w->refused) {
			if (mm)
				uffd_wake(mm->uffd, w->addr, w->addr + WPFS_PAGE_SIZE);
			free(w);
			continue;
		}
		failed = w->err != -EAGAIN;
		c->trying += failed;
		w->err = mm ? fault_serve(c, mm, w) : 0;
		c->trying -= failed;
		mm = capped_mm_find(c, w->mm);
		if (w->err < 0 && mm) {
			fault_keep(c, mm, w);
			continue;
		}
		if (mm)
			fault_had(mm, w);
		free(w);
	}
	pthread_mutex_unlock(&c->lock);
}
