# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A store that fails at any step of an eviction or a refault: nothing is dropped before it is safe,
nobody ever sees stale contents or zeros, marks stay, and the mount goes on.
"""

import errno
import math
import os
import signal
import time

import pytest

import harness
import proc
import report
from mapper import ALL, direct_file, map_file, mapped
from seam import Seam, wait_waiting


@pytest.fixture(params=["io_uring", "refused"])
def wpfs(request, make_wpfs):
    return seamed(make_wpfs, "resident=256M", refused=request.param == "refused")


def seamed(make_wpfs, *options, refused=False):
    wpfs = make_wpfs("store", ["settle=0", "flush=0", *options], start=False)
    wpfs.seam = Seam(wpfs)
    if refused:
        wpfs.under = [harness.program("nouring")]
    wpfs.start()
    assert status(wpfs)["store_io_uring"] != refused
    return wpfs


def filled(wpfs):
    program = mapped(wpfs, protect=False)
    for page in range(64):
        program.order(f"store 0 {page} {page + 1}")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 9 90")
    return program


def status(wpfs):
    return wpfs.wpctl_json("status")


def check(wpfs, program):
    """All 64 pages are what they were, and marked as they were."""
    assert [program.order(f"load 0 {page}") for page in range(64)] == \
        [90 if page == 9 else page + 1 for page in range(64)]
    assert report.dirty(wpfs, "t") == {9} and report.marked(wpfs, "t") == ALL - {9}


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("step", ["bits", "record", "lower-read", "spill-open", "spill-write",
                                  "punch"])
def test_evict(wpfs, step, err):
    program = filled(wpfs)
    wpfs.seam.fail(step, err)
    told = wpfs.wpctl("evict", wpfs.mnt, "/f", status=1).stderr
    assert os.strerror(err) in told and len(told.splitlines()) == 1
    assert status(wpfs)["spilled"] == 0
    check(wpfs, program)
    wpfs.seam.works(step)
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    check(wpfs, program)


def fall_apart(wpfs, program):
    """Every other page in the store: what is in memory are pieces of a page."""
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    for page in range(0, 64, 2):
        program.order(f"load 0 {page}")


def test_pages_that_stay_with_a_store_that_cannot_be_read(wpfs):
    """They are whole, and from then on in memory alone: what is stored to them is not undone."""
    program = filled(wpfs)
    wpfs.seam.fail("punch", errno.EIO)
    wpfs.seam.fail("io-read", errno.EIO)
    wpfs.wpctl("evict", wpfs.mnt, "/f", status=1)
    assert status(wpfs)["spilled"] == 0
    check(wpfs, program)
    wpfs.seam.works("punch")
    wpfs.seam.works("io-read")
    program.order("store 0 11 91")
    with direct_file(wpfs.mnt / "f") as fd:
        assert os.pread(fd, 1, 11 * harness.PAGE) == bytes([91])


@pytest.mark.parametrize("err", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("step", ["lower-read", "spill-open", "io-write", "punch"])
def test_each_call_of_an_eviction(wpfs, step, err):
    """The first, the second, the n-th one fails: nothing is lost, and the next eviction goes well."""
    program = filled(wpfs)
    after = failures = 0
    while True:
        fall_apart(wpfs, program)
        wpfs.seam.fail_once(step, err, after)
        told = wpfs.wpctl("evict", wpfs.mnt, "/f", status=None)
        if not wpfs.seam.has_failed(step):
            assert told.returncode == 0
            wpfs.seam.works(step)
            break
        assert told.returncode == 1 and os.strerror(err) in told.stderr
        assert report.dirty(wpfs, "t") == {9} and report.marked(wpfs, "t") == ALL - {9}
        assert wpfs.wpctl("evict", wpfs.mnt, "/f").returncode == 0
        check(wpfs, program)
        failures += 1
        after += max(1, after // 2)
    assert failures >= (1 if step in ("lower-read", "spill-open") else 8)
    check(wpfs, program)


@pytest.mark.parametrize("step,err", [("io-read", errno.EIO), ("lower-write", errno.ENOSPC),
                                      ("lower-write", errno.EIO)])
def test_each_call_of_refaults(wpfs, step, err):
    """Likewise when they come back: who waits has the page a moment later."""
    wpfs.allow_log("cannot be had")
    program = filled(wpfs)
    after = failures = 0
    while True:
        fall_apart(wpfs, program)
        before = status(wpfs)["store_errors"]
        wpfs.seam.fail_once(step, err, after)
        check(wpfs, program)
        if not wpfs.seam.has_failed(step):
            wpfs.seam.works(step)
            break
        assert status(wpfs)["store_errors"] == before + 1 and status(wpfs)["failing"] == 0
        failures += 1
        after += max(1, after // 2)
    assert failures >= 4


@pytest.mark.parametrize("step,err", [("spill-read", errno.EIO), ("lower-write", errno.ENOSPC)])
@pytest.mark.parametrize("order,value", [("load 0 5", 6), ("store 0 9 90", 0)])
def test_refault(wpfs, step, err, order, value):
    """Who needs the page waits and has it when it can be read; who calls read(2) is told."""
    program = filled(wpfs)
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    wpfs.seam.fail(step, err)
    wpfs.allow_log("cannot be had|cannot bring")
    program.send(order)
    wait_waiting(program.pid)
    proc.wait_for(lambda: status(wpfs)["failing"] == 1, harness.SECONDS, "the fault to fail")
    before = status(wpfs)["store_errors"]
    proc.wait_for(lambda: status(wpfs)["store_errors"] > before, harness.SECONDS, "another try")
    wpfs.seam.pause("asked")
    wpfs.seam.wait_at("asked")
    assert ", 1 faults wait for a page" in wpfs.wpctl("status", wpfs.mnt).stdout, "also while it is tried"
    wpfs.seam.go("asked")
    assert ", 1 faults wait for a page" in wpfs.wpctl("status", wpfs.mnt).stdout
    assert report.marked(wpfs, "t") == ALL - {9}
    with direct_file(wpfs.mnt / "f") as fd, pytest.raises(OSError) as caught:
        os.pread(fd, 1, 7 * harness.PAGE)
    assert caught.value.errno == err
    (wpfs.mnt / "g").write_bytes(b"goes on")
    assert (wpfs.mnt / "g").read_bytes() == b"goes on"
    wpfs.seam.works(step)
    assert program.read() == f"ok {value}"
    check(wpfs, program)
    assert status(wpfs)["failing"] == 0


def test_a_read_that_fails_as_if_there_were_no_room(make_wpfs):
    """Of a mount with a limit the room is looked for again, but what was not read is not put there."""
    wpfs = seamed(make_wpfs, "resident=256M", "size=512M")
    wpfs.allow_log("cannot be had")
    program = filled(wpfs)
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    for page in range(0, 64, 8):
        before = status(wpfs)["store_errors"]
        wpfs.seam.fail_once("io-read", errno.ENOSPC, 0)
        assert program.order(f"load 0 {page}") == (page + 1)
        assert wpfs.seam.has_failed("io-read") and status(wpfs)["store_errors"] == before + 1
    check(wpfs, program)


def test_tries_are_further_and_further_apart(wpfs):
    """A page that cannot be read is not asked for all the time."""
    program = filled(wpfs)
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    wpfs.seam.fail("spill-read", errno.EIO)
    wpfs.allow_log("cannot be had")
    begin = time.monotonic()
    program.send("load 0 5")
    proc.wait_for(lambda: status(wpfs)["store_errors"] >= 5, harness.SECONDS, "five tries")
    tries, ms = status(wpfs)["store_errors"], (time.monotonic() - begin) * 1000
    # 20, 40, 80, ... ms between two of them, and 2 s in the end: not one each 20 ms.
    assert tries <= 2 + math.log2(ms / 20 + 1) + ms / 2000, (tries, ms)
    wpfs.seam.works("spill-read")
    assert program.read() == "ok 6"
    check(wpfs, program)


def test_sigbus(make_wpfs):
    """onerror=sigbus: the thread that needs the page gets the signal, and the mark stays."""
    wpfs = seamed(make_wpfs, "resident=256M", "onerror=sigbus")
    program = filled(wpfs)
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    wpfs.seam.fail("spill-read", errno.EIO)
    wpfs.allow_log("cannot be had")
    program.send("load 0 5")
    assert program.popen.wait(harness.SECONDS) == -signal.SIGBUS
    assert report.dirty(wpfs, "t") == {9}
    wpfs.seam.works("spill-read")
    again = map_file(wpfs.spawn(harness.program("mapper"), name="t"), wpfs.mnt / "f")
    check(wpfs, again)


READ_INTO = """
import mmap, os, signal, sys
signal.signal(signal.SIGBUS, lambda *_: print("signal", flush=True))
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
other = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECT)
print("mapped", flush=True)
input()
print(os.preadv(other, [memoryview(view)[5 * 4096:6 * 4096]], 0), flush=True)
print([view[page * 4096] for page in range(4, 7)], flush=True)
"""


def test_sigbus_of_a_call(make_wpfs):
    """Direct I/O into the page does not end by a signal that the program handles: it waits, and goes on
    when the page can be read. It asks again and again, and is told of once."""
    wpfs = seamed(make_wpfs, "resident=256M", "onerror=sigbus")
    wpfs.allow_log("cannot be had")
    filled(wpfs)
    (wpfs.mnt / "g").write_bytes(b"g" * harness.PAGE)
    other = wpfs.spawn("/usr/bin/python3", "-c", READ_INTO, wpfs.mnt / "f", wpfs.mnt / "g", name="other")
    assert other.read() == "mapped"
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    before = status(wpfs)["store_errors"]
    wpfs.seam.fail("spill-read", errno.EIO)
    other.send("")
    proc.wait_for(lambda: status(wpfs)["store_errors"] >= before + 3, harness.SECONDS, "tries")
    wpfs.seam.works("spill-read")
    said = []
    while len(said) < 2:
        said += [line for line in (other.read(),) if line != "signal"]
    assert said == [str(harness.PAGE), str([5, ord("g"), 7])]
    proc.wait_for(lambda: "is there now" in wpfs.read_log(), harness.SECONDS, "the line that says so")
    assert wpfs.read_log().count("cannot be had") == wpfs.read_log().count("is there now") == 1
    other.wait()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")


@pytest.mark.parametrize("onerror", ["wait", "sigbus"])
def test_no_room_for_a_page_that_exists(make_wpfs, onerror):
    """size= is used up, and a page that comes back finds no room again and again: it is waited for.
    SIGBUS is for pages that nobody has written yet, and for a store that fails."""
    wpfs = seamed(make_wpfs, "resident=256M", "size=2M", f"onerror={onerror}")
    program = filled(wpfs)
    with open(wpfs.mnt / "g", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(os.urandom(harness.PAGE))
    wpfs.wpctl("evict", wpfs.mnt, "/g")
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    assert status(wpfs)["spilled"] == 2 << 20
    wpfs.seam.fail("lower-write", errno.ENOSPC)
    wpfs.allow_log("cannot be had")
    program.send("load 0 5")
    wait_waiting(program.pid)
    before = status(wpfs)["store_errors"]
    proc.wait_for(lambda: status(wpfs)["store_errors"] >= before + 3, harness.SECONDS, "more tries")
    assert program.popen.poll() is None and status(wpfs)["failing"] == 1
    wpfs.seam.works("lower-write")
    assert program.read() == "ok 6"
    check(wpfs, program)
    program.order(f"size 0 {65 * harness.PAGE}")
    program.order(f"map 1 0 0 {65 * harness.PAGE}")
    program.send("store 1 64 1")  # a new one
    assert program.popen.wait(harness.SECONDS) == -signal.SIGBUS


def test_no_room_for_a_page_that_is_read(make_wpfs):
    """read(2) and write(2) of it wait too: there was room for it when it was written."""
    wpfs = seamed(make_wpfs, "resident=256M", "size=2M")
    (wpfs.mnt / "f").write_bytes(b"f" * (8 * harness.PAGE))
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    for flag, argv in (("iflag", (f"if={wpfs.mnt / 'f'}", "of=/dev/null")),
                       ("oflag", ("if=/dev/zero", f"of={wpfs.mnt / 'f'}", "conv=notrunc", "seek=5"))):
        before = status(wpfs)["store_errors"]
        wpfs.seam.fail("lower-write", errno.ENOSPC)
        dd = wpfs.spawn_bare("/usr/bin/dd", *argv, f"{flag}=direct", "bs=4096", "count=1", "status=none")
        proc.wait_for(lambda: dd.popen.poll() is not None or status(wpfs)["store_errors"] >= before + 3,
                      harness.SECONDS, "tries")
        wpfs.seam.works("lower-write")
        assert dd.popen.wait(harness.SECONDS) == 0
    assert (wpfs.mnt / "f").read_bytes() == b"f" * (5 * harness.PAGE) + bytes(harness.PAGE) + \
        b"f" * (2 * harness.PAGE)


def test_the_last_page_while_others_come_back(make_wpfs):
    """Those are counted twice for a moment. A store to a new page has its room all the same."""
    wpfs = seamed(make_wpfs, "resident=256M", "size=2M")
    program = filled(wpfs)
    with open(wpfs.mnt / "g", "wb", buffering=0) as file:
        with pytest.raises(OSError):
            while True:
                file.write(os.urandom(harness.PAGE))
        file.truncate(file.tell() - harness.PAGE)
    wpfs.wpctl("evict", wpfs.mnt, "/g")
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    assert status(wpfs)["used"] == (2 << 20) - harness.PAGE
    program.order(f"size 0 {65 * harness.PAGE}")
    program.order(f"map 1 0 0 {65 * harness.PAGE}")
    wpfs.seam.pause("filled")
    reader = wpfs.spawn_bare("/usr/bin/dd", f"if={wpfs.mnt / 'g'}", "of=/dev/null", "bs=64K",
                             "count=1", "iflag=direct", "status=none")
    wpfs.seam.wait_at("filled")
    before = status(wpfs)["faults"]
    program.send("store 1 64 1")
    proc.wait_for(lambda: status(wpfs)["faults"] > before or program.popen.poll() is not None,
                  harness.SECONDS, "the fault")
    wpfs.seam.go("filled")
    assert program.read() == "ok 0" and reader.popen.wait(harness.SECONDS) == 0
    assert status(wpfs)["used"] == 2 << 20
    assert [program.order(f"load 1 {page}") for page in (8, 9, 10, 64)] == [9, 90, 11, 1]
    assert report.dirty(wpfs, "t") == {9, 64}


def test_tries_go_on_in_a_burst(make_wpfs):
    """A fault that failed is tried again while others come without end."""
    wpfs = seamed(make_wpfs, "resident=256M")
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", 4096, name="t")
    assert program.read() == "ok ready"
    program.order("fill 1")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 4096
    # Not in order, or other threads would read ahead, and try again what waits.
    for page in reversed(range(1024)):
        program.order(f"read {page} 1")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    wpfs.allow_log("cannot be had")
    # One thread reads the message of a page that cannot be read, and stops before the next one.
    wpfs.seam.fail("spill-read", errno.EIO)
    wpfs.seam.pause("asked")
    program.order("later 4000")
    wpfs.seam.wait_at("asked")
    wpfs.seam.pause("message")
    wpfs.seam.go("asked")
    wpfs.seam.wait_at("message")
    proc.wait_for(lambda: status(wpfs)["failing"] == 1, harness.SECONDS, "the fault that failed")
    before = status(wpfs)["faults"]
    # Then there are more for five seconds.
    program.order("range 0 1024")
    program.order("hammer 8")
    wpfs.seam.works("spill-read")
    wpfs.seam.slow("message")
    wpfs.seam.go("message")
    assert program.read().startswith("read ") and status(wpfs)["faults"] - before < 1024
    assert program.order("stop") > 0 and program.order("verify 2") == 0


def test_store_full_under_pressure(make_wpfs):
    """Nothing can leave: a program goes on above the cap, and nothing is lost."""
    wpfs = seamed(make_wpfs, "resident=8M")
    wpfs.seam.fail("spill-write", errno.ENOSPC)
    wpfs.allow_log("nothing can be evicted")
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", 16384, name="t")
    assert program.read() == "ok ready"
    program.order("fill 2")
    assert program.order("verify 1") == 0
    assert "nothing can be evicted" in wpfs.read_log() and status(wpfs)["spilled"] == 0
    wpfs.seam.works("spill-write")
    proc.wait_for(lambda: status(wpfs)["resident"] <= 8 << 20, harness.STORE_SECONDS, "room")
    assert program.order("verify 2") == 0
    program.wait()


def test_unmount_with_a_store_that_cannot_be_read(make_wpfs):
    """What is in the store at unmount and cannot be read is not lost: the next start has it, marks and
    all."""
    wpfs = seamed(make_wpfs, "resident=256M")
    wpfs.allow_log("cannot|kept in memory")
    program = filled(wpfs)
    content = os.urandom(64 * harness.PAGE)
    (wpfs.mnt / "g").write_bytes(content)
    program.wait()
    for name in ("/f", "/g"):
        assert wpfs.wpctl_json("evict", name)["pages"] == 64
    wpfs.seam.fail("io-read", errno.EIO)
    wpfs.command("umount", wpfs.mnt)
    assert proc.is_over(wpfs.pidfd, harness.SECONDS)
    assert wpfs._reaped() != 0 and "kept in memory" in wpfs.read_log()
    wpfs.seam.works("io-read")
    wpfs.restart()
    assert status(wpfs)["spilled"] == 128 * harness.PAGE
    assert (wpfs.mnt / "g").read_bytes() == content
    again = map_file(wpfs.spawn(harness.program("mapper"), name="t"), wpfs.mnt / "f")
    check(wpfs, again)
    again.wait()
    wpfs.umount()
    wpfs.restart()
    assert (wpfs.mnt / "g").read_bytes() == content
    check(wpfs, map_file(wpfs.spawn(harness.program("mapper"), name="t"), wpfs.mnt / "f"))
