/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the compiler calls on its own for copies and fills. Hidden, so that the shim's own code
 * never goes through libc for them: the witness lives on after libc was unmapped. Compiled with
 * -fno-tree-loop-distribute-patterns, or these loops would become calls of themselves.
 */
#include <stddef.h>
#include <string.h>

#define HIDDEN __attribute__((visibility("hidden")))

HIDDEN void *memcpy(void *restrict to, const void *restrict from, size_t len)
{
	const char *src = from;
	char *dst = to;

	while (len--)
		*dst++ = *src++;
	return to;
}

HIDDEN void *memset(void *to, int byte, size_t len)
{
	char *dst = to;

	while (len--)
		*dst++ = (char)byte;
	return to;
}

HIDDEN void *memmove(void *to, const void *from, size_t len)
{
	const char *src = from;
	char *dst = to;

	if (dst < src)
		return memcpy(to, from, len);
	while (len--)
		dst[len] = src[len];
	return to;
}

HIDDEN int memcmp(const void *a, const void *b, size_t len)
{
	const unsigned char *x = a, *y = b;

	for (; len; len--, x++, y++) {
		if (*x != *y)
			return *x - *y;
	}
	return 0;
}
