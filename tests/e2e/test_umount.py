# SPDX-License-Identifier: LGPL-2.1-or-later
"""umount.fuse.wpfs: who keeps a mount busy, and what it waits for."""

import ctypes
import errno
import os
import subprocess

import pytest

import harness
import proc
import report
from harness import PAGE, UMOUNT_HELPER


def umount(*args):
    return subprocess.run([UMOUNT_HELPER, *map(str, args)], capture_output=True, text=True,
                          timeout=60, check=False)


def refused(done, *words):
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line, line


def mapped(wpfs, protect=True):
    program = wpfs.spawn(harness.program("mapper"), name="db", protect=protect)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {64 * PAGE}")
    program.order(f"map 0 0 0 {64 * PAGE}")
    return program


def test_usage(tmp_path):
    assert umount().returncode == 2
    assert umount("-x", "/").returncode == 2
    refused(umount(tmp_path), str(tmp_path), "not mounted")
    refused(umount("/proc"), "/proc", "type proc", "umount(8)")


def test_busy_says_who(wpfs):
    program = mapped(wpfs)
    done = umount(wpfs.mnt)
    refused(done, str(wpfs.mnt), "in use", f"mapper (pid {program.pid}, tracked as db)",
            "maps its files", "has its files open")
    assert "witness" not in done.stderr
    program.order("close 0")
    refused(umount(wpfs.mnt), f"(pid {program.pid}, tracked as db) maps its files:")
    with subprocess.Popen(["cat"], cwd=wpfs.mnt, stdin=subprocess.PIPE) as other:
        refused(umount(wpfs.mnt), f"cat (pid {other.pid}) works in it", "tracked as db")
        other.stdin.close()
    program.kill9()
    wpfs.umount()


ALONE = """
import ctypes, mmap, os, sys, threading
view = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
def second():
    sys.stdin.readline()
    os._exit(0)
threading.Thread(target=second).start()
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""


def test_busy_with_one_whose_first_thread_has_ended(wpfs):
    """It stays as any other, and is not waited for as one that is about to go."""
    (wpfs.mnt / "f").write_bytes(bytes(PAGE))
    other = wpfs.spawn_bare("/usr/bin/python3", "-c", ALONE, wpfs.mnt / "f")
    proc.wait_for(lambda: proc.state(other.pid) == "Z", harness.SECONDS, "its first thread ended")
    refused(umount(wpfs.mnt), f"(pid {other.pid}) maps its files, has its files open:")
    other.send("")
    other.wait()
    wpfs.umount()


def test_killed_a_moment_ago(make_wpfs):
    """`kill -9 PID; umount MNT` with nothing between: the program need not even be dead yet."""
    for _ in range(10):
        wpfs = make_wpfs()
        program = mapped(wpfs)
        program.order("store 0 0 1 64")
        program.popen.kill()
        wpfs.umount()


def test_mount_on_top(wpfs):
    (wpfs.mnt / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", wpfs.mnt / "sub"], check=True, timeout=60)
    try:
        refused(umount(wpfs.mnt), "in use", f"{wpfs.mnt}/sub is mounted on it")
    finally:
        subprocess.run(["umount", wpfs.mnt / "sub"], check=True, timeout=60)


def test_dead_mount(make_wpfs):
    wpfs = make_wpfs()
    wpfs.kill9()
    assert umount(wpfs.mnt).returncode == 0
    assert not wpfs.is_mounted()


def test_lazy(make_wpfs):
    wpfs = make_wpfs()
    fd = os.open(wpfs.mnt / "f", os.O_RDWR | os.O_CREAT)
    assert umount("-l", wpfs.mnt).returncode == 0
    assert not wpfs.is_mounted()
    assert not proc.is_over(wpfs.pidfd, 0), "someone still uses it"
    os.close(fd)
    assert proc.is_over(wpfs.pidfd, harness.SECONDS)
    assert wpfs._reaped() == 0


def test_returns_when_the_store_is_written(make_wpfs):
    wpfs = make_wpfs(store=True)
    (wpfs.mnt / "f").write_bytes(os.urandom(32 << 20))
    done = umount("-v", wpfs.mnt)
    assert done.returncode == 0, done.stderr
    assert proc.is_over(wpfs.pidfd, 0), "umount returned before the daemon had ended"
    assert wpfs._reaped() == 0
    assert not (harness.RUN_DIR / wpfs.id).exists()


def test_relative_path_and_slash(make_wpfs):
    wpfs = make_wpfs()
    done = subprocess.run([UMOUNT_HELPER, "mnt/"], cwd=wpfs.dir, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert proc.is_over(wpfs.pidfd, harness.SECONDS)
    assert wpfs._reaped() == 0


# ---- while programs make requests

LOAD = """
import errno, mmap, os, sys
me, n = sys.argv[2], 0
os.chdir(sys.argv[1])
here = os.open(".", os.O_RDONLY)
try:
    while True:
        fd = os.open(f"{me}.{n}", os.O_CREAT | os.O_RDWR)
        os.write(fd, f"{me}.{n}".encode() * 2000)
        os.ftruncate(fd, 20000)
        with mmap.mmap(fd, 4096) as view:
            view[0] = ord("+")
        if n % 8 == 0:
            os.fsync(fd)
            print(n, flush=True)
        os.close(fd)
        os.statvfs(".")
        os.rename(f"{me}.{n}", f"{me}.{n}.r")
        assert f"{me}.{n}.r" in os.listdir(here)
        if n % 8:
            os.unlink(f"{me}.{n}.r")
        n += 1
except OSError as problem:
    print(errno.errorcode[problem.errno], flush=True)
"""


def load(wpfs):
    """Programs that are at it: each has synced something."""
    programs = [wpfs.spawn_bare("/usr/bin/python3", "-c", LOAD, wpfs.mnt, n) for n in range(4)]
    return programs, [int(program.read()) for program in programs]


def holds_what_was_synced(wpfs, synced):
    assert wpfs.wpctl_json("check", target=wpfs.store)["findings"] == []
    wpfs.restart()
    for me, last in enumerate(synced):
        for n in range(0, last + 1, 8):
            paths = [wpfs.mnt / f"{me}.{n}", wpfs.mnt / f"{me}.{n}.r"]
            (path,) = [path for path in paths if path.exists()]
            assert path.read_bytes() == b"+" + (f"{me}.{n}".encode() * 2000)[1:20000].ljust(19999, b"\0")


def test_busy_under_load(make_wpfs):
    """In order it cannot be unmounted, and no request is any the worse for it."""
    wpfs = make_wpfs(store=True)
    programs, _ = load(wpfs)
    libc = ctypes.CDLL(None, use_errno=True)
    for _ in range(20):
        assert libc.umount2(os.fsencode(wpfs.mnt), 0) == -1 and ctypes.get_errno() == errno.EBUSY
        synced = [int(program.read()) for program in programs]
    refused(umount(wpfs.mnt), "in use", *(f"(pid {program.pid})" for program in programs))
    for program in programs:
        program.kill9()
    wpfs.umount()
    holds_what_was_synced(wpfs, synced)


@pytest.mark.parametrize("how", ["-f", "-l", "-fl"])
def test_unmounted_under_load(make_wpfs, how):
    """With -f requests fail; with -l the programs go on, and the store is written when they have ended."""
    wpfs = make_wpfs(store=True)
    programs, synced = load(wpfs)
    assert umount(how, wpfs.mnt).returncode == 0
    assert not wpfs.is_mounted()
    for me, program in enumerate(programs):
        for _ in range(10):
            line = program.read()
            if not line.isdigit():
                break
            synced[me] = int(line)
        if how == "-l":
            assert line.isdigit() and not proc.is_over(wpfs.pidfd, 0)
            program.kill9()
        else:
            while line.isdigit():
                line = program.read()
            assert line in ("ECONNABORTED", "ENOTCONN", "ENODEV", "EIO")
            program.wait()
    assert proc.is_over(wpfs.pidfd, harness.SECONDS), "it ends by itself"
    assert wpfs._reaped() == 0
    assert not (harness.RUN_DIR / wpfs.id).exists()
    holds_what_was_synced(wpfs, synced)


@pytest.mark.parametrize("options", [[], ["resident=64M"]], ids=["native", "capped"])
@pytest.mark.parametrize("how", ["-f", "-l"])
def test_unmounted_under_a_tracked_program(make_wpfs, how, options):
    """It goes on; with -l nothing it does is missed, with -f what the daemon does not see any more counts as dirty."""
    wpfs = make_wpfs(store=True, options=["flush=0", *options])
    program = mapped(wpfs)
    program.order("store 0 3 1")
    if options:
        wpfs.wpctl("evict", wpfs.mnt, "/f")
    assert umount(how, wpfs.mnt).returncode == 0
    program.order("store 0 5 1")
    if how == "-l":
        assert not proc.is_over(wpfs.pidfd, 0), "the mapping is a use of it"
        program.kill9()
    assert proc.is_over(wpfs.pidfd, harness.SECONDS)
    assert wpfs._reaped() == 0
    if how == "-f":
        program.order("store 0 6 1")
        program.kill9()
    wpfs.restart()
    assert report.dirty(wpfs, "db") == ({3, 5} if how == "-l" else set(range(64)))
    assert (wpfs.mnt / "f").read_bytes()[3 * PAGE] == 1


INSTALLED = """
set -e
mount -t tmpfs none "$DIR"
mkdir "$DIR/upper" "$DIR/work" "$DIR/mnt"
sbin=$(realpath /sbin)
mount -t overlay -o "lowerdir=$sbin,upperdir=$DIR/upper,workdir=$DIR/work" none "$sbin"
ln -s "$WPFS" /sbin/mount.fuse.wpfs
ln -s "$HELPER" /sbin/umount.fuse.wpfs
mount -t fuse.wpfs -o size=16M none "$DIR/mnt"
(cd "$DIR/mnt" && exec sleep 100) &
until [ "$(readlink /proc/$!/cwd)" = "$DIR/mnt" ]; do :; done
umount "$DIR/mnt" && exit 3
kill -9 $!
umount "$DIR/mnt"
"""


def test_mount_and_umount_of_the_system(tmp_path):
    """mount(8) and umount(8) find the helpers in /sbin: one of this test's own mount namespace."""
    env = {**os.environ, "DIR": str(tmp_path), "WPFS": str(harness.WPFS),
           "HELPER": str(UMOUNT_HELPER)}
    done = subprocess.run(["unshare", "-m", "sh", "-c", INSTALLED], env=env, capture_output=True,
                          text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"umount.fuse.wpfs: {tmp_path}/mnt: in use: sleep (pid " in done.stderr
    with open("/run/mount/utab", encoding="utf-8") as utab:
        assert str(tmp_path) not in utab.read(), "the entry is left"


@pytest.mark.parametrize("user", [65534])
def test_only_root(wpfs, user):
    os.chmod(wpfs.dir, 0o755)
    done = subprocess.run([UMOUNT_HELPER, wpfs.mnt], user=user, capture_output=True, text=True,
                          timeout=60, check=False)
    refused(done, "only root can")
