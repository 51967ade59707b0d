/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * JSON (RFC 8259) written as it comes, on one line. Opened objects and arrays are closed in order
 * by json_end; a key is NULL inside an array and at the top. Write errors stay in the FILE.
 *
 * Text that is no UTF-8 (a path may be any bytes) shows U+FFFD for each wrong byte, because JSON
 * cannot say it: json_bytes adds a second member with the exact bytes in hex.
 */
#ifndef WPFS_CTL_JSON_H
#define WPFS_CTL_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_DEPTH_MAX 8

struct json {
	FILE *f;
	unsigned depth;
	struct {
		char close;
		bool filled;
	} level[JSON_DEPTH_MAX];
};

/* Starts a document; f is borrowed until its last json_end. */
void json_init(struct json *json, FILE *f);

void json_object(struct json *json, const char *key);
void json_array(struct json *json, const char *key);

/* Closes the innermost; after the outermost a newline follows. */
void json_end(struct json *json);

/* Closes until only `depth` levels are open. */
void json_end_to(struct json *json, unsigned depth);

void json_string(struct json *json, const char *key, const char *text);
void json_u64(struct json *json, const char *key, uint64_t value);
void json_bool(struct json *json, const char *key, bool value);
void json_null(struct json *json, const char *key);

/* A 64-bit address as a hex string: a JSON number of most readers has 53 bits. */
void json_addr(struct json *json, const char *key, uint64_t addr);

/* Inside an object: "key": text, and when text is no UTF-8, "key_hex": its bytes. */
void json_bytes(struct json *json, const char *key, const char *text);

#endif
