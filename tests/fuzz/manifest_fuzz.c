/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The manifest of an export (ctl/manifest.h). Byte 0: is the checksum at its end the right one? */
#include <inttypes.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "ctl/manifest.h"
#include "tests/fuzz/fuzz.h"

static void check(const struct manifest *m)
{
	uint64_t next = 0, data = 0, zero = 0;

	for (size_t i = 0; i < m->nr; i++) {
		const struct manifest_run *run = &m->runs[i];

		MUST(run->nr > 0 && run->first >= next);
		MUST(run->zero || run->nr <= MANIFEST_RUN_MAX);
		next = run->first + run->nr;
		*(run->zero ? &zero : &data) += run->nr;
	}
	MUST(next <= manifest_pages(m->size));
	MUST(data == m->pages && zero == m->zero_pages);
	MUST(m->size <= INT64_MAX && m->file);
}

/* What was read and is written again is the same. */
static void write_again(const struct manifest *m)
{
	_cleanup_free_ char *text = NULL;
	char why[MANIFEST_WHY_SIZE];
	struct manifest_writer w;
	struct manifest again;
	size_t len;

	MUST(manifest_begin(&w, open_memstream(&text, &len), m) == 0);
	for (size_t i = 0; i < m->nr; i++)
		manifest_add(&w, &m->runs[i]);
	manifest_end(&w, m); /* which cannot make that durable */
	MUST(manifest_parse(&again, text, len, why) == 0);
	MUST(again.nr == m->nr && again.size == m->size && again.epoch == m->epoch);
	MUST(!again.nr || !memcmp(again.runs, m->runs, m->nr * sizeof(*m->runs)));
	MUST(!strcmp(again.file, m->file) && again.full == m->full);
	manifest_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	bool right = !(input_u8(&in) & 1);
	size_t len = in.left;
	_cleanup_free_ char *text = calloc(1, len + 32);
	char why[MANIFEST_WHY_SIZE] = "";
	struct manifest m;

	MUST(text);
	input_bytes(&in, text, len);
	if (right)
		len += (size_t)sprintf(text + len, "end %016" PRIx64 "\n",
				       (uint64_t)XXH3_64bits(text, len));
	if (manifest_parse(&m, text, len, why) == 0) {
		check(&m);
		write_again(&m);
	} else {
		MUST(memchr(why, '\0', sizeof(why)));
	}
	manifest_free(&m);
	return 0;
}
