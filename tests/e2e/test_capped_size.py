# SPDX-License-Identifier: LGPL-2.1-or-later
"""size= of a capped mount limits what is in memory and in the store together, as on tmpfs."""

import errno
import os
import signal
import subprocess

import pytest

import harness
import proc
from harness import PAGE
from seam import Seam

CAP = 8 << 20
SIZE = 32 << 20
OPTIONS = ["resident=8M", "size=32M", "settle=0", "flush=0"]


@pytest.fixture
def wpfs(make_wpfs):
    return make_wpfs("store", OPTIONS)


@pytest.fixture
def tmpfs(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32M", "none", tmp_path], check=True,
                   timeout=60)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True, timeout=60)


def status(wpfs):
    return wpfs.wpctl_json("status")


def settled(wpfs, holds):
    """A page that is leaving counts twice for a moment, as it is in the store and in memory: then no more."""
    proc.wait_for(lambda: holds(status(wpfs)), harness.SECONDS, "what is used")


def full(path, chunk=1 << 16):
    """Writes until there is no room; how much went in."""
    block = os.urandom(chunk)
    with open(path, "wb", buffering=0) as file:
        while True:
            try:
                if file.write(block) < chunk:
                    continue
            except OSError as e:
                assert e.errno == errno.ENOSPC
                return file.tell()


def space(path):
    st = os.statvfs(path)
    return st.f_blocks * st.f_frsize, st.f_bfree * st.f_frsize, st.f_bavail * st.f_frsize


def test_write(wpfs, tmpfs):
    """write(2): as many bytes as on tmpfs, again and again; what is removed is free at once."""
    assert space(wpfs.mnt) == space(tmpfs) == (SIZE, SIZE, SIZE)
    for _ in range(3):
        assert full(wpfs.mnt / "f") == full(tmpfs / "f")
        assert space(wpfs.mnt) == space(tmpfs) == (SIZE, 0, 0)
        settled(wpfs, lambda now: now["size"] == now["used"] == SIZE == now["resident"] + now["spilled"]
                and now["resident"] <= CAP)
        with pytest.raises(OSError) as caught:
            (wpfs.mnt / "g").write_bytes(b"x")
        assert caught.value.errno == errno.ENOSPC
        os.unlink(wpfs.mnt / "g")
        # What is full can be read, brought back and moved out.
        wpfs.wpctl("evict", wpfs.mnt, "/f")
        assert status(wpfs)["spilled"] == SIZE
        with open(wpfs.mnt / "f", "rb") as mine, open(tmpfs / "f", "rb") as theirs:
            assert len(mine.read()) == len(theirs.read())
        assert space(wpfs.mnt) == (SIZE, 0, 0)
        for path in (wpfs.mnt / "f", tmpfs / "f"):
            os.unlink(path)
        assert full(wpfs.mnt / "f") == full(tmpfs / "f"), "what was removed is not free"
        for path in (wpfs.mnt / "f", tmpfs / "f"):
            os.unlink(path)
        assert space(wpfs.mnt) == (SIZE, SIZE, SIZE)


def test_overwrite_when_full(wpfs):
    """What is there can be written again, in memory or not."""
    assert full(wpfs.mnt / "f") == SIZE
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    with open(wpfs.mnt / "f", "r+b", buffering=0) as file:
        for at in range(0, SIZE, 1 << 20):
            os.pwrite(file.fileno(), at.to_bytes(8, "little"), at + 5)
        for at in range(0, SIZE, 1 << 20):
            assert os.pread(file.fileno(), 8, at + 5) == at.to_bytes(8, "little")
        with pytest.raises(OSError) as caught:
            os.pwrite(file.fileno(), b"x", SIZE)
        assert caught.value.errno == errno.ENOSPC
        os.ftruncate(file.fileno(), SIZE - 3 * PAGE)
        assert os.pwrite(file.fileno(), b"x" * 4 * PAGE, SIZE - 3 * PAGE) == 3 * PAGE
    assert status(wpfs)["used"] == SIZE


def test_allocate(wpfs, tmpfs):
    for path in (wpfs.mnt, tmpfs):
        with open(path / "f", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE // 2)
            with pytest.raises(OSError) as caught:
                os.posix_fallocate(file.fileno(), 0, SIZE + PAGE)
            assert caught.value.errno == errno.ENOSPC
    settled(wpfs, lambda now: now["resident"] <= CAP)


@pytest.mark.parametrize("mebibytes", [4, 48])
def test_store_through_a_mapping(wpfs, mebibytes):
    """SIGBUS when size= is exhausted, not before; also while nothing was ever moved out."""
    left = 2 << 20
    with open(wpfs.mnt / "g", "wb") as file:
        for _ in range(0, SIZE - (16 << 20 if mebibytes == 48 else left), 1 << 20):
            file.write(os.urandom(1 << 20))
    before = status(wpfs)["used"]
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", mebibytes * 256, name="t")
    assert program.read() == "ok ready"
    program.send("fill 1")
    assert program.popen.wait(harness.SECONDS) == -signal.SIGBUS
    # Pages of zeros that left memory after that count no more.
    least = SIZE - (SIZE // 8 if mebibytes == 48 else 0)
    assert before < SIZE
    settled(wpfs, lambda now: least <= now["used"] <= SIZE)
    os.unlink(wpfs.mnt / "g")
    proc.wait_for(lambda: status(wpfs)["used"] < SIZE - left // 2, harness.STORE_SECONDS, "room")


def test_refaults_when_full(wpfs):
    """A mapping of all that fits: pages come and go, and every store works."""
    pages = SIZE // PAGE
    program = wpfs.spawn(harness.program("refault"), wpfs.mnt / "f", pages, name="t")
    assert program.read() == "ok ready"
    program.order("fill 1")
    program.order("clear")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    for turn in range(3):
        program.order(f"write {turn} 2000 4")
        assert program.order("verify 4") == 0
        # Zeros are pages as long as they are in memory.
        settled(wpfs, lambda now: now["used"] <= SIZE and now["resident"] <= CAP and now["spilled"] > SIZE // 2)
    program.wait()


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
print("open", flush=True)
input()
try:
    print(os.pwrite(fd, b"x" * 4096, 0), flush=True)
except OSError as error:
    print(os.strerror(error.errno), flush=True)
"""


def test_write_while_pages_come_back(make_wpfs):
    """Those have room to be counted twice for a moment; nobody else gets it."""
    wpfs = make_wpfs("store", OPTIONS, start=False)
    seam = Seam(wpfs)
    wpfs.start()
    writer = wpfs.spawn_bare("/usr/bin/python3", "-c", WRITER, wpfs.mnt / "g")
    assert writer.read() == "open"
    assert full(wpfs.mnt / "f") == SIZE
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    seam.pause("asked")
    reader = wpfs.spawn_bare("/usr/bin/dd", f"if={wpfs.mnt / 'f'}", "of=/dev/null", "bs=64K",
                             "count=1", "iflag=direct", "status=none")
    seam.wait_at("asked")
    writer.send("")
    proc.wait_for(lambda: proc.waits_for_fuse(writer.pid), harness.SECONDS, "the write")
    seam.go("asked")
    assert writer.read() == os.strerror(errno.ENOSPC)
    assert reader.popen.wait(harness.SECONDS) == 0
    assert status(wpfs)["used"] == SIZE
    # What it has can be written while others come back.
    seam.pause("asked")
    reader = wpfs.spawn_bare("/usr/bin/dd", f"if={wpfs.mnt / 'f'}", "of=/dev/null", "bs=64K",
                             "skip=100", "count=1", "iflag=direct", "status=none")
    seam.wait_at("asked")
    with open(wpfs.mnt / "f", "r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), b"y" * PAGE, 0) == PAGE
    seam.go("asked")
    assert reader.popen.wait(harness.SECONDS) == 0


def remount(wpfs, size, status=0):
    done = wpfs.command(harness.WPFS, "-o", f"remount,size={size}", wpfs.store, wpfs.mnt)
    assert done.returncode == status, done.stderr
    return done.stderr


def test_remount(wpfs):
    """More room, less room, and never less than is used."""
    assert full(wpfs.mnt / "f") == SIZE
    remount(wpfs, "40M")
    assert space(wpfs.mnt) == (40 << 20, 8 << 20, 8 << 20)
    assert full(wpfs.mnt / "g") == 8 << 20
    assert "in use" in remount(wpfs, "36M", status=1)
    assert space(wpfs.mnt) == (40 << 20, 0, 0)
    os.unlink(wpfs.mnt / "g")
    assert space(wpfs.mnt)[1] == 8 << 20
    remount(wpfs, "36M")
    wpfs.kill9()
    wpfs.restart()
    assert space(wpfs.mnt) == (36 << 20, 4 << 20, 4 << 20)
    assert full(wpfs.mnt / "g") == 4 << 20


def test_daemon_killed(wpfs):
    """The limit holds for the next daemon."""
    assert full(wpfs.mnt / "f") == SIZE
    wpfs.kill9()
    wpfs.restart()
    assert space(wpfs.mnt) == (SIZE, 0, 0)
    with pytest.raises(OSError) as caught:
        (wpfs.mnt / "g").write_bytes(b"x")
    assert caught.value.errno == errno.ENOSPC


def test_mounted_again(wpfs):
    assert full(wpfs.mnt / "f") == SIZE
    wpfs.umount()
    wpfs.restart()
    assert space(wpfs.mnt) == (SIZE, 0, 0)
    os.truncate(wpfs.mnt / "f", SIZE // 2)
    assert space(wpfs.mnt) == (SIZE, SIZE // 2, SIZE // 2)
    assert full(wpfs.mnt / "g") == SIZE // 2


def test_no_limit(make_wpfs):
    """Without size= there is none but the room of the store."""
    wpfs = make_wpfs("store", ["resident=8M", "settle=0", "flush=0"])
    (wpfs.mnt / "f").write_bytes(os.urandom(24 << 20))
    now = status(wpfs)
    assert now["size"] == 0 and now["used"] >= 24 << 20
    total, free, _ = space(wpfs.mnt)
    store = os.statvfs(wpfs.store)
    assert 0 < free <= store.f_bavail * store.f_frsize + (64 << 20)
    assert total - free >= 24 << 20
    settled(wpfs, lambda now: now["resident"] <= CAP)
    total, free, _ = space(wpfs.mnt)
    assert total - free == status(wpfs)["used"] == 24 << 20
