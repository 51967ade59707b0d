/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "ctl/json.h"

#include <assert.h>
#include <inttypes.h>

#include "ctl/say.h"

void json_init(struct json *json, FILE *f)
{
	*json = (struct json){.f = f};
}

static void json_quote(FILE *f, const char *text)
{
	putc('"', f);
	while (*text) {
		unsigned len = say_utf8_len(text);

		if (len == 0) {
			fputs("\\ufffd", f);
			text++;
		} else if (len > 1) {
			fwrite(text, 1, len, f);
			text += len;
		} else {
			if (*text == '"' || *text == '\\')
				fprintf(f, "\\%c", *text);
			else if (*text < 0x20 || *text == 0x7f)
				fprintf(f, "\\u%04x", *text);
			else
				putc(*text, f);
			text++;
		}
	}
	putc('"', f);
}

/* What stands before a value: the comma and the key. */
static void json_lead(struct json *json, const char *key)
{
	if (json->depth) {
		bool *filled = &json->level[json->depth - 1].filled;

		if (*filled)
			putc(',', json->f);
		*filled = true;
	}
	if (key) {
		json_quote(json->f, key);
		putc(':', json->f);
	}
}

static void json_open(struct json *json, const char *key, char open, char close)
{
	assert(json->depth < JSON_DEPTH_MAX);
	json_lead(json, key);
	putc(open, json->f);
	json->level[json->depth].close = close;
	json->level[json->depth].filled = false;
	json->depth++;
}

void json_object(struct json *json, const char *key)
{
	json_open(json, key, '{', '}');
}

void json_array(struct json *json, const char *key)
{
	json_open(json, key, '[', ']');
}

void json_end(struct json *json)
{
	assert(json->depth > 0);
	json->depth--;
	putc(json->level[json->depth].close, json->f);
	if (json->depth == 0)
		putc('\n', json->f);
}

void json_end_to(struct json *json, unsigned depth)
{
	while (json->depth > depth)
		json_end(json);
}

void json_string(struct json *json, const char *key, const char *text)
{
	json_lead(json, key);
	json_quote(json->f, text);
}

void json_u64(struct json *json, const char *key, uint64_t value)
{
	json_lead(json, key);
	fprintf(json->f, "%" PRIu64, value);
}

void json_bool(struct json *json, const char *key, bool value)
{
	json_lead(json, key);
	fputs(value ? "true" : "false", json->f);
}

void json_null(struct json *json, const char *key)
{
	json_lead(json, key);
	fputs("null", json->f);
}

void json_addr(struct json *json, const char *key, uint64_t addr)
{
	json_lead(json, key);
	fprintf(json->f, "\"0x%" PRIx64 "\"", addr);
}

void json_bytes(struct json *json, const char *key, const char *text)
{
	const char *at = text;
	unsigned len;

	json_string(json, key, text);
	while ((len = say_utf8_len(at)) > 0)
		at += len;
	if (!*at)
		return;
	putc(',', json->f);
	fprintf(json->f, "\"%s_hex\":\"", key);
	for (at = text; *at; at++)
		fprintf(json->f, "%02x", (unsigned char)*at);
	putc('"', json->f);
}
