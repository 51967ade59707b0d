# SPDX-License-Identifier: LGPL-2.1-or-later
"""
More files than descriptors: the daemon's limit is low and cannot be raised. A million of them:
tools/soak --fs-scale.
"""

import os

import pytest

import harness

LIMIT = 200
FILES = 5000


@pytest.fixture
def few(make_wpfs):
    wpfs = make_wpfs(start=False)
    wpfs.under = ["prlimit", f"--nofile={LIMIT}:{LIMIT}", "setpriv", "--bounding-set=-sys_resource"]
    return wpfs.start()


def descriptors(wpfs):
    return len(os.listdir(f"/proc/{wpfs.pid}/fd"))


def test_many_files_in_one_directory(few):
    top = few.mnt / "d"
    top.mkdir()
    for number in range(FILES):
        fd = os.open(f"{top}/{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)
    assert sorted(map(int, os.listdir(top))) == list(range(FILES))
    assert {entry.stat().st_size for entry in os.scandir(top)} == {1}
    assert descriptors(few) < LIMIT * 3 // 4
    for number in range(FILES):
        os.unlink(f"{top}/{number}")
    top.rmdir()


def test_a_deep_tree(few):
    fd = os.open(few.mnt, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=below))
        os.close(fd)
        fd = below
    os.close(fd)
    assert descriptors(few) < LIMIT * 3 // 4
    done = few.command("find", few.mnt / "d", "-name", "f", "-printf", ".")
    assert done.returncode == 0 and done.stdout == "." * 1500, done.stderr
    assert few.command("rm", "-r", few.mnt / "d").returncode == 0


def test_many_open_at_once(few):
    """Open files need no descriptor of the daemon each; writing and attributes work all the same."""
    files = []
    for number in range(LIMIT * 3):
        files.append(os.open(few.mnt / str(number), os.O_CREAT | os.O_RDWR))
        os.pwrite(files[-1], number.to_bytes(4, "little"), 4096 * (number % 3))
    for number, fd in enumerate(files):
        assert os.pread(fd, 4, 4096 * (number % 3)) == number.to_bytes(4, "little")
        assert os.fstat(fd).st_size == 4096 * (number % 3) + 4
        os.ftruncate(fd, 8192)
        os.posix_fallocate(fd, 0, 16384)
        assert os.lseek(fd, 0, os.SEEK_END) == 16384
    assert descriptors(few) < LIMIT
    for fd in files:
        os.close(fd)
