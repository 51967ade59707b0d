# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Capped mounts keep to their size: files larger than memory, evicted by themselves.
"""

import ctypes
import os
import threading

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, direct_file, mapped
from seam import Seam

CAP = 16 << 20
SLACK = 64 << 20
BIG = 24576  # pages: 96 MiB
OPTIONS = ["resident=16M", "settle=10ms", "flush=0"]


@pytest.fixture
def wpfs(make_wpfs):
    return make_wpfs("store", OPTIONS)


def status(wpfs):
    return wpfs.wpctl_json("status")


def left(wpfs):
    """Whoever adds pages may be faster than they leave; the status when no more have to."""
    proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "room")
    return status(wpfs)


def refault(wpfs, pages=BIG, name="t", path="f"):
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / path, pages, name=name)
    assert program.read() == "ok ready"
    return program


def written(wpfs, program):
    program.order(f"written {wpfs.dir}/written")
    return {page for page, byte in enumerate((wpfs.dir / "written").read_bytes()) if byte}


class Watch:
    """Asks for the status all the time, and remembers the most that was resident."""

    def __init__(self, wpfs):
        self.wpfs, self.most, self.asked = wpfs, 0, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stop.wait(0.02):
            self.most = max(self.most, status(self.wpfs)["resident"])
            self.asked += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def test_mapping_larger_than_memory(wpfs):
    """Six times the cap is stored, read and written through a mapping; marks stay exact."""
    with Watch(wpfs) as watch:
        program = refault(wpfs)
        program.order("fill 1")
        program.order("clear")
        wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
        left(wpfs)
        assert program.order("verify 2") == 0
        program.order("write 2 2000 4")
        dirty = written(wpfs, program)
        assert report.dirty(wpfs, "t") == dirty
        left(wpfs)
        assert program.order("verify 1") == 0
        assert report.dirty(wpfs, "t") == dirty
        assert report.marked(wpfs, "t") == set(range(BIG)) - dirty
    assert watch.asked > 3 and watch.most <= CAP + SLACK
    now = left(wpfs)
    assert now["spilled"] > 4 * CAP and now["evictions"] > BIG and now["refaults"] > BIG
    program.wait()


def test_calls_larger_than_memory(wpfs):
    """The same with write(2) and read(2), by a program that is not tracked."""
    chunk = os.urandom(1 << 20)
    with Watch(wpfs) as watch, open(wpfs.mnt / "f", "w+b", buffering=0) as file:
        for i in range(96):
            file.write(i.to_bytes(8, "little") + chunk[8:])
        for i in range(96):
            assert os.pread(file.fileno(), 1 << 20, i << 20) == \
                i.to_bytes(8, "little") + chunk[8:]
    assert watch.most <= CAP + SLACK
    assert left(wpfs)["spilled"] > 4 * CAP


def test_daemon_killed(wpfs):
    """The next daemon keeps to the cap with what it never saw: files that nothing of was ever moved
    out, and that nobody opens."""
    wpfs.umount()
    wpfs.options[0] = "resident=64M"
    wpfs.restart()
    os.makedirs(wpfs.mnt / "a/b")
    for number in range(24):
        (wpfs.mnt / f"a/b/{number}").write_bytes(bytes([number + 1]) * (2 << 20))
    now = status(wpfs)
    assert now["spilled"] == 0 and now["resident"] == 48 << 20
    wpfs.kill9()
    wpfs.options[0] = "resident=16M"
    wpfs.restart()
    proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "room")
    assert status(wpfs)["spilled"] >= 32 << 20
    for number in range(24):
        assert (wpfs.mnt / f"a/b/{number}").read_bytes() == bytes([number + 1]) * (2 << 20)


def test_daemon_killed_with_many_files(make_wpfs):
    """What it never saw is looked for piece by piece: whoever asks meanwhile is answered."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0", "flush=0"], start=False)
    seam = Seam(wpfs)
    wpfs.start()
    for top in ("a", "b", "c"):
        os.mkdir(wpfs.mnt / top)
        for number in range(600):
            (wpfs.mnt / top / f"{number}").write_bytes(b"x" * (2 << 20) if number % 75 == 0 else b"")
    wpfs.kill9()
    wpfs.options[0] = "resident=8M"
    seam.pause("looking")
    wpfs.restart()
    seam.wait_at("looking")
    seam.go("looking")
    proc.wait_for(lambda: status(wpfs)["resident"] <= 8 << 20, harness.STORE_SECONDS, "room")
    for top in ("a", "b", "c"):
        assert (wpfs.mnt / top / "0").read_bytes() == b"x" * (2 << 20)


def allocate(path, mebibytes, behind_the_end):
    """By a descriptor that cannot map the file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_long(mebibytes << 20)
    assert libc.fallocate(fd, int(behind_the_end), ctypes.c_long(0), length) == 0, ctypes.get_errno()
    os.close(fd)


@pytest.mark.parametrize("behind_the_end", [False, True])
def test_pages_that_nobody_has_written(wpfs, behind_the_end):
    """Allocated in front of the end of a file or behind it: they leave too, also when another daemon
    has made them."""
    allocate(wpfs.mnt / "f", 160, behind_the_end)
    assert status(wpfs)["resident"] <= CAP + SLACK
    os.unlink(wpfs.mnt / "f")
    allocate(wpfs.mnt / "f", 14, behind_the_end)
    wpfs.kill9()
    wpfs.restart()
    (wpfs.mnt / "g").write_bytes(b"g" * (14 << 20))
    with open(wpfs.mnt / "g", "r+b"):  # which has to stay
        proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "room")


def test_mappings_beside_what_is_in_memory(make_wpfs):
    """What a mapping could add and what is there already are more than fits, though neither is."""
    wpfs = make_wpfs("store", ["resident=96M", "settle=0", "flush=0"])
    with Watch(wpfs) as watch:
        (wpfs.mnt / "g").write_bytes(b"g" * (88 << 20))
        program = refault(wpfs, pages=88 << 8)
        program.order("fill 1")
        assert program.order("verify 1") == 0
    assert watch.most <= (96 << 20) + SLACK
    assert (wpfs.mnt / "g").read_bytes() == b"g" * (88 << 20)
    program.wait()


def test_a_file_that_was_mapped(make_wpfs):
    """What was stored through a mapping that is gone leaves when another one needs the room."""
    wpfs = make_wpfs("store", ["resident=96M", "settle=0", "flush=0"])
    with Watch(wpfs) as watch:
        for name in ("f", "g"):
            program = refault(wpfs, pages=88 << 8, path=name)
            program.order("fill 1")
            assert program.order("verify 1") == 0
            program.wait()
    assert watch.most <= (96 << 20) + SLACK
    proc.wait_for(lambda: status(wpfs)["resident"] <= 96 << 20, harness.STORE_SECONDS, "room")
    assert "nothing can be evicted" not in wpfs.read_log()


def test_load_makes_room(wpfs):
    """wpctl load: others leave for it; what does not fit is refused, and stays evictable."""
    (wpfs.mnt / "f").write_bytes(b"f" * (10 << 20))
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    (wpfs.mnt / "g").write_bytes(b"g" * (14 << 20))
    assert wpfs.wpctl_json("load", "/f")["pages"] == 2560
    now = status(wpfs)
    assert now["resident"] <= CAP and now["spilled"] >= 8 << 20 and now["pinned"] == 0
    before = now["refaults"]
    with direct_file(wpfs.mnt / "f") as fd:
        assert os.pread(fd, 10 << 20, 0) == b"f" * (10 << 20)
    assert status(wpfs)["refaults"] == before, "it was not all there"
    with open(wpfs.mnt / "h", "wb") as file:
        for _ in range(40):
            file.write(b"h" * (1 << 20))
    proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "room")
    told = wpfs.wpctl("load", wpfs.mnt, "/h", status=1).stderr
    assert "does not fit" in told and len(told.splitlines()) == 1
    assert status(wpfs)["resident"] <= CAP
    assert (wpfs.mnt / "g").read_bytes() == b"g" * (14 << 20)
    wpfs.wpctl("evict", wpfs.mnt, "/h")


def test_load_of_what_fits_into_little(make_wpfs):
    """Room is made for the file, not for the most that is brought in at once."""
    wpfs = make_wpfs("store", ["resident=2M", "settle=0", "flush=0"])
    contents = os.urandom(1 << 20)
    (wpfs.mnt / "f").write_bytes(contents)
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    assert status(wpfs)["spilled"] == 1 << 20
    assert wpfs.wpctl_json("load", "/f")["pages"] == 256
    assert (wpfs.mnt / "f").read_bytes() == contents


def test_mapped_for_reading_only(wpfs):
    """Nobody can be told of its faults, so it has to be in memory whole: others leave for it, and what
    does not fit is not mapped."""
    script = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
view = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
print(sum(view[at] for at in range(0, len(view), 4096)), flush=True)
input()
"""
    (wpfs.mnt / "f").write_bytes(b"f" * (10 << 20))
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    (wpfs.mnt / "g").write_bytes(b"g" * (14 << 20))
    reader = wpfs.spawn("/usr/bin/python3", "-c", script, wpfs.mnt / "f")
    assert reader.read() == str(2560 * ord("f"))
    now = status(wpfs)
    assert now["resident"] <= CAP and now["pinned"] == 10 << 20
    reader.send("")
    reader.wait()
    proc.wait_for(lambda: status(wpfs)["pinned"] == 0, harness.SECONDS, "it to be let go of")
    with open(wpfs.mnt / "h", "wb") as file:
        for _ in range(40):
            file.write(b"h" * (1 << 20))
    wpfs.wpctl("evict", wpfs.mnt, "/h")
    assert status(wpfs)["resident"] <= CAP
    done = wpfs.run("/usr/bin/python3", "-c", script, wpfs.mnt / "h")
    assert done.returncode == 1 and "No such device" in done.stderr
    assert status(wpfs)["resident"] <= CAP


def test_restored_and_not_used(wpfs):
    """What a mount brings into memory leaves when others need the room."""
    (wpfs.mnt / "old").write_bytes(b"o" * (6 << 20))
    wpfs.umount()
    wpfs.restart()
    assert status(wpfs)["resident"] == 6 << 20
    (wpfs.mnt / "new").write_bytes(b"n" * (14 << 20))
    with open(wpfs.mnt / "new", "r+b"):  # which has to stay, so it is the other's turn
        proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "room")
        assert status(wpfs)["pinned"] == 14 << 20
    assert (wpfs.mnt / "old").read_bytes() == b"o" * (6 << 20)


def test_mounted_again(wpfs):
    """Contents that do not fit into memory are there after an unmount, and so are the marks."""
    program = refault(wpfs)
    program.order("fill 3")
    program.order("clear")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("write 4 300 1")
    dirty = written(wpfs, program)
    (wpfs.mnt / "small").write_bytes(b"x" * 5000)
    program.wait()
    wpfs.umount()
    wpfs.restart()
    now = status(wpfs)
    assert now["resident"] < CAP and now["spilled"] > 4 * CAP
    assert (wpfs.mnt / "small").read_bytes() == b"x" * 5000
    again = refault(wpfs)
    again.order("expect 3")
    assert 0 < again.order("verify 2") <= 2 * len(dirty), "what was not written changed"
    assert report.dirty(wpfs, "t") == dirty
    assert report.marked(wpfs, "t") == set(range(BIG)) - dirty
    assert status(wpfs)["resident"] <= CAP + SLACK
    again.wait()


def test_flush_meanwhile(make_wpfs):
    """A flush neither brings the file back into memory nor keeps it there."""
    wpfs = make_wpfs("store", ["resident=16M", "settle=0", "flush=1"])
    with Watch(wpfs) as watch:
        program = refault(wpfs)
        program.order("fill 5")
        for seed in range(3):
            program.order(f"write {seed} 2000 2")
            assert program.order("verify 2") == 0
    assert watch.most <= CAP + SLACK
    ino = os.stat(wpfs.mnt / "f").st_ino
    data = harness.Path(wpfs.store) / f"data/{ino & 0xff:02x}/{ino}"
    assert data.exists() and data.stat().st_size == BIG * PAGE
    program.wait()


def test_allocate_and_seek(wpfs):
    """fallocate of more than fits, and lseek over pages in memory, in the store, and holes."""
    with open(wpfs.mnt / "f", "w+b") as file:
        fd = file.fileno()
        os.posix_fallocate(fd, 0, 96 << 20)
        assert os.fstat(fd).st_size == 96 << 20
        assert status(wpfs)["resident"] <= CAP + SLACK
        os.ftruncate(fd, 0)
        os.ftruncate(fd, 64 * PAGE)
        os.pwrite(fd, b"a" * PAGE * 4, 8 * PAGE)
        wpfs.wpctl("evict", wpfs.mnt, "/f")
        os.pwrite(fd, b"b" * PAGE * 4, 12 * PAGE)
        os.pwrite(fd, b"c", 40 * PAGE)
        before = status(wpfs)["refaults"]
        seek = [os.lseek(fd, off * PAGE, how) // PAGE for off, how in (
            (0, os.SEEK_DATA), (8, os.SEEK_HOLE), (9, os.SEEK_DATA), (16, os.SEEK_DATA),
            (40, os.SEEK_HOLE), (0, os.SEEK_HOLE))]
        assert seek == [8, 16, 9, 40, 41, 0]
        with pytest.raises(OSError):
            os.lseek(fd, 41 * PAGE, os.SEEK_DATA)
        assert status(wpfs)["refaults"] == before, "lseek brought pages back"


def test_reading_ahead(make_wpfs):
    """Who reads on is asked for, nobody else; what is ahead is in memory only, in no page table."""
    wpfs = make_wpfs("store", ["resident=64M", "settle=0", "flush=0"])
    program = refault(wpfs, pages=8192)
    program.order("fill 1")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 8192
    before = status(wpfs)
    for page in range(0, 8192, 1000):
        program.order(f"read {page} 1")
    now = status(wpfs)
    assert now["read_ahead"] == before["read_ahead"], "these were not one after the other"
    program.order("read 0 4096")
    now = status(wpfs)
    # Each page is brought once, and all but one in eight without a fault of its own.
    assert 3000 < now["read_ahead"] - before["read_ahead"] <= 8192
    assert now["faults"] - before["faults"] < 1024
    assert now["io_depth_max"] > 1
    assert report.marked(wpfs, "t") == set(range(8192)) and report.dirty(wpfs, "t") == set()
    assert program.order("verify 1") == 0


def test_a_writer_does_not_wait(wpfs):
    """Pages leave before there is no room: nobody is stopped who adds them no faster than a disk takes them."""
    program = refault(wpfs)
    for first in range(0, BIG, 1024):
        program.order(f"range {first} 1024")
        program.order(f"write {first} 3000 1")
        proc.wait_for(lambda: status(wpfs)["resident"] <= CAP, harness.STORE_SECONDS, "room")
    now = status(wpfs)
    assert now["evictions"] > BIG // 2 and now["fences"] > 0 and now["fence_ns"] > 0
    assert now["throttled"] == 0 and now["faults"] > BIG // 2
    assert program.order("verify 2") == 0


def test_zero_pages(wpfs):
    """Pages of zeros leave and come back without I/O, keep their marks, and are never on disk."""
    program = mapped(wpfs, protect=False)
    for page in range(64):
        program.order(f"store 0 {page} {page % 2}")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    now = status(wpfs)
    assert now["zero_pages"] == 32 and now["spilled"] == 32 * PAGE and now["resident"] == 0
    for page in range(0, 64, 2):
        assert program.order(f"load 0 {page}") == 0
    after = status(wpfs)
    assert after["refaults"] == now["refaults"] and after["resident"] == 32 * PAGE
    assert report.marked(wpfs, "t") == ALL and report.dirty(wpfs, "t") == set()
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 32
    # Mapped and unmapped without being touched; WPFS_MAPS=1000000 does it a million times.
    assert program.order(f"maps 0 {64 * PAGE} {os.environ.get('WPFS_MAPS', 2000)}") == 0
    now = status(wpfs)
    assert now["resident"] == 0 and now["spilled"] == 32 * PAGE and now["zero_pages"] == 64
    program.order("store 0 2 7")
    assert program.order("load 0 2") == 7 and report.dirty(wpfs, "t") == {2}
    [path] = [path for path in (harness.Path(wpfs.store) / "spill").rglob("*") if path.is_file()]
    assert path.stat().st_blocks * 512 <= 33 * PAGE, "zeros were stored"


def test_zero_pages_mapped_a_million_times(wpfs):
    """By a program that is not tracked: what is not there is never counted."""
    with open(wpfs.mnt / "f", "wb") as file:
        file.truncate(64 * PAGE)
    program = wpfs.spawn_bare(harness.program("mapper"))
    program.order(f"open 0 {wpfs.mnt / 'f'}")
    before = status(wpfs)
    assert program.order(f"maps 0 {64 * PAGE} 1000000") == 0
    now = status(wpfs)
    for key in ("resident", "spilled", "used", "zero_pages", "faults", "refaults", "evictions"):
        assert now[key] == before[key], key
    assert now["resident"] == 0
