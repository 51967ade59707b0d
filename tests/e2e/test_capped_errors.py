# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A store that fails at any step of an eviction or a refault: nothing is dropped before it is safe,
nobody ever sees stale contents or zeros, marks stay, and the mount goes on.
"""

import errno
import os
import signal

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
@pytest.mark.parametrize("step", ["lower-read", "spill-open", "spill-write", "punch"])
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
    assert "faults wait for a page" in wpfs.wpctl("status", wpfs.mnt).stdout
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


def test_tries_are_further_and_further_apart(wpfs):
    """A page that cannot be read is not asked for all the time."""
    program = filled(wpfs)
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    wpfs.seam.fail("spill-read", errno.EIO)
    wpfs.allow_log("cannot be had")
    program.send("load 0 5")
    proc.wait_for(lambda: status(wpfs)["store_errors"] >= 5, harness.SECONDS, "five tries")
    # 20 + 40 + 80 + 160 ms have gone by at least; a try each 20 ms would be sixteen.
    assert status(wpfs)["store_errors"] <= 12
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
    proc.wait_for(lambda: status(wpfs)["resident"] <= 8 << 20, harness.SECONDS, "room")
    assert program.order("verify 2") == 0
    program.wait()
