# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What asks the daemon for what: each request is two switches of the processor, so one more than the
kernel needs is what a user of many small files sees. And what the kernel does not ask for must be true.
"""

import collections
import ctypes
import mmap
import os
import re

import pytest

import harness

REQUEST = re.compile(r"opcode: (\w+) ")
NOT_WAITED_FOR = {"FORGET", "BATCH_FORGET", "RELEASE", "RELEASEDIR"}
ROOM = 65536
LIBC = ctypes.CDLL(None)  # Python's mmap keeps a descriptor
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@pytest.fixture
def logged(make_wpfs):
    wpfs = make_wpfs(start=False)
    wpfs.under = ["sh", "-c", 'exec "$0" -d "$@"']
    return wpfs.start()


def requests(wpfs, work):
    """How many of each kind, and the lines of the log meanwhile."""
    before = wpfs.log.stat().st_size
    work()
    lines = wpfs.log.read_bytes()[before:].decode(errors="replace")
    return collections.Counter(
        kind for kind in REQUEST.findall(lines) if kind not in NOT_WAITED_FOR), lines


def make_and_remove(path):
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
    os.unlink(path)


def test_making_a_file(logged):
    """
    A name is looked for before it is made, the first write asks for security.capability, and since
    each change of a directory moves its times the kernel asks for its attributes, to check the next.
    """
    make_and_remove(logged.mnt / "one")
    got, lines = requests(logged, lambda: make_and_remove(logged.mnt / "two"))
    assert got <= collections.Counter(LOOKUP=1, CREATE=1, GETXATTR=1, UNLINK=1, GETATTR=2), got
    assert "NOTIFY" not in lines


def test_opening_a_file(logged):
    path = logged.mnt / "f"
    path.write_bytes(b"x")
    os.close(os.open(path, os.O_RDONLY))
    got, _ = requests(logged, lambda: os.close(os.open(path, os.O_RDONLY)))
    assert got == collections.Counter(OPEN=1)


def open_as_user_and_write(path, flags):
    """By another process, whose capabilities leave no suid bit."""
    pid = os.fork()
    if pid == 0:
        os.setresuid(1000, 1000, 1000)
        fd = os.open(path, flags)
        os.write(fd, b"y" * 5000)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_truncated_and_not_set_user_id_any_more(logged):
    """An open that takes the bit is as any other: the daemon does not do its reads and writes."""
    path = logged.mnt / "f"
    path.write_bytes(b"x")
    os.chmod(logged.dir, 0o755)
    for flags, by_us in ((os.O_WRONLY, 1), (os.O_WRONLY | os.O_TRUNC, 0)):
        os.chmod(path, 0o4777)
        got, lines = requests(logged, lambda flags=flags: open_as_user_and_write(path, flags))
        assert got["OPEN"] == 1 and (got["WRITE"] > 0) == by_us, lines
        assert path.stat().st_mode & 0o7777 == 0o777 and path.read_bytes()[:5000] == b"y" * 5000


def test_renaming_a_file(logged):
    (logged.mnt / "one").touch()
    os.rename(logged.mnt / "one", logged.mnt / "two")
    got, _ = requests(logged, lambda: os.rename(logged.mnt / "two", logged.mnt / "one"))
    assert got <= collections.Counter(RENAME=1, LOOKUP=1, GETATTR=1), got


def test_what_is_cached(logged):
    path = logged.mnt / "f"
    path.write_bytes(b"x")
    os.stat(path)

    def look():
        for _ in range(10):
            assert os.stat(path).st_size == 1
            assert os.access(path, os.R_OK)
            assert not os.path.exists(logged.mnt / "none")

    look()
    got, _ = requests(logged, look)
    assert not got


def test_reading_a_directory(logged):
    for number in range(1000):
        (logged.mnt / str(number)).touch()

    def look():
        assert len([entry.stat() for entry in os.scandir(logged.mnt)]) == 1000

    look()
    got, _ = requests(logged, look)
    assert got.keys() <= {"OPENDIR", "READDIR", "READDIRPLUS", "GETATTR"}
    assert sum(got.values()) < 20


def wait_for_the_clock(old_ns):
    """Until a file that changes now has a later time than this."""
    path = f"/dev/shm/wpfs-clock-{os.getpid()}"
    try:
        while True:
            with open(path, "w", encoding="ascii") as file:
                if os.fstat(file.fileno()).st_mtime_ns > old_ns:
                    return
    finally:
        os.unlink(path)


def store(fd):
    with mmap.mmap(fd, ROOM) as mapping:
        os.fstat(fd)  # a mapping moves the access time; this is not asked for again
        mapping[5] = 1


def by_write(fd, path):
    os.pwrite(fd, b"x" * ROOM, 0)


def by_truncate_and_store(fd, path):
    os.ftruncate(fd, ROOM)
    store(fd)


def by_path_truncate_and_store(fd, path):
    os.truncate(path, ROOM)
    store(fd)


def by_fallocate_and_store(fd, path):
    os.posix_fallocate(fd, 0, ROOM)
    store(fd)


def by_write_and_store(fd, path):
    os.pwrite(fd, b"x", ROOM - 1)
    store(fd)


def by_splice(fd, path):
    end, begin = os.pipe()
    os.write(begin, b"x" * ROOM)
    assert os.splice(end, fd, ROOM) == ROOM
    os.close(end)
    os.close(begin)


def by_another_open(fd, path):
    other = os.open(path, os.O_RDWR)
    os.pwrite(other, b"x" * ROOM, 0)
    os.close(other)


def by_another_name(fd, path):
    os.link(path, f"{path}-linked")
    with open(f"{path}-linked", "r+b") as file:
        file.truncate(ROOM)
        store(file.fileno())


WAYS = [by_write, by_truncate_and_store, by_path_truncate_and_store,
        by_fallocate_and_store, by_write_and_store, by_splice, by_another_open,
        by_another_name]


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_attributes_of_a_new_file(wpfs, way, looked):
    """They are cached from its making on; whatever gives it contents ends that."""
    path = wpfs.mnt / "new"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    before = os.fstat(fd)
    assert before.st_size == before.st_blocks == 0
    if not looked:
        os.close(fd)
        os.unlink(path)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    wait_for_the_clock(before.st_mtime_ns)
    way(fd, path)
    after = os.stat(path)
    assert after.st_size == ROOM
    assert after.st_blocks >= 8
    assert after.st_mtime_ns > before.st_mtime_ns
    os.close(fd)


@pytest.mark.parametrize("way", WAYS)
def test_attributes_of_a_new_file_without_a_name(wpfs, way):
    fd = os.open(wpfs.mnt, os.O_TMPFILE | os.O_RDWR)
    before = os.fstat(fd)
    if way is not by_another_name:
        way(fd, f"/proc/self/fd/{fd}")
        assert os.fstat(fd).st_size == ROOM and os.fstat(fd).st_blocks >= 8
    assert before.st_size == 0
    os.close(fd)


def test_attributes_of_a_mapped_file_that_is_closed(wpfs):
    """A mapping of which there is no descriptor any more changes times without a request."""
    path = wpfs.mnt / "f"
    path.write_bytes(b"x" * ROOM)
    fd = os.open(path, os.O_RDWR)
    address = LIBC.mmap(None, ROOM, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    assert address != ctypes.c_void_p(-1).value
    os.close(fd)
    try:
        with open(path, "rb"):  # its release comes after that of the other one
            pass
        before = os.stat(path)
        wait_for_the_clock(before.st_mtime_ns)
        ctypes.memset(address, 1, 1)
        assert os.stat(path).st_mtime_ns > before.st_mtime_ns
    finally:
        LIBC.munmap(address, ROOM)


def test_a_name_that_is_there_after_all(wpfs):
    """Made behind the kernel's back: it believes that there is none, and asks for one to be made."""
    top = wpfs.mnt / "d"
    top.mkdir()
    lower = harness.RUN_DIR / wpfs.id / "private" / "lower" / "d"
    for name in "ab":
        assert not (top / name).exists()
        (lower / name).write_bytes(b"contents")
    fd = os.open(top / "a", os.O_CREAT | os.O_RDWR)
    assert os.pread(fd, 100, 0) == b"contents"
    os.close(fd)
    with pytest.raises(FileExistsError):
        os.open(top / "b", os.O_CREAT | os.O_EXCL | os.O_RDWR)
