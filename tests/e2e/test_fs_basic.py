# SPDX-License-Identifier: LGPL-2.1-or-later
"""The file system: like a tmpfs, passthrough for sure, whole again from its store."""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import re
import select
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import fs_battery
import harness

BATTERY = Path(__file__).with_name("fs_battery.py")
STRESS = Path(__file__).with_name("fs_stress.py")

# include/uapi/linux/userfaultfd.h
SYS_USERFAULTFD = 323
UFFD_USER_MODE_ONLY = 1
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFDIO_REGISTER_MODE_WP = 2

libc = ctypes.CDLL(None, use_errno=True)


def battery(directory):
    done = subprocess.run([sys.executable, BATTERY, directory], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tmpfs_answers(tmp_path_factory):
    """What the battery sees on a plain tmpfs."""
    point = tmp_path_factory.mktemp("tmpfs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "inode64", "none", point], check=True)
    try:
        yield battery(point)
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.fixture(scope="module")
def wpfs_answers():
    one = harness.Wpfs()
    try:
        yield battery(one.start().mnt)
    finally:
        one.close()


@pytest.mark.parametrize("name", fs_battery.cases)
def test_like_tmpfs(tmpfs_answers, wpfs_answers, name):
    assert wpfs_answers[name] == tmpfs_answers[name]


def register_write_protect(path):
    """Registers a shared mapping with a userfaultfd in WP mode; 0 or an errno."""
    fd = os.open(path, os.O_RDWR)
    uffd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    assert uffd >= 0
    try:
        fcntl.ioctl(uffd, UFFDIO_API,
                    struct.pack("QQQ", 0xAA, UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 0))
        with mmap.mmap(fd, 65536) as mapping:
            start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
            fcntl.ioctl(uffd, UFFDIO_REGISTER,
                        struct.pack("QQQQ", start, 65536, UFFDIO_REGISTER_MODE_WP, 0))
        return 0
    except BufferError:
        return 0  # the exported address keeps the mapping until it is collected
    except OSError as problem:
        return problem.errno
    finally:
        os.close(uffd)
        os.close(fd)


def test_a_mapping_is_shared_memory(wpfs):
    """Only of passthrough files can write-protection be registered: EINVAL on any other FUSE."""
    path = wpfs.mnt / "f"
    path.write_bytes(bytes(65536))
    assert register_write_protect(path) == 0


def test_no_request_for_reads_writes_and_stores(wpfs):
    """A stopped daemon is in nobody's way. (Its own process: what hangs there is only killed.)"""
    path = wpfs.mnt / "f"
    path.write_bytes(bytes(65536))
    code = """if True:
        import mmap, os, signal, sys
        fd = os.open(sys.argv[1], os.O_RDWR)
        mapping = mmap.mmap(fd, 65536)
        os.pwrite(fd, b"x", 0)  # the first after an fstat asks for security.capability
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
        os.pwrite(fd, b"x" * 100000, 0)
        assert os.pread(fd, 3, 99998) == b"xx"
        mapping[5] = 1
        assert os.pread(fd, 1, 5) == bytes([1])
        print("done", flush=True)
        """
    program = wpfs.spawn_bare(sys.executable, "-c", code, path, wpfs.pid)
    try:
        ready, _, _ = select.select([program.popen.stdout], [], [], harness.SECONDS)
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    assert ready and program.read() == "done", program.stderr()


def tree(top):
    """Everything about the files below a directory that a store has to keep."""
    seen = {}
    for directory, dirs, files in os.walk(top):
        for name in [".", *dirs, *files]:
            path = Path(directory) / name
            s = os.lstat(path)
            entry = [oct(s.st_mode), s.st_ino, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns]
            if not path.is_dir():
                entry.append(s.st_size)
            entry.append({key: os.getxattr(path, key, follow_symlinks=False).hex()
                          for key in os.listxattr(path, follow_symlinks=False)})
            if path.is_symlink():
                entry.append(os.readlink(path))
            elif path.is_file():
                entry.append(path.read_bytes())
            seen[str(path.relative_to(top))] = entry
    return seen


def build_tree(top):
    os.chmod(top, 0o751)
    for depth in range(12):
        directory = top / "/".join(f"d{i}" for i in range(depth + 1))
        directory.mkdir(mode=0o700 + depth)
        (directory / "f").write_bytes(bytes([depth]) * (depth * 1500))
    (top / "empty").touch()
    (top / "zeros").write_bytes(bytes(100000))
    os.link(top / "d0/f", top / "d0/d1/linked")
    os.symlink("../nowhere", top / "sym")
    os.mkfifo(top / "pipe", 0o604)
    os.mknod(top / "null", 0o20666, os.makedev(1, 3))
    os.chown(top / "empty", 1234, 4321)
    os.chmod(top / "empty", 0o6755)
    os.setxattr(top / "empty", "user.long", b"v" * 3000)
    os.setxattr(top / "empty", "security.capability", fs_battery.CAPABILITY)
    os.setxattr(top / "sym", "trusted.t", b"1", follow_symlinks=False)
    os.setxattr(top / "d0", "system.posix_acl_default", fs_battery.DEFAULT_ACL)
    (top / "name with \\ and \n and \u00e9").write_bytes(b"odd")
    (top / ("n" * 255)).touch()
    for number, path in enumerate(sorted(top.rglob("*"))):
        os.utime(path, ns=(10**18, 10**18 + number), follow_symlinks=False)


def test_store_keeps_everything(make_wpfs):
    wpfs = make_wpfs(store=True)
    build_tree(wpfs.mnt)
    before = tree(wpfs.mnt)
    assert len(before) > 30
    for _ in range(2):
        wpfs.umount()
        wpfs.start()
        assert tree(wpfs.mnt) == before


def test_ids_are_never_used_again(make_wpfs):
    wpfs = make_wpfs(store=True)
    used = set()
    for generation in range(3):
        for number in range(20):
            path = wpfs.mnt / f"{generation}-{number}"
            path.touch()
            ino = os.stat(path).st_ino
            assert ino not in used
            used.add(ino)
            if number % 2:
                path.unlink()
        assert max(used) < 1000, "a clean unmount gives back what was reserved"
        wpfs.umount()
        wpfs.start()


def test_ids_after_a_killed_daemon(make_wpfs):
    wpfs = make_wpfs(store=True)
    (wpfs.mnt / "a").touch()
    wpfs.umount()
    wpfs.start()
    (wpfs.mnt / "b").touch()
    before = {name: os.stat(wpfs.mnt / name).st_ino for name in "ab"}
    wpfs.kill9()
    wpfs.restart()
    assert {name: os.stat(wpfs.mnt / name).st_ino for name in "ab"} == before
    (wpfs.mnt / "c").touch()
    assert os.stat(wpfs.mnt / "c").st_ino not in before.values()
    after = tree(wpfs.mnt)
    wpfs.umount()
    wpfs.start()
    assert tree(wpfs.mnt) == after


def test_only_changes_are_written(make_wpfs):
    wpfs = make_wpfs(store=True)
    (wpfs.mnt / "f").write_bytes(os.urandom(1 << 20))
    (wpfs.mnt / "g").write_bytes(b"untouched")
    ids = {name: os.stat(wpfs.mnt / name).st_ino for name in "fg"}
    wpfs.umount()
    data = {name: Path(wpfs.store) / f"data/{ino & 255:02x}/{ino}" for name, ino in ids.items()}
    before = {name: os.stat(path).st_mtime_ns for name, path in data.items()}
    wpfs.start()
    with open(wpfs.mnt / "f", "r+b") as file:
        file.seek(5 * harness.PAGE)
        file.write(b"changed")
    wpfs.umount()
    assert os.stat(data["g"]).st_mtime_ns == before["g"]
    assert os.stat(data["f"]).st_mtime_ns > before["f"]
    wpfs.start()
    assert (wpfs.mnt / "f").read_bytes() == data["f"].read_bytes()
    (wpfs.mnt / "f").unlink()
    wpfs.umount()
    assert not data["f"].exists() and data["g"].exists()


def test_periodic_flush(make_wpfs):
    wpfs = make_wpfs(store=True, options=["flush=1"])
    (wpfs.mnt / "f").write_bytes(b"flushed")
    ino = os.stat(wpfs.mnt / "f").st_ino
    path = Path(wpfs.store) / f"data/{ino & 255:02x}/{ino}"

    def in_store():
        with sqlite3.connect(f"file:{wpfs.store}/wpfs.db?mode=ro", uri=True) as db:
            return path.exists() and db.execute("SELECT size FROM inode WHERE id = ?",
                                                (ino,)).fetchone()

    assert harness.proc.wait_for(in_store, harness.SECONDS, "the file in the store") == (7,)
    assert path.read_bytes() == b"flushed"


def test_a_full_store_loses_nothing(make_wpfs):
    """What the last flush could not write stays in memory, and the next mount has it."""
    wpfs = make_wpfs(store=True, start=False)
    mount = ["mount", "-t", "tmpfs", "none", wpfs.store]
    assert wpfs.command(*mount, "-o", "size=4M").returncode == 0
    try:
        wpfs.start()
        wpfs.allow_log("cannot|kept in memory")
        contents = os.urandom(8 << 20)
        (wpfs.mnt / "f").write_bytes(contents)
        assert wpfs.command("umount", wpfs.mnt).returncode == 0
        assert wpfs._reaped() == 1
        assert "kept in memory" in wpfs.read_log()
        assert wpfs.command(*mount[:-1], wpfs.store, "-o", "remount,size=64M").returncode == 0
        wpfs.start()
        assert (wpfs.mnt / "f").read_bytes() == contents
        wpfs.umount()
        wpfs.start()
        assert (wpfs.mnt / "f").read_bytes() == contents
        wpfs.umount()
    finally:
        wpfs.command("umount", "-l", wpfs.store)


def test_many_hands_and_a_flush_every_second(make_wpfs):
    """Operations that meet on the same names, beside the flush; then the tree is the same again."""
    wpfs = make_wpfs(store=True, options=["flush=1"])
    hands = [subprocess.Popen([sys.executable, STRESS, wpfs.mnt, str(seed), "8000"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
             for seed in range(4)]
    for one in hands:
        said = one.communicate(timeout=250)[0]
        assert one.returncode == 0 and not said, said
    before = tree(wpfs.mnt)
    wpfs.umount()
    wpfs.start()
    assert tree(wpfs.mnt) == before


def test_programs_on_the_mount(wpfs):
    """git, sqlite in WAL mode, cp -a and diff -r on real files."""
    for argv in (["cp", "-a", "/usr/share/doc/git", wpfs.mnt / "doc"],
                 ["diff", "-r", "--no-dereference", "/usr/share/doc/git", wpfs.mnt / "doc"],
                 ["git", "init", "-q", wpfs.mnt / "repo"],
                 ["cp", "-a", wpfs.mnt / "doc", wpfs.mnt / "repo/doc"],
                 ["git", "-C", wpfs.mnt / "repo", "add", "."],
                 ["git", "-C", wpfs.mnt / "repo", "-c", "user.name=t", "-c", "user.email=t@t", "commit",
                  "-qm", "all"],
                 ["git", "-C", wpfs.mnt / "repo", "fsck", "--strict"],
                 ["rm", "-rf", wpfs.mnt / "doc"]):
        done = wpfs.command(*argv)
        assert done.returncode == 0, done.stdout + done.stderr
    with sqlite3.connect(wpfs.mnt / "t.db") as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (a)")
        for number in range(100):
            with db:
                db.execute("INSERT INTO t VALUES (?)", (number,))
        assert db.execute("SELECT sum(a) FROM t").fetchone() == (4950,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_size_is_a_limit(make_wpfs):
    wpfs = make_wpfs(options=["size=1M", "nr_inodes=5", "mode=0700"])
    assert os.stat(wpfs.mnt).st_mode & 0o7777 == 0o700
    with pytest.raises(OSError) as problem:
        (wpfs.mnt / "f").write_bytes(bytes(2 << 20))
    assert problem.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as problem:
        for number in range(10):
            (wpfs.mnt / str(number)).touch()
    assert problem.value.errno == errno.ENOSPC


def test_signal_unmounts_or_says_who_is_in_the_way(make_wpfs):
    wpfs = make_wpfs()
    wpfs.daemon.terminate()
    assert harness.proc.is_over(wpfs.pidfd, harness.SECONDS)
    assert not wpfs.is_mounted()
    assert wpfs._reaped() == 0
    assert not (harness.RUN_DIR / wpfs.id).exists()

    wpfs.start()
    fd = os.open(wpfs.mnt, os.O_RDONLY)
    wpfs.daemon.terminate()
    harness.proc.wait_for(lambda: "cannot unmount" in wpfs.read_log(), harness.SECONDS, "the line")
    os.close(fd)


def refused(wpfs, *argv, status=1):
    """Runs wpfs, which must fail with one line on stderr; gives the line."""
    done = wpfs.command(harness.WPFS, *argv)
    assert done.returncode == status, done.stdout + done.stderr
    assert re.fullmatch(r"wpfs: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_bad_command_lines(make_wpfs):
    wpfs = make_wpfs(start=False)
    for argv, word in ((["-o", "bogus", "none", wpfs.mnt], "bogus"),
                       (["-o", "size=12Q", "none", wpfs.mnt], "12Q"),
                       (["none"], "MOUNTPOINT"), ([], "STORE"),
                       (["-z", "none", wpfs.mnt], "-z")):
        assert word in refused(wpfs, *argv, status=2)


def test_bad_mountpoints(make_wpfs):
    wpfs = make_wpfs(start=False)
    assert "does not exist" in refused(wpfs, "none", wpfs.dir / "missing")
    assert "not a directory" in refused(wpfs, "none", wpfs.log)
    (wpfs.mnt / "f").touch()
    assert "not empty" in refused(wpfs, "none", wpfs.mnt)
    (wpfs.mnt / "f").unlink()
    wpfs.start()
    (wpfs.mnt / "f").touch()
    assert "busy" in refused(wpfs, "none", wpfs.mnt)
    assert os.listdir(wpfs.mnt) == ["f"]


def test_bad_stores(make_wpfs):
    wpfs = make_wpfs(store=True)
    other = wpfs.dir / "other"
    other.mkdir()
    line = refused(wpfs, wpfs.store, other)
    assert "in use" in line and str(wpfs.pid) in line
    foreign = wpfs.dir / "foreign"
    foreign.mkdir()
    (foreign / "letter").write_text("dear")
    assert "not a store" in refused(wpfs, foreign, other)
    assert os.listdir(foreign) == ["letter"]
    assert "not a store" in refused(wpfs, wpfs.dir, other)
    assert "inside the mountpoint" in refused(wpfs, other / "store", other)
    assert os.listdir(other) == []
    assert "cannot" in refused(wpfs, wpfs.dir / "missing/store", other)


def test_store_of_a_newer_program(make_wpfs):
    wpfs = make_wpfs(store=True)
    wpfs.umount()
    with sqlite3.connect(f"{wpfs.store}/wpfs.db") as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        db.execute(f"PRAGMA user_version = {version + 1000}")
    db.close()
    assert "newer" in refused(wpfs, wpfs.store, wpfs.mnt)
    assert not wpfs.is_mounted()


def test_without_root(make_wpfs):
    wpfs = make_wpfs(start=False)
    os.chmod(wpfs.dir, 0o755)
    done = wpfs.command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                        harness.WPFS, "none", wpfs.mnt)
    assert done.returncode == 1 and "root" in done.stderr and done.stderr.count("\n") == 1


def test_probe(make_wpfs):
    wpfs = make_wpfs(start=False)
    done = wpfs.command(harness.WPFS, "--probe")
    assert done.returncode == 0, done.stdout
    for line in done.stdout.splitlines():
        assert re.fullmatch(r"\S.* (ok|missing, optional \(.+\): .+)", line), line
    done = wpfs.command("setpriv", "--bounding-set=-sys_admin", harness.WPFS, "--probe")
    assert done.returncode == 1
    assert re.search(r"^root privilege .*missing .*: run wpfs as root", done.stdout, re.M)
    # What only root can find out is not put down to the kernel.
    copy = shutil.copy(harness.WPFS, wpfs.dir / "wpfs")
    os.chmod(wpfs.dir, 0o755)
    done = wpfs.command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", copy, "--probe")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert re.match(r"root privilege +missing .*: run wpfs as root", lines[0])
    for line in lines[1:]:
        assert re.fullmatch(r"\S.* (ok|not known \(.+\): ask as root)", line), line
    assert any(line.startswith("FUSE passthrough ") and "not known" in line for line in lines)


def test_mount_info_on_files_and_directories(wpfs):
    (wpfs.mnt / "d").mkdir()
    (wpfs.mnt / "f").touch()
    for name in (".", "d", "f"):
        fd = os.open(wpfs.mnt / name, os.O_RDONLY)
        info = fcntl.ioctl(fd, harness.IOC_MOUNT_INFO, bytes(harness.MOUNT_INFO_SIZE))
        os.close(fd)
        assert info[8:].split(b"\0")[0].decode() == wpfs.id
    fd = os.open(wpfs.mnt / "f", os.O_RDONLY)
    with pytest.raises(OSError) as problem:
        fcntl.ioctl(fd, 0x5401)
    os.close(fd)
    assert problem.value.errno == errno.ENOTTY


def test_type_and_source_in_the_mount_table(make_wpfs):
    wpfs = make_wpfs(store=True, options=["noexec", "nosuid"])
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        line = next(line for line in lines if line.split()[4] == str(wpfs.mnt))
    options, _, rest = line.split(None, 5)[5].partition(" - ")
    assert rest.split()[:2] == ["fuse.wpfs", wpfs.store]
    assert {"rw", "noexec", "nosuid"} <= set(options.split()[0].split(","))
