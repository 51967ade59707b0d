# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Capped mounts (-o resident=): pages go to the store and come back at the next touch, marked where
they were marked.
"""

import contextlib
import mmap
import os
import random
import select
import subprocess
import time

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, Child, direct_file, map_file, mapped
from seam import Seam, wait_waiting, waiting

BIG = 16384  # pages: 64 MiB
FILLED = BIG - BIG // 8  # the others are zeros, which are never stored


@pytest.fixture
def wpfs(make_wpfs):
    return make_wpfs("store", ["resident=256M", "settle=5ms"])


def evict(wpfs, path="/f"):
    """Evicts; the number of pages that left."""
    return wpfs.wpctl_json("evict", path)["pages"]


def load(wpfs, path="/f"):
    return wpfs.wpctl_json("load", path)["pages"]


def refused(wpfs, path="/f"):
    """An eviction that must fail; the line that says why."""
    return wpfs.wpctl("evict", wpfs.mnt, path, status=1).stderr


def status(wpfs):
    return wpfs.wpctl_json("status")


def spilled(wpfs):
    """Pages in the store."""
    return status(wpfs)["spilled"] // PAGE


def refault(wpfs, pages=BIG, name="t", path="f"):
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / path, pages, name=name)
    assert program.read() == "ok ready"
    return program


def written(wpfs, program):
    """Pages that the program has written since its last "clear"."""
    program.order(f"written {wpfs.dir}/written")
    return {page for page, byte in enumerate((wpfs.dir / "written").read_bytes()) if byte}


def protect(wpfs, name="t", *more):
    wpfs.wpctl("protect", wpfs.mnt, "--name", name, *more)


def fill(program, first=1):
    for page in range(64):
        program.order(f"store 0 {page} {page + first}")


def loaded(program):
    return [program.order(f"load 0 {page}") for page in range(64)]


def test_none_has_no_place(make_wpfs):
    one = make_wpfs("none", ["resident=256M"], start=False)
    done = one.command(harness.WPFS, "-o", "resident=256M", "none", one.mnt)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "resident=" in done.stderr and "STORE" in done.stderr


def test_native_refuses(make_wpfs):
    native = make_wpfs("store")
    (native.mnt / "f").write_bytes(b"x")
    assert "resident=" in refused(native)


def test_untracked_open(wpfs):
    """Read and write go through the daemon. Without a file in memory (test_capped_untracked.py) a
    shared mapping is ENODEV, and a private one works."""
    path = wpfs.mnt / "f"
    content = os.urandom(3 * PAGE + 100)
    path.write_bytes(content)
    with direct_file(path) as fd:
        with pytest.raises(OSError) as caught:
            mmap.mmap(fd, PAGE)
        assert caught.value.errno == 19  # ENODEV
        private = mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE)
        assert private[:PAGE] == content[:PAGE]
        private.close()
    assert evict(wpfs) == 4 and spilled(wpfs) == 4
    assert path.read_bytes() == content
    assert spilled(wpfs) == 0


def test_round(wpfs):
    """64 MiB of random contents: all of it leaves and comes back, marks and all."""
    program = refault(wpfs)
    program.order("fill 1")
    program.order("clear")
    protect(wpfs)
    program.order("write 2 3000 4")
    dirty = written(wpfs, program)
    assert report.dirty(wpfs, "t") == dirty
    marked = report.marked(wpfs, "t")
    assert marked == set(range(BIG)) - dirty

    assert evict(wpfs) == BIG
    now = status(wpfs)
    # A page of zeros that was written to in between is not one any more.
    assert FILLED * PAGE <= now["spilled"] <= (FILLED + len(dirty)) * PAGE
    assert now["resident"] < 16 * PAGE and now["evictions"] == BIG
    assert report.marked(wpfs, "t") == marked and report.dirty(wpfs, "t") == dirty

    assert program.order("verify 1") == 0, "contents changed"
    now = status(wpfs)
    assert now["spilled"] == 0 and now["refaults"] >= FILLED
    assert report.marked(wpfs, "t") == marked, "a refault changed a mark"
    assert report.dirty(wpfs, "t") == dirty

    assert evict(wpfs) == BIG
    program.order("write 3 2000 4")
    dirty |= written(wpfs, program)
    assert report.dirty(wpfs, "t") == dirty
    assert report.marked(wpfs, "t") == set(range(BIG)) - dirty
    assert program.order("verify 4") == 0
    program.wait()
    assert report.dirty(wpfs, "t") == dirty


def test_store_engine(wpfs):
    """Which way the pages went, as the daemon says it; the store's file is sparse and removed."""
    program = mapped(wpfs, protect=False)
    fill(program)
    assert evict(wpfs) == 64
    assert "through io_uring" in wpfs.read_log()
    files = [path for path in (harness.Path(wpfs.store) / "spill").rglob("*") if path.is_file()]
    assert len(files) == 1 and files[0].stat().st_size == 64 * PAGE
    assert load(wpfs) == 64
    assert not files[0].exists()
    assert loaded(program) == [page + 1 for page in range(64)]


def test_same_page_by_threads(wpfs):
    """Sixteen threads fault on the same pages at once; each sees the whole page."""
    program = refault(wpfs, pages=2048)
    program.order("fill 5")
    protect(wpfs)
    for _ in range(5):
        assert evict(wpfs) == 2048
        assert program.order("verify 16") == 0
        assert report.marked(wpfs, "t") == set(range(2048))


def test_eviction_against_writers(wpfs):
    """Writers never lose a store, and a page never written stays marked."""
    program = refault(wpfs, pages=512)
    program.order("fill 9")
    program.order("clear")
    protect(wpfs)
    program.order("hammer 4")
    for _ in range(12):
        evict(wpfs)
    assert program.order("stop") > 0
    assert program.order("verify 4") == 0, "a store was lost"
    assert report.dirty(wpfs, "t") == written(wpfs, program)


def test_marks_kept_under_a_fence(wpfs):
    """Few pages are written while all are evicted again and again: the others stay marked."""
    program = refault(wpfs, pages=4096)
    program.order("fill 9")
    program.order("clear")
    protect(wpfs)
    for turn in range(5):
        program.order(f"write {turn} 40 4")
        assert evict(wpfs) > 0
        dirty = written(wpfs, program)
        assert report.dirty(wpfs, "t") == dirty
        assert report.marked(wpfs, "t") == set(range(4096)) - dirty
    assert program.order("verify 2") == 0


def test_two_programs(wpfs):
    """The same file in two mms with marks of their own."""
    one = mapped(wpfs, "one", protect=False)
    fill(one)
    two = map_file(wpfs.spawn(harness.program("mapper"), name="two"), wpfs.mnt / "f")
    protect(wpfs, "one", "--file", "/f", "--range", f"0+{32 * PAGE}")
    protect(wpfs, "two", "--file", "/f", "--range", f"{16 * PAGE}+{32 * PAGE}")
    one_marks, two_marks = set(range(32)), set(range(16, 48))
    assert evict(wpfs) == 64
    assert report.marked(wpfs, "one") == one_marks and report.marked(wpfs, "two") == two_marks
    assert loaded(two) == [page + 1 for page in range(64)]
    assert report.marked(wpfs, "one") == one_marks and report.marked(wpfs, "two") == two_marks
    assert evict(wpfs) == 64
    one.order("store 0 20 200")
    assert two.order("load 0 20") == 200, "they see different pages"
    assert report.dirty(wpfs, "one") == {20} and report.dirty(wpfs, "two") == set()
    assert report.marked(wpfs, "two") == two_marks


def test_second_mapping_of_the_same(wpfs):
    """A store through either of two mappings is seen."""
    program = mapped(wpfs)
    fill(program)
    program.order(f"map 1 0 0 {64 * PAGE}")
    protect(wpfs)
    assert evict(wpfs) == 64
    assert program.order("load 1 3") == 4 and program.order("load 0 3") == 4
    program.order("store 1 7 99")
    assert program.order("load 0 7") == 99
    assert report.dirty(wpfs, "t") == {7}


def test_run_again(wpfs):
    """kill -9 with everything in the store; the next run of the name finds contents and marks."""
    program = refault(wpfs)
    program.order("fill 4")
    program.order("clear")
    protect(wpfs)
    program.order("write 7 100 2")
    # What the second run expects is what is there: the same pages, filled as at first.
    dirty = written(wpfs, program)
    assert evict(wpfs) > 0
    program.kill9()
    assert report.dirty(wpfs, "t") == dirty
    again = refault(wpfs)
    before = spilled(wpfs)
    assert before > 0, "mapping it brought it back"
    assert report.marked(wpfs, "t") == set(range(BIG)) - dirty
    again.order("expect 4")
    assert again.order("verify 1") <= len(dirty)
    assert report.marked(wpfs, "t") == set(range(BIG)) - dirty
    again.order("clear")
    again.order("write 8 50 1")
    assert report.dirty(wpfs, "t") == dirty | written(wpfs, again)


def test_mapping_flags_touch_nothing(wpfs):
    """A mapping of a file in the store, over another (MAP_FIXED): no page is taken for zeros."""
    program = mapped(wpfs, protect=False)
    fill(program)
    assert evict(wpfs) == 64
    addr = program.order(f"map 1 0 0 {64 * PAGE} at={program.addr}")
    assert addr == program.addr
    assert spilled(wpfs) == 64
    assert [program.order(f"load 1 {page}") for page in range(64)] == [p + 1 for p in range(64)]


def test_moved(wpfs):
    """mremap of a mapping whose pages are in the store."""
    program = mapped(wpfs)
    fill(program)
    protect(wpfs)
    assert evict(wpfs) == 64
    program.order("move 0")
    assert loaded(program) == [page + 1 for page in range(64)]
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()
    program.order("store 0 3 9")
    assert report.dirty(wpfs, "t") == {3}


def test_fork(wpfs):
    """A child has its parent's marks and its own life, with the pages in the store."""
    program = mapped(wpfs)
    fill(program)
    protect(wpfs)
    assert evict(wpfs) == 64
    child = Child(wpfs, program)
    name = f"t/{child.pid}"
    assert [child.order(f"load 0 {page}") for page in range(64)] == [p + 1 for p in range(64)]
    child.order("store 0 4 40")
    program.order("store 0 5 50")
    assert report.dirty(wpfs, name) == {4} and report.dirty(wpfs, "t") == {5}
    assert evict(wpfs) == 64
    assert child.order("load 0 5") == 50 and program.order("load 0 4") == 40
    assert report.dirty(wpfs, name) == {4} and report.dirty(wpfs, "t") == {5}
    child.end()


def test_fork_under_eviction(wpfs):
    """A child born while its parent's pages are being evicted."""
    program = refault(wpfs, pages=512)
    program.order("fill 3")
    protect(wpfs)
    for _ in range(4):
        assert evict(wpfs) > 0
        program.order("fork")
        assert program.order("verify 4") == 0
        program.order("write 5 20 2")
        assert program.order("verify 2") == 0


@pytest.mark.parametrize("what", ["forks 15", "moves 20"])
def test_eviction_meanwhile(make_wpfs, what):
    """Evictions at any moment of forks and moves: each goes well or says that it did not."""
    wpfs = make_wpfs("store", ["resident=256M", "settle=0"])
    program = refault(wpfs, pages=512)
    program.order("fill 3")
    protect(wpfs)
    done, evicted = select.poll(), 0
    done.register(program.popen.stdout, select.POLLIN)
    for _ in range(20):  # until three went well in the midst of it
        program.send(what)
        ended = False
        while not ended:
            told = wpfs.wpctl("evict", wpfs.mnt, "/f", status=None)
            assert told.returncode == 0 or len(told.stderr.splitlines()) == 1, told.stderr
            evicted += told.returncode == 0
            ended = done.poll(0)
        assert program.read() == "ok 0"
        if evicted >= 3:
            break
    assert evicted, f"none went well: {told.stderr}"
    assert program.order("verify 2") == 0
    assert report.marked(wpfs, "t") == set(range(512)) and report.dirty(wpfs, "t") == set()


def test_capabilities_and_set_user_id(wpfs):
    """To punch a page and to write it takes them away, which nobody has done."""
    path = wpfs.mnt / "f"
    path.write_bytes(b"x" * 64 * PAGE)
    capability = (0x02000001).to_bytes(4, "little") + (0x400).to_bytes(4, "little") + bytes(12)
    os.setxattr(path, "security.capability", capability)
    os.chmod(path, 0o6755)
    for _ in range(2):
        assert evict(wpfs) == 64
        assert os.getxattr(path, "security.capability") == capability
        assert path.read_bytes() == b"x" * 64 * PAGE
        assert os.getxattr(path, "security.capability") == capability
        assert path.stat().st_mode & 0o7777 == 0o6755
    assert evict(wpfs) == 64
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"y", 0)
    os.close(fd)
    assert "security.capability" not in os.listxattr(path), "a write of somebody does"


def test_file_calls(wpfs):
    """pread, pwrite, punch and truncate of pages in the store."""
    program = mapped(wpfs)
    fill(program)
    protect(wpfs)
    assert evict(wpfs) == 64
    with direct_file(wpfs.mnt / "f") as fd:
        assert os.pread(fd, 2, 10 * PAGE - 1) == bytes([0, 11])
        assert spilled(wpfs) == 62
        os.pwrite(fd, b"\xff", 20 * PAGE + 5)
        assert os.pread(fd, PAGE, 20 * PAGE) == b"\x15" + bytes(4) + b"\xff" + bytes(PAGE - 6)
    program.order(f"punch 0 {30 * PAGE + 100} {2 * PAGE}")
    assert program.order("load 0 31") == 0, "what was punched came back"
    assert program.order("load 0 30") == 31
    assert {30, 31, 32} <= report.dirty(wpfs, "t")
    program.order("advise 0 40 1 dontneed")
    assert program.order("load 0 40") == 41, "MADV_DONTNEED dropped a stored page"
    program.order("advise 0 41 1 remove")
    assert program.order("load 0 41") == 0, "MADV_REMOVE did not drop a stored page"
    program.order(f"size 0 {50 * PAGE + 10}")
    program.order(f"size 0 {64 * PAGE}")
    assert program.order("load 0 49") == 50
    assert program.order("load 0 50") == 51, "it is in front of the cut"
    assert program.order("load 0 51") == 0
    with open(wpfs.mnt / "f", "rb") as file:
        assert os.pread(file.fileno(), PAGE, 50 * PAGE)[10:] == bytes(PAGE - 10)
    assert 20 not in report.dirty(wpfs, "t"), "write(2) clears no mark"


def test_seek(wpfs):
    """SEEK_DATA and SEEK_HOLE do not take a page in the store for a hole."""
    path = wpfs.mnt / "f"
    with open(path, "w+b") as file:
        os.pwrite(file.fileno(), b"x" * PAGE, 8 * PAGE)
        os.ftruncate(file.fileno(), 16 * PAGE)
        assert evict(wpfs) == 1
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 8 * PAGE
        assert os.lseek(file.fileno(), 8 * PAGE, os.SEEK_HOLE) == 9 * PAGE


def test_times_stay(wpfs):
    """Neither eviction nor refault changes the file for who looks at its times."""
    program = mapped(wpfs, protect=False)
    fill(program)
    os.utime(wpfs.mnt / "f", ns=(10**18, 10**18))
    assert evict(wpfs) == 64
    assert os.stat(wpfs.mnt / "f").st_mtime_ns == 10**18
    assert loaded(program)[3] == 4
    assert os.stat(wpfs.mnt / "f").st_mtime_ns == 10**18


def test_refused_while_open_elsewhere(wpfs):
    """Somebody has the lower file open, behind the mount: nothing is evicted, and all goes on."""
    program = mapped(wpfs)
    fill(program)
    protect(wpfs)
    program.order("store 0 1 2")
    lower = harness.RUN_DIR / wpfs.id / "private/lower/f"
    with open(lower, "rb"):
        assert "open" in refused(wpfs)
    assert spilled(wpfs) == 0
    assert report.dirty(wpfs, "t") == {1}
    assert report.marked(wpfs, "t") == ALL - {1}, "a fence was left"
    program.order("store 0 2 3")
    assert report.dirty(wpfs, "t") == {1, 2}
    assert evict(wpfs) == 64
    assert loaded(program)[:4] == [1, 2, 3, 4]


def test_refused_while_mapped_by_a_stranger(wpfs):
    """A process that maps the file and is not tracked is named."""
    program = mapped(wpfs)
    fill(program)
    lower = harness.RUN_DIR / wpfs.id / "private/lower/f"
    with open(lower, "r+b") as file, mmap.mmap(file.fileno(), PAGE):
        file.close()
        assert f"pid {os.getpid()}" in refused(wpfs)
    assert evict(wpfs) == 64


def test_read_only_mapping_pins(wpfs):
    """A mapping that can never be written cannot be watched: its file stays while it is there."""
    program = mapped(wpfs, protect=False)
    fill(program)
    assert evict(wpfs) == 64
    reader = wpfs.spawn("/usr/bin/python3", "-c", f"""
import mmap
with open({str(wpfs.mnt / 'f')!r}, "rb") as file:
    view = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
print([view[page * 4096] for page in range(64)], flush=True)
input()
""")
    assert reader.read() == str([page + 1 for page in range(64)])
    assert "read" in refused(wpfs)
    reader.send("")
    reader.wait()
    assert evict(wpfs) == 64


def test_own_userfaultfd(wpfs, tmp_path):
    """A program with a userfaultfd of its own sees what it sees on tmpfs."""
    argv = harness.program("ownuffd"), "script", "nonblock"
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True, timeout=60)
    try:
        expected = wpfs.command(*argv, tmp_path / "f")
    finally:
        subprocess.run(["umount", tmp_path], check=True, timeout=60)
    done = wpfs.run(*argv, wpfs.mnt / "f", name="t")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout


def test_own_userfaultfd_pins(wpfs):
    """What a program watches itself comes back into memory and stays until it does not any more."""
    content = os.urandom(64 * PAGE)
    (wpfs.mnt / "f").write_bytes(content)
    program = wpfs.spawn(harness.program("uffdorders"), name="t")
    program.order(f"map {wpfs.mnt}/f 64")
    assert evict(wpfs) == 64 and spilled(wpfs) == 64
    program.order("uffd")
    program.order("register 0 64")
    assert spilled(wpfs) == 0
    assert "userfaultfd of its own" in refused(wpfs)
    program.order("protect 0 64")
    assert program.order("store 3") == 1, "its own message"
    assert "userfaultfd of its own" in refused(wpfs)
    program.order("unregister 0 64")
    program.order("close")
    assert evict(wpfs) == 64
    with direct_file(wpfs.mnt / "f") as fd:
        assert os.pread(fd, 3 * PAGE, 0) == content[:3 * PAGE]
        assert os.pread(fd, 60 * PAGE, 4 * PAGE) == content[4 * PAGE:]


def test_own_userfaultfd_that_was(wpfs):
    """What a program does not watch any more leaves, also when its mappings have changed since."""
    program = mapped(wpfs, protect=False)
    fill(program)
    program.order(f"uclose {program.order('uffd 0 0 64')}")
    assert evict(wpfs) == 64
    program.order(f"map 1 0 0 {8 * PAGE}")
    assert program.order("load 0 3") == 4
    assert evict(wpfs) > 0


def test_daemon_killed_with_a_fault_waiting(wpfs):
    """A thread that needs a page waits while there is no daemon, and goes on with the next one."""
    program = refault(wpfs, pages=1024)
    program.order("fill 6")
    program.order("clear")
    protect(wpfs)
    assert evict(wpfs) == 1024
    wpfs.kill9()
    program.send("verify 4")
    # Its threads are in the kernel, waiting for the page, and stay there.
    proc.wait_for(lambda: waiting(program.pid), harness.SECONDS, "a fault")
    wpfs.restart()
    assert program.read() == "ok 0"
    assert report.marked(wpfs, "t") == set(range(1024)) and report.dirty(wpfs, "t") == set()
    program.order("write 3 50 2")
    assert program.order("verify 2") == 0
    assert report.dirty(wpfs, "t") == written(wpfs, program)


def test_daemon_killed_in_mid_eviction(make_wpfs):
    """Killed under the fence: no store is lost, nothing written looks marked."""
    wpfs = make_wpfs("store", ["resident=256M", "settle=5ms"], start=False)
    seam = Seam(wpfs)
    wpfs.start()
    program = refault(wpfs, pages=1024)
    program.order("fill 6")
    program.order("clear")
    protect(wpfs)
    program.order("write 1 30 2")
    before = written(wpfs, program)
    record = harness.RUN_DIR / wpfs.id / "private/spilled/evicting"
    seam.pause("fenced")
    evicting = subprocess.Popen([harness.WPCTL, "evict", wpfs.mnt, "/f"], env=wpfs.env(None),
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seam.wait_at("fenced")
    assert record.exists()
    program.send("write 2 30 2")
    proc.wait_for(lambda: waiting(program.pid), harness.SECONDS, "a writer at the fence")
    wpfs.kill9()
    evicting.wait(harness.SECONDS)
    seam.go("fenced")
    wpfs.restart()
    assert program.read() == "ok 0"
    assert program.order("verify 4") == 0
    dirty = report.dirty(wpfs, "t")
    assert before | written(wpfs, program) <= dirty, "a write was forgotten"
    assert not record.exists()


def test_unmount_and_mount_again(wpfs):
    """What is in the store at unmount is in the files at the next mount."""
    program = refault(wpfs)
    program.order("fill 11")
    program.order("clear")
    protect(wpfs)
    program.order("write 2 10 1")
    dirty = written(wpfs, program)
    assert evict(wpfs) == BIG
    program.wait()
    wpfs.umount()
    spill = harness.Path(wpfs.store) / "spill"
    assert not [path for path in spill.rglob("*") if path.is_file()], "left in the store"
    wpfs.restart()
    assert report.dirty(wpfs, "t") == dirty
    again = refault(wpfs)
    again.order("expect 11")
    assert again.order("verify 2") <= 2 * len(dirty)
    assert report.marked(wpfs, "t") == set(range(BIG)) - dirty


def test_umount_is_busy(wpfs):
    """A mapping keeps the mount, though it is one of the lower file."""
    program = mapped(wpfs)
    assert wpfs.command("umount", wpfs.mnt).returncode != 0
    told = wpfs.command(harness.UMOUNT_HELPER, wpfs.mnt)
    assert told.returncode != 0 and f"mapper (pid {program.pid}, tracked as t) maps its files" \
        in told.stderr and "wpfs (pid" not in told.stderr, told.stderr
    program.order("unmap 0")
    program.order("close 0")
    wpfs.umount()
    wpfs.restart()


def test_removed_file(wpfs):
    """The stored pages of a file without a name go when nobody has it any more."""
    program = mapped(wpfs, protect=False)
    fill(program)
    assert evict(wpfs) == 64
    os.unlink(wpfs.mnt / "f")
    assert program.order("load 0 3") == 4, "it is open and mapped"
    program.wait()
    proc.wait_for(lambda: spilled(wpfs) == 0, harness.SECONDS, "the stored pages to go")


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_removed_file_and_another_daemon(wpfs, how):
    """A file without a name is its programs' as long as they have it: contents, marks, and what is in
    the store, though the daemon is another one."""
    program = mapped(wpfs, protect=False)
    fill(program)
    protect(wpfs)
    program.order("store 0 7 70")
    assert evict(wpfs) == 64
    if how == "unlink":
        os.unlink(wpfs.mnt / "f")
    else:
        (wpfs.mnt / "g").write_bytes(b"g" * PAGE)
        os.rename(wpfs.mnt / "g", wpfs.mnt / "f")
    wpfs.kill9()
    wpfs.restart()
    assert spilled(wpfs) == 64
    assert loaded(program) == [70 if page == 7 else page + 1 for page in range(64)]
    mm = report.mm_of(wpfs.wpctl_json("dirty"), "t")
    assert [run["pgoff"] for one in mm["maps"] for run in one["runs"]] == [7]
    program.wait()
    proc.wait_for(lambda: status(wpfs)["used"] == (0 if how == "unlink" else PAGE),
                  harness.SECONDS, "its room")
    if how == "rename":
        assert (wpfs.mnt / "f").read_bytes() == b"g" * PAGE


def test_flush_reads_through(make_wpfs):
    """What is in the store is written to the data files without coming back into memory."""
    wpfs = make_wpfs("store", ["resident=256M", "settle=0", "flush=1"])
    content = os.urandom(64 * PAGE)
    (wpfs.mnt / "f").write_bytes(content)
    ino = os.stat(wpfs.mnt / "f").st_ino
    assert evict(wpfs) == 64
    data = harness.Path(wpfs.store) / f"data/{ino & 0xff:02x}/{ino}"
    proc.wait_for(lambda: data.exists() and data.read_bytes() == content, harness.SECONDS,
                  "the flush")
    assert spilled(wpfs) == 64


def test_store_full(make_wpfs):
    """The store has no room: nothing is dropped, no fence is left, one line says why."""
    wpfs = make_wpfs("store", ["resident=256M", "settle=0", "flush=0"], start=False)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6M", "none", wpfs.store], check=True,
                   timeout=60)
    try:
        wpfs.start()
        program = refault(wpfs, pages=2048)
        program.order("fill 8")
        protect(wpfs)
        assert "No space left" in refused(wpfs)
        assert program.order("verify 2") == 0
        assert report.marked(wpfs, "t") == set(range(2048))
        program.order("clear")
        program.order("write 1 10 1")
        assert report.dirty(wpfs, "t") == written(wpfs, program)
        program.wait()
        os.unlink(wpfs.mnt / "f")
        wpfs.umount()
    finally:
        subprocess.run(["umount", wpfs.store], check=True, timeout=60)


def test_store_unreadable(make_wpfs):
    """A page that cannot be read is waited for; it is never taken for zeros."""
    wpfs = make_wpfs("store", ["resident=256M", "settle=5ms", "flush=0"])
    program = mapped(wpfs)
    fill(program)
    protect(wpfs)
    assert evict(wpfs) == 64
    [path] = [path for path in (harness.Path(wpfs.store) / "spill").rglob("*") if path.is_file()]
    content = path.read_bytes()
    os.truncate(path, 0)
    wpfs.allow_log("cannot be had|cannot bring")
    program.send("load 0 5")
    proc.wait_for(lambda: "cannot be had" in wpfs.read_log(), harness.SECONDS, "the error line")
    wait_waiting(program.pid)  # it may have said so before the thread was asleep
    with direct_file(wpfs.mnt / "f") as fd, pytest.raises(OSError):
        os.pread(fd, 1, 7 * PAGE)
    path.write_bytes(content)
    assert program.read() == "ok 6"
    assert loaded(program) == [page + 1 for page in range(64)]
    assert report.marked(wpfs, "t") == ALL


BLOCKING = """
import fcntl, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
print("mapped", flush=True)
for line in sys.stdin:
    if line == "fork\\n" and os.fork() == 0:
        line = ""
    nr = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            if "userfaultfd" in os.readlink(f"/proc/self/fd/{number}"):
                flags = fcntl.fcntl(int(number), fcntl.F_GETFL)
                fcntl.fcntl(int(number), fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
                nr += 1
        except OSError:
            pass
    assert nr or not line
    values = [view[page * 4096] for page in range(64)]
    if not line:
        os._exit(values != [page + 1 for page in range(64)])
    if line == "fork\\n":
        print(os.wait()[1], flush=True)
    print(values, flush=True)
"""


def test_a_program_that_makes_its_descriptors_blocking(wpfs):
    """All that it has, wpfs's userfaultfd too: it is served, and nobody else is held up."""
    program = mapped(wpfs)
    fill(program)
    other = wpfs.spawn("/usr/bin/python3", "-c", BLOCKING, wpfs.mnt / "f", name="other")
    assert other.read() == "mapped"
    for line in ("", "fork", "", "fork"):
        assert evict(wpfs) == 64
        other.send(line)
        if line:
            assert other.read() == "0", "what the child has read"
        assert other.read() == str([page + 1 for page in range(64)])
        assert loaded(program)[5] == 6
    other.send("")
    assert other.read() == str([page + 1 for page in range(64)])
    other.wait()


RAW_FORK = """
import ctypes, mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    view = mmap.mmap(file.fileno(), 0)
print("ready", flush=True)
input()
pid = ctypes.CDLL(None).syscall(57)  # fork, behind the shim's back
if pid == 0:
    print([view[page * 4096] for page in range(64)], flush=True)
    view[0] = 99
    input()
    os._exit(0)
os.waitpid(pid, 0)
print([view[page * 4096] for page in range(2)], flush=True)
input()
"""


def test_raw_fork(wpfs):
    """The child of a raw fork: pages come for it too, and while it lives nothing that it maps is evicted."""
    program = mapped(wpfs)
    fill(program)
    parent = wpfs.spawn("/usr/bin/python3", "-c", RAW_FORK, wpfs.mnt / "f", name="raw")
    assert parent.read() == "ready"
    assert evict(wpfs) == 64
    parent.send("")
    assert parent.read() == str([page + 1 for page in range(64)])
    assert "untracked" in refused(wpfs) or "not tracked" in refused(wpfs)
    parent.send("")
    assert parent.read() == "[99, 2]"
    assert evict(wpfs) == 64
    parent.send("")
    parent.wait()


def test_raw_fork_of_a_program_that_cannot_be_looked_at(wpfs):
    """Just when its child is born; what the child waits for comes all the same."""
    program = mapped(wpfs)
    fill(program)
    assert evict(wpfs) == 64
    strace = proc.Strace(wpfs.pid, "trace=openat", "inject=openat:error=ENOMEM", path=f"/proc/{program.pid}/maps")
    child = Child(wpfs, program, how="raw")
    strace.end()
    assert child.order("load 0 3") == 4
    child.end()


RAW_FORK_IDLE = """
import ctypes, mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    view = mmap.mmap(file.fileno(), 0)
view[0] = 1
print("ready", flush=True)
input()
pid = ctypes.CDLL(None).syscall(57)
if pid == 0:
    print("born", flush=True)
    input()
    print([view[page * 4096] for page in range(2)], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_raw_child_keeps_only_what_it_maps(wpfs):
    """Other files leave while it lives, and what was removed is let go of."""
    program = mapped(wpfs)
    fill(program)
    for name in ("g", "h"):
        (wpfs.mnt / name).write_bytes(bytes([2]) * (4 * PAGE))
    parent = wpfs.spawn("/usr/bin/python3", "-c", RAW_FORK_IDLE, wpfs.mnt / "g", name="raw")
    assert parent.read() == "ready"
    protect(wpfs)
    assert evict(wpfs, "/g") == 4 and evict(wpfs, "/h") == 4
    parent.send("")
    assert parent.read() == "born"
    for _ in range(2):
        assert evict(wpfs) == 64
        assert loaded(program) == [page + 1 for page in range(64)]
    with direct_file(wpfs.mnt / "g") as fd:
        assert os.pread(fd, PAGE, 3 * PAGE) == bytes([2]) * PAGE
    assert "not tracked" in refused(wpfs, "/g")
    assert evict(wpfs) == 64
    os.unlink(wpfs.mnt / "h")
    proc.wait_for(lambda: spilled(wpfs) == 64 + 3, harness.SECONDS, "what was removed to go")
    os.unlink(wpfs.mnt / "g")
    assert loaded(program) == [page + 1 for page in range(64)]
    assert evict(wpfs) == 64
    parent.send("")
    assert parent.read() == "[1, 2]"
    parent.wait()
    proc.wait_for(lambda: spilled(wpfs) == 64, harness.SECONDS, "the other one to go")
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()


def read_by(pid):
    """Bytes, so far."""
    with open(f"/proc/{pid}/io", encoding="ascii") as io:
        return next(int(line.split()[1]) for line in io if line.startswith("rchar"))


def all_maps():
    """Bytes that a look at what everybody maps reads."""
    nr = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/maps", "rb") as maps:
                nr += len(maps.read())
        except OSError:
            pass
    return nr


def test_what_a_raw_child_maps_is_not_looked_for_all_the_time(wpfs):
    """Not for each statfs(2): when there is something that could go, and then once a second."""
    (wpfs.mnt / "g").write_bytes(bytes([2]) * (4 * PAGE))
    parent = wpfs.spawn("/usr/bin/python3", "-c", RAW_FORK_IDLE, wpfs.mnt / "g", name="raw")
    assert parent.read() == "ready"
    assert evict(wpfs, "/g") == 4
    parent.send("")
    assert parent.read() == "born"
    once = all_maps()
    for remove in (False, True):
        if remove:
            os.unlink(wpfs.mnt / "g")
        before, begin = read_by(wpfs.pid), time.monotonic()
        for _ in range(200):
            os.statvfs(wpfs.mnt)
        looks = (read_by(wpfs.pid) - before) / once
        assert looks < 20 + 2 * (time.monotonic() - begin)
    parent.send("")
    assert parent.read() == "[1, 2]"
    parent.wait()
    proc.wait_for(lambda: spilled(wpfs) == 0, harness.SECONDS, "it to go")


RAW_REMOVE = """
import ctypes, mmap, os, platform, sys
number = {"x86_64": 28, "aarch64": 233}[platform.machine()]
view = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
at = ctypes.addressof(ctypes.c_char.from_buffer(view))
view[:8 * 4096] = bytes([7]) * (8 * 4096)
print("ready", flush=True)
for line in sys.stdin:
    first, nr = map(int, line.split())
    words = [number, at + first * 4096, nr * 4096, mmap.MADV_REMOVE]
    wrong = ctypes.CDLL(None).syscall(*map(ctypes.c_long, words))
    print(wrong, [view[page * 4096] for page in range(8)], flush=True)
"""


def test_contents_that_are_removed_by_a_raw_call(wpfs):
    """Of pages in memory they go; of those in the store nobody is told, and they come back, as
    wpfs(8) says."""
    (wpfs.mnt / "f").write_bytes(bytes(8 * PAGE))
    program = wpfs.spawn("/usr/bin/python3", "-c", RAW_REMOVE, wpfs.mnt / "f", name="t")
    assert program.read() == "ready"
    assert program.ask("0 4") == "0 [0, 0, 0, 0, 7, 7, 7, 7]"
    assert evict(wpfs) >= 4
    assert program.ask("2 4") == "0 [0, 0, 0, 0, 7, 7, 7, 7]"
    assert program.ask("2 4") == "0 [0, 0, 0, 0, 0, 0, 7, 7]"


def test_random(make_wpfs):
    """Stores, evictions and loads in random order against a reference, for several seeds."""
    for seed in range(6):
        wpfs = make_wpfs("store", ["resident=256M", "settle=0"])
        rng = random.Random(seed)
        program = refault(wpfs, pages=1024)
        program.order(f"fill {seed}")
        program.order("clear")
        protect(wpfs)
        for step in range(12):
            what = rng.choice(("write", "evict", "verify", "load", "fault"))
            if what == "write":
                program.order(f"write {rng.randrange(10**6)} {rng.randrange(1, 60)} 4")
            elif what == "evict":
                evict(wpfs)
            elif what == "load":
                load(wpfs)
            elif what == "verify":
                assert program.order("verify 2") == 0, f"seed {seed}, step {step}"
            assert report.dirty(wpfs, "t") == written(wpfs, program), f"seed {seed}, step {step}"
        assert program.order("verify 2") == 0
        program.wait()
        wpfs.umount()


def test_a_processor_is_kept_awake_only_while_somebody_waits(wpfs):
    """Where there are two, by a thread that runs when there is nothing else to run, and ends soon."""
    program = refault(wpfs, pages=1024)
    program.order("fill 1")
    assert evict(wpfs) == 1024
    tasks, cpus = f"/proc/{wpfs.pid}/task", sorted(os.sched_getaffinity(0))
    names = {int(task): proc.describe(task).split(" (")[0] for task in os.listdir(tasks)}
    awake = [task for task, name in names.items() if name == "wpfs-awake"]
    assert len(awake) == (os.sysconf("SC_NPROCESSORS_ONLN") == 2)
    # Beside the thread that is going to wake somebody it would stop anyway.
    for task, name in names.items():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(task, {cpus[-1]} if name == "wpfs-awake" else {cpus[0]})
    for page in random.Random(1).sample(range(1024), 100):
        program.order(f"read {page} 1")
    for task in awake:
        assert os.sched_getscheduler(task) == os.SCHED_IDLE
        proc.wait_for(lambda: proc.state(f"{wpfs.pid}/task/{task}") == "S", harness.SECONDS,
                      "the thread to sleep")
