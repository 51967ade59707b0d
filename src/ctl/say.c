/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/say.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

void ctl_say(const char *fmt, ...)
{
	char buf[8192];
	va_list ap;
	int head, n;
	size_t used;

	head = snprintf(buf, sizeof(buf), "%.64s: ", program_invocation_short_name);
	va_start(ap, fmt);
	n = vsnprintf(buf + head, sizeof(buf) - (size_t)head - 1, fmt, ap);
	va_end(ap);
	if (n < 0)
		return;
	used = strlen(buf);
	for (size_t i = 0; i < used; i++) {
		if ((unsigned char)buf[i] < 0x20 || buf[i] == 0x7f)
			buf[i] = '?';
	}
	buf[used++] = '\n';
	fflush(stdout);
	if (write(STDERR_FILENO, buf, used) < 0)
		return; /* nowhere left to say it */
}

unsigned say_utf8_len(const char *s)
{
	const unsigned char *u = (const unsigned char *)s;
	uint32_t code;
	unsigned len;

	if (u[0] < 0x80)
		return u[0] ? 1 : 0;
	if ((u[0] & 0xe0) == 0xc0) {
		len = 2;
		code = u[0] & 0x1f;
	} else if ((u[0] & 0xf0) == 0xe0) {
		len = 3;
		code = u[0] & 0x0f;
	} else if ((u[0] & 0xf8) == 0xf0) {
		len = 4;
		code = u[0] & 0x07;
	} else {
		return 0;
	}
	for (unsigned i = 1; i < len; i++) {
		if ((u[i] & 0xc0) != 0x80)
			return 0; /* a NUL ends up here too */
		code = code << 6 | (u[i] & 0x3f);
	}
	if (code < (len == 2   ? 0x80u
		    : len == 3 ? 0x800u
			       : 0x10000u) ||
	    code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
		return 0;
	return len;
}

void say_text(FILE *f, const char *s)
{
	while (*s) {
		const unsigned char *u = (const unsigned char *)s;
		unsigned len = say_utf8_len(s);
		/* C1 controls (U+0080 to U+009F) drive terminals as well */
		bool control = u[0] < 0x20 || u[0] == 0x7f || (u[0] == 0xc2 && u[1] < 0xa0);

		if (len == 0 || control) {
			fprintf(f, "\\x%02x", u[0]);
			s++;
		} else if (*s == '\\') {
			fputs("\\\\", f);
			s++;
		} else {
			fwrite(s, 1, len, f);
			s += len;
		}
	}
}
