/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Protects a program that epochwriter is, again and again, and holds the dirty set of each epoch
 * that this closes against what the program noted (epochs.h):
 *
 *	a store that began and ended within the epoch is in it
 *	one during a protect is in the epoch before it or in the one after it
 *	a page is in no epoch in which nobody was storing to it
 *	a page with one store is in two epochs only if that store was under way during the
 *	protect between, and of those there is one for each thread at most
 *
 * The last two but for as many pages as the kernel has moved in memory meanwhile: one that it
 * moves just as it is marked may lose the mark.
 *
 *	epochcheck MOUNT_ID NOTES TIMES
 *
 * Prints "PROTECTS STORES DOUBLE" where DOUBLE is how many pages were in two epochs, and what was
 * wrong. Exits 1 if anything was.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "epochs.h"
#include "ipc/client.h"

#define WRONG_SAID 20

struct epoch_set {
	uint8_t *has; /* by page */
};

static struct epochs_shared *shared;
static struct epoch_set before, now;
static unsigned wrong, needless;

static void complain(uint32_t k, uint32_t page, const char *what)
{
	if (wrong++ < WRONG_SAID)
		printf("protect %" PRIu32 ", page %" PRIu32 ": %s\n", k, page, what);
}

static int on_record(void *arg, enum wpfs_rec_type type, const void *body)
{
	const struct wpfs_rec_run *run = body;

	if (type == WPFS_REC_RUN)
		memset(now.has + run->pgoff, 1, run->pages);
	return 0;
}

/* So many pages of the machine the kernel has moved in memory. */
static uint64_t moved(void)
{
	FILE *f = fopen("/proc/vmstat", "re");
	uint64_t nr = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "pgmigrate_success %" SCNu64, &nr);
	if (f)
		fclose(f);
	return nr;
}

/* The dirty pages of the epoch that ended. */
static int ask(struct ipc_client *client, uint64_t epoch)
{
	struct wpfs_select select = {.set = WPFS_SELECT_NAME | WPFS_SELECT_EPOCH,
				     .kind = WPFS_REPORT_DIRTY,
				     .epoch = epoch,
				     .name = "w"};
	uint8_t *old = before.has;

	before.has = now.has;
	now.has = old;
	memset(now.has, 0, shared->pages);
	return ipc_client_call(client, WPFS_OP_REPORT, &select, NULL, on_record, NULL);
}

/* What a page's notes say about the epoch that protect `k` closed. */
struct facts {
	bool inside;	 /* a store within it */
	bool possible;	 /* one that may count in it */
	bool across;	 /* one over the protect before, done since: in one of the two epochs */
	unsigned around; /* how many may count in it or in the one before */
};

static struct facts look(const struct epochs_page *page, uint32_t k)
{
	const uint32_t count = page->count;
	struct facts f = {false};

	/* The oldest is not read: the next record is being written over it. */
	for (uint32_t n = count >= EPOCHS_LOG ? count - EPOCHS_LOG + 1 : 0; n < count; n++) {
		const struct epochs_record *r = &page->log[n % EPOCHS_LOG];
		const uint32_t first = r->first, last = r->last;

		f.inside |= first >= 2 * k - 1 && last <= 2 * k - 1;
		f.possible |= first <= 2 * k && last >= 2 * k - 2;
		f.across |= first >= 2 * k - 3 && last <= 2 * k - 1;
		if (first <= 2 * k && last >= 2 * k - 4)
			f.around += r->stores;
	}
	return f;
}

/* Gives the number of pages that one store put into two epochs. */
static unsigned check(uint32_t k)
{
	unsigned twice = 0;

	for (uint32_t page = 0; page < shared->pages; page++) {
		const struct facts f = look(&shared->page[page], k);

		if (f.inside && !now.has[page])
			complain(k, page, "a lie: stored to in this epoch, and not in it");
		if (k > 2 && f.across && !now.has[page] && !before.has[page])
			complain(k, page, "a lie: stored to, and in neither epoch");
		needless += now.has[page] && !f.possible;
		twice += k > 2 && now.has[page] && before.has[page] && f.around == 1;
	}
	if (twice > shared->threads)
		needless += twice - shared->threads;
	return twice;
}

static int turn(struct ipc_client *client, uint32_t k, unsigned *twice)
{
	const struct wpfs_select select = {.set = WPFS_SELECT_NAME, .name = "w"};
	struct wpfs_protect_reply reply;
	int r;

	shared->phase = 2 * k;
	r = ipc_client_call(client, WPFS_OP_PROTECT, &select, &reply, NULL, NULL);
	shared->phase = 2 * k + 1;
	if (r >= 0 && k > 1) /* what was stored to before the first protect nobody armed */
		r = ask(client, reply.epoch - 1);
	if (r >= 0 && k > 1)
		*twice += check(k);
	return r;
}

int main(int argc, char **argv)
{
	struct ipc_client *client = NULL;
	const uint64_t before_all = moved();
	unsigned twice = 0;
	struct stat st;
	uint32_t times;
	int fd, r;

	if (argc != 4)
		return 2;
	fd = open(argv[2], O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return 2;
	shared = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		return 2;
	times = (uint32_t)atoi(argv[3]);
	before.has = calloc(1, shared->pages);
	now.has = calloc(1, shared->pages);
	r = ipc_client_connect(argv[1], 60000, &client);
	for (uint32_t k = 1; r >= 0 && k <= times; k++)
		r = turn(client, k, &twice);
	shared->stop = 1;
	if (needless > moved() - before_all)
		complain(times, needless, "so many pages in epochs without a store");
	if (r < 0)
		printf("the daemon said %d: %s\n", r, client ? ipc_client_error(client) : "");
	ipc_client_close(client);
	free(before.has);
	free(now.has);
	printf("%" PRIu32 " %" PRIu64 " %u\n", times, (uint64_t)shared->stores, twice);
	return r < 0 || wrong;
}
