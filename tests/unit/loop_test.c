/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The request loop, with a socket in place of /dev/fuse and handlers that do what the test says. */
#include <dirent.h>
#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "fs/fs.h"
#include "fs/loop.h"
#include "fs/near.h"

#define THREADS	  8
#define ANSWER_MS 60000
#define TRIES_NS  60000000000 /* what a busy machine can be in the way of is tried so long */
#define BURST	  400

enum kind {
	SHORT,
	WAITS,	/* says so, and waits */
	HANGS,	/* waits without a word */
	SLEEPS, /* for some time, less than the guard's */
	FAILS,	/* cannot be received */
};

struct message {
	struct fuse_in_header header;
	enum kind kind;
	unsigned nr;
};

/* What libfuse does not let anybody look into. */
struct fuse_session {
	int ours, theirs; /* SOCK_SEQPACKET */
	sem_t begun, go;
	_Atomic unsigned now, most; /* SLEEPS at a time */
	_Atomic unsigned switches;  /* another thread than the time before */
	_Atomic pid_t last;
	cpu_set_t where; /* could the last one run; its answer comes after it, like the next */
	int policy;
	unsigned max_readers;
	pthread_t thread;
	int result;
};

static int test_receive(struct fuse_session *s, struct fuse_buf *buf)
{
	ssize_t n;

	if (!buf->mem)
		buf->mem = malloc(sizeof(struct message));
	n = buf->mem ? read(s->ours, buf->mem, sizeof(struct message)) : -1;
	if (n > 0 && ((struct message *)buf->mem)->kind == FAILS)
		return -EIO;
	return n < 0 ? -errno : (int)n;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Not at work: with as many at a time as there are processors one more would not be seen. */
static void some_time(struct fuse_session *s)
{
	unsigned now = atomic_fetch_add(&s->now, 1) + 1, most = atomic_load(&s->most);

	while (now > most && !atomic_compare_exchange_weak(&s->most, &most, now))
		;
	nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
	atomic_fetch_sub(&s->now, 1);
}

static void hang(struct fuse_session *s)
{
	sem_post(&s->begun);
	while (sem_wait(&s->go) < 0)
		;
}

static void test_process(struct fuse_session *s, const struct fuse_buf *buf)
{
	const struct message message = *(const struct message *)buf->mem;
	pid_t before = atomic_exchange(&s->last, gettid());

	if (before != gettid())
		atomic_fetch_add(&s->switches, 1);
	if (message.kind == SHORT) {
		CPU_ZERO(&s->where);
		sched_getaffinity(0, sizeof(s->where), &s->where);
		s->policy = sched_getscheduler(0);
	}
	if (message.kind == WAITS)
		fs_request_may_wait();
	if (message.kind == WAITS || message.kind == HANGS)
		hang(s);
	else if (message.kind == SLEEPS)
		some_time(s);
	if (write(s->ours, &message, sizeof(message)) != sizeof(message))
		abort();
}

static _Atomic bool alone = true;

static bool test_alone(void)
{
	return atomic_load(&alone);
}

static void *session_thread(void *arg)
{
	struct fuse_session *s = arg;
	const struct fs_loop_calls calls = {s->ours, test_receive, test_process, test_alone};

	s->result = fs_loop_run(s, &calls, THREADS, s->max_readers);
	return NULL;
}

static struct fuse_session *session_new(unsigned max_readers)
{
	struct fuse_session *s = calloc(1, sizeof(*s));
	int fds[2];

	assert_non_null(s);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	s->ours = fds[0];
	s->theirs = fds[1];
	s->max_readers = max_readers;
	sem_init(&s->begun, 0, 0);
	sem_init(&s->go, 0, 0);
	assert_int_equal(pthread_create(&s->thread, NULL, session_thread, s), 0);
	return s;
}

/* The kernel lets go of it. Gives what the session ended with. */
static int session_end(struct fuse_session *s)
{
	int result;

	shutdown(s->theirs, SHUT_WR);
	assert_int_equal(pthread_join(s->thread, NULL), 0);
	result = s->result;
	close(s->ours);
	close(s->theirs);
	sem_destroy(&s->begun);
	sem_destroy(&s->go);
	free(s);
	return result;
}

static void ask_for(struct fuse_session *s, pid_t caller, enum kind kind, unsigned nr)
{
	const struct message message = {.header.pid = (uint32_t)caller, .kind = kind, .nr = nr};

	assert_int_equal(write(s->theirs, &message, sizeof(message)), sizeof(message));
}

static void ask(struct fuse_session *s, enum kind kind, unsigned nr)
{
	ask_for(s, 0, kind, nr);
}

/* One answer, whichever comes; -1: none in that time. */
static int answer(struct fuse_session *s, int ms)
{
	struct pollfd fd = {.fd = s->theirs, .events = POLLIN};
	struct message message;

	if (poll(&fd, 1, ms) <= 0)
		return -1;
	assert_int_equal(read(s->theirs, &message, sizeof(message)), sizeof(message));
	return (int)message.nr;
}

static void ask_and_begin(struct fuse_session *s, enum kind kind, unsigned nr)
{
	ask(s, kind, nr);
	while (sem_wait(&s->begun) < 0)
		;
}

static void let_go(struct fuse_session *s, unsigned how_many)
{
	for (unsigned i = 0; i < how_many; i++)
		sem_post(&s->go);
	for (unsigned i = 0; i < how_many; i++)
		assert_true(answer(s, ANSWER_MS) >= 0);
}

static unsigned switches_of_many(struct fuse_session *s)
{
	unsigned before = s->switches;

	for (unsigned i = 0; i < 2000; i++) {
		ask(s, SHORT, i);
		assert_int_equal(answer(s, ANSWER_MS), i);
	}
	return s->switches - before;
}

/* Another thread takes over only if one was kept from going on for as long as a millisecond. */
static void test_one_after_the_other(void **state)
{
	const uint64_t end = now_ns() + TRIES_NS;
	struct fuse_session *s = session_new(2);

	while (switches_of_many(s) > 200)
		assert_true(now_ns() < end);
	assert_true(s->switches > 0);
	assert_int_equal(session_end(s), 0);
}

/* May the thread that has served last run on these processors, no others, and as any other? */
static bool may_run_on(struct fuse_session *s, const cpu_set_t *where)
{
	cpu_set_t now;

	CPU_ZERO(&now);
	sched_getaffinity(s->last, sizeof(now), &now);
	return CPU_EQUAL(&now, where) && sched_getscheduler(s->last) == SCHED_OTHER;
}

static void may_soon_run_on(struct fuse_session *s, const cpu_set_t *where)
{
	uint64_t end = now_ns() + 20000000000;

	while (!may_run_on(s, where)) {
		assert_true(now_ns() < end);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}

struct program {
	pthread_t thread;
	cpu_set_t where;
	sem_t runs, goes_on;
	bool moves; /* when it goes on: else it ends */
	pid_t tid;
};

static void *program_main(void *arg)
{
	struct program *program = arg;

	do {
		sched_setaffinity(0, sizeof(program->where), &program->where);
		program->tid = gettid();
		sem_post(&program->runs);
		while (sem_wait(&program->goes_on) < 0)
			;
	} while (program->moves);
	return NULL;
}

/*
 * By a thread that is kept where it runs, of this policy: soon, or it fails. After how many
 * requests?
 */
static unsigned is_served_as(struct fuse_session *s, const struct program *program, int policy)
{
	uint64_t end = now_ns() + 60000000000;
	unsigned n = 0;

	do {
		assert_true(now_ns() < end);
		ask_for(s, program->tid, SHORT, 0);
		assert_int_equal(answer(s, ANSWER_MS), 0);
		n++;
	} while (!CPU_EQUAL(&s->where, &program->where) || s->policy != policy);
	return n;
}

static void program_start(struct program *program, int cpu)
{
	CPU_ZERO(&program->where);
	CPU_SET(cpu, &program->where);
	program->moves = false;
	sem_init(&program->runs, 0, 0);
	sem_init(&program->goes_on, 0, 0);
	assert_int_equal(pthread_create(&program->thread, NULL, program_main, program), 0);
	while (sem_wait(&program->runs) < 0)
		;
}

/* There is one on that processor, and who serves it is kept there, and yields if it can return. */
static void program_is_served(struct fuse_session *s, struct program *program, int cpu)
{
	program_start(program, cpu);
	is_served_as(s, program, near_can_yield() ? SCHED_IDLE : SCHED_OTHER);
}

static void program_move(struct program *program, int cpu)
{
	CPU_ZERO(&program->where);
	CPU_SET(cpu, &program->where);
	program->moves = true;
	sem_post(&program->goes_on);
	while (sem_wait(&program->runs) < 0)
		;
	program->moves = false;
}

static void program_end(struct program *program)
{
	sem_post(&program->goes_on);
	pthread_join(program->thread, NULL);
	sem_destroy(&program->runs);
	sem_destroy(&program->goes_on);
}

/* The one that this test may use and that has the highest number; *all: what it may use. */
static int last_processor(cpu_set_t *all)
{
	int cpu = CPU_SETSIZE - 1;

	assert_int_equal(sched_getaffinity(0, sizeof(*all), all), 0);
	while (!CPU_ISSET(cpu, all))
		cpu--;
	return cpu;
}

static int first_processor(const cpu_set_t *all)
{
	int cpu = 0;

	while (!CPU_ISSET(cpu, all))
		cpu++;
	return cpu;
}

/* Where the program runs, as long as it is one; with others it may run anywhere. */
static void test_near_the_program(void **state)
{
	struct program program;
	cpu_set_t all;
	int last = last_processor(&all);

	for (int cpu = 0; cpu <= last; cpu++) {
		struct fuse_session *s;

		if (!CPU_ISSET(cpu, &all))
			continue;
		s = session_new(2); /* a thread that was starved has more patience later */
		program_is_served(s, &program, cpu);
		program_end(&program);
		ask_for(s, getpid(), SHORT, 0);
		assert_int_equal(answer(s, ANSWER_MS), 0);
		assert_true(CPU_EQUAL(&s->where, &all));
		assert_int_equal(s->policy, SCHED_OTHER);
		assert_int_equal(session_end(s), 0);
	}
}

/* Who waits for the next request may be kept from running there, by whatever else does. */
static void test_not_near_when_nobody_asks(void **state)
{
	struct fuse_session *s = session_new(2);
	struct program program;
	cpu_set_t all;

	program_is_served(s, &program, last_processor(&all));
	may_soon_run_on(s, &all);
	program_end(&program);
	assert_int_equal(session_end(s), 0);
}

/* Requests of the program until this thread is kept where it runs, and of what policy then. */
static unsigned until_kept(struct near *near, const struct program *program, int policy)
{
	unsigned n = 0;

	do
		near_request(near, program->tid, false);
	while (++n < 2000 && (!near_is_kept(near) || sched_getscheduler(0) != policy));
	return n;
}

static bool runs_anywhere(void)
{
	cpu_set_t all, now;

	return sched_getaffinity(getpid(), sizeof(all), &all) == 0 &&
	       sched_getaffinity(0, sizeof(now), &now) == 0 && CPU_EQUAL(&now, &all) &&
	       sched_getscheduler(0) == SCHED_OTHER;
}

/* The same until it is kept where the program is by now; it has slept before each. */
static unsigned until_followed(struct near *near, const struct program *program)
{
	cpu_set_t now;
	unsigned n = 0;

	do {
		near_request(near, program->tid, true);
		CPU_ZERO(&now);
		sched_getaffinity(0, sizeof(now), &now);
	} while (++n < 2000 && !CPU_EQUAL(&now, &program->where));
	return n;
}

struct beside {
	struct program program;
	int elsewhere;
	unsigned alone, not_alone, alone_again, moved, starved;
	bool yields, let_go, let_go_late, left;
};

static void *beside_main(void *arg)
{
	const int policy = near_can_yield() ? SCHED_IDLE : SCHED_OTHER;
	struct beside *b = arg;
	struct near near;

	near_begin(&near, near_can_yield() ? test_alone : NULL);
	b->alone = until_kept(&near, &b->program, policy);
	atomic_store(&alone, false);
	b->not_alone = until_kept(&near, &b->program, SCHED_OTHER);
	atomic_store(&alone, true);
	b->alone_again = until_kept(&near, &b->program, policy);
	program_move(&b->program, b->elsewhere);
	b->moved = until_followed(&near, &b->program);
	b->yields = near_yields(&near) == near_can_yield();
	near_let_go(&near, true);
	b->let_go = !near_is_kept(&near) && !near_yields(&near) && runs_anywhere();
	/* As if that had come when it was about to be kept. */
	sched_setaffinity(0, sizeof(b->program.where), &b->program.where);
	sched_setscheduler(0, policy, &(struct sched_param){.sched_priority = 0});
	near_let_go(&near, true);
	b->let_go_late = runs_anywhere();
	b->starved = until_kept(&near, &b->program, policy);
	near_leave(&near);
	b->left = !near_is_kept(&near) && runs_anywhere();
	return NULL;
}

/* Who is kept where others run does not yield to them, and not so soon again when it was starved.
 */
static void test_near_beside_others(void **state)
{
	struct beside b = {.alone = 0};
	pthread_t thread;
	cpu_set_t all;

	program_start(&b.program, last_processor(&all));
	b.elsewhere = first_processor(&all);
	assert_int_equal(pthread_create(&thread, NULL, beside_main, &b), 0);
	pthread_join(thread, NULL);
	program_end(&b.program);
	assert_in_range(b.alone, 2, 100);
	assert_in_range(b.not_alone, 1, 100);
	assert_in_range(b.alone_again, 1, 100);
	assert_in_range(b.moved, 1, near_can_yield() ? 2 : 64);
	assert_true(b.yields);
	assert_true(b.let_go);
	assert_true(b.let_go_late);
	assert_in_range(b.starved, 101, 1000);
	assert_true(b.left);
}

static void test_not_near_when_it_takes_long(void **state)
{
	struct fuse_session *s = session_new(2);
	struct program program;
	cpu_set_t all;

	program_is_served(s, &program, last_processor(&all));
	ask_for(s, program.tid, HANGS, 0);
	while (sem_wait(&s->begun) < 0)
		;
	may_soon_run_on(s, &all);
	let_go(s, 1);
	program_end(&program);
	assert_int_equal(session_end(s), 0);
}

struct hog {
	pthread_t thread;
	cpu_set_t where;
	sem_t runs;
	_Atomic bool ends;
};

/* Lets nobody else run on that processor, but for the share that the kernel keeps for them. */
static void *hog_main(void *arg)
{
	struct hog *hog = arg;

	sched_setaffinity(0, sizeof(hog->where), &hog->where);
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
	sem_post(&hog->runs);
	while (!atomic_load(&hog->ends))
		;
	return NULL;
}

/* Who serves the program is starved where it is kept, until it may run elsewhere. */
static void reader_is_starved(struct fuse_session *s, const struct program *program)
{
	struct hog hog = {.where = program->where};
	cpu_set_t all;

	last_processor(&all);
	sem_init(&hog.runs, 0, 0);
	assert_int_equal(pthread_create(&hog.thread, NULL, hog_main, &hog), 0);
	while (sem_wait(&hog.runs) < 0)
		;
	ask_for(s, program->tid, SHORT, 1);
	may_soon_run_on(s, &all);
	atomic_store(&hog.ends, true);
	pthread_join(hog.thread, NULL);
	sem_destroy(&hog.runs);
	assert_int_equal(answer(s, ANSWER_MS), 1);
}

/*
 * Then it is not kept again as soon as one is that was not. The guard may have let it go before,
 * because nobody asked for anything: that tells nothing.
 */
static void test_not_near_when_it_is_starved(void **state)
{
	const int policy = near_can_yield() ? SCHED_IDLE : SCHED_OTHER;
	const uint64_t end = now_ns() + 60000000000;
	struct fuse_session *s = session_new(2);
	struct program program;
	cpu_set_t all;

	program_start(&program, last_processor(&all));
	do {
		assert_true(now_ns() < end);
		is_served_as(s, &program, policy);
		reader_is_starved(s, &program);
	} while (is_served_as(s, &program, policy) < 500); /* twice */
	program_end(&program);
	assert_int_equal(session_end(s), 0);
}

/* How long somebody else waits at least when one more waits already: until that is `soon`. */
static void others_are_served(enum kind kind, uint64_t soon)
{
	const uint64_t end = now_ns() + TRIES_NS;
	struct fuse_session *s = session_new(2);
	uint64_t least = UINT64_MAX;

	for (unsigned round = 0; round < 3 || least > soon; round++) {
		assert_true(now_ns() < end);
		for (unsigned i = 1; i < THREADS; i++) {
			uint64_t before;

			ask_and_begin(s, kind, i);
			before = now_ns();
			ask(s, SHORT, 100 + i);
			assert_int_equal(answer(s, ANSWER_MS), 100 + i);
			if (now_ns() - before < least)
				least = now_ns() - before;
		}
		let_go(s, THREADS - 1);
	}
	assert_int_equal(session_end(s), 0);
}

/* The guard would need a millisecond to find out, each time. */
static void test_some_wait(void **state)
{
	others_are_served(WAITS, 900000);
}

static void test_some_hang(void **state)
{
	others_are_served(HANGS, UINT64_MAX);
}

/* Also when one that waits is found by the guard, or says that it waits when it has been found. */
static void test_all_hang(void **state)
{
	struct fuse_session *s = session_new(1);

	for (unsigned i = 0; i < THREADS; i++)
		ask_and_begin(s, i % 2 ? HANGS : WAITS, 1);
	ask(s, SHORT, 7);
	assert_int_equal(answer(s, 50), -1);
	sem_post(&s->go);
	assert_int_equal(answer(s, ANSWER_MS), 1);
	assert_int_equal(answer(s, ANSWER_MS), 7);
	let_go(s, THREADS - 1);
	assert_int_equal(session_end(s), 0);
}

static void burst(struct fuse_session *s)
{
	for (unsigned i = 0; i < BURST; i++)
		ask(s, SLEEPS, i);
	for (unsigned i = 0; i < BURST; i++)
		assert_true(answer(s, ANSWER_MS) >= 0);
}

static void test_many_at_once(void **state)
{
	const uint64_t end = now_ns() + TRIES_NS;
	struct fuse_session *s = session_new(3);

	do
		burst(s);
	while (s->most < 3 && now_ns() < end);
	assert_true(s->most >= 3);
	assert_int_equal(session_end(s), 0);
}

/* How often threads of the loop have slept so far. */
static unsigned long sleeps(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned long sum = 0, n;
	const struct dirent *de;

	assert_non_null(dir);
	while ((de = readdir(dir))) {
		char path[300], line[200];
		bool ours = false;
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/status", de->d_name);
		file = fopen(path, "re");
		while (file && fgets(line, sizeof(line), file)) {
			ours |= strcmp(line, "Name:\twpfs-fuse\n") == 0;
			if (ours && sscanf(line, "voluntary_ctxt_switches: %lu", &n) == 1)
				sum += n;
		}
		if (file)
			fclose(file);
	}
	closedir(dir);
	assert_true(sum > 0);
	return sum;
}

static void test_nobody_wakes_up_for_nothing(void **state)
{
	struct fuse_session *s = session_new(3);
	unsigned long before, after = 0;
	uint64_t end;

	for (int round = 0; round < 2; round++) {
		burst(s);
		end = now_ns() + 20000000000;
		do {
			before = after;
			assert_int_equal(answer(s, 100), -1);
			after = sleeps();
		} while (after != before && now_ns() < end);
		assert_int_equal(after, before);
	}
	assert_int_equal(session_end(s), 0);
}

static void test_the_end_waits_for_answers(void **state)
{
	struct fuse_session *s = session_new(2);

	ask_and_begin(s, WAITS, 1);
	ask_and_begin(s, HANGS, 2);
	shutdown(s->theirs, SHUT_WR);
	assert_int_equal(pthread_tryjoin_np(s->thread, NULL), EBUSY);
	let_go(s, 2);
	assert_int_equal(session_end(s), 0);
}

/* Several threads wait for requests that do not come any more. */
static void test_an_error_is_the_end(void **state)
{
	struct fuse_session *s = session_new(3);

	burst(s);
	ask(s, FAILS, 0);
	assert_int_equal(pthread_join(s->thread, NULL), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, session_thread, s), 0);
	assert_int_equal(session_end(s), 0);
}

static void test_handshake(void **state)
{
	struct fuse_session s = {.max_readers = 1};
	const struct fs_loop_calls calls = {-1, test_receive, test_process, NULL};
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	s.ours = fds[0];
	s.theirs = fds[1];
	ask(&s, SHORT, 3);
	assert_int_equal(fs_loop_first(&s, &calls), 1);
	assert_int_equal(answer(&s, 0), 3);
	ask(&s, FAILS, 4);
	assert_int_equal(fs_loop_first(&s, &calls), -EIO);
	close(s.theirs);
	assert_int_equal(fs_loop_first(&s, &calls), 0);
	close(s.ours);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_handshake),
		cmocka_unit_test(test_one_after_the_other),
		cmocka_unit_test(test_near_the_program),
		cmocka_unit_test(test_near_beside_others),
		cmocka_unit_test(test_not_near_when_nobody_asks),
		cmocka_unit_test(test_not_near_when_it_takes_long),
		cmocka_unit_test(test_not_near_when_it_is_starved),
		cmocka_unit_test(test_some_wait),
		cmocka_unit_test(test_some_hang),
		cmocka_unit_test(test_all_hang),
		cmocka_unit_test(test_many_at_once),
		cmocka_unit_test(test_nobody_wakes_up_for_nothing),
		cmocka_unit_test(test_the_end_waits_for_answers),
		cmocka_unit_test(test_an_error_is_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
