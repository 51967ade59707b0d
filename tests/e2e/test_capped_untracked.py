# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Programs that know nothing of wpfs on a capped mount: they read, write and map files as on any other.
A file that one of them may map is in memory as a whole and stays there; one that is too large for
that can be read and written, and not mapped.
"""

import errno
import json
import mmap
import os
import shutil
import sqlite3
import subprocess

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, map_file, mapped
from seam import Seam

CAP = 16 << 20
OPTIONS = ["resident=16M", "settle=0", "flush=0"]

HOLDER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("open", flush=True)
input()
view = mmap.mmap(fd, 0)  # which has a descriptor of its own
os.close(fd)
print(sum(view[at] for at in range(0, len(view), 4096)), flush=True)
for line in sys.stdin:
    page, value = map(int, line.split())
    view[page * 4096] = value
    print("stored", flush=True)
"""


@pytest.fixture
def wpfs(make_wpfs):
    wpfs = make_wpfs("store", OPTIONS, start=False)
    wpfs.seam = Seam(wpfs)
    wpfs.start()
    return wpfs


def status(wpfs):
    return wpfs.wpctl_json("status")


def evict(wpfs, path="/f"):
    return wpfs.wpctl_json("evict", path)["pages"]


def refused(wpfs, path="/f"):
    return wpfs.wpctl("evict", wpfs.mnt, path, status=1).stderr


def holder(wpfs, path="f"):
    program = wpfs.spawn_bare("/usr/bin/python3", "-c", HOLDER, wpfs.mnt / path)
    assert program.read() == "open"
    return program


def unpinned(wpfs):
    proc.wait_for(lambda: status(wpfs)["pinned"] == 0, harness.SECONDS, "the file to be let go of")


def test_mapped(wpfs):
    """All of it comes back before the open returns, stays while it is open or mapped, and leaves
    again afterwards."""
    content = os.urandom(64 * PAGE)
    (wpfs.mnt / "f").write_bytes(content)
    assert status(wpfs)["pinned"] == 0, "who only writes maps nothing"
    assert evict(wpfs) == 64 and status(wpfs)["spilled"] == 64 * PAGE
    with open(wpfs.mnt / "f", "r+b") as file:
        now = status(wpfs)
        assert now["spilled"] == 0 and now["pinned"] == now["resident"] == 64 * PAGE
        assert "not tracked has it open" in refused(wpfs)
        view = mmap.mmap(file.fileno(), 0)
        assert view[:] == content
        view[3 * PAGE:3 * PAGE + 5] = b"hello"
        assert os.pread(file.fileno(), 5, 3 * PAGE) == b"hello"
        os.pwrite(file.fileno(), b"there", 4 * PAGE)
        assert view[4 * PAGE:4 * PAGE + 5] == b"there"
    assert status(wpfs)["pinned"] == 64 * PAGE, "it is mapped"
    assert "not tracked" in refused(wpfs)
    view.close()
    assert evict(wpfs) == 64
    assert status(wpfs)["pinned"] == 0 and status(wpfs)["spilled"] == 64 * PAGE
    assert (wpfs.mnt / "f").read_bytes()[3 * PAGE:4 * PAGE + 5] == \
        b"hello" + content[3 * PAGE + 5:4 * PAGE] + b"there"


def test_the_end_of_a_program_lets_go(wpfs):
    """Killed: within a second its file may leave, also by itself."""
    (wpfs.mnt / "f").write_bytes(b"x" * (8 << 20))
    program = holder(wpfs)
    program.send("")
    assert program.read() == str(2048 * ord("x"))
    assert status(wpfs)["pinned"] == 8 << 20
    program.kill9()
    unpinned(wpfs)
    for name in ("g", "h"):  # each as large: f has to make room
        (wpfs.mnt / name).write_bytes(os.urandom(8 << 20))
    proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "room")
    assert status(wpfs)["spilled"] >= 8 << 20
    assert (wpfs.mnt / "f").read_bytes() == b"x" * (8 << 20)


def test_marks_of_others_stay(wpfs):
    """A tracked program's marks outlive that an untracked one has the file brought back, and its
    stores to pages that are pinned are seen."""
    program = mapped(wpfs, protect=False)
    for page in range(64):
        program.order(f"store 0 {page} {page + 1}")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 9 90")
    assert evict(wpfs) == 64
    other = holder(wpfs)
    other.send("")
    assert other.read() == str(sum(range(1, 65)) - 10 + 90)
    assert report.marked(wpfs, "t") == ALL - {9} and report.dirty(wpfs, "t") == {9}
    program.order("store 0 10 100")
    other.send("11 110")
    assert other.read() == "stored" and program.order("load 0 11") == 110
    assert report.dirty(wpfs, "t") == {9, 10}, "other programs' stores clear no mark"
    other.kill9()
    unpinned(wpfs)
    assert evict(wpfs) == 64
    assert [program.order(f"load 0 {page}") for page in (9, 10, 11, 12)] == [90, 100, 110, 13]
    assert report.marked(wpfs, "t") == ALL - {9, 10}


def test_a_tracked_program_pins_nothing(wpfs):
    """It maps what the daemon gives it: also by an open of before it ever mapped."""
    program = mapped(wpfs)
    for page in range(64):
        program.order(f"store 0 {page} 1")
    assert status(wpfs)["pinned"] == 0
    assert evict(wpfs) == 64


def test_too_large(wpfs):
    """What does not fit is read and written whole, and never mapped; it stays evictable."""
    content = os.urandom(1 << 20)
    with open(wpfs.mnt / "f", "wb") as file:
        for part in range(24):
            file.write(bytes([part]) + content[1:])
    with open(wpfs.mnt / "f", "r+b", buffering=0) as file:
        with pytest.raises(OSError) as caught:
            mmap.mmap(file.fileno(), PAGE)
        assert caught.value.errno == errno.ENODEV
        for part in range(24):
            assert os.pread(file.fileno(), 1 << 20, part << 20) == bytes([part]) + content[1:]
        os.pwrite(file.fileno(), b"new", 5 << 20)
        assert status(wpfs)["pinned"] == 0
        assert evict(wpfs) > 0
        assert os.pread(file.fileno(), 4, 5 << 20) == b"new" + content[3:4]


def test_budget_of_all(wpfs):
    """Two files that fit each, and not both: the second one cannot be mapped until the first is let
    go of."""
    for name in ("f", "g"):
        (wpfs.mnt / name).write_bytes(name.encode() * (10 << 20))
    first = holder(wpfs)
    with open(wpfs.mnt / "g", "r+b") as file, pytest.raises(OSError) as caught:
        mmap.mmap(file.fileno(), PAGE)
    assert caught.value.errno == errno.ENODEV
    assert (wpfs.mnt / "g").read_bytes() == b"g" * (10 << 20)
    first.kill9()
    unpinned(wpfs)
    with open(wpfs.mnt / "g", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        assert view[:] == b"g" * (10 << 20)


def test_opened_every_way_at_once(wpfs):
    """While somebody may map it every open works, also those that would not have to."""
    (wpfs.mnt / "f").write_bytes(b"a" * (4 * PAGE))
    first = holder(wpfs)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_DIRECT,
                  os.O_WRONLY | os.O_TRUNC):
        os.close(os.open(wpfs.mnt / "f", flags))
    (wpfs.mnt / "f").write_bytes(b"b" * (4 * PAGE))
    program = map_file(wpfs.spawn(harness.program("mapper"), name="t"), wpfs.mnt / "f", pages=4)
    assert program.order("load 0 3") == ord("b")
    first.send("")
    assert first.read() == str(4 * ord("b"))
    first.send("3 7")
    assert first.read() == "stored" and program.order("load 0 3") == 7


def test_opens_of_both_kinds_race(wpfs):
    """Opens that map and opens that do not, of one file at once: the kernel refuses none."""
    (wpfs.mnt / "f").write_bytes(b"a" * PAGE)
    script = """
import os, select, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    os.close(os.open(sys.argv[1], os.O_WRONLY))
"""
    direct = [wpfs.spawn_bare("/usr/bin/python3", "-c", script, wpfs.mnt / "f")
              for _ in range(4)]
    for one in direct:
        assert one.read() == "ready"
    for _ in range(40):
        os.close(os.open(wpfs.mnt / "f", os.O_RDONLY))
    for one in direct:
        one.send("")
        one.wait()


def test_open_during_an_eviction(wpfs):
    """An open between two steps of an eviction is answered after it, and the page is there."""
    program = mapped(wpfs)
    for page in range(64):
        program.order(f"store 0 {page} {page + 1}")
    for step in ("fenced", "leased", "saved", "punched"):
        wpfs.seam.pause(step)
        evicting = subprocess.Popen([harness.WPCTL, "evict", wpfs.mnt, "/f"], env=wpfs.env(None),
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wpfs.seam.wait_at(step)
        other = wpfs.spawn_bare("/usr/bin/python3", "-c", HOLDER, wpfs.mnt / "f")
        proc.wait_for(lambda: proc.waits_for_fuse(other.pid), harness.SECONDS, "the open to wait")
        wpfs.seam.go(step)
        # It may look once more when a batch has gone; by then the file is back, and pinned.
        assert evicting.wait(harness.SECONDS) == 0, evicting.stderr.read()
        assert other.read() == "open"
        other.send("")
        assert other.read() == str(sum(range(1, 65)))
        assert status(wpfs)["spilled"] == 0
        other.kill9()
        unpinned(wpfs)
    assert evict(wpfs) == 64


def test_opened_while_some_pages_are_left(wpfs):
    """An eviction that goes on with pages that were in use finds the file back and pinned: it is as
    if it had been opened after the eviction, which did not fail."""
    program = mapped(wpfs)
    for page in range(64):
        program.order(f"store 0 {page} {page + 1}")
    wpfs.seam.pause("fenced")
    evicting = subprocess.Popen([harness.WPCTL, "evict", "--json", wpfs.mnt, "/f"],
                                env=wpfs.env(None), stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)
    wpfs.seam.wait_at("fenced")
    assert program.order("load 0 5") == 6  # in use again, so it does not leave with the others
    other = wpfs.spawn_bare("/usr/bin/python3", "-c", HOLDER, wpfs.mnt / "f")
    wpfs.seam.pause("punched")
    wpfs.seam.go("fenced")
    wpfs.seam.wait_at("punched")
    proc.wait_for(lambda: proc.waits_for_fuse(other.pid, "fuse_file_open"), harness.SECONDS,
                  "the open to wait for the batch")
    wpfs.seam.go("punched")
    out, err = evicting.communicate(timeout=harness.SECONDS)
    assert evicting.returncode == 0, err
    assert json.loads(out)["pages"] > 0
    assert other.read() == "open"
    assert status(wpfs)["spilled"] == 0 and status(wpfs)["pinned"] == 64 * PAGE
    assert "not tracked has it open" in refused(wpfs), "that is another one"
    other.send("")
    assert other.read() == str(sum(range(1, 65)))


def test_store_that_cannot_be_read(wpfs):
    """A file that cannot be brought back whole is not mapped; what is there can be read."""
    (wpfs.mnt / "f").write_bytes(b"x" * (64 * PAGE))
    assert evict(wpfs) == 64
    wpfs.seam.fail("spill-read", errno.EIO)
    wpfs.allow_log("cannot bring")
    with open(wpfs.mnt / "f", "r+b") as file:
        with pytest.raises(OSError) as caught:
            mmap.mmap(file.fileno(), PAGE)
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(OSError) as caught:
            os.pread(file.fileno(), 1, 0)
        assert caught.value.errno == errno.EIO
        wpfs.seam.works("spill-read")
        assert os.pread(file.fileno(), 1, 0) == b"x"
    with open(wpfs.mnt / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        assert view[:] == b"x" * (64 * PAGE)


def test_daemon_killed(wpfs):
    """The mapping goes on; the next daemon does not evict under it."""
    (wpfs.mnt / "f").write_bytes(b"x" * (64 * PAGE))
    assert evict(wpfs) == 64
    other = holder(wpfs)
    other.send("")
    assert other.read() == str(64 * ord("x"))
    wpfs.kill9()
    other.send("3 7")
    assert other.read() == "stored"
    wpfs.restart()
    told = refused(wpfs)
    assert f"pid {other.pid}" in told or "open or mapped" in told
    other.send("4 8")
    assert other.read() == "stored"
    other.kill9()
    proc.wait_for(lambda: wpfs.wpctl("evict", wpfs.mnt, "/f", status=None).returncode == 0,
                  harness.SECONDS, "the file to be let go of")
    content = (wpfs.mnt / "f").read_bytes()
    assert content[3 * PAGE] == 7 and content[4 * PAGE] == 8


def test_copies(wpfs, tmp_path):
    """cp in and out of more than fits, and sqlite3 with its pages and its log mapped."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(40 << 20))
    subprocess.run(["cp", source, wpfs.mnt / "f"], check=True, timeout=120)
    subprocess.run(["cp", wpfs.mnt / "f", tmp_path / "back"], check=True, timeout=120)
    subprocess.run(["cmp", source, tmp_path / "back"], check=True, timeout=120)
    proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "what does not fit to leave")
    assert status(wpfs)["spilled"] > 8 << 20
    os.unlink(source)
    shutil.copyfile(wpfs.mnt / "f", wpfs.mnt / "g")
    subprocess.run(["cmp", wpfs.mnt / "f", wpfs.mnt / "g"], check=True, timeout=120)
    for name in ("f", "g"):
        os.unlink(wpfs.mnt / name)
    db = sqlite3.connect(wpfs.mnt / "db", isolation_level=None)
    assert db.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    db.execute("pragma mmap_size=1000000000")
    db.execute("create table t(i, b)")
    for i in range(200):
        db.execute("insert into t values(?, zeroblob(10000))", (i,))
    assert db.execute("select sum(i), sum(length(b)) from t").fetchone() == (19900, 2000000)
    maps = open("/proc/self/maps", encoding="utf-8", errors="replace").read()
    assert f"{wpfs.mnt}/db-shm" in maps, "its log's index is not mapped"
    db.close()
    with sqlite3.connect(wpfs.mnt / "db") as db:
        db.execute("pragma mmap_size=1000000000")
        assert db.execute("select sum(i), sum(length(b)) from t").fetchone() == (19900, 2000000)
        maps = open("/proc/self/maps", encoding="utf-8", errors="replace").read()
        assert f"{wpfs.mnt}/db\n" in maps, "its pages are not mapped"
    db.close()
    unpinned(wpfs)
    assert evict(wpfs, "/db") > 0
    db = sqlite3.connect(wpfs.mnt / "db")
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("select sum(i) from t").fetchone() == (19900,)
    db.close()
