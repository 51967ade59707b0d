# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store's database fails: locked, full, read-only, damaged. Programs go on as if nothing were, what
wpctl says stays exact, and nothing is lost, neither with the daemon nor at the unmount.
"""

import contextlib
import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, killed, mapped
from test_failure import armed, written
from test_failure import witness_of

SAID = "cannot write to the database"


@contextlib.contextmanager
def locked(wpfs):
    """Another process (this one) writes to the database and does not come to an end."""
    other = sqlite3.connect(f"{wpfs.store}/wpfs.db", isolation_level=None, timeout=harness.SECONDS)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.fixture
def disk(tmp_path):
    """A small file system for a store; it outlives the daemon of the test."""
    mounts = []

    def make(*mount):
        place = tmp_path / "disk"
        place.mkdir()
        subprocess.run(["mount", *mount, place], check=True, timeout=harness.SECONDS)
        mounts.append(place)
        return place

    yield make
    for place in mounts:
        subprocess.run(["umount", "-l", place], check=True, timeout=harness.SECONDS)


def full_on(place):
    """Leaves no byte free; returns what to remove to make room."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 16, PAGE, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def failing(wpfs):
    return wpfs.wpctl_json("status")["database_error"]


def wait_saved(wpfs):
    harness.proc.wait_for(lambda: failing(wpfs) is None, harness.SECONDS, "all marks saved")
    status = wpfs.wpctl_json("status")
    assert status["unsaved"] == 0


def said(wpfs):
    return wpfs.read_log().count(SAID)


def in_store(wpfs, name="t"):
    """What the database has of a name after an unmount."""
    return report.dirty(wpfs, name, target=wpfs.store)


@pytest.fixture(params=["wpfs", "own"])
def kind(request):
    """Who has armed the program's pages: wpfs, or a userfaultfd of its own."""
    return request.param


def expected(kind, *stored):
    """What is written when these were stored to and pages 8 to 15 unmapped: there marks of its own end."""
    return {*stored, *(range(8, 16) if kind == "own" else ())}


def prompt(program, line):
    """
    An order that is done while the reason to wait is still there: it waits a second for a database
    that is locked, and 10 seconds for a daemon that does not answer.
    """
    start = time.monotonic()
    value = program.order(line)
    assert time.monotonic() - start < 9, f"{line} took {time.monotonic() - start:.1f} s"
    return value


def test_locked(make_wpfs):
    """A program that runs and one that starts meanwhile: both exact, and saved afterwards."""
    wpfs = make_wpfs(store=True)
    wpfs.allow_log(SAID)
    program = mapped(wpfs, "t")
    program.order("store 0 1 1")
    with locked(wpfs):
        prompt(program, "store 0 2 1")
        prompt(program, "unmap 0 8 8")
        prompt(program, f"punch 0 {40 * PAGE} {PAGE}")
        other = mapped(wpfs, "u", path="g")
        prompt(other, "store 0 5 1 2")
        assert report.dirty(wpfs, "t") == {1, 2, 40}
        assert report.marked(wpfs, "u", "/g") == ALL - {5, 6}
        assert failing(wpfs) == "another process has it locked"
        assert wpfs.wpctl_json("status")["unsaved"] == 2
        assert "cannot be written for" in wpfs.wpctl("status", wpfs.mnt).stdout
        assert "locked" in wpfs.wpctl("sync", wpfs.mnt, status=1).stderr
        assert "no epoch can begin" in wpfs.wpctl("protect", wpfs.mnt, status=1).stderr
        assert killed(wpfs, program) == {1, 2, 40}
        assert said(wpfs) == 1, wpfs.read_log()
    wait_saved(wpfs)
    other.kill9()
    assert said(wpfs) == 1, wpfs.read_log()
    wpfs.umount()
    assert in_store(wpfs) == {1, 2, 40}
    assert report.dirty(wpfs, "u", "/g", target=wpfs.store) == {5, 6}


def test_the_first_epoch_began_while_locked(make_wpfs):
    """It is an epoch like others: its pages can be asked for when it is over."""
    wpfs = make_wpfs(store=True)
    wpfs.allow_log(SAID)
    with locked(wpfs):
        program = mapped(wpfs, "t")
        program.order("store 0 3 1")
    wait_saved(wpfs)
    wpfs.wpctl("protect", "--name", "t", wpfs.mnt)
    program.order("store 0 4 1")
    first = report.mm_of(wpfs.wpctl_json("dirty", "--epoch", "1"), "t")
    assert set(report.pages_of(first)) == {3}
    assert report.dirty(wpfs, "t") == {4}


def test_locked_and_the_daemon_is_killed(make_wpfs):
    """What was unmapped and punched is nowhere in page tables any more, and is not forgotten."""
    wpfs = make_wpfs(store=True)
    wpfs.allow_log(SAID)
    program = mapped(wpfs, "t")
    with locked(wpfs):
        program.order("store 0 1 1")
        program.order("unmap 0 0 8")
        program.order(f"punch 0 {40 * PAGE} {PAGE}")
        other = mapped(wpfs, "u", path="g")
        other.order("store 0 9 1")
        assert report.dirty(wpfs, "t") == {1, 40}
        wpfs.kill9()
        program.order("store 0 50 1")
    wpfs.restart()
    assert failing(wpfs) is None
    assert report.dirty(wpfs, "t") == {1, 40, 50}
    assert report.dirty(wpfs, "u", "/g") == {9}
    program.kill9()
    other.kill9()
    wpfs.umount()
    assert in_store(wpfs) == {1, 40, 50}


def test_what_was_kept_is_damaged(make_wpfs):
    """Two failures at once, and the daemon killed: everything armed counts as dirty, and counted."""
    wpfs = make_wpfs(store=True)
    wpfs.allow_log(SAID)
    program = mapped(wpfs, "t")
    with locked(wpfs):
        program.order(f"punch 0 {40 * PAGE} {PAGE}")
        wpfs.kill9()
    aside = harness.RUN_DIR / wpfs.id / "private/unsaved.db"
    aside.write_bytes(b"x" * aside.stat().st_size)
    for rest in aside.parent.glob("unsaved.db-*"):
        rest.unlink()
    wpfs.restart()
    assert report.dirty(wpfs, "t") == ALL
    assert wpfs.wpctl_json("status")["conservative"] == PAGES
    assert "count" in wpfs.wpctl("dirty", wpfs.mnt).stdout
    program.kill9()
    wpfs.umount()
    assert in_store(wpfs) == ALL


def test_a_long_reader(make_wpfs):
    """A reader holds nobody up."""
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs, "t")
    reader = sqlite3.connect(f"{wpfs.store}/wpfs.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM mm").fetchall()
    for page in range(8):
        prompt(program, f"store 0 {page} 1")
        wpfs.wpctl("sync", wpfs.mnt)
    assert failing(wpfs) is None
    assert report.dirty(wpfs, "t") == set(range(8))
    reader.execute("ROLLBACK")
    reader.close()


def test_full_at_the_end_of_a_program(disk, make_wpfs):
    """Its last marks are told from memory, and are in the store when there is room again."""
    wpfs = make_wpfs(store=True, start=False, options=["flush=0"])
    wpfs.store = str(disk("-t", "tmpfs", "-o", "size=2M", "none"))
    wpfs.start()
    wpfs.allow_log(SAID)
    program = mapped(wpfs, "t", pages=20000)
    filler = full_on(Path(wpfs.store))
    for page in range(0, 20000, 2):  # no set of this size fits into pages the database has
        program.send(f"store 0 {page} 1")
    for page in range(0, 20000, 2):
        assert program.read() == "ok 0"
    program.kill9()
    even = set(range(0, 20000, 2))
    assert report.dirty(wpfs, "t") == even
    assert report.names(wpfs) == {"t": "detached"}
    assert failing(wpfs) == os.strerror(28)
    assert said(wpfs) == 1
    filler.unlink()
    wait_saved(wpfs)
    wpfs.command("mount", "-o", "remount,size=200M", wpfs.store)  # for the contents
    wpfs.umount()
    assert in_store(wpfs) == even


@pytest.mark.parametrize("how", ["locked", "full"])
def test_a_program_with_a_userfaultfd(disk, make_wpfs, how):
    """Of its own: its last marks are told from memory likewise, and stored when they can be."""
    wpfs = make_wpfs(store=True, start=False, options=["flush=0"])
    if how == "full":
        wpfs.store = str(disk("-t", "tmpfs", "-o", "size=2M", "none"))
    wpfs.start()
    wpfs.allow_log(SAID)
    program = mapped(wpfs, "t", protect=False, pages=20000)
    program.order("uffd 0 0 20000")
    with contextlib.ExitStack() as trouble:
        if how == "locked":
            trouble.enter_context(locked(wpfs))
        else:
            trouble.callback(full_on(Path(wpfs.store)).unlink)
        for page in range(0, 20000, 2):
            program.send(f"store 0 {page} 1")
        for page in range(0, 20000, 2):
            assert program.read() == "ok 0"
        program.kill9()
        odd = set(range(1, 20000, 2))
        assert report.marked(wpfs, "t", owner="program") == odd
        assert failing(wpfs)
    wait_saved(wpfs)
    if how == "full":
        wpfs.command("mount", "-o", "remount,size=200M", wpfs.store)  # for the contents
    wpfs.umount()
    assert report.marked(wpfs, "t", owner="program", target=wpfs.store) == odd


def test_full_at_the_unmount(disk, make_wpfs):
    """Contents are not flushed over marks that are not stored; the next daemon has both."""
    wpfs = make_wpfs(store=True, start=False, options=["flush=0"])
    wpfs.store = str(disk("-t", "tmpfs", "-o", "size=2M", "none"))
    wpfs.start()
    wpfs.allow_log(f"{SAID}|cannot write the last marks|are kept in memory")
    program = mapped(wpfs, "t", pages=20000)
    filler = full_on(Path(wpfs.store))
    program.order("store 0 0 7 10000")
    program.kill9()
    contents = [entry for entry in Path(wpfs.store, "data").rglob("*") if entry.is_file()]
    assert failing(wpfs) == os.strerror(28)
    assert wpfs.command("umount", wpfs.mnt).returncode == 0
    assert wpfs._reaped() == 1
    assert [e for e in Path(wpfs.store, "data").rglob("*") if e.is_file()] == contents
    filler.unlink()
    wpfs.command("mount", "-o", "remount,size=200M", wpfs.store)
    wpfs.restart()
    assert report.dirty(wpfs, "t") == set(range(10000))
    assert (wpfs.mnt / "f").read_bytes()[9999 * PAGE] == 7
    wpfs.umount()
    assert in_store(wpfs) == set(range(10000))


def test_read_only(disk, make_wpfs, tmp_path, kind):
    """The file system of the store finds an error and goes read-only, as ext4 does."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=harness.SECONDS)
    place = disk("-o", "loop,errors=remount-ro", image)
    wpfs = make_wpfs(store=True, start=False, options=["flush=0"])
    wpfs.store = str(place / "store")
    os.mkdir(wpfs.store, 0o700)
    wpfs.start()
    wpfs.allow_log(f"{SAID}|cannot write the last marks|are kept in memory")
    program = armed(wpfs, kind)
    number = place.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
    prompt(program, "store 0 3 1")
    prompt(program, "unmap 0 8 8")
    assert written(wpfs, kind) == expected(kind, 3)
    assert failing(wpfs) in ("Read-only file system", "Input/output error")
    program.kill9()
    assert written(wpfs, kind) == expected(kind, 3)
    assert wpfs.wpctl_json("status")["conservative"] == 0
    assert said(wpfs) == 1
    assert wpfs.command("umount", wpfs.mnt).returncode == 0
    assert wpfs._reaped() == 1
    for command in ["umount", place], ["e2fsck", "-fy", image], ["mount", "-o", "loop", image, place]:
        assert wpfs.command(*command).returncode in (0, 1)
    wpfs.restart()
    assert written(wpfs, kind) == expected(kind, 3)
    wpfs.umount()
    assert written(wpfs, kind, target=wpfs.store) == expected(kind, 3)


# ---- damaged at the start

def flip(store):
    """One bit in each page but the first."""
    with open(store / "wpfs.db", "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(4096 + 2, size, 4096):
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x40]))


def cut(store):
    os.truncate(store / "wpfs.db", (store / "wpfs.db").stat().st_size // 2 & ~4095)


def empty(store):
    os.truncate(store / "wpfs.db", 0)


def garbage(store):
    (store / "wpfs.db").write_bytes(os.urandom(8192))


def rows(*statements):
    def damage(store):
        with contextlib.closing(sqlite3.connect(store / "wpfs.db", isolation_level=None)) as db:
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute("PRAGMA ignore_check_constraints = ON")
            for statement in statements:
                assert db.execute(statement).rowcount > 0, statement
    return damage


DAMAGE = {
    "flipped": flip,
    "cut": cut,
    "empty": empty,
    "garbage": garbage,
    "a set": rows("UPDATE armed_chunk SET armed = x'3a300000'"),
    "a set cut": rows("UPDATE mark_chunk SET marked = substr(marked, 1, length(marked) - 1)"
                      " WHERE length(marked) > 1"),
    "no mm": rows("DELETE FROM mm"),
    "no file": rows("DELETE FROM file"),
    "an mm of a forbidden state": rows("UPDATE mm SET state = 7"),
    "mappings that overlap": rows(
        "INSERT INTO vma SELECT mm, addr + 4096, pages, file, pgoff, prot, dev, owner, async, sealed"
        " FROM vma LIMIT 1"),
    "no root": rows("DELETE FROM inode WHERE id = 1"),
    "a name of nothing": rows("DELETE FROM inode WHERE id > 1"),
}


def digest(store):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in Path(store).glob("wpfs.db*") if not path.name.endswith("-shm")}


@pytest.mark.parametrize("how, kind", [*((how, "wpfs") for how in DAMAGE), ("flipped", "own"), ("a set", "own")])
def test_damaged_at_the_start(make_wpfs, how, kind):
    """Refused, one line says what to do, nothing is mounted or changed; mended, all is there."""
    wpfs = make_wpfs(store=True)
    program = armed(wpfs, kind)
    program.order("store 0 1 1")
    program.order("unmap 0 8 8")
    program.kill9()
    wpfs.umount()
    before = Path(wpfs.store, "wpfs.db").read_bytes()
    DAMAGE[how](Path(wpfs.store))
    damaged = digest(wpfs.store)
    done = wpfs.command(harness.WPFS, "-f", wpfs.store, wpfs.mnt)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(r"it is damaged: .*wpfs\(5\)|not a database of wpfs", line), line
    assert not wpfs.is_mounted()
    assert digest(wpfs.store) == damaged
    for rest in Path(wpfs.store).glob("wpfs.db-*"):
        rest.unlink()
    Path(wpfs.store, "wpfs.db").write_bytes(before)
    wpfs.start()
    assert written(wpfs, kind) == expected(kind, 1)


def test_damaged_while_mounted(make_wpfs, kind):
    """Nothing true is lost by it: the program and what is told of it come from memory."""
    wpfs = make_wpfs(store=True)
    wpfs.allow_log(f"{SAID}|cannot write the last marks|cannot flush|cannot store names|are kept in memory")
    program = armed(wpfs, kind)
    wpfs.wpctl("sync", wpfs.mnt)
    with contextlib.closing(sqlite3.connect(f"{wpfs.store}/wpfs.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database = Path(wpfs.store, "wpfs.db")
    with open(database, "r+b") as file:
        for at in range(4096, database.stat().st_size, 4096):
            file.seek(at)
            file.write(b"\xff" * 4096)
    # Its pages in the daemon's cache are good as long as nobody else writes.
    with contextlib.closing(sqlite3.connect(f"{wpfs.store}/wpfs.db")) as db, \
            contextlib.suppress(sqlite3.DatabaseError):
        db.execute("PRAGMA user_version = 9")
        db.execute("UPDATE mm SET comm = 'x'")
    prompt(program, "store 0 3 1")
    prompt(program, "unmap 0 8 8")
    wpfs.wpctl("dirty", wpfs.mnt, status=None)
    assert written(wpfs, kind) == expected(kind, 3)
    program.kill9()
    assert written(wpfs, kind) == expected(kind, 3)
    assert wpfs.wpctl_json("status")["conservative"] == 0
    wpfs.command("umount", wpfs.mnt)
    wpfs._reaped()


def test_a_daemon_that_is_stopped_for_a_while(make_wpfs):
    """Stores, reads and writes go on; what has to be told waits, and is exact."""
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs, "t")
    program.order(f"pwrite 0 0 {PAGE} 1")  # the first asks for the file's capabilities
    proc.stop(wpfs.pid)
    try:
        harness.proc.wait_for(lambda: harness.proc.state(wpfs.pid) in "Tt", harness.SECONDS, "stop")
        prompt(program, "store 0 10 1 20")
        prompt(program, f"pwrite 0 0 {PAGE} 1")
        assert prompt(program, "load 0 10") == 1
        program.send("unmap 0 0 16")
    finally:
        os.kill(wpfs.pid, signal.SIGCONT)
    assert program.read() == "ok 0"
    assert report.dirty(wpfs, "t") == set(range(10, 30))
    assert killed(wpfs, program) == set(range(10, 30))


def test_an_epoch_that_cannot_end_goes_on(make_wpfs):
    """Between the two commits of a protect: what was written is in the epoch, not between two."""
    wpfs = make_wpfs(store=True, options=["harvest=0", "flush=0"])
    wpfs.allow_log(SAID)
    program = mapped(wpfs, "t")
    program.order("store 0 3 1")
    wpfs.wpctl("sync", wpfs.mnt)
    other = sqlite3.connect(f"{wpfs.store}/wpfs.db", isolation_level=None, timeout=harness.SECONDS)
    version = other.execute("PRAGMA data_version").fetchone()
    # The look asks two questions; then the pages are to be marked, which waits for the end of strace.
    strace = proc.Strace(wpfs.pid, "trace=ioctl", "inject=ioctl:delay_enter=200s:when=3",
                         path=f"/proc/{witness_of(program)}/pagemap")
    try:
        protect = subprocess.Popen([harness.WPCTL, "protect", "--name", "t", wpfs.mnt], env=wpfs.env(),
                                   stderr=subprocess.PIPE, text=True)
        proc.wait_for(lambda: other.execute("PRAGMA data_version").fetchone() != version, harness.SECONDS,
                      "its first commit")
        other.execute("BEGIN IMMEDIATE")
        assert protect.poll() is None, "the lock came too late"
    finally:
        strace.end()
    assert protect.wait(harness.SECONDS) == 1
    assert "locked" in protect.stderr.read()
    protect.stderr.close()
    program.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == {3, 5}
    other.execute("ROLLBACK")
    other.close()
    wait_saved(wpfs)
    wpfs.wpctl("protect", "--name", "t", wpfs.mnt)
    assert report.dirty(wpfs, "t") == set()
    first = report.mm_of(wpfs.wpctl_json("dirty", "--epoch", "1"), "t")
    assert set(report.pages_of(first)) == {3, 5}


def test_contents_wait_for_their_marks(make_wpfs):
    """No page is in the store before the loss of its mark is: not by flush=, not by fsync."""
    wpfs = make_wpfs(store=True, options=["flush=1"])
    flush_said = "cannot (flush to the store|write the contents|store names)"
    wpfs.allow_log(f"{SAID}|{flush_said}")
    program = mapped(wpfs, "t")
    ino = (wpfs.mnt / "f").stat().st_ino
    data = Path(wpfs.store, f"data/{ino & 255:02x}/{ino}")
    program.order("store 0 3 7")
    harness.proc.wait_for(lambda: data.exists() and data.read_bytes()[3 * PAGE:][:1] == b"\7",
                          harness.SECONDS, "a flush")
    with locked(wpfs):
        program.order("store 0 3 8")
        (wpfs.mnt / "g").touch()
        assert program.ask("fsync 0").startswith("err ")
        harness.proc.wait_for(lambda: re.search(flush_said, wpfs.read_log()), harness.SECONDS,
                              "a flush")
        assert data.read_bytes()[3 * PAGE] == 7
        assert program.ask("msync 0").startswith("err ")
    wait_saved(wpfs)
    assert program.ask("fsync 0") == "ok 0"
    harness.proc.wait_for(lambda: data.read_bytes()[3 * PAGE] == 8, harness.SECONDS, "a flush")
    said = re.findall(flush_said, wpfs.read_log())
    assert len(said) == len(set(said)), "once for the flush, and once for the file"
