/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/units.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int units_parse_size(const char *text, uint64_t *bytes)
{
	unsigned long long n;
	unsigned shift = 0;
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL; /* strtoull would take a sign or blanks */
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	if (*end == '%') {
		uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) << WPFS_PAGE_SHIFT;

		if (end[1])
			return -EINVAL;
		if (n > 100)
			return -ERANGE;
		*bytes = memory / 100 * n;
		return 0;
	}
	switch (toupper((unsigned char)*end)) {
	case 'T':
		shift += 10; /* fall through */
	case 'G':
		shift += 10; /* fall through */
	case 'M':
		shift += 10; /* fall through */
	case 'K':
		shift += 10;
		end++;
		break;
	}
	if (*end)
		return -EINVAL;
	if (n > (uint64_t)INT64_MAX >> shift)
		return -ERANGE;
	*bytes = (uint64_t)n << shift;
	return 0;
}

const char *units_format_size(uint64_t bytes, char *buf, size_t size)
{
	static const char suffix[] = "BKMGTPE";
	double value = (double)bytes;
	size_t i = 0;

	while (value >= 1024 && i < sizeof(suffix) - 2) {
		value /= 1024;
		i++;
	}
	if (i == 0)
		snprintf(buf, size, "%uB", (unsigned)bytes);
	else
		snprintf(buf, size, "%.1f%c", value, suffix[i]);
	return buf;
}
