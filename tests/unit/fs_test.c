/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What of the fs room needs no mount: file ids, data files. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "fs/fs.h"
#include "fs/ids.h"
#include "fs/store_data.h"

#define PAGE 4096

static int temp_dir(void)
{
	char path[] = "/tmp/wpfs-fs-test-XXXXXX";
	int fd;

	assert_non_null(mkdtemp(path));
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static void temp_dir_remove(int fd)
{
	char command[64];

	snprintf(command, sizeof(command), "rm -rf \"$(readlink /proc/%d/fd/%d)\"", getpid(), fd);
	assert_int_equal(system(command), 0);
	close(fd);
}

static void test_ids_of_an_empty_lower(void **state)
{
	struct fs_ids ids = {.base = 0};

	assert_int_equal(fs_ids_get(&ids, 1), FS_ROOT_ID);
	assert_int_equal(fs_ids_get(&ids, 2), 2);
}

static void test_ids_restored_and_new(void **state)
{
	struct fs_ids ids = {.base = 1000};

	assert_int_equal(fs_ids_add(&ids, 4, 7), 0);
	assert_int_equal(fs_ids_add(&ids, 2, 900), 0);
	assert_int_equal(fs_ids_add(&ids, 3, 1000), 0);
	fs_ids_sort(&ids);
	assert_int_equal(fs_ids_get(&ids, 1), FS_ROOT_ID);
	assert_int_equal(fs_ids_get(&ids, 2), 900);
	assert_int_equal(fs_ids_get(&ids, 3), 1000);
	assert_int_equal(fs_ids_get(&ids, 4), 7);
	assert_int_equal(fs_ids_get(&ids, 5), 1005);
	fs_ids_clear(&ids);
}

static void test_ids_never_meet(void **state)
{
	struct fs_ids ids = {.base = 500};

	for (uint64_t i = 0; i < 400; i++)
		assert_int_equal(fs_ids_add(&ids, 2 + i, 500 - i), 0);
	fs_ids_sort(&ids);
	for (uint64_t i = 0; i < 400; i++)
		assert_true(fs_ids_get(&ids, 2 + i) <= ids.base);
	for (uint64_t i = 402; i < 900; i++)
		assert_true(fs_ids_get(&ids, i) > ids.base);
	fs_ids_clear(&ids);
}

static void test_ids_saved_and_loaded(void **state)
{
	struct fs_ids ids = {.base = 77}, back;
	int dir = temp_dir();

	assert_int_equal(fs_ids_load(&back, dir, "ids"), -ENOENT);
	for (uint64_t i = 2; i < 1000; i++)
		assert_int_equal(fs_ids_add(&ids, i, i * 3), 0);
	fs_ids_sort(&ids);
	assert_int_equal(fs_ids_save(&ids, dir, "ids"), 0);
	assert_int_equal(fs_ids_load(&back, dir, "ids"), 0);
	assert_int_equal(back.base, 77);
	assert_int_equal(fs_ids_get(&back, 500), 1500);
	fs_ids_clear(&back);

	fs_ids_clear(&ids);
	assert_int_equal(fs_ids_save(&ids, dir, "ids"), 0);
	assert_int_equal(fs_ids_load(&back, dir, "ids"), 0);
	assert_int_equal(back.nr, 0);
	fs_ids_clear(&back);
	temp_dir_remove(dir);
}

static void test_ids_refuse_a_torn_file(void **state)
{
	struct fs_ids ids = {.base = 1}, back;
	int dir = temp_dir();
	int fd;

	assert_int_equal(fs_ids_add(&ids, 2, 3), 0);
	assert_int_equal(fs_ids_save(&ids, dir, "ids"), 0);
	fd = openat(dir, "ids", O_RDWR);
	assert_int_equal(pwrite(fd, "x", 1, 40), 1);
	assert_int_equal(fs_ids_load(&back, dir, "ids"), -EBADMSG);
	assert_int_equal(ftruncate(fd, 33), 0);
	assert_int_equal(fs_ids_load(&back, dir, "ids"), -EBADMSG);
	assert_int_equal(ftruncate(fd, 3), 0);
	assert_int_equal(fs_ids_load(&back, dir, "ids"), -EBADMSG);
	close(fd);
	fs_ids_clear(&ids);
	temp_dir_remove(dir);
}

/* A lower file that is a memfd, the data file in a temporary directory. */
struct data {
	int dir, lower;
	unsigned before; /* calls */
	bool changed;
	struct store_image *image; /* or NULL */
};

static int count_before(void *ctx, uint64_t id)
{
	struct data *data = ctx;

	assert_int_equal(id, 0x1234);
	data->before++;
	return 0;
}

static void data_write(struct data *data, uint64_t size)
{
	struct store_data_written written = {.changed = false};

	data->before = 0;
	assert_int_equal(store_data_write(data->dir, 0x1234, data->lower, size, count_before, data,
					  NULL, data->image, &written),
			 0);
	data->changed = written.changed;
}

static void fill(struct data *data, off_t off, size_t len, int c)
{
	_cleanup_free_ char *buf = malloc(len);

	memset(buf, c, len);
	assert_int_equal(pwrite(data->lower, buf, len, off), len);
}

static void data_setup(struct data *data)
{
	data->image = NULL;
	data->dir = temp_dir();
	data->lower = memfd_create("lower", MFD_CLOEXEC);
	assert_true(data->lower >= 0);
}

static void data_teardown(struct data *data)
{
	store_image_free(data->image);
	close(data->lower);
	temp_dir_remove(data->dir);
}

/* The stored contents, restored into a new lower file, are those of the old one. */
static void assert_restores(struct data *data, uint64_t size)
{
	_cleanup_close_ int copy = memfd_create("copy", MFD_CLOEXEC);
	_cleanup_free_ char *a = calloc(1, size), *b = calloc(1, size);

	assert_int_equal(ftruncate(copy, (off_t)size), 0);
	assert_int_equal(store_data_read(data->dir, 0x1234, copy, size, NULL), 0);
	assert_int_equal(pread(data->lower, a, size, 0), size);
	assert_int_equal(pread(copy, b, size, 0), size);
	assert_memory_equal(a, b, size);
}

static void test_data_round_trip(void **state)
{
	struct data data;
	struct stat st;

	data_setup(&data);
	assert_int_equal(ftruncate(data.lower, 8 << 20), 0);
	fill(&data, 5 * PAGE + 17, 3 * PAGE, 'a');
	fill(&data, (4 << 20) - 100, 200, 'b');
	data_write(&data, 8 << 20);
	assert_true(data.changed);
	assert_true(data.before > 0);
	assert_int_equal(fstatat(data.dir, "34/4660", &st, 0), 0);
	assert_int_equal(st.st_size, 8 << 20);
	assert_true(st.st_blocks * 512 <= 8 * PAGE);
	assert_restores(&data, 8 << 20);

	data_write(&data, 8 << 20);
	assert_false(data.changed);
	assert_int_equal(data.before, 0);
	data_teardown(&data);
}

static void test_data_zero_pages_become_holes(void **state)
{
	struct data data;
	struct stat st;

	data_setup(&data);
	fill(&data, 0, 64 * PAGE, 'a');
	data_write(&data, 64 * PAGE);
	fill(&data, 8 * PAGE, 48 * PAGE, 0);
	data_write(&data, 64 * PAGE);
	assert_true(data.changed);
	assert_int_equal(fstatat(data.dir, "34/4660", &st, 0), 0);
	assert_true(st.st_blocks * 512 <= 17 * PAGE);
	assert_restores(&data, 64 * PAGE);
	data_teardown(&data);
}

static void test_data_punched_and_truncated(void **state)
{
	struct data data;

	data_setup(&data);
	fill(&data, 0, 300 * PAGE, 'a');
	data_write(&data, 300 * PAGE);
	assert_int_equal(fallocate(data.lower, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				   10 * PAGE, 280 * PAGE),
			 0);
	data_write(&data, 300 * PAGE);
	assert_restores(&data, 300 * PAGE);
	assert_int_equal(ftruncate(data.lower, 5 * PAGE + 5), 0);
	data_write(&data, 5 * PAGE + 5);
	assert_true(data.changed);
	assert_restores(&data, 5 * PAGE + 5);
	/* what was cut off does not come back */
	assert_int_equal(ftruncate(data.lower, 20 * PAGE), 0);
	data_write(&data, 20 * PAGE);
	assert_restores(&data, 20 * PAGE);
	data_teardown(&data);
}

static uint64_t blocks_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks;
}

/*
 * Random changes of a file, by write(2), by stores and as holes, with an image that is kept from
 * one to the next, and the data file is equal each time; holes that are looked at stay holes.
 */
static void test_data_by_what_is_known(void **state)
{
	const unsigned pages = 700;
	struct data data;
	unsigned seed = 1;
	uint64_t blocks, size = pages * PAGE;
	char *map;

	data_setup(&data);
	assert_int_equal(ftruncate(data.lower, (off_t)size), 0);
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, data.lower, 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	fill(&data, 100 * PAGE, 400 * PAGE, 'a');
	data_write(&data, size);
	data.image = store_image_new();
	assert_non_null(data.image);
	for (int turn = 0; turn < 300; turn++) {
		off_t page = rand_r(&seed) % (pages - 10);

		if (turn % 50 == 49) {
			size = (pages - 5 - (unsigned)rand_r(&seed) % 300) * PAGE + 17;
			assert_int_equal(ftruncate(data.lower, (off_t)size), 0);
		} else if (turn % 50 == 0) {
			size = pages * PAGE;
			assert_int_equal(ftruncate(data.lower, (off_t)size), 0);
		}
		switch (rand_r(&seed) % 4) {
		case 0:
			fill(&data, 300 * PAGE + (page % 50) * 100, 1 + (size_t)turn, turn);
			break;
		case 1:
			if ((uint64_t)page * PAGE < size)
				map[(size_t)page * PAGE + (size_t)turn] ^= 1;
			break;
		case 2:
			assert_int_equal(fallocate(data.lower,
						   FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
						   page * (off_t)PAGE, 9 * (off_t)PAGE),
					 0);
			break;
		default:
			break;
		}
		if (store_image_known(data.image))
			store_image_map(data.image, data.lower, size);
		blocks = blocks_of(data.lower);
		data_write(&data, size);
		assert_int_equal(blocks_of(data.lower), blocks);
		assert_true(store_image_known(data.image) || turn % 50 == 49);
		assert_restores(&data, size);
		data_write(&data, size);
		assert_false(data.changed);
	}
	munmap(map, pages * PAGE);
	data_teardown(&data);
}

/* A page that was cut for a moment and is whole again when it is looked at. */
static void test_data_cut_within_a_known_page(void **state)
{
	const uint64_t size = 8 * PAGE;
	struct data data;

	data_setup(&data);
	fill(&data, 0, (size_t)size, 'a');
	data.image = store_image_new();
	assert_non_null(data.image);
	data_write(&data, size);
	store_image_map(data.image, data.lower, size);
	data_write(&data, size - PAGE / 2);
	data_write(&data, size);
	assert_restores(&data, size);
	data_teardown(&data);
}

static void test_data_of_zeros_has_no_file(void **state)
{
	struct data data;
	struct stat st;

	data_setup(&data);
	fill(&data, 0, 4 * PAGE, 0);
	data_write(&data, 4 * PAGE);
	assert_false(data.changed);
	assert_int_equal(fstatat(data.dir, "34/4660", &st, 0), -1);
	assert_restores(&data, 4 * PAGE);
	data_teardown(&data);
}

static int refuse(void *ctx, uint64_t id)
{
	return -EIO;
}

static void test_data_is_not_written_before_the_marks(void **state)
{
	struct data data;
	struct stat st;
	struct store_data_written written = {.changed = false};

	data_setup(&data);
	fill(&data, 0, PAGE, 'a');
	assert_int_equal(store_data_write(data.dir, 0x1234, data.lower, PAGE, refuse, NULL, NULL,
					  NULL, &written),
			 -EIO);
	assert_int_equal(fstatat(data.dir, "34/4660", &st, 0), -1);
	data_teardown(&data);
}

static bool keep_one(const void *ctx, uint64_t id)
{
	return id == *(const uint64_t *)ctx;
}

static void test_data_pruned(void **state)
{
	struct data data;
	struct stat st;
	uint64_t keep = 0x1234;

	data_setup(&data);
	fill(&data, 0, PAGE, 'a');
	data_write(&data, PAGE);
	assert_int_equal(store_data_prune(data.dir, keep_one, &keep), 0);
	assert_int_equal(fstatat(data.dir, "34/4660", &st, 0), 0);
	keep = 5;
	assert_int_equal(store_data_prune(data.dir, keep_one, &keep), 0);
	assert_int_equal(fstatat(data.dir, "34/4660", &st, 0), -1);
	data_teardown(&data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ids_of_an_empty_lower),
		cmocka_unit_test(test_ids_restored_and_new),
		cmocka_unit_test(test_ids_never_meet),
		cmocka_unit_test(test_ids_saved_and_loaded),
		cmocka_unit_test(test_ids_refuse_a_torn_file),
		cmocka_unit_test(test_data_round_trip),
		cmocka_unit_test(test_data_zero_pages_become_holes),
		cmocka_unit_test(test_data_punched_and_truncated),
		cmocka_unit_test(test_data_by_what_is_known),
		cmocka_unit_test(test_data_cut_within_a_known_page),
		cmocka_unit_test(test_data_of_zeros_has_no_file),
		cmocka_unit_test(test_data_is_not_written_before_the_marks),
		cmocka_unit_test(test_data_pruned),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
