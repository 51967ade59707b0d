/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fsdiff [--seed N] [--operations N] [--seconds N] [--hands N] [--look] [--tree N] [--only HAND]
 *        [--from N] [--trace] DIR DIR
 *
 * The first directory is the model. Prints the seed; at the first difference the operation, both
 * answers and what led there, and exits 1. The same seed and number of hands do the same again.
 * --look looks after every operation, not after most, and --tree at the tree after N and not 250,
 * to find which one it was, --from such a number on; --only runs this one of the hands. In the end
 * what is used and free has to agree too: the directories are the roots of file systems of the same
 * size.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fsdiff.h"

#define MAX_HANDS  16
#define MAX_OPS	   128
#define REMEMBERED 25

static struct {
	uint64_t seed;
	unsigned long operations, from;
	unsigned seconds, hands, tree, only;
	bool trace, look;
	const char *top[2];
	struct operation ops[MAX_OPS];
	unsigned nr_ops, weights;
	time_t end;
} config = {.operations = ULONG_MAX, .hands = 4, .tree = 250, .only = UINT_MAX};

static atomic_bool failed;
static atomic_ulong done;
static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER;

struct hand {
	unsigned number;
	uint64_t random;
	unsigned user;
	unsigned long at;
	struct side side[2];
	char top[2][PATH_MAX];
	char told[REMEMBERED][1200]; /* the last operations, for the report */
};

/* ---- text ------------------------------------------------------------------------------- */

void say(struct answer *a, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(a->text + a->used, sizeof(a->text) - a->used, fmt, ap);
	va_end(ap);
	a->used += (size_t)n;
	if (a->used >= sizeof(a->text))
		a->used = sizeof(a->text) - 1;
}

void say_result(struct answer *a, long ret, bool value)
{
	if (ret < 0)
		say(a, " %s", strerrorname_np(errno));
	else
		say(a, " %ld", value ? ret : 0);
}

void say_name(struct answer *a, const char *name)
{
	size_t len = strlen(name);

	for (const char *c = name; *c && c - name < 40; c++)
		say(a, *c > ' ' && *c < 127 ? "%c" : "\\%02x", (unsigned char)*c);
	if (len >= 40)
		say(a, "..%zu:%llx", len, (unsigned long long)hash_bytes(name, len));
}

uint64_t hash_bytes(const void *data, size_t len)
{
	uint64_t hash = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < len; i++)
		hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3ull;
	return hash;
}

const char *path_of(const struct side *s, const char *path, char buf[PATH_MAX])
{
	snprintf(buf, PATH_MAX, "%s/%s", s->top, path);
	return buf;
}

/* ---- what to do ------------------------------------------------------------------------- */

static uint32_t draw(struct hand *hand)
{
	/* splitmix64 */
	uint64_t z = (hand->random += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return (uint32_t)(z >> 32);
}

/* One name: few, so that operations meet; one of 255 bytes, one with every odd byte. */
static void draw_name(struct hand *hand, char *name, bool dir)
{
	unsigned n = draw(hand) % (dir ? 3 : 12);
	size_t len = 0;

	if (n < 10) {
		name[len++] = (char)((dir ? 'p' : 'a') + n);
	} else if (n == 10) {
		for (unsigned byte = 1; byte < 256; byte++)
			if (byte != '/' && len < 254)
				name[len++] = (char)byte;
		name[len++] = 'z';
	} else {
		memcpy(name, "\x01\n\\\xff\xc3 ..", len = 8);
	}
	name[len] = '\0';
}

static void draw_path(struct hand *hand, char path[PATH_MAX])
{
	unsigned depth = draw(hand) % 4, ending = draw(hand) % 64;
	char *at = path;

	for (unsigned i = 0; i < depth && i < 2; i++) {
		draw_name(hand, at, true);
		at += strlen(at);
		*at++ = '/';
	}
	draw_name(hand, at, depth == 3 || draw(hand) % 8 == 0);
	if (ending == 0)
		strcat(path, "/");
	else if (ending == 1)
		strcat(path, "/.");
	else if (ending == 2)
		strcat(path, "/..");
	else if (ending == 3)
		strcpy(path, ".");
	else if (ending == 4)
		snprintf(at, 257, "%0256d", 0); /* too long */
}

/* Mostly one that holds a file. */
static unsigned draw_slot(struct hand *hand)
{
	unsigned slot = draw(hand) % SLOTS, more = draw(hand) % 8 ? SLOTS : 0;

	while (more-- && hand->side[0].fd[slot] < 0)
		slot = (slot + 1) % SLOTS;
	return slot;
}

static void draw_params(struct hand *hand, struct params *p)
{
	static const char *const names[] = {
		"user.a",
		"user.b",
		"trusted.t",
		"security.capability",
		"security.other",
		"system.posix_acl_access",
		"system.posix_acl_default",
		"system.posix_acl_access",
		"system.posix_acl_default",
		"system.none",
		"nonsense",
	};

	draw_path(hand, p->a);
	draw_path(hand, p->b);
	p->name = names[draw(hand) % (sizeof(names) / sizeof(names[0]))];
	p->slot = draw_slot(hand);
	p->slot2 = draw_slot(hand);
	p->map = draw(hand) % MAPS;
	p->dir = draw(hand) % DIRS;
	for (unsigned i = 0; i < NUMBERS; i++)
		p->n[i] = draw(hand);
}

static const struct operation *draw_operation(struct hand *hand)
{
	unsigned n = draw(hand) % config.weights;

	for (unsigned i = 0;; i++) {
		if (n < config.ops[i].weight)
			return &config.ops[i];
		n -= config.ops[i].weight;
	}
}

/* ---- telling ---------------------------------------------------------------------------- */

static void describe(const struct hand *hand, const struct operation *op, const struct params *p,
		     struct answer *a)
{
	say(a, "%lu user %u %s ", hand->at, hand->user, op->name);
	say_name(a, p->a);
	say(a, " ");
	say_name(a, p->b);
	say(a, " slots %u %u map %u %s", p->slot, p->slot2, p->map, p->name);
	for (unsigned i = 0; i < NUMBERS; i++)
		say(a, " %u", p->n[i]);
}

/* `after`: the operation is among those before it. */
static void report(struct hand *hand, bool after, const char *what, const char *model,
		   const char *other)
{
	pthread_mutex_lock(&output);
	if (!atomic_exchange(&failed, true)) {
		printf("hand %u, before:\n", hand->number);
		for (unsigned long i = hand->at < REMEMBERED ? 0 : hand->at - REMEMBERED + 1;
		     i < hand->at + after; i++)
			printf("  %s\n", hand->told[i % REMEMBERED]);
		printf("seed %llu, hand %u, operation %lu\n  %s\n- %s\n+ %s\n",
		       (unsigned long long)config.seed, hand->number, hand->at, what, model, other);
		fflush(stdout);
	}
	pthread_mutex_unlock(&output);
}

/* ---- doing ------------------------------------------------------------------------------ */

static void look_after(struct side *s, const struct operation *op, const struct params *p,
		       struct answer *a)
{
	char parent[PATH_MAX];

	if (op->path_a) {
		say(a, "\n    a ");
		look_path(s, p->a, a);
		snprintf(parent, sizeof(parent), "%s", p->a);
		say(a, "\n    in ");
		look_path(s, strrchr(parent, '/') ? (*strrchr(parent, '/') = '\0', parent) : ".",
			  a);
	}
	if (op->path_b) {
		say(a, "\n    b ");
		look_path(s, p->b, a);
	}
	if (op->slot && s->fd[p->slot] >= 0) {
		say(a, "\n    slot ");
		look_fd(s, s->fd[p->slot], a);
	}
	if (op->slot2 && s->fd[p->slot2] >= 0) {
		say(a, "\n    slot2 ");
		look_fd(s, s->fd[p->slot2], a);
	}
	say(a, "\n    events");
	look_events(s, a);
}

/*
 * A time that is set twice within a tick of the kernel's clock does not move, so whether times move
 * is only asked when all was looked at before and the clock has ticked since.
 */
static void let_the_clock_tick(struct hand *hand, const struct operation *op,
			       const struct params *p, struct answer *scratch)
{
	const struct timespec tick = {.tv_nsec = 5000000};

	for (int i = 0; i < 2; i++) {
		scratch->used = 0;
		look_after(&hand->side[i], op, p, scratch);
		hand->side[i].ticked = true;
	}
	nanosleep(&tick, NULL);
}

struct lines {
	char **line;
	size_t nr, room;
};

static void add_line(void *ctx, const char *text)
{
	struct lines *lines = ctx;

	if (lines->nr == lines->room) {
		lines->room = lines->room ? lines->room * 2 : 256;
		lines->line = reallocarray(lines->line, lines->room, sizeof(char *));
		if (!lines->line)
			abort();
	}
	lines->line[lines->nr] = strdup(text);
	if (!lines->line[lines->nr++])
		abort();
}

static void compare_trees(struct hand *hand)
{
	struct lines lines[2] = {0};
	size_t most;

	for (int i = 0; i < 2; i++)
		look_tree(&hand->side[i], add_line, &lines[i]);
	most = lines[0].nr > lines[1].nr ? lines[0].nr : lines[1].nr;
	for (size_t i = 0; i < most; i++) {
		const char *model = i < lines[0].nr ? lines[0].line[i] : "nothing";
		const char *other = i < lines[1].nr ? lines[1].line[i] : "nothing";

		if (strcmp(model, other) != 0 && !only_reclaimed(model, other)) {
			report(hand, true, "the tree", model, other);
			break;
		}
	}
	for (int i = 0; i < 2; i++) {
		for (size_t j = 0; j < lines[i].nr; j++)
			free(lines[i].line[j]);
		free(lines[i].line);
	}
}

static void step(struct hand *hand, struct answer answers[2])
{
	const struct operation *op = draw_operation(hand);
	struct answer what = {0};
	struct params p;
	bool look;

	draw_params(hand, &p);
	if (draw(hand) % 8 == 0)
		hand->user = draw(hand) % USERS;
	if (draw(hand) % 4 == 0)
		hand->user = 0;
	/* Not always: what is looked at is cached, and that must not matter. */
	look = draw(hand) % 4 != 0 || config.look;
	describe(hand, op, &p, &what);
	snprintf(hand->told[hand->at % REMEMBERED], sizeof(hand->told[0]), "%.1100s", what.text);
	if (config.trace)
		fprintf(stderr, "%u: %s\n", hand->number, what.text);
	if (look && draw(hand) % 8 == 0)
		let_the_clock_tick(hand, op, &p, &answers[0]);
	for (int i = 0; i < 2; i++) {
		answers[i].used = 0;
		answers[i].text[0] = '\0';
		become(hand->user);
		op->run(&hand->side[i], &p, &answers[i]);
		become(0);
		if (look)
			look_after(&hand->side[i], op, &p, &answers[i]);
		hand->side[i].ticked = false;
	}
	if (strcmp(answers[0].text, answers[1].text) != 0) {
		unsigned before = reclaimed_passed();

		if (only_blocks(answers[0].text, answers[1].text))
			compare_trees(hand);
		if (reclaimed_passed() == before)
			report(hand, false, what.text, answers[0].text, answers[1].text);
	}
	snprintf(hand->told[hand->at % REMEMBERED], sizeof(hand->told[0]), "%.900s:%.*s", what.text,
		 (int)strcspn(answers[0].text, "\n") % 200, answers[0].text);
}

static void side_open(struct hand *hand, int i)
{
	struct side *s = &hand->side[i];
	char full[PATH_MAX];

	snprintf(hand->top[i], sizeof(hand->top[i]), "%s/hand%u", config.top[i], hand->number);
	s->top = hand->top[i];
	arena_open(s);
	for (unsigned slot = 0; slot < SLOTS; slot++)
		s->fd[slot] = -1;
	s->inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	if (s->inotify < 0 || mkdir(s->top, 0777) < 0) {
		fprintf(stderr, "fsdiff: %s: %s\n", s->top, strerror(errno));
		exit(2);
	}
	for (const char *name = "p\0q\0p/q\0"; *name; name += strlen(name) + 1)
		if (mkdir(path_of(s, name, full), 0777) < 0)
			exit(2);
}

static void side_close(struct side *s)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (s->fd[i] >= 0)
			close(s->fd[i]);
	for (unsigned i = 0; i < MAPS; i++)
		if (s->map[i])
			munmap(s->map[i], s->map_len[i]);
	for (unsigned i = 0; i < DIRS; i++)
		if (s->dir[i])
			closedir(s->dir[i]);
	close(s->inotify);
	free(s->seen);
}

static void *hand_thread(void *arg)
{
	struct hand *hand = arg;
	struct answer *answers = calloc(2, sizeof(*answers));

	/* A umask of its own; and descriptors, or another hand's exec would hold on to ours. */
	if (!answers || unshare(CLONE_FS | CLONE_FILES) < 0)
		abort();
	umask(0);
	for (int i = 0; i < 2; i++)
		side_open(hand, i);
	for (hand->at = 0; hand->at < config.operations && !failed; hand->at++) {
		if (config.end && time(NULL) >= config.end)
			break;
		step(hand, answers);
		atomic_fetch_add(&done, 1);
		if (hand->at % config.tree == config.tree - 1 && hand->at >= config.from)
			compare_trees(hand);
	}
	if (!failed)
		compare_trees(hand);
	for (int i = 0; i < 2; i++)
		side_close(&hand->side[i]);
	free(answers);
	return NULL;
}

static void take_operations(const struct operation *ops)
{
	for (; ops->name; ops++) {
		if (config.nr_ops == MAX_OPS)
			abort();
		config.ops[config.nr_ops++] = *ops;
		config.weights += ops->weight;
	}
}

static void usage(void)
{
	fputs("usage: fsdiff [--seed N] [--operations N] [--seconds N] [--hands N] "
	      "[--look] [--tree N] [--from N] [--only HAND] [--trace] DIR DIR\n",
	      stderr);
	exit(2);
}

static void take_options(int argc, char **argv)
{
	static const struct option longs[] = {
		{"seed", required_argument, NULL, 's'},
		{"operations", required_argument, NULL, 'o'},
		{"seconds", required_argument, NULL, 't'},
		{"hands", required_argument, NULL, 'h'},
		{"look", no_argument, NULL, 'l'},
		{"tree", required_argument, NULL, 'e'},
		{"only", required_argument, NULL, 'n'},
		{"from", required_argument, NULL, 'f'},
		{"trace", no_argument, NULL, 'v'},
		{NULL, 0, NULL, 0},
	};
	int c;

	config.seed = (uint64_t)time(NULL) ^ ((uint64_t)getpid() << 32);
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			config.seed = strtoull(optarg, NULL, 0);
			break;
		case 'o':
			config.operations = strtoul(optarg, NULL, 0);
			break;
		case 't':
			config.seconds = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'h':
			config.hands = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'l':
			config.look = true;
			break;
		case 'f':
			config.from = strtoul(optarg, NULL, 0);
			break;
		case 'n':
			config.only = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'e':
			config.tree = (unsigned)strtoul(optarg, NULL, 0);
			break;
		case 'v':
			config.trace = true;
			break;
		default:
			usage();
		}
	}
	if (argc - optind != 2 || !config.hands || config.hands > MAX_HANDS || !config.tree)
		usage();
	config.top[0] = argv[optind];
	config.top[1] = argv[optind + 1];
	if (config.seconds)
		config.end = time(NULL) + config.seconds;
}

/* What the kernel has not told the daemon yet may take its time, but not for ever. */
static void compare_usage(void)
{
	const struct timespec pause = {.tv_nsec = 20000000};
	struct answer answers[2];

	if (reclaimed_count())
		return; /* what the kernel takes is free on one side only */
	for (int tries = 0; tries < 500; tries++) {
		for (int i = 0; i < 2; i++) {
			answers[i].used = 0;
			look_statfs(config.top[i], &answers[i]);
		}
		if (strcmp(answers[0].text, answers[1].text) == 0)
			return;
		nanosleep(&pause, NULL);
	}
	printf("in the end\n- %s\n+ %s\n", answers[0].text, answers[1].text);
	failed = true;
}

int main(int argc, char **argv)
{
	static struct hand hands[MAX_HANDS];
	pthread_t threads[MAX_HANDS];

	take_options(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	take_operations(name_operations);
	take_operations(attr_operations);
	take_operations(io_operations);
	take_operations(map_operations);
	printf("fsdiff: seed %llu, %u hands\n", (unsigned long long)config.seed, config.hands);
	fflush(stdout);
	for (unsigned i = 0; i < config.hands; i++) {
		if (config.only != UINT_MAX && config.only != i)
			continue;
		hands[i].number = i;
		hands[i].random = config.seed * 1000003 + i;
		if (pthread_create(&threads[i], NULL, hand_thread, &hands[i]) != 0)
			return 2;
	}
	for (unsigned i = 0; i < config.hands; i++) {
		if (config.only == UINT_MAX || config.only == i)
			pthread_join(threads[i], NULL);
	}
	if (!failed)
		compare_usage();
	if (reclaimed_count())
		printf("fsdiff: of %u files the kernel had taken pages of zeros, or made them\n",
		       reclaimed_count());
	printf("fsdiff: %lu operations, %s\n", done, failed ? "a difference" : "no difference");
	return failed ? 1 : 0;
}
