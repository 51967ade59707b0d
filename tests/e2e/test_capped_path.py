# SPDX-License-Identifier: LGPL-2.1-or-later
"""Capped mounts where the kernel refuses io_uring: which way pages go to the store, and that it works."""

import os

import pytest

import harness
import proc
import report

PAGES = 4096
CAP = 4 << 20
OPTIONS = ["resident=4M", "settle=5ms", "flush=0"]


def rings(pid):
    """How many io_urings a process has open."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            count += "io_uring" in os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            pass
    return count


def left(wpfs):
    """Others were faster than pages leave; now none is there that does not fit."""
    proc.wait_for(lambda: wpfs.wpctl_json("status")["resident"] <= CAP, harness.STORE_SECONDS, "room")


@pytest.mark.parametrize("refused", [False, True], ids=["io_uring", "refused"])
def test_path(make_wpfs, refused):
    """Four times what may be in memory goes out and comes back, the way that the status tells."""
    wpfs = make_wpfs("store", OPTIONS, start=False)
    if refused:
        wpfs.under = [harness.program("nouring")]
    wpfs.start()
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", PAGES, name="t")
    assert program.read() == "ok ready"
    program.order("fill 1")
    program.order("clear")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    left(wpfs)
    assert program.order("verify 2") == 0
    left(wpfs)
    program.order("write 1 500 4")
    path = wpfs.dir / "written"
    program.order(f"written {path}")
    dirty = {page for page, byte in enumerate(path.read_bytes()) if byte}
    assert program.order("verify 1") == 0
    assert report.dirty(wpfs, "t") == dirty
    assert report.marked(wpfs, "t") == set(range(PAGES)) - dirty
    now = wpfs.wpctl_json("status")
    assert now["evictions"] > PAGES and now["refaults"] > PAGES
    assert now["store_io_uring"] is not refused
    assert (rings(wpfs.pid) > 0) is not refused
    line = "with pwrite: io_uring is refused" if refused else "through io_uring"
    assert f"pages go to the store {line}" in wpfs.read_log()
    program.wait()
