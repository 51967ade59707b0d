# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests of a capped mount that wait for the store: the others go on meanwhile, however many wait."""

import os
import threading

import pytest

import harness
import proc
from harness import PAGE
from mapper import direct_file
from seam import Seam

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
        except FileNotFoundError:
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
