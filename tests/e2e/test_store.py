# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the store has at any moment: fsynced data, and names that are a prefix of what was done."""

import concurrent.futures
import contextlib
import errno
import mmap
import os
import random
import resource
import select
import signal
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest

import harness
import powerloss
import proc
import report
from mapper import Child, mapped

PAGE = harness.PAGE
GIVE_UP = 10  # seconds; CLIENT_TIMEOUT_S of the preloaded library


@pytest.fixture
def kept(make_wpfs):
    """A mount that writes to its store only when asked, or at its end."""
    return make_wpfs(store=True, options=["flush=0"])


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def tree(top):
    """Everything below a directory: path -> kind, and for files the contents."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif path.is_dir():
            found[name] = ("dir",)
        else:
            found[name] = ("file", path.stat().st_nlink, path.read_bytes())
    return found


def data_files(wpfs):
    return {path.name for path in os.scandir(wpfs.store + "/data") for path in os.scandir(path)}


def test_what_was_synced_is_there(kept):
    deep = kept.mnt / "a/b/c"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"x" * 10000)
    (deep / "not").write_bytes(b"y" * 10000)
    sync(deep / "f")
    os.chmod(deep / "f", 0o640)
    os.setxattr(deep / "f", "user.k", b"v")
    sync(deep)
    (kept.mnt / "later").write_bytes(b"z")
    kept.lose_power()
    kept.restart()
    assert (deep / "f").read_bytes() == b"x" * 10000
    assert (deep / "f").stat().st_mode & 0o7777 == 0o640
    assert os.getxattr(deep / "f", "user.k") == b"v"
    assert (deep / "not").read_bytes() == b"", "a name without contents, as they were never synced"
    assert not (kept.mnt / "later").exists()


@pytest.mark.parametrize("way", ["O_SYNC", "O_DSYNC", "mounted", "remounted"])
def test_what_was_written_synchronously_is_there(make_wpfs, way):
    """Without an fsync, also where somebody else has the file open or mapped."""
    wpfs = make_wpfs(store=True, options=["flush=0"] + (["sync"] if way == "mounted" else []))
    flag = getattr(os, way, 0)
    if way == "remounted":
        done = wpfs.command(harness.WPFS, "-o", "remount,sync", wpfs.store, wpfs.mnt)
        assert done.returncode == 0, done.stderr
    path = wpfs.mnt / "f"
    path.touch()
    other = os.open(path, os.O_RDWR)
    fd = os.open(path, os.O_RDWR | flag)
    os.pwrite(other, b"." * 3 * PAGE, 0)
    with mmap.mmap(other, 3 * PAGE) as theirs, mmap.mmap(fd, 3 * PAGE) as ours:
        theirs[2 * PAGE + 10] = ord("t")
        ours[2 * PAGE + 11] = ord("o")
        assert os.pwrite(fd, b"synced", 2 * PAGE) == 6
        assert theirs[2 * PAGE:2 * PAGE + 6] == b"synced" and os.pread(fd, 2, 2 * PAGE + 10) == b"to"
        theirs[0] = ord("l")  # nobody asked for that
    os.close(fd)
    os.close(other)
    wpfs.lose_power()
    wpfs.restart()
    assert path.read_bytes() == b"." * 2 * PAGE + b"synced....to".ljust(PAGE, b".")


class Written:
    """A file under O_DSYNC writes and others: which bytes a loss of power must have left as they are."""

    def __init__(self, path, size):
        self.now, self.certain, self.cut, self.end = bytearray(size), bytearray(b"\1" * size), [], size
        self.plain = os.open(path, os.O_RDWR | os.O_CREAT)
        os.pwrite(self.plain, bytes(size), 0)
        self.synced = os.open(path, os.O_RDWR | os.O_DSYNC)
        for _ in range(2):  # the second time a large one is known page by page
            os.fsync(self.plain)

    def grow(self, end):
        self.now.extend(bytes(max(0, end - len(self.now))))
        self.certain.extend(bytes(max(0, end - len(self.certain))))

    def write(self, off, data, synced):
        assert os.pwrite(self.synced if synced else self.plain, data, off) == len(data)
        self.grow(off + len(data))
        self.now[off:off + len(data)] = data
        self.certain[off:off + len(data)] = bytes([synced]) * len(data)
        if synced:
            self.end = max(self.end, off + len(data))
            # Nor does anything come back that had gone before.
            for begin, end in self.cut:
                for at in range(begin, min(end, len(self.now))):
                    self.certain[at] |= self.now[at] == 0
            self.cut = []

    def truncate(self, size, again):
        was = len(self.now)
        os.ftruncate(self.plain, size)
        self.cut.append((size, was))
        del self.now[size:], self.certain[size:]
        self.end = min(self.end, size)
        if again:
            os.ftruncate(self.plain, was)
            self.grow(was)

    def punch(self, off, length):
        end = min(off + length, len(self.now))
        subprocess.run(["fallocate", "-p", "-o", str(off), "-l", str(length), f"/proc/self/fd/{self.plain}"],
                       pass_fds=[self.plain], check=True)
        self.now[off:end] = bytes(max(0, end - off))
        self.certain[off:end] = bytes(max(0, end - off))
        self.cut.append((off, end))

    def step(self, rng):
        what, off = rng.random(), rng.randrange(len(self.now) + 1 + rng.choice((0, 0, 3 * PAGE)))
        data = rng.randbytes(rng.choice((1, 100, PAGE, 9000)))
        if what < 0.7:
            self.write(off, data, what < 0.4)
        elif what < 0.8:
            self.truncate(off, what < 0.75)
        else:
            self.punch(off & ~(PAGE - 1), 2 * PAGE)

    def close(self):
        os.close(self.plain)
        os.close(self.synced)


@pytest.mark.parametrize("size", [9 * PAGE, 300 * PAGE])
@pytest.mark.parametrize("seed", range(6))
def test_synchronous_writes_among_others(make_wpfs, seed, size):
    """All they have written is there; and of what was cut off before, nothing."""
    rng = random.Random(seed)
    wpfs = make_wpfs(store=True, options=[f"flush={seed % 2}"])
    file = Written(wpfs.mnt / "f", size)
    for _ in range(rng.randrange(20, 60)):
        file.step(rng)
    file.write(0, b"last", True)
    file.close()
    wpfs.lose_power()
    wpfs.restart()
    found = (wpfs.mnt / "f").read_bytes()
    assert len(found) >= file.end
    wrong = [at for at in range(min(len(file.now), len(found))) if file.certain[at] and file.now[at] != found[at]]
    assert not wrong, (len(wrong), wrong[:3], len(file.now), len(found))


def test_a_synchronous_write_looks_at_nothing_else(make_wpfs):
    """What it takes does not depend on how large the file is."""
    wpfs = make_wpfs(store=True, options=["flush=0"])
    path, size = wpfs.mnt / "f", 1000 << 10  # smaller than those that are not read
    path.write_bytes(os.urandom(size))
    fd = os.open(path, os.O_WRONLY | os.O_DSYNC)
    os.pwrite(fd, b"first", 0)

    def read_by_the_daemon():
        with open(f"/proc/{wpfs.pid}/io", encoding="ascii") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))

    before = read_by_the_daemon()
    for turn in range(20):
        os.pwrite(fd, b"again", turn * 40000)
    assert read_by_the_daemon() - before < size
    os.close(fd)
    wpfs.lose_power()
    wpfs.restart()
    assert all(path.read_bytes()[turn * 40000:][:5] == b"again" for turn in range(20))


def test_a_synchronous_write_that_cannot_be_stored(make_wpfs):
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    wpfs.allow_log("cannot write the contents")
    control = powerloss.watch(wpfs)
    wpfs.start()
    fd = os.open(wpfs.mnt / "f", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
    control.fail(powerloss.SYNC, errno.EIO)
    with pytest.raises(OSError) as refused:
        os.pwrite(fd, b"first", 0)
    assert refused.value.errno == errno.EIO
    control.fail(0)
    assert os.pwrite(fd, b"second", 5) == 6
    os.close(fd)
    wpfs.lose_power()
    wpfs.restart()
    assert (wpfs.mnt / "f").read_bytes() == b"firstsecond"


def test_synced_again_and_again(kept):
    path = kept.mnt / "f"
    with open(path, "w+b") as file:
        for turn in range(5):
            file.seek(turn * 3000)
            file.write(bytes([turn + 1]) * 3000)
            file.flush()
            os.fdatasync(file.fileno())
        file.truncate(7000)
        os.fsync(file.fileno())
        file.seek(0)
        file.write(b"lost")
    kept.lose_power()
    kept.restart()
    assert path.read_bytes() == b"".join(bytes([turn + 1]) * 3000 for turn in range(5))[:7000]


def test_a_large_file_synced_again_and_again(kept):
    """What is not written with requests: by stores, holes, cuts; what the store has is known by then."""
    path, size, rng = kept.mnt / "f", 3 << 20, random.Random(7)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes([1]) * (2 << 20), 4 * PAGE)
    os.ftruncate(fd, size)
    os.fsync(fd)
    with mmap.mmap(fd, size) as mapping:
        for turn in range(40):
            at = rng.randrange(size - 20)
            if turn % 4 == 0:
                os.pwrite(fd, bytes([turn]) * 20, at)
            elif turn % 4 == 1:
                subprocess.run(["fallocate", "-p", "-o", str(at), "-l", str(5 * PAGE), path], check=True)
            elif turn % 4 == 2:
                os.ftruncate(fd, size - 50000 * (turn % 3))
                os.ftruncate(fd, size)
            mapping[at] = turn + 1
            blocks = os.fstat(fd).st_blocks
            os.fsync(fd)
            assert os.fstat(fd).st_blocks == blocks, "holes that were looked at stay holes"
            if turn % 8 == 7:
                mapping.flush()
                want = path.read_bytes()
                copy = Path(kept.store, "data", f"{path.stat().st_ino & 255:02x}", str(path.stat().st_ino))
                assert copy.read_bytes().ljust(size, b"\0") == want
    os.close(fd)
    kept.lose_power()
    kept.restart()
    assert path.read_bytes() == want


def sizes(store):
    """Of the names at the top, as the rows tell."""
    with contextlib.closing(sqlite3.connect(f"{store}/wpfs.db")) as db:
        rows = db.execute("SELECT d.name, i.size FROM dirent AS d JOIN inode AS i ON i.id = d.id WHERE d.parent = 1")
        return {name.decode(): size for name, size in rows}


def test_sizes_while_other_files_are_synced(make_wpfs):
    """A commit that an fsync makes in the middle of a flush takes nothing of it along."""
    wpfs = make_wpfs(store=True, options=["flush=1"])
    over = threading.Event()

    def others():
        fd = os.open(wpfs.mnt / "other", os.O_RDWR | os.O_CREAT)
        while not over.is_set():
            os.pwrite(fd, b"o", 0)
            os.fsync(fd)
        os.close(fd)

    thread = threading.Thread(target=others)
    thread.start()
    rng, flushes = random.Random(3), [0]
    while len(flushes) < 6:
        for number in range(30):
            with open(wpfs.mnt / f"f{number}", "ab") as file:
                file.write(bytes(rng.randrange(20000)) + b"x")
        stored_size = sum(sizes(wpfs.store).values())
        if stored_size > flushes[-1]:
            flushes.append(stored_size)
    over.set()
    thread.join()
    before = {path.name: path.stat().st_size for path in wpfs.mnt.iterdir()}
    # Nobody has them open: the flush after the next has nothing to do any more.
    harness.proc.wait_for(lambda: sizes(wpfs.store) == before, harness.STORE_SECONDS, "all sizes are stored")
    wpfs.umount()
    wpfs.restart()
    assert {path.name: path.stat().st_size for path in wpfs.mnt.iterdir()} == before


def test_in_use_until_the_mapping_goes(make_wpfs):
    """A large file whose descriptor is closed is looked at again as long as it is mapped, and no longer."""
    wpfs = make_wpfs(store=True, options=["flush=1"])
    path, size = wpfs.mnt / "f", 2 << 20
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"a" * size, 0)
    for _ in range(3):
        os.fsync(fd)
    data = Path(wpfs.store, "data", f"{path.stat().st_ino & 255:02x}", str(path.stat().st_ino))
    with mmap.mmap(fd, size) as mapping:
        os.close(fd)
        for turn in range(3):
            mapping[turn * 5 * PAGE] = 7
            harness.proc.wait_for(lambda turn=turn: data.read_bytes()[turn * 5 * PAGE] == 7, harness.SECONDS,
                                  "a flush after a store")

    def mapped():
        with open(f"/proc/{wpfs.pid}/maps", encoding="utf-8") as maps:
            return any("/lower/f" in line for line in maps)

    harness.proc.wait_for(lambda: not mapped(), harness.SECONDS, "nobody has it")
    wpfs.lose_power()
    wpfs.restart()
    assert path.read_bytes() == data.read_bytes()


def data_ranges(fd):
    """[first, end) of what SEEK_DATA and SEEK_HOLE call data."""
    found, at, size = [], 0, os.fstat(fd).st_size
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as problem:
            assert problem.errno == errno.ENXIO
            break
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        found.append((begin, at))
    return found


def test_what_is_looked_at_is_no_memory_of_the_daemon(make_wpfs):
    """Else the kernel would kill it first when memory is short."""
    wpfs = make_wpfs(store=True, options=["flush=1"])
    path, size = wpfs.mnt / "f", 64 << 20
    with open(path, "w+b") as file:
        file.write(b"a" * size)
        file.flush()
        os.fsync(file.fileno())
        os.fsync(file.fileno())

        def resident():
            with open(f"/proc/{wpfs.pid}/status", encoding="ascii") as lines:
                return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssShmem:"))

        os.fsync(file.fileno())
        assert resident() < 2 * size
        harness.proc.wait_for(lambda: resident() < size // 4, harness.SECONDS, "a flush lets go of it")
        file.write(b"b")
        file.flush()
        os.fsync(file.fileno())
    wpfs.lose_power()
    wpfs.restart()
    assert path.read_bytes() == b"a" * size + b"b"


def test_what_is_only_allocated_is_not_data(kept):
    """However often the daemon has looked at it."""
    path, size = kept.mnt / "f", 4 << 20
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, size)
    os.pwrite(fd, b"x" * (2 << 20), 512 * PAGE)
    os.pwrite(fd, b"y", 5 * PAGE)
    want = [(5 * PAGE, 6 * PAGE), (512 * PAGE, size)]
    assert data_ranges(fd) == want
    for turn in range(5):
        os.pwrite(fd, bytes([turn]), 5 * PAGE)
        os.fsync(fd)
        assert data_ranges(fd) == want, f"after fsync {turn}"
    os.close(fd)
    kept.lose_power()
    kept.restart()
    assert path.read_bytes() == bytes(5 * PAGE) + bytes([4]) + bytes(507 * PAGE - 1) + b"x" * (2 << 20)


def test_memory_of_a_removed_file_is_free(kept):
    """At once, though the daemon has looked at its pages again and again."""
    path, size = kept.mnt / "f", 16 << 20
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"a" * size, 0)
    for _ in range(3):
        os.fsync(fd)
    free = os.statvfs(kept.mnt).f_bfree
    os.unlink(path)
    os.close(fd)
    harness.proc.wait_for(lambda: os.statvfs(kept.mnt).f_bfree >= free + size // PAGE, harness.SECONDS,
                          "its pages are gone")


def test_a_file_replaced_is_the_old_or_the_new_one(kept):
    path, new = kept.mnt / "f", kept.mnt / "f.new"
    path.write_bytes(b"old" * 2000)
    sync(path)
    new.write_bytes(b"new" * 3000)
    sync(new)
    os.rename(new, path)
    kept.lose_power()
    kept.restart()
    assert tree(kept.mnt) == {"f": ("file", 1, b"old" * 2000), "f.new": ("file", 1, b"new" * 3000)}
    os.rename(new, path)
    sync(kept.mnt)
    kept.lose_power()
    kept.restart()
    assert tree(kept.mnt) == {"f": ("file", 1, b"new" * 3000)}


def test_contents_go_with_their_last_name(kept):
    for name in "abc":
        (kept.mnt / name).write_bytes(b"1" * PAGE)
    os.link(kept.mnt / "a", kept.mnt / "d")
    os.sync()
    for name in "abc":
        sync(kept.mnt / name)
    assert len(data_files(kept)) == 3
    os.unlink(kept.mnt / "a")
    os.unlink(kept.mnt / "b")
    sync(kept.mnt)
    assert len(data_files(kept)) == 2, "the one with another name stays"
    kept.lose_power()
    kept.restart()
    assert tree(kept.mnt) == {"c": ("file", 1, b"1" * PAGE), "d": ("file", 1, b"1" * PAGE)}


def test_a_file_without_a_name_is_not_kept(kept):
    fd = os.open(kept.mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"t" * PAGE)
    os.fsync(fd)
    assert data_files(kept) == set()
    top = os.open(kept.mnt, os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=top)  # with AT_SYMLINK_FOLLOW
    os.close(top)
    os.fsync(fd)
    os.close(fd)
    kept.lose_power()
    kept.restart()
    assert tree(kept.mnt) == {"named": ("file", 1, b"t" * PAGE)}


def test_a_file_larger_than_the_disk_could_have(kept):
    """All of it that is not a hole is stored, and nothing is held up. The disk's files end at 16 TiB."""
    path, size = kept.mnt / "f", 2**63 - 1
    path.write_bytes(b"f" * 5000)
    os.truncate(path, size)
    sync(path)
    (kept.mnt / "other").write_bytes(b"o")
    kept.umount()
    kept.restart()
    assert path.stat().st_size == size
    fd = os.open(path, os.O_RDWR)
    assert os.pread(fd, 6000, 0) == b"f" * 5000 + bytes(1000) and data_ranges(fd) == [(0, 2 * PAGE)]
    os.ftruncate(fd, 10000)
    os.pwrite(fd, b"e", 9999)
    os.close(fd)
    kept.umount()
    kept.restart()
    assert tree(kept.mnt) == {"f": ("file", 1, b"f" * 5000 + bytes(4999) + b"e"), "other": ("file", 1, b"o")}


def test_many_attributes(kept):
    """A list of names that is longer than most."""
    path = kept.mnt / "f"
    path.touch()
    names = [f"user.{'n' * 40}{number}" for number in range(50)]
    for name in names:
        os.setxattr(path, name, name.encode())
    sync(path)
    kept.lose_power()
    kept.restart()
    assert sorted(os.listxattr(path)) == sorted(names)
    assert all(os.getxattr(path, name) == name.encode() for name in names)


def test_times_that_no_row_can_tell(kept):
    """Rows count nanoseconds, which ends in the years 1677 and 2262: the nearest is kept."""
    path = kept.mnt / "f"
    path.touch()
    os.utime(path, (10**11, -10**11))
    sync(path)
    assert (path.stat().st_atime, path.stat().st_mtime) == (10**11, -10**11)
    kept.umount()
    kept.restart()
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (2**63 - 1, -2**63)


# ---- names are a prefix


class Doer:
    """Random changes of names, each noted with the tree it leads to."""

    def __init__(self, top, seed):
        self.top, self.random = top, random.Random(seed)
        self.states = [tree(top)]
        self.safe = 0  # this many changes are promised

    def some(self, kind):
        names = [name for name, what in self.states[-1].items() if what[0] == kind]
        return self.random.choice(names) if names else None

    def fresh(self):
        parent = self.random.choice([self.top, *(self.top / name for name, what
                                                 in self.states[-1].items() if what[0] == "dir")])
        return parent / f"n{self.random.randrange(40)}"

    def change(self):
        act = self.random.choice(["mkdir", "file", "symlink", "link", "rename", "exchange", "unlink",
                                  "rmdir", "rename"])
        file, directory, to = self.some("file"), self.some("dir"), self.fresh()
        if act == "mkdir":
            os.mkdir(to)
        elif act == "file":
            os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif act == "symlink":
            os.symlink("target", to)
        elif act == "link" and file:
            os.link(self.top / file, to)
        elif act == "rename" and (file or directory):
            os.rename(self.top / self.random.choice([n for n in (file, directory) if n]), to)
        elif act == "exchange" and file:
            other = self.some("file")
            os.rename(self.top / file, self.top / (file + ".x"))
            if other != file:
                os.rename(self.top / other, self.top / file)
        elif act == "unlink" and file:
            os.unlink(self.top / file)
        elif act == "rmdir" and directory:
            os.rmdir(self.top / directory)

    def step(self):
        try:
            self.change()
        except OSError:
            pass  # it was not to be
        self.states.append(tree(self.top))
        if self.random.randrange(8) == 0:
            sync(self.top)
            self.safe = len(self.states) - 1


@pytest.mark.parametrize("seed", range(3))
def test_names_are_a_prefix(make_wpfs, seed):
    wpfs = make_wpfs(store=True, options=["flush=1"])
    for _ in range(2):
        doer = Doer(wpfs.mnt, seed)
        for _ in range(doer.random.randrange(40, 80)):
            doer.step()
        wpfs.lose_power()
        wpfs.restart()
        now = tree(wpfs.mnt)
        assert now in doer.states, "a tree that never was"
        last = len(doer.states) - 1 - doer.states[::-1].index(now)
        assert last >= doer.safe, f"change {doer.safe} was promised, and {last} is the last one there"
    wpfs.umount()
    wpfs.restart()
    assert tree(wpfs.mnt) == now


def test_a_copy_of_a_system_s_files(make_wpfs):
    """A slice of /usr/share, copied, and compared after an unmount and a mount."""
    names, room = [], 12 << 20
    for entry in sorted(os.scandir("/usr/share"), key=lambda entry: entry.name):
        size = int(subprocess.run(["du", "-sb", entry.path], check=True, stdout=subprocess.PIPE).stdout.split()[0])
        if size <= min(room, 1 << 20):
            names.append(entry.path)
            room -= size
    assert len(names) > 20
    wpfs = make_wpfs(store=True)
    subprocess.run(["cp", "-a", *names, wpfs.mnt], check=True, timeout=120)
    wpfs.umount()
    wpfs.restart()
    for path in names:
        done = subprocess.run(["diff", "-r", "--no-dereference", path, wpfs.mnt / os.path.basename(path)],
                              capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    wpfs.umount()
    assert wpfs.wpctl_json("check", target=wpfs.store)["findings"] == []
    wpfs.restart()


# ---- contents come when they are asked for


def stored(make_wpfs, count=40, options=(), small=None):
    """
    A mount with `count` files of different contents, unmounted; the contents by name. With `small` all
    but the file of that number have 20000 bytes and more.
    """
    least = 0 if small is None else 20000
    wpfs = make_wpfs(store=True, options=["flush=0", *options])
    contents = {f"f{n}": os.urandom(n * 1000 + (least if n != small else 0)) for n in range(count)}
    for name, data in contents.items():
        (wpfs.mnt / name).write_bytes(data)
    wpfs.umount()
    return wpfs, contents


def test_contents_are_there_at_the_first_open(make_wpfs):
    wpfs, contents = stored(make_wpfs)
    wpfs.restart()
    names = list(contents)
    random.Random(1).shuffle(names)
    for name in names:
        assert (wpfs.mnt / name).stat().st_size == len(contents[name])
        assert (wpfs.mnt / name).read_bytes() == contents[name]


def test_a_mount_reads_no_contents(make_wpfs):
    """With no room at all there is nothing in the background either."""
    wpfs, contents = stored(make_wpfs, options=["size=2M"])
    wpfs.options.append("size=16K")
    wpfs.restart()
    assert sum(path.stat().st_size for path in wpfs.mnt.iterdir()) == sum(map(len, contents.values()))
    assert (wpfs.mnt / "f3").read_bytes() == contents["f3"]
    wpfs.allow_log("no space")
    with pytest.raises(OSError) as refused:
        (wpfs.mnt / "f39").read_bytes()
    assert refused.value.errno == errno.ENOSPC
    os.unlink(wpfs.mnt / "f38")
    wpfs.umount()
    wpfs.options.append("size=2M")
    wpfs.restart()
    assert tree(wpfs.mnt) == {name: ("file", 1, data) for name, data in contents.items() if name != "f38"}


@pytest.mark.parametrize("how", ["open", "truncate", "read-only open"])
def test_what_is_emptied_need_not_come(make_wpfs, how):
    """Contents that are to be dropped are neither waited for nor in need of room."""
    wpfs, contents = stored(make_wpfs, options=["size=2M"], small=39)
    wpfs.options.append("size=16K")  # so that no other comes in the background
    wpfs.restart()
    path = wpfs.mnt / "f39"
    if how == "open":
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    elif how == "truncate":
        os.truncate(path, 0)
    else:
        wpfs.allow_log("no space")
        with pytest.raises(OSError):
            os.open(path, os.O_RDWR)  # for who does not say that it is going to be empty they come
        os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
    assert path.stat().st_size == 0 and path.stat().st_blocks == 0
    path.write_bytes(b"new" * 100)
    os.truncate(path, 40000)
    contents["f39"] = (b"new" * 100).ljust(40000, b"\0")
    assert path.read_bytes() == contents["f39"], "nothing of what was there comes back"
    wpfs.kill9()
    wpfs.options.append("size=2M")
    wpfs.restart()
    assert path.read_bytes() == contents["f39"]
    wpfs.umount()
    wpfs.restart()
    assert tree(wpfs.mnt) == {name: ("file", 1, data) for name, data in contents.items()}


def test_room_is_that_of_before(make_wpfs):
    """What du(1) tells of contents that are still in the store, that come, and that came."""
    wpfs, contents = stored(make_wpfs, options=["size=2M"])
    sparse = wpfs.mnt / "sparse"
    wpfs.restart()
    with open(sparse, "wb") as file:
        for at in (5 * PAGE + 1, 9 * PAGE, 40 * PAGE - 1):
            os.pwrite(file.fileno(), b"x", at)
        os.ftruncate(file.fileno(), 64 * PAGE + 1)
    blocks = {path.name: path.stat().st_blocks for path in wpfs.mnt.iterdir()}
    assert blocks["sparse"] == 3 * PAGE // 512
    wpfs.umount()
    wpfs.options.append("size=16K")  # so that most stays there
    wpfs.restart()
    assert {path.name: path.stat().st_blocks for path in wpfs.mnt.iterdir()} == blocks
    assert {entry.name: entry.stat().st_blocks for entry in os.scandir(wpfs.mnt)} == blocks
    wpfs.kill9()
    wpfs.options.append("size=2M")
    wpfs.restart()
    assert sparse.stat().st_blocks == blocks["sparse"]
    sparse.read_bytes()
    for name in contents:
        assert (wpfs.mnt / name).read_bytes() == contents[name]
    assert {path.name: path.stat().st_blocks for path in wpfs.mnt.iterdir()} == blocks


def test_times_are_those_of_before(make_wpfs):
    wpfs = make_wpfs(store=True, options=["size=2M"])
    (wpfs.mnt / "first").write_bytes(bytes([1]) * 100000)
    for name in ("a", "b", "c"):
        (wpfs.mnt / name).write_bytes(name.encode() * 3000)
    wpfs.umount()
    wpfs.options.append("size=20K")  # too little for the first, so nothing comes in the background
    wpfs.restart()
    for name in ("a", "b"):
        os.utime(wpfs.mnt / name, ns=(10**18 + 1, 10**18 + 2))
        assert (wpfs.mnt / name).read_bytes() == name.encode() * 3000
        assert (wpfs.mnt / name).stat().st_mtime_ns == 10**18 + 2
    os.truncate(wpfs.mnt / "c", 10)
    assert (wpfs.mnt / "c").read_bytes() == b"c" * 10


CAPABILITY = (0x02000001).to_bytes(4, "little") + (0x400).to_bytes(4, "little") + bytes(12)  # cap_net_bind_service


def test_capabilities_and_set_user_id_are_those_of_before(make_wpfs):
    """Contents come by a write, which takes them away."""
    wpfs, contents = stored(make_wpfs, options=["size=2M"])
    wpfs.restart()
    for name in ("f30", "f31", "f32"):
        os.setxattr(wpfs.mnt / name, "security.capability", CAPABILITY)
    os.chmod(wpfs.mnt / "f33", 0o6755)
    wpfs.umount()
    wpfs.restart()
    os.removexattr(wpfs.mnt / "f32", "security.capability")
    assert (wpfs.mnt / "f30").read_bytes() == contents["f30"]
    assert os.getxattr(wpfs.mnt / "f30", "security.capability") == CAPABILITY
    assert tree(wpfs.mnt) == {name: ("file", 1, data) for name, data in contents.items()}
    for name in ("f30", "f31"):
        assert os.getxattr(wpfs.mnt / name, "security.capability") == CAPABILITY
    assert "security.capability" not in os.listxattr(wpfs.mnt / "f32")
    assert (wpfs.mnt / "f33").stat().st_mode & 0o7777 == 0o6755


def test_set_user_id_is_that_of_before_an_open(make_wpfs):
    """Who answers an open is not who brings contents in the background."""
    wpfs = make_wpfs(store=True, options=["size=2M"])
    (wpfs.mnt / "first").write_bytes(bytes([1]) * 100000)
    (wpfs.mnt / "f").write_bytes(b"f" * 3000)
    os.chmod(wpfs.mnt / "f", 0o6755)
    wpfs.umount()
    wpfs.options.append("size=20K")  # too little for the first, so nothing comes in the background
    wpfs.restart()
    assert (wpfs.mnt / "f").read_bytes() == b"f" * 3000
    assert (wpfs.mnt / "f").stat().st_mode & 0o7777 == 0o6755


def coming(make_wpfs):
    """A mount with a file that is on its way from the store, half of it written; and who holds that up."""
    wpfs = make_wpfs(store=True, options=["flush=0"])
    path, contents = wpfs.mnt / "f", os.urandom(3 << 20)
    path.write_bytes(contents)
    (wpfs.mnt / "other").write_bytes(b"other")
    os.setxattr(path, "security.capability", CAPABILITY)
    os.utime(path, ns=(10**18 + 1, 10**18 + 2))
    wpfs.umount()
    control = powerloss.watch(wpfs)
    control.pause_before("R", False, nth=2)
    wpfs.restart()
    proc.wait_for(lambda: control.paused, harness.SECONDS, "it comes in the background")
    return wpfs, control, contents


def is_as_before(path, contents=None):
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (10**18 + 1, 10**18 + 2)
    assert os.getxattr(path, "security.capability") == CAPABILITY
    assert "security.capability" in os.listxattr(path)
    assert contents is None or path.read_bytes() == contents


def test_an_open_waits_for_its_own_file_only(make_wpfs):
    wpfs, control, contents = coming(make_wpfs)
    control.put(12, 0)  # no other read waits
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit((wpfs.mnt / "f").read_bytes)
        assert (wpfs.mnt / "other").read_bytes() == b"other"
        (wpfs.mnt / "new").write_bytes(b"new")
        sync(wpfs.mnt / "new")
        assert sorted(os.listdir(wpfs.mnt)) == ["f", "new", "other"] and not slow.done()
        control.go()
        assert slow.result(harness.SECONDS) == contents


@pytest.mark.parametrize("adopted", [False, True])
def test_stored_while_they_come(make_wpfs, adopted):
    """A picture of the tree has the file as it was, and not as it is half way."""
    wpfs, control, contents = coming(make_wpfs)
    is_as_before(wpfs.mnt / "f")
    if adopted:
        wpfs.kill9()
        control.put(13, 0)  # nobody waits any more
        control.pause_before("R", False, nth=2)
        wpfs.restart()
        proc.wait_for(lambda: control.paused, harness.SECONDS, "it comes in the background")
    os.rename(wpfs.mnt / "f", wpfs.mnt / "g")
    sync(wpfs.mnt)
    is_as_before(wpfs.mnt / "g")
    wpfs.lose_power()
    control.go()
    wpfs.restart()
    is_as_before(wpfs.mnt / "g", contents)


def test_the_daemon_dies_while_they_come(make_wpfs):
    wpfs, control, contents = coming(make_wpfs)
    wpfs.kill9()
    control.go()
    wpfs.restart()
    is_as_before(wpfs.mnt / "f", contents)
    os.removexattr(wpfs.mnt / "f", "security.capability")
    wpfs.kill9()
    wpfs.restart()
    assert "security.capability" not in os.listxattr(wpfs.mnt / "f")


def test_the_daemon_dies_before_they_came(make_wpfs):
    wpfs, contents = stored(make_wpfs, options=["size=2M"], small=2)
    wpfs.options.append("size=16K")  # so that no other does
    wpfs.restart()
    (wpfs.mnt / "f2").write_bytes(b"new")
    wpfs.kill9()
    wpfs.options.append("size=2M")
    wpfs.restart()
    contents["f2"] = b"new"
    assert (wpfs.mnt / "f30").read_bytes() == contents["f30"]
    wpfs.umount()
    wpfs.restart()
    assert tree(wpfs.mnt) == {name: ("file", 1, data) for name, data in contents.items()}


def test_the_daemon_dies_and_stores_everything(make_wpfs):
    """What is not there yet is not taken for zeros."""
    wpfs, contents = stored(make_wpfs, options=["size=2M"])
    wpfs.options.append("size=16K")
    wpfs.restart()
    wpfs.kill9()
    wpfs.restart()
    wpfs.umount()
    wpfs.options.append("size=2M")
    wpfs.restart()
    assert tree(wpfs.mnt) == {name: ("file", 1, data) for name, data in contents.items()}


def test_removed_before_they_came(make_wpfs):
    """Who has the file still, without having it open, gets its contents; then nothing is left of it."""
    wpfs, contents = stored(make_wpfs, options=["size=2M"])
    wpfs.options.append("size=64K")
    wpfs.restart()
    harness.proc.wait_for(lambda: "stay in the store" in wpfs.read_log(), harness.SECONDS, "what fits came")
    fds = {number: os.open(wpfs.mnt / f"f{number}", os.O_PATH) for number in (37, 38, 39)}
    for number in [*fds, *range(15)]:
        os.unlink(wpfs.mnt / f"f{number}")
    sync(wpfs.mnt)
    with open(f"/proc/self/fd/{fds[39]}", "rb") as file:
        assert file.read() == contents["f39"]
    for fd in fds.values():
        os.close(fd)
    wpfs.umount()
    assert len(data_files(wpfs)) == 40 - 15 - len(fds)
    assert wpfs.wpctl_json("check", target=wpfs.store)["findings"] == []


def test_what_was_left_and_cannot_be_told(make_wpfs):
    """The files that a killed daemon left in memory are not thrown away for an error."""
    wpfs = make_wpfs()
    (wpfs.mnt / "f").write_bytes(b"only here")
    wpfs.kill9()
    ids = harness.RUN_DIR / wpfs.id / "private/ids"
    whole = ids.read_bytes()
    ids.write_bytes(b"?" * len(whole))
    done = wpfs.command(harness.WPFS, "none", wpfs.mnt)
    assert done.returncode == 1 and "cannot tell what" in done.stderr
    ids.write_bytes(whole)
    wpfs.restart()
    assert (wpfs.mnt / "f").read_bytes() == b"only here"


def test_many_at_once(make_wpfs):
    wpfs, contents = stored(make_wpfs, count=60)
    wpfs.restart()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = pool.map(lambda name: (name, (wpfs.mnt / name).read_bytes()), [*contents, *contents])
            assert all(data == contents[name] for name, data in got)


def test_contents_that_cannot_be_read(make_wpfs):
    wpfs, contents = stored(make_wpfs, options=["size=2M"])
    wpfs.options.append("size=16K")
    bad = next(path for path in Path(wpfs.store, "data").rglob("*")
               if path.is_file() and path.stat().st_size == 30000)
    wpfs.allow_log("cannot bring the contents")
    wpfs.restart()
    bad.unlink()
    bad.mkdir()  # reading it is EISDIR
    wpfs.options.append("size=2M")
    wpfs.kill9()
    wpfs.restart()
    with pytest.raises(OSError) as refused:
        (wpfs.mnt / "f30").read_bytes()
    assert refused.value.errno == errno.EIO, "and never zeros"
    assert (wpfs.mnt / "f31").read_bytes() == contents["f31"]
    os.unlink(wpfs.mnt / "f30")
    bad.rmdir()


# ---- a mark is as durable as the contents it vouches for


def dirty_of_store(wpfs):
    mm = report.mm_of(wpfs.wpctl_json("dirty", target=wpfs.store), "t")
    return set(report.pages_of(mm))


def armed_over_old_contents(make_wpfs):
    """Page 1 was written, then everything protected, and the store has neither."""
    wpfs = make_wpfs(store=True, options=["flush=0"])
    program = mapped(wpfs, protect=False, pages=8)
    program.order("store 0 1 1")
    wpfs.wpctl("protect", wpfs.mnt)
    assert report.dirty(wpfs, "t") == set()
    return wpfs, program


def test_a_mark_does_not_outlive_the_contents_it_was_put_on(make_wpfs):
    wpfs, program = armed_over_old_contents(make_wpfs)
    wpfs.wpctl("sync", wpfs.mnt)
    wpfs.lose_power()
    assert dirty_of_store(wpfs) == set(range(8)), "also before it is mounted again"
    wpfs.restart()
    assert report.dirty(wpfs, "t") == set(range(8))


@pytest.mark.parametrize("how", ["fsync", "flush"])
def test_a_mark_outlives_a_power_loss_with_its_contents(make_wpfs, how):
    wpfs, program = armed_over_old_contents(make_wpfs)
    if how == "fsync":
        sync(wpfs.mnt / "f")
    else:
        wpfs.kill9()  # the next daemon stores everything at its first flush
        wpfs.options[0] = "flush=1"
        wpfs.restart()
        proc.wait_for(lambda: unsettled(wpfs) == 0, harness.SECONDS, "a flush")
    program.order("store 0 2 1")
    wpfs.wpctl("sync", wpfs.mnt)
    wpfs.lose_power()
    assert dirty_of_store(wpfs) == {2}
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {2}
    assert (wpfs.mnt / "f").read_bytes()[PAGE:PAGE + 8] != bytes(8), "what page 1 had when it was marked"


def unsettled(wpfs):
    with contextlib.closing(sqlite3.connect(f"file:{wpfs.store}/wpfs.db?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM mm_file WHERE unsettled").fetchone()[0]


def test_armed_during_a_flush(make_wpfs):
    """What is armed after the contents were read for the store has not been read for it."""
    wpfs, program = armed_over_old_contents(make_wpfs)
    sync(wpfs.mnt / "f")
    assert unsettled(wpfs) == 0
    program.order("store 0 3 1")
    wpfs.wpctl("protect", wpfs.mnt)
    assert unsettled(wpfs) == 1
    wpfs.lose_power()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == set(range(8))


def test_unmounted_everything_is_settled(make_wpfs):
    wpfs, program = armed_over_old_contents(make_wpfs)
    program.order("store 0 4 1")
    program.kill9()
    wpfs.umount()
    assert unsettled(wpfs) == 0
    assert dirty_of_store(wpfs) == {4}
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {4}


# ---- msync(2)


def test_msync_makes_contents_and_marks_durable(make_wpfs):
    wpfs = make_wpfs(store=True, options=["flush=0"])
    program = mapped(wpfs, pages=8)
    program.order("store 0 3 7")
    program.order("msync 0")
    program.order("store 0 4 7")
    written = (wpfs.mnt / "f").read_bytes()[3 * PAGE:4 * PAGE]
    wpfs.lose_power()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {3}
    assert (wpfs.mnt / "f").read_bytes() == bytes(3 * PAGE) + written + bytes(4 * PAGE)
    assert any(written)


def test_msync_after_a_daemon_that_died(make_wpfs):
    """The mapping is of a mount that is dead, and its file in no table of the new daemon."""
    wpfs = make_wpfs(store=True, options=["flush=0"])
    program = mapped(wpfs, pages=8)
    for turn, page in enumerate((3, 5)):
        wpfs.kill9()
        wpfs.restart()
        program.order(f"store 0 {page} 7")
        program.order("msync 0")
    wpfs.lose_power()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {3, 5}
    kept = (wpfs.mnt / "f").read_bytes()
    assert [any(kept[n * PAGE:(n + 1) * PAGE]) for n in range(8)] == [n in (3, 5) for n in range(8)]


def test_others_go_on_while_one_waits_for_an_msync(make_wpfs):
    """A disk may take long: other threads map, unmap and fork meanwhile."""
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    control = powerloss.watch(wpfs)
    wpfs.start()
    program = mapped(wpfs, pages=8)
    program.order("store 0 3 7")
    control.pause_before("S", database=False)
    program.order("msync 0 thread")
    proc.wait_for(lambda: control.paused, harness.SECONDS, "the disk to be waited for")
    program.order(f"map 1 0 0 {8 * PAGE}")
    program.order("store 1 4 7")
    program.order("unmap 1")
    child = Child(wpfs, program)
    child.order("store 0 5 7")
    child.end()
    assert control.paused, "it did not wait any more"
    control.go()
    assert program.order("msync join") == 0
    wpfs.lose_power()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {3, 4}
    assert any((wpfs.mnt / "f").read_bytes()[3 * PAGE:4 * PAGE])


def sockets(pid):
    return set(proc.descriptors(pid, "socket:"))


def silent(program, seconds):
    return not select.select([program.popen.stdout], [], [], seconds)[0]


def test_what_an_msync_is_asked_on(make_wpfs):
    """A child has no copy of it; closing it does nothing; who wants its number gets that."""
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    control = powerloss.watch(wpfs)
    wpfs.start()
    program = mapped(wpfs, pages=8)
    program.order("store 0 3 7")
    before = sockets(program.pid)
    control.pause_before("S", database=False)
    program.order("msync 0 thread")
    proc.wait_for(lambda: control.paused, harness.SECONDS, "the disk to be waited for")
    (asked,) = sockets(program.pid) - before
    child = Child(wpfs, program)
    assert asked not in sockets(child.pid)
    child.end()
    program.order("closeall 3")
    assert asked in sockets(program.pid)
    program.order(f"dup 0 {asked}")
    assert not os.readlink(f"/proc/{program.pid}/fd/{asked}").startswith("socket:")
    proc.wait_for(lambda: sockets(program.pid) - before, harness.SECONDS, "it to ask anew")
    control.go()
    assert program.order("msync join") == 0
    assert asked not in sockets(program.pid)
    assert os.path.exists(f"/proc/{program.pid}/fd/{asked}"), "closed a descriptor of the program"
    wpfs.lose_power()
    wpfs.restart()
    assert any((wpfs.mnt / "f").read_bytes()[3 * PAGE:4 * PAGE])


def test_who_wants_the_number_of_an_msyncs_socket_and_cannot_have_it(make_wpfs):
    """It is beyond the limit by then: it is closed all the same, or nobody would."""
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    control = powerloss.watch(wpfs)
    wpfs.start()
    program = mapped(wpfs, pages=8)
    program.order("store 0 3 7")
    before = sockets(program.pid)
    control.pause_before("S", database=False)
    program.order("msync 0 thread")
    proc.wait_for(lambda: control.paused, harness.SECONDS, "the disk to be waited for")
    (asked,) = sockets(program.pid) - before
    limits = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (asked, limits[1]))
    assert program.ask(f"dup 0 {asked}") == "err EBADF"
    assert asked not in sockets(program.pid)
    control.go()
    assert program.order("msync join") == 0
    resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
    assert program.order(f"dup 0 {asked}") == asked


def test_an_msync_waits_for_a_daemon_that_stands_still(make_wpfs):
    """As for a disk; who has to do with the same daemon meanwhile waits along, and is tracked."""
    wpfs = make_wpfs(store=True, options=["flush=0"])
    program, confined = mapped(wpfs, pages=8), mapped(wpfs, "c", path="g", pages=8)
    program.order("store 0 3 7")
    proc.stop(wpfs.pid)
    try:
        for one, order in ((program, f"map 1 0 0 {8 * PAGE}"), (confined, "seccomp")):
            before = sockets(one.pid)
            one.order("msync 0 thread")
            proc.wait_for(lambda: sockets(one.pid) - before, harness.SECONDS, "it to ask")
            one.send(order)
        assert silent(program, GIVE_UP + 5) and silent(confined, 0)
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    for one in (program, confined):
        assert one.read().startswith("ok ")
        assert one.order("msync join") == 0
        assert one.stderr() == ""
    program.order("store 1 4 7")
    assert report.dirty(wpfs, "t") == {3, 4}
    wpfs.lose_power()
    wpfs.restart()
    assert any((wpfs.mnt / "f").read_bytes()[3 * PAGE:4 * PAGE])


def test_msync_of_who_is_not_tracked_any_more(make_wpfs):
    """It was given up, and its contents are as durable as they were."""
    wpfs = make_wpfs(store=True, options=["flush=0"])
    program = mapped(wpfs, pages=8)
    proc.stop(wpfs.pid)
    try:
        program.order(f"map 1 0 0 {8 * PAGE}")
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    assert "its daemon does not answer" in program.stderr()
    program.order("store 0 3 7")
    program.order("store 1 4 7")
    program.order("msync 0")
    wpfs.lose_power()
    wpfs.restart()
    assert report.dirty(wpfs, "t") >= {3, 4}
    kept = (wpfs.mnt / "f").read_bytes()
    assert [any(kept[n * PAGE:(n + 1) * PAGE]) for n in range(8)] == [n in (3, 4) for n in range(8)]


def test_unmounted_while_somebody_waits_for_an_msync(make_wpfs):
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs, pages=4096)
    for page in range(0, 4096, 16):
        program.order(f"store 0 {page} 1")
    program.send("msync 0")
    program.kill9()
    wpfs.umount()
