/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/width.h"

#include <locale.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <wchar.h>

#include "ctl/say.h"

/* wpctl writes UTF-8 everywhere; of a locale, only what its letters are is wanted. */
void width_init(void)
{
	static bool done;

	if (!done)
		setlocale(LC_CTYPE, "C.UTF-8");
	done = true;
}

/* The letter at text: bytes in *len, columns returned. */
static size_t width_letter(const char *text, size_t *len)
{
	wchar_t letter;
	int columns;

	*len = say_utf8_len(text) ?: 1;
	width_init();
	if (mbrtowc(&letter, text, *len, &(mbstate_t){0}) != *len)
		return 1;
	columns = wcwidth(letter);
	return columns < 0 ? 1 : (size_t)columns;
}

size_t width_of(const char *text)
{
	size_t columns = 0, len;

	for (; *text; text += len)
		columns += width_letter(text, &len);
	return columns;
}

/* The next letter as it is shown: at most 4 bytes of it, and a NUL. Its bytes in text. */
static size_t escape(const char *text, char shown[8])
{
	const unsigned char *u = (const unsigned char *)text;
	size_t len = say_utf8_len(text);

	if (len == 0 || u[0] < 0x20 || u[0] == 0x7f || (u[0] == 0xc2 && u[1] < 0xa0)) {
		snprintf(shown, 8, "\\x%02x", u[0]);
		return 1;
	}
	if (*text == '\\') {
		strcpy(shown, "\\\\");
		return 1;
	}
	memcpy(shown, text, len);
	shown[len] = '\0';
	return len;
}

void width_fit(char *buf, size_t size, const char *text, size_t columns)
{
	size_t used = 0, at = 0, fits = 0, fits_at = 0; /* up to where a '~' can follow */
	char shown[8];

	buf[0] = '\0';
	while (*text) {
		size_t bytes = escape(text, shown), wide = width_of(shown), len = strlen(shown);

		if (at + wide > columns || used + len + 1 > size)
			break;
		memcpy(buf + used, shown, len + 1);
		used += len;
		at += wide;
		text += bytes;
		if (at < columns) {
			fits = used;
			fits_at = at;
		}
	}
	if (*text && columns && fits + 2 <= size) {
		buf[fits] = '~';
		used = fits + 1;
		at = fits_at + 1;
	}
	for (; at < columns && used + 1 < size; at++)
		buf[used++] = ' ';
	buf[used] = '\0';
}
