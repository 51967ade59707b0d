# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests of a capped mount that wait for the store: the others go on meanwhile, however many wait."""

import os
import threading

import pytest

import harness
import proc
from harness import PAGE
from mapper import direct_file, map_file
from seam import Seam, wait_waiting, waiting

NR = 60  # more than there are threads that read requests


@pytest.fixture
def wpfs(make_wpfs):
    wpfs = make_wpfs("store", ["resident=256M", "settle=0", "flush=0"], start=False)
    wpfs.seam = Seam(wpfs)
    return wpfs.start()


class Caller(threading.Thread):
    """Makes one call; what it gave."""

    def __init__(self, call):
        super().__init__(daemon=True)
        self.call, self.result = call, None
        self.start()

    def run(self):
        try:
            self.result = self.call()
        except OSError as error:
            self.result = error

    def waits(self):
        try:
            with open(f"/proc/self/task/{self.native_id}/wchan", encoding="ascii") as wchan:
                return "request_wait" in wchan.read()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def end(self):
        self.join(harness.SECONDS)
        assert not self.is_alive()
        return self.result


@pytest.mark.parametrize("what", ["read", "open"])
def test_others_go_on(wpfs, what):
    content = bytes(range(1, 1 + NR))
    (wpfs.mnt / "f").write_bytes(b"".join(bytes([byte]) * PAGE for byte in content))
    (wpfs.mnt / "g").write_bytes(b"g" * PAGE)
    with direct_file(wpfs.mnt / "f") as fd, direct_file(wpfs.mnt / "g") as other:
        wpfs.wpctl("evict", wpfs.mnt, "/f")
        calls = {"read": lambda page: os.pread(fd, 1, page * PAGE),
                 "open": lambda page: os.close(os.open(wpfs.mnt / "f", os.O_RDWR))}
        wpfs.seam.pause("asked")
        callers = [Caller(lambda page=page: calls[what](page)) for page in range(NR)]
        wpfs.seam.wait_at("asked")
        proc.wait_for(lambda: all(caller.waits() for caller in callers), harness.SECONDS, "them all")
        assert Caller(lambda: sorted(os.listdir(wpfs.mnt))).end() == ["f", "g"]
        assert Caller(lambda: os.pread(other, PAGE, 0)).end() == b"g" * PAGE
        assert Caller(lambda: (wpfs.mnt / "h").write_bytes(b"h")).end() == 1
        assert Caller(lambda: os.stat(wpfs.mnt / "f").st_size).end() == NR * PAGE
        assert all(caller.waits() for caller in callers)
        wpfs.seam.go("asked")
        results = [caller.end() for caller in callers]
        assert results == {"read": [bytes([byte]) for byte in content], "open": [None] * NR}[what]
        for page, byte in enumerate(content):
            assert os.pread(fd, 3, page * PAGE) == bytes([byte]) * 3


def test_writes_of_many_files(wpfs):
    """More than wait where they were read: what is written is what was given, each to its file."""
    names = [f"f{number:02}" for number in range(12)]
    for name in names:
        (wpfs.mnt / name).write_bytes(name.encode() * 4096)
        wpfs.wpctl("evict", wpfs.mnt, f"/{name}")
    fds = [os.open(wpfs.mnt / name, os.O_WRONLY) for name in names]
    wpfs.seam.pause("asked")
    callers = [Caller(lambda fd=fd, name=name: os.pwrite(fd, name[::-1].encode() * 2000, 5))
               for fd, name in zip(fds, names)]
    proc.wait_for(lambda: all(caller.waits() for caller in callers), harness.SECONDS, "them all")
    wpfs.seam.go("asked")
    assert [caller.end() for caller in callers] == [6000] * len(names)
    for fd, name in zip(fds, names):
        os.close(fd)
        before = name.encode() * 4096
        assert (wpfs.mnt / name).read_bytes() == before[:5] + name[::-1].encode() * 2000 + before[6005:]


def test_a_mark_while_the_store_answers_nobody(wpfs):
    """As many programs as would take all threads that serve faults wait for it: who stores to a page
    that is there, and marked, does not."""
    (wpfs.mnt / "f").write_bytes(b"f" * 64 * PAGE)
    programs = [map_file(wpfs.spawn(harness.program("mapper"), name=f"w{number}"), wpfs.mnt / "f")
               for number in range(8)]
    other = map_file(wpfs.spawn(harness.program("mapper"), name="t", protect=True), wpfs.mnt / "g")
    assert [other.order(f"load 0 {page}") for page in range(64)] == [0] * 64
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    wpfs.seam.pause("asked")
    for number, program in enumerate(programs):
        program.send(f"load 0 {number * 8}")
    for program in programs:
        wait_waiting(program.pid)
    for page in range(64):
        assert other.order(f"store 0 {page} 1") == 0
    assert all(waiting(program.pid) for program in programs)
    wpfs.seam.go("asked")
    assert [program.read() for program in programs] == [f"ok {ord('f')}"] * 8


READ_INTO = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
other = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECT)
view[5 * 4096] = 1
print("mapped", flush=True)
sys.stdin.readline()
os.preadv(other, [memoryview(view)[5 * 4096:6 * 4096]], 0)
print(view[5 * 4096:6 * 4096] == b"g" * 4096, flush=True)
sys.stdin.readline()
"""

STORE_ALL = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
print("mapped", flush=True)
sys.stdin.readline()
for page in range(64, len(view) // 4096):
    view[page * 4096] = page % 255 + 1
print("stored", flush=True)
sys.stdin.readline()
print(all(view[page * 4096] == page % 255 + 1 for page in range(64, len(view) // 4096)), flush=True)
"""

CAP = 8 << 20
HELD_UP = "nothing can be evicted before a read"


@pytest.fixture
def pressed(make_wpfs):
    """Two programs that map /f, many times as large as the cap; /g is in the store."""
    wpfs = make_wpfs("store", ["resident=8M", "settle=0", "flush=0"], start=False)
    wpfs.seam = Seam(wpfs)
    wpfs.start()
    (wpfs.mnt / "g").write_bytes(b"g" * PAGE)
    wpfs.wpctl("evict", wpfs.mnt, "/g")
    (wpfs.mnt / "f").touch()
    os.truncate(wpfs.mnt / "f", 120 << 20)
    wpfs.reader = wpfs.spawn("/usr/bin/python3", "-c", READ_INTO, wpfs.mnt / "f", wpfs.mnt / "g")
    wpfs.writer = wpfs.spawn("/usr/bin/python3", "-c", STORE_ALL, wpfs.mnt / "f")
    assert wpfs.reader.read() == "mapped" and wpfs.writer.read() == "mapped"
    return wpfs


def held_up(wpfs):
    proc.wait_for(lambda: HELD_UP in wpfs.read_log(), harness.SECONDS, "that it is held up")


def in_memory(wpfs):
    """Of the lower tmpfs itself: no thread of the daemon need answer."""
    at = os.statvfs(harness.RUN_DIR / wpfs.id / "private/lower")
    return (at.f_blocks - at.f_bfree) * at.f_frsize


def is_full(wpfs):
    proc.wait_for(lambda: in_memory(wpfs) >= CAP + (32 << 20), harness.SECONDS, "full memory")


def ends_well(wpfs):
    assert wpfs.reader.read() == "True"
    assert wpfs.writer.read() == "stored"
    wpfs.reader.wait()
    assert wpfs.writer.ask("") == "True"
    assert "resident= allows" not in wpfs.read_log()


def test_a_read_that_the_store_does_not_answer_and_the_cap(pressed):
    """It goes right into pages that a program maps, so none that were mapped since can leave: who adds
    more waits for it, and the cap holds."""
    pressed.seam.pause("reading")
    pressed.reader.send("")
    pressed.seam.wait_at("reading")
    pressed.writer.send("")
    is_full(pressed)
    held_up(pressed)
    wait_waiting(pressed.writer.pid)
    assert in_memory(pressed) <= CAP + (64 << 20)
    pressed.seam.go("reading")
    ends_well(pressed)


def test_a_read_that_waits_for_room_and_keeps_all_others_in_memory(pressed):
    """Then it is let in, and nobody else."""
    (pressed.mnt / "h").write_bytes(b"h" * PAGE)
    pressed.seam.pause("recorded")
    evicting = Caller(lambda: pressed.wpctl("evict", pressed.mnt, "/h"))
    pressed.seam.wait_at("recorded")  # nothing else is evicted now
    pressed.writer.send("")
    is_full(pressed)
    pressed.reader.send("")
    proc.wait_for(lambda: proc.waits_for_fuse(pressed.reader.pid), harness.SECONDS, "its read")
    pressed.seam.go("recorded")
    evicting.end()
    held_up(pressed)
    ends_well(pressed)
    assert in_memory(pressed) <= CAP + (64 << 20)
