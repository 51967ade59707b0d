/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the two programs of tools/bench share: time, orders, and the kernel's own calls. */
#ifndef WPFS_BENCH_RAW_H
#define WPFS_BENCH_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE	  4096UL
#define ORDER_MAX 8

/* Ends the program: what failed, and errno. */
void die(const char *what) __attribute__((noreturn));

uint64_t now_ns(void);

/* The middle one; sorts. */
double median(double *values, size_t nr);

/* A random number generator that every part of the benchmark can follow. */
struct dice {
	uint64_t state;
};

bool dice_half(struct dice *dice);

/* A new uffd of the kernel's, registered for write-protection of [addr, addr + len). */
int raw_uffd(char *addr, uint64_t len, uint64_t features);
void raw_protect(int uffd, const char *addr, uint64_t len, bool on);
/* Every other page of the range, by one call each. */
void raw_alternate(int uffd, const char *addr, uint64_t len);

/*
 * Orders: lines of words on stdin, each answered by what `fn` prints, and a line end. word[0] is
 * the order; the words past the last are "".
 */
struct order {
	const char *word[ORDER_MAX];
};

uint64_t number(const struct order *o, int i);
void orders_serve(void (*fn)(const struct order *o));

#endif
