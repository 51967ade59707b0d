/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lines of a word and its values, for people and awk(1) too. The last line is the checksum of all
 * before it, and since each run of pages has its own, of the whole export.
 */
#include "ctl/manifest.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/units.h"

#define FIRST_LINE "wpfs-export 1"

uint64_t manifest_pages(uint64_t size)
{
	return (size >> WPFS_PAGE_SHIFT) + (size % WPFS_PAGE_SIZE != 0);
}

/* ---- writing ---- */

static void put(struct manifest_writer *w, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void put(struct manifest_writer *w, const char *fmt, ...)
{
	char *line = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&line, fmt, ap);
	va_end(ap);
	if (n < 0) {
		w->err = -ENOMEM;
		return;
	}
	if (w->err == 0 && fwrite(line, 1, (size_t)n, w->f) != (size_t)n)
		w->err = errno ? -errno : -EIO;
	XXH3_64bits_update(w->hash, line, (size_t)n);
	free(line);
}

int manifest_begin(struct manifest_writer *w, FILE *f, const struct manifest *m)
{
	*w = (struct manifest_writer){.f = f, .hash = XXH3_createState()};
	if (!w->hash)
		return -ENOMEM;
	XXH3_64bits_reset(w->hash);
	put(w, FIRST_LINE "\n");
	put(w, "store %s\n", m->store);
	put(w, "file %s\n", m->file);
	if (m->name[0])
		put(w, "name %s\n", m->name);
	put(w, "kind %s\n", m->full ? "full" : "dirty");
	put(w, "epoch %" PRIu64 "\n", m->epoch);
	put(w, "complete %s\n", m->complete ? "yes" : "no");
	put(w, "size %" PRIu64 "\n", m->size);
	return w->err;
}

void manifest_add(struct manifest_writer *w, const struct manifest_run *run)
{
	if (run->zero)
		put(w, "zero %" PRIu64 " %" PRIu64 "\n", run->first, run->nr);
	else
		put(w, "data %" PRIu64 " %" PRIu64 " %016" PRIx64 "\n", run->first, run->nr,
		    run->hash);
}

int manifest_end(struct manifest_writer *w, const struct manifest *m)
{
	int r;

	put(w, "pages %" PRIu64 "\n", m->pages);
	put(w, "zero-pages %" PRIu64 "\n", m->zero_pages);
	put(w, "end %016" PRIx64 "\n", (uint64_t)XXH3_64bits_digest(w->hash));
	r = w->err;
	if (r == 0 && (fflush(w->f) || fsync(fileno(w->f))))
		r = -errno;
	manifest_writer_drop(w);
	return r;
}

void manifest_writer_drop(struct manifest_writer *w)
{
	if (w->f)
		fclose(w->f); /* what counts has been flushed */
	XXH3_freeState(w->hash);
	*w = (struct manifest_writer){0};
}

/* ---- reading ---- */

struct parser {
	struct manifest *m;
	char *why;
	unsigned line;
	unsigned seen; /* bits of what came, in the order of the words below */
	uint64_t next; /* page behind the last run */
	uint64_t data, zero;
	uint64_t pages, zero_pages; /* as it says */
};

static int bad(struct parser *p, const char *what)
{
	snprintf(p->why, MANIFEST_WHY_SIZE, "line %u of its manifest %s", p->line, what);
	return -EBADMSG;
}

/* Decimal, no sign, no blank, nothing behind it but `end`; *at moves behind that. */
static bool take_number(char **at, int base, char end, uint64_t *value)
{
	char *stop;

	if (!strchr("0123456789abcdef", (*at)[0]) || !(*at)[0])
		return false;
	errno = 0;
	*value = strtoull(*at, &stop, base);
	if (errno || stop == *at || *stop != end || (base == 16 && stop - *at != 16))
		return false;
	*at = stop + (end ? 1 : 0);
	return true;
}

static int take_run(struct parser *p, char *at, bool zero)
{
	struct manifest *m = p->m;
	struct manifest_run run = {.zero = zero};

	if (!take_number(&at, 10, ' ', &run.first) ||
	    !take_number(&at, 10, zero ? '\0' : ' ', &run.nr) ||
	    (!zero && !take_number(&at, 16, '\0', &run.hash)))
		return bad(p, "is no run of pages");
	if (run.nr == 0 || (!zero && run.nr > MANIFEST_RUN_MAX) || run.first < p->next ||
	    run.first >= MM_SET_MAX || run.nr > MM_SET_MAX - run.first)
		return bad(p, "is out of order");
	if (m->nr == m->room) {
		size_t room = m->room ? m->room * 2 : 64;
		struct manifest_run *runs = reallocarray(m->runs, room, sizeof(*runs));

		if (!runs)
			return -ENOMEM;
		m->runs = runs;
		m->room = room;
	}
	m->runs[m->nr++] = run;
	p->next = run.first + run.nr;
	*(zero ? &p->zero : &p->data) += run.nr;
	return 0;
}

/* `yes`: true, `no`: false, all else is wrong. */
static int take_choice(struct parser *p, const char *at, const char *yes, const char *no,
		       bool *value)
{
	*value = !strcmp(at, yes);
	return *value || !strcmp(at, no) ? 0 : bad(p, "has a value it cannot have");
}

static int take_text(struct parser *p, const char *at, char *buf, size_t size)
{
	if (strlen(at) >= size)
		return bad(p, "is too long");
	strcpy(buf, at);
	return 0;
}

static int take_u64(struct parser *p, char *at, uint64_t *value)
{
	return take_number(&at, 10, '\0', value) ? 0 : bad(p, "is no number");
}

enum word { W_STORE, W_FILE, W_NAME, W_KIND, W_EPOCH, W_COMPLETE, W_SIZE, W_PAGES, W_ZEROS };
#define WORDS_NEEDED                                                                               \
	(1u << W_STORE | 1u << W_FILE | 1u << W_KIND | 1u << W_EPOCH | 1u << W_COMPLETE |          \
	 1u << W_SIZE | 1u << W_PAGES | 1u << W_ZEROS)

static int take_word(struct parser *p, enum word word, char *at)
{
	struct manifest *m = p->m;

	if (p->seen & 1u << word)
		return bad(p, "is there twice");
	p->seen |= 1u << word;
	switch (word) {
	case W_STORE:
		return take_text(p, at, m->store, sizeof(m->store));
	case W_FILE:
		m->file = strdup(at);
		return m->file ? 0 : -ENOMEM;
	case W_NAME:
		return take_text(p, at, m->name, sizeof(m->name));
	case W_KIND:
		return take_choice(p, at, "full", "dirty", &m->full);
	case W_EPOCH:
		return take_u64(p, at, &m->epoch);
	case W_COMPLETE:
		return take_choice(p, at, "yes", "no", &m->complete);
	case W_SIZE:
		if (take_u64(p, at, &m->size) || m->size > INT64_MAX)
			return bad(p, "is no size of a file");
		return 0;
	case W_PAGES:
		return take_u64(p, at, &p->pages);
	case W_ZEROS:
		return take_u64(p, at, &p->zero_pages);
	}
	return 0;
}

static int take_line(struct parser *p, char *line)
{
	static const char *const words[] = {
		[W_STORE] = "store", [W_FILE] = "file",	  [W_NAME] = "name",
		[W_KIND] = "kind",   [W_EPOCH] = "epoch", [W_COMPLETE] = "complete",
		[W_SIZE] = "size",   [W_PAGES] = "pages", [W_ZEROS] = "zero-pages",
	};
	char *value = strchr(line, ' ');

	if (!value)
		return bad(p, "has no value");
	*value++ = '\0';
	if (!strcmp(line, "data") || !strcmp(line, "zero"))
		return take_run(p, value, line[0] == 'z');
	for (enum word w = W_STORE; w <= W_ZEROS; w++) {
		if (!strcmp(line, words[w]))
			return take_word(p, w, value);
	}
	return bad(p, "begins with a word that is not known");
}

/* The end: the checksum of all before. Gives the length of that, or 0. */
static size_t checked_length(const char *text, size_t len)
{
	static const char form[] = "end 0123456789abcdef\n";
	const size_t tail = sizeof(form) - 1;
	uint64_t hash;
	char *at;

	if (len <= tail || text[len - tail - 1] != '\n' || strncmp(text + len - tail, "end ", 4))
		return 0;
	at = (char *)text + len - tail + 4;
	if (!take_number(&at, 16, '\n', &hash) || hash != XXH3_64bits(text, len - tail))
		return 0;
	return len - tail;
}

static int check_sums(struct parser *p)
{
	struct manifest *m = p->m;

	if ((p->seen & WORDS_NEEDED) != WORDS_NEEDED) {
		snprintf(p->why, MANIFEST_WHY_SIZE, "its manifest lacks a line");
		return -EBADMSG;
	}
	if (p->next > manifest_pages(m->size) || p->data != p->pages || p->zero != p->zero_pages ||
	    (m->full && p->data + p->zero != manifest_pages(m->size))) {
		snprintf(p->why, MANIFEST_WHY_SIZE, "the sums of its manifest are wrong");
		return -EBADMSG;
	}
	m->pages = p->pages;
	m->zero_pages = p->zero_pages;
	return 0;
}

int manifest_parse(struct manifest *m, const char *text, size_t len, char why[MANIFEST_WHY_SIZE])
{
	struct parser p = {.m = m, .why = why};
	char *copy, *line, *rest;
	size_t body;
	int r = 0;

	*m = (struct manifest){.file = NULL};
	if (strncmp(text, "wpfs-export ", 12)) {
		snprintf(why, MANIFEST_WHY_SIZE, "its manifest is none of wpctl export");
		return -EBADMSG;
	}
	if (strncmp(text, FIRST_LINE "\n", sizeof(FIRST_LINE)))
		return -EPROTONOSUPPORT;
	body = checked_length(text, len);
	if (!body || strlen(text) != len) {
		snprintf(why, MANIFEST_WHY_SIZE, "the checksum of its manifest is wrong");
		return -EBADMSG;
	}
	copy = strndup(text, body);
	if (!copy)
		return -ENOMEM;
	for (line = strtok_r(copy, "\n", &rest); line && r == 0;
	     line = strtok_r(NULL, "\n", &rest)) {
		if (++p.line > 1)
			r = take_line(&p, line);
	}
	free(copy);
	return r ?: check_sums(&p);
}

void manifest_free(struct manifest *m)
{
	free(m->file);
	free(m->runs);
	*m = (struct manifest){.file = NULL};
}
