# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mount, unmount, mount again: what is there afterwards, and what is not."""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import subprocess
import threading
from pathlib import Path

import pytest

import harness
import proc

TEXT = b"some text\n" * 1000


def test_unmount_leaves_nothing(wpfs):
    (wpfs.mnt / "f").write_bytes(TEXT)
    assert (wpfs.mnt / "f").read_bytes() == TEXT
    wpfs.umount()
    assert os.listdir(wpfs.mnt) == []


def test_nothing_is_kept_without_a_store(wpfs):
    (wpfs.mnt / "f").write_bytes(TEXT)
    wpfs.umount()
    wpfs.restart()
    assert os.listdir(wpfs.mnt) == []


def test_store_keeps_names_sizes_and_contents(make_wpfs):
    wpfs = make_wpfs(store=True)
    (wpfs.mnt / "d").mkdir(mode=0o750)
    (wpfs.mnt / "d/f").write_bytes(TEXT)
    (wpfs.mnt / "d/empty").touch(mode=0o600)
    os.link(wpfs.mnt / "d/f", wpfs.mnt / "link")
    os.symlink("d/f", wpfs.mnt / "sym")
    with open(wpfs.mnt / "sparse", "wb") as sparse:
        sparse.truncate(1 << 30)
        os.pwrite(sparse.fileno(), b"far", (1 << 30) - 3)
    os.utime(wpfs.mnt / "d/f", ns=(10**18 + 1, 10**18 + 2))
    before = {name: os.lstat(wpfs.mnt / name)
              for name in ("d", "d/f", "d/empty", "link", "sym", "sparse")}

    wpfs.umount()
    wpfs.restart()

    assert sorted(os.listdir(wpfs.mnt)) == ["d", "link", "sparse", "sym"]
    for name, old in before.items():
        new = os.lstat(wpfs.mnt / name)
        for field in ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size",
                      "st_mtime_ns"):
            assert getattr(new, field) == getattr(old, field), f"{field} of {name}"
    assert (wpfs.mnt / "d/f").read_bytes() == TEXT
    assert (wpfs.mnt / "link").read_bytes() == TEXT
    assert os.readlink(wpfs.mnt / "sym") == "d/f"
    with open(wpfs.mnt / "sparse", "rb") as sparse:
        assert os.pread(sparse.fileno(), 4, (1 << 30) - 4) == b"\0far"
    assert os.stat(wpfs.mnt / "sparse").st_blocks * 512 < 1 << 20


def test_a_second_mount_sees_what_the_first_removed(make_wpfs):
    wpfs = make_wpfs(store=True)
    (wpfs.mnt / "a").write_bytes(TEXT)
    (wpfs.mnt / "b").write_bytes(TEXT)
    wpfs.umount()
    wpfs.restart()
    (wpfs.mnt / "a").unlink()
    (wpfs.mnt / "b").write_bytes(b"short")
    wpfs.umount()
    wpfs.restart()
    assert os.listdir(wpfs.mnt) == ["b"]
    assert (wpfs.mnt / "b").read_bytes() == b"short"


def test_daemon_killed_and_started_again(make_wpfs):
    wpfs = make_wpfs(store=True)
    (wpfs.mnt / "f").write_bytes(TEXT)
    wpfs.kill9()
    wpfs.restart()
    assert (wpfs.mnt / "f").read_bytes() == TEXT


def answer(call, *args):
    try:
        return call(*args)
    except OSError as refused:
        return errno.errorcode[refused.errno]


@pytest.mark.parametrize("options", [[], ["sync"], ["resident=64M"]], ids=["native", "sync", "capped"])
def test_descriptors_from_before_the_daemon_was_killed(make_wpfs, options):
    """Mappings go on, and reads and writes do that the daemon had no part in."""
    wpfs = make_wpfs(store=True, options=options)
    path, suid = wpfs.mnt / "f", wpfs.mnt / "suid"
    path.write_bytes(b"." * harness.PAGE)
    suid.touch()
    suid.chmod(0o4755)
    opened = {"plain": os.open(path, os.O_RDWR), "read": os.open(path, os.O_RDONLY | os.O_SYNC),
              "sync": os.open(path, os.O_RDWR | os.O_SYNC), "dsync": os.open(path, os.O_RDWR | os.O_DSYNC),
              "suid": os.open(suid, os.O_RDWR)}
    asked = {"sync", "dsync", "suid"}
    asked |= {"plain"} if options else set()
    asked |= {"read"} if "resident=64M" in options else set()
    with mmap.mmap(opened["sync"], harness.PAGE) as mapped:
        wpfs.kill9()
        for turn in range(2):
            mapped[turn + 1] = ord("m")
            for name, fd in opened.items():
                assert (answer(os.pread, fd, 1, 0) == "ENOTCONN") == (name in asked), name
                if name != "read":
                    assert answer(os.pwrite, fd, b"w", 0) == ("ENOTCONN" if name in asked else 1), name
            if turn == 0:
                wpfs.restart()
    for fd in opened.values():
        os.close(fd)
    assert path.read_bytes()[:4] == (b".mm." if "plain" in asked else b"wmm.")
    with open(path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_SYNC), buffering=0) as again:
        assert again.write(b"again") == 5


def test_a_database_that_is_a_link(make_wpfs):
    wpfs = make_wpfs(store=True)
    wpfs.umount()
    elsewhere, database = wpfs.dir / "elsewhere", Path(wpfs.store) / "wpfs.db"
    database.rename(elsewhere)
    database.symlink_to(elsewhere)
    done = wpfs.command(harness.WPFS, wpfs.store, wpfs.mnt)
    assert done.returncode == 1 and "wpfs.db is a symbolic link" in done.stderr, done.stderr
    database.unlink()
    elsewhere.rename(database)
    wpfs.restart()


def test_nobody_but_the_daemon_keeps_the_mount(make_wpfs):
    """Its process for inotify has nothing of it when the mount is there: who kills the daemon ends it."""
    for _ in range(5):
        wpfs = make_wpfs()
        for pid in proc.children(wpfs.pid):
            assert not has_open(pid, "/dev/fuse"), proc.describe(pid)


def test_two_mounts_side_by_side(make_wpfs):
    one, two = make_wpfs(), make_wpfs()
    (one.mnt / "f").write_bytes(b"1")
    assert one.id != two.id
    assert os.listdir(two.mnt) == []
    two.umount()
    assert (one.mnt / "f").read_bytes() == b"1"


def test_background_daemon_is_ready_when_the_command_returns(make_wpfs):
    wpfs = make_wpfs(start=False)
    done = wpfs.command(harness.WPFS, "none", wpfs.mnt)
    assert done.returncode == 0, done.stderr
    (wpfs.mnt / "f").write_bytes(TEXT)
    wpfs.id = wpfs.read_id()
    pid = wpfs.wpctl_json("status")["pid"]
    pidfd = os.pidfd_open(pid)
    subprocess.run(["umount", wpfs.mnt], check=True, timeout=harness.SECONDS)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)
    assert not (harness.RUN_DIR / wpfs.id).exists()


@pytest.mark.parametrize("said", [None, 100])
def test_the_kernel_kills_others_first(make_wpfs, said):
    """When memory is short: the daemon's death frees none. Who started it may have said otherwise."""
    wpfs = make_wpfs(start=False)
    calls = wpfs.dir / "calls"
    wpfs.daemon_env["ASAN_OPTIONS"] = f"log_path={wpfs.dir}/san:detect_leaks=0"  # it does not work under strace
    wpfs.under = ["choom", "-n", str(said), "--"] if said else []
    wpfs.under += ["strace", "-f", "-e", "trace=write", "-e", "signal=none", "-o", calls]
    wpfs.start()
    assert ('"-900"' in calls.read_text()) == (said is None)
    wpfs.umount()


FUSE_GETATTR, FUSE_STATFS, FUSE_INIT = 3, 17, 26


def die_when_asked(fd):
    """A file system whose daemon dies when it is asked for its statfs(2), and not before."""
    while True:
        op, unique = struct.unpack_from("4xIQ", os.read(fd, 1 << 17))
        if op == FUSE_STATFS:
            os.close(fd)
            return
        body = {FUSE_INIT: struct.pack("II56x", 7, 31),
                FUSE_GETATTR: struct.pack("QIIQ52xII20x", 0, 0, 0, 1, 0o40755, 2)}.get(op, b"")
        err = 0 if body else -errno.ENOSYS
        os.write(fd, struct.pack("IiQ", 16 + len(body), err, unique) + body)


def test_mount_over_one_that_dies_just_then(make_wpfs):
    """The request is answered with ECONNABORTED then, and not yet with ENOTCONN."""
    wpfs = make_wpfs(start=False)
    fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"dying", bytes(wpfs.mnt), b"fuse.wpfs", 0, data) == 0, ctypes.get_errno()
    dying = threading.Thread(target=die_when_asked, args=(fd,))
    dying.start()
    wpfs.start()
    dying.join(harness.SECONDS)
    (wpfs.mnt / "f").touch()


def has_open(pid, path):
    try:
        return proc.descriptors(pid, path) != []
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_a_killed_daemon_had_begun_holds_its_lock(make_wpfs):
    """For a moment more: the next one waits for that."""
    wpfs = make_wpfs(store=True)
    wpfs.kill9()
    with open(f"{wpfs.store}/lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        launched = threading.Thread(target=wpfs.restart)
        launched.start()
        proc.wait_for(lambda: wpfs.daemon and has_open(wpfs.pid, lock.name),
                      harness.SECONDS, "the lock is asked for")
    launched.join(harness.SECONDS)
    (wpfs.mnt / "f").touch()
