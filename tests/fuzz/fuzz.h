/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One door of wpfs for hostile input per program: libFuzzer's entry point, and what all of them
 * need. Built with -Dfuzz=true it is libFuzzer that calls it (tools/fuzz); otherwise driver.c does,
 * with every file of the corpus, as a unit test.
 */
#ifndef WPFS_TESTS_FUZZ_H
#define WPFS_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property that must hold for every input; assert() could be compiled out. */
#define MUST(condition)                                                                            \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__,          \
				#condition);                                                       \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* What is left of an input that is read piece by piece; past its end everything is zero. */
struct input {
	const uint8_t *at;
	size_t left;
};

static inline size_t input_bytes(struct input *in, void *to, size_t len)
{
	size_t n = len < in->left ? len : in->left;

	memset(to, 0, len);
	if (n)
		memcpy(to, in->at, n);
	in->at += n;
	in->left -= n;
	return n;
}

static inline uint8_t input_u8(struct input *in)
{
	uint8_t value;

	input_bytes(in, &value, sizeof(value));
	return value;
}

static inline uint64_t input_u64(struct input *in)
{
	uint64_t value;

	input_bytes(in, &value, sizeof(value));
	return value;
}

#endif
