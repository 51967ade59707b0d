# SPDX-License-Identifier: LGPL-2.1-or-later
"""wpctl export and apply: a copy that is brought up to date by what was dirty equals the file."""

import hashlib
import os
from pathlib import Path

import pytest

import harness
from harness import PAGE, WPCTL
from mapper import PAGES, killed, mapped

FILE = "/f"


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Backup:
    """A copy of one file of a mount, and the exports that made it."""

    def __init__(self, wpfs, file=FILE, name=None):
        self.wpfs = wpfs
        self.file = file
        self.who = ["--name", name] if name else []
        self.copy = wpfs.dir / "copy"
        self.number = 0

    @property
    def source(self):
        return self.wpfs.mnt / self.file[1:]

    def export(self, *args, target=None, status=0):
        """CompletedProcess; the directory is .dir."""
        self.number += 1
        self.dir = self.wpfs.dir / f"export{self.number}"
        return self.wpfs.wpctl("export", "--file", self.file, *args, target or self.wpfs.mnt, self.dir,
                               status=status)

    def export_json(self, *args, **more):
        return harness.json.loads(self.export(*args, "--json", **more).stdout)

    def apply(self, status=0):
        return self.wpfs.wpctl("apply", self.dir, self.copy, status=status)

    def begin(self):
        """An epoch begins, then the first copy: in this order."""
        self.cut()
        self.export("--full")
        self.apply()

    def cut(self):
        """The number of the epoch that this protect closes."""
        return self.wpfs.wpctl_json("protect", "--file", self.file, *self.who)["epoch"] - 1

    def increment(self, *args):
        """One increment; what the export says."""
        said = self.export_json("--epoch", self.cut(), *self.who, *args)
        self.apply()
        return said

    def equal(self):
        return digest(self.copy) == digest(self.source)


def fails(done, *words):
    assert done.returncode == 1 and done.stdout == "", done
    (line,) = done.stderr.splitlines()
    for word in words:
        assert word in line, line


@pytest.fixture(params=["native", "capped"])
def any_wpfs(request, make_wpfs):
    if request.param == "capped":
        return make_wpfs(store=True, options=["resident=16M"])
    return make_wpfs(store=True)


# ---- contents


def test_increments(any_wpfs):
    """Each carries the pages that were stored to since the one before, and no others."""
    wpfs = any_wpfs
    program = mapped(wpfs)
    program.order("store 0 1 1 2")
    backup = Backup(wpfs, name="t")
    backup.begin()
    assert backup.equal()
    for pages in ({3}, {1, 5, 6}, set(), {63}):
        for page in pages:
            program.order(f"store 0 {page} {page + 100}")
        said = backup.increment()
        assert (said["pages"], said["zero_pages"]) == (len(pages), 0) and said["complete"]
        assert said["size"] == PAGES * PAGE and said["kind"] == "dirty"
        assert (backup.dir / "pages").stat().st_size == len(pages) * PAGE
        assert backup.equal()
    program.order("store 0 9 1")
    said = backup.export_json()  # of the epoch that is open
    assert said["pages"] == 1 and said["epoch"] == wpfs.wpctl_json("ps")["mms"][0]["epoch"]
    backup.apply()
    assert backup.equal()


def test_several_epochs_at_once(any_wpfs):
    """What was written since an epoch is what the increments one by one would have had."""
    wpfs = any_wpfs
    program = mapped(wpfs)
    backup = Backup(wpfs)
    backup.begin()
    first = backup.cut() + 1
    for pages in ((1, 2), (2, 3), (40,)):
        for page in pages:
            program.order(f"store 0 {page} {page + 100}")
        last = backup.cut()
    program.order("store 0 50 7")  # of the open epoch
    fails(backup.export("--since", last + 1, status=1), "no epoch was closed since")
    fails(backup.export("--since", 0, status=1), "no epoch was closed since")
    assert backup.wpfs.wpctl("export", "--file", FILE, "--since", first, "--epoch", first, wpfs.mnt, "x",
                             status=2).stdout == ""
    said = backup.export_json("--since", first)
    assert (said["epoch"], said["pages"] + said["zero_pages"], said["complete"]) == (last, 4, True)
    said = backup.export_json("--since", last)
    assert (said["epoch"], said["pages"] + said["zero_pages"]) == (last, 1)
    backup.export("--since", first)
    backup.apply()
    assert not backup.equal()
    program.order("store 0 50 8")
    backup.increment()
    assert backup.equal()


def test_write_in_one_of_several_epochs(wpfs):
    """A gap in any of them is one of all."""
    program = mapped(wpfs)
    backup = Backup(wpfs)
    backup.begin()
    first = backup.cut() + 1
    with open(backup.source, "r+b", buffering=0) as file:
        file.write(b"x")
    backup.cut()
    program.order("store 0 3 1")
    last = backup.cut()
    fails(backup.export("--since", first, status=1), "write(2)")
    backup.export("--since", last)


def test_pages_of_zeros_take_no_room(wpfs):
    program = mapped(wpfs)
    for page in range(8):
        program.order(f"store 0 {page} 7")
    backup = Backup(wpfs)
    backup.begin()
    program.order("store 0 2 0")
    program.order("punch 0 16384 4096")
    said = backup.export_json("--force")  # a punch is a call like write(2)
    assert (said["pages"], said["zero_pages"], said["complete"]) == (0, 2, False)
    assert "exported with --force" in backup.apply().stderr
    assert backup.equal()


@pytest.mark.parametrize("size", [5 * PAGE + 17, 0, PAGES * PAGE + 100, 1])
def test_the_size_is_carried(wpfs, size):
    program = mapped(wpfs)
    for page in range(PAGES):
        program.order(f"store 0 {page} 7")
    backup = Backup(wpfs)
    backup.begin()
    program.order("store 0 0 9")
    program.order(f"size 0 {size}")
    fails(backup.export("--epoch", backup.cut(), status=1), "write(2)")
    backup.export("--epoch", backup.cut() - 1, "--force")
    backup.apply()
    assert backup.copy.stat().st_size == size and backup.equal()
    backup.export("--full")
    backup.copy.write_bytes(b"\xff" * (PAGES * PAGE * 2))
    backup.apply()
    assert backup.equal()


def test_a_store_that_is_not_mounted(make_wpfs):
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs)
    program.order("store 0 1 1")
    backup = Backup(wpfs, name="t")
    backup.begin()
    program.order("store 0 3 5")
    epoch = backup.cut()
    program.order("store 0 4 5")
    killed(wpfs, program)
    contents = digest(backup.source)
    wpfs.umount()
    said = backup.export_json("--name", "t", "--epoch", epoch, target=wpfs.store)
    assert (said["pages"], said["complete"]) == (1, True)
    backup.apply()
    assert digest(backup.copy) != contents
    assert backup.export_json("--name", "t", target=wpfs.store)["pages"] == 1
    backup.apply()
    assert digest(backup.copy) == contents
    backup.export("--full", target=wpfs.store)
    backup.copy.unlink()
    backup.apply()
    assert digest(backup.copy) == contents
    fails(backup.export("--full", "--file", "/none", target=wpfs.store, status=1), "No such file")
    wpfs.restart()
    backup.export("--full", target=wpfs.store)  # its daemon says where it is mounted
    wpfs.lose_power()
    fails(backup.export("--full", target=wpfs.store, status=1), "mount the store first")


def test_what_the_manual_says(wpfs):
    """wpctl(1), INCREMENTAL BACKUPS, command by command."""
    manual = (harness.SOURCE / "man/wpctl.1").read_text()
    section = manual.split(".Sh INCREMENTAL BACKUPS")[1].split("\n.Sh ")[0]
    lines = [line for line in section.splitlines() if line.startswith("wpctl ")]
    assert len(lines) == 6
    program = mapped(wpfs, protect=False, path="data")
    (wpfs.dir / "backup").mkdir()
    for number, line in enumerate(lines):
        if number % 3 == 0:
            program.order(f"store 0 {number} 1")
        words = line.replace("/mnt/w", str(wpfs.mnt)).replace("/backup", f"{wpfs.dir}/backup").split()
        wpfs.wpctl(*words[1:])
        if number % 3 == 2:
            assert digest(wpfs.dir / "backup/data") == digest(wpfs.mnt / "data")


# ---- what may be missing


def protected(wpfs):
    program = mapped(wpfs)
    wpfs.wpctl("protect", wpfs.mnt, "--file", FILE)
    program.order("store 0 1 1")
    return program, Backup(wpfs)


def refused(backup, word, *args):
    """Not without --force, which says so; and all of it is another way."""
    fails(backup.export(*args, status=1), FILE, word, "--full", "--force")
    assert not (backup.dir / "manifest").exists()
    said = backup.export(*args, "--force", "--json")
    assert word in said.stderr and '"complete":false' in said.stdout
    assert backup.export_json("--full")["complete"]


def test_write_calls(wpfs):
    _, backup = protected(wpfs)
    assert backup.export_json()["complete"]
    with open(backup.source, "r+b") as other:
        other.write(b"x")
    refused(backup, "write(2)")
    refused(backup, "write(2)", "--epoch", backup.cut())
    assert backup.export_json()["complete"]


def test_a_process_that_is_not_tracked(wpfs):
    _, backup = protected(wpfs)
    stranger = wpfs.spawn_bare(harness.program("mapper"))
    with open(backup.source, "rb"):
        assert backup.export_json()["complete"], "who reads only disturbs nobody"
    stranger.order(f"open 0 {backup.source}")
    stranger.order(f"map 0 0 0 {PAGE}")
    stranger.order("close 0")
    refused(backup, f"mapper (pid {stranger.pid}, maps it)")
    refused(backup, f"mapper (pid {stranger.pid}, maps it)", "--epoch", backup.cut())
    stranger.kill9()
    assert backup.export_json()["complete"]


def test_programs_that_are_not_protected(wpfs):
    _, backup = protected(wpfs)
    other = wpfs.spawn(harness.program("mapper"), name="other")
    other.order(f"open 0 {backup.source}")
    other.order(f"map 0 0 0 {PAGES * PAGE}")
    refused(backup, "other maps it and not all of that is protected")
    epoch = backup.cut()
    refused(backup, "other: /f: not protected in epoch", "--epoch", epoch)
    other.order("store 0 7 1")
    epoch = backup.cut()
    assert backup.export_json("--epoch", epoch)["pages"] == 1
    refused(backup, "other stores to it too", "--name", "t")
    wpfs.wpctl("unprotect", wpfs.mnt, "--name", "other", "--file", FILE, "--range", "8K+4K")
    refused(backup, "not all of that is protected")


def test_nothing_to_go_by(wpfs):
    mapped(wpfs, protect=False)
    backup = Backup(wpfs)
    fails(backup.export(status=1), "nothing of it is protected", "wpctl protect")
    fails(backup.export("--force", status=1), "nothing of it is protected")
    fails(backup.export("--name", "nobody", status=1), "no program of that name")
    fails(backup.export("--epoch", "77", status=1), "no epoch 77")
    (wpfs.mnt / "d").mkdir()
    (wpfs.mnt / "l").symlink_to("f")
    for file, word in (("/d", "not a regular file"), ("/l", "symbolic"), ("/none", "No such file")):
        backup.file = file
        fails(backup.export("--full", status=1), word)


# ---- what was interrupted, or damaged


def test_a_directory_is_one_export(wpfs):
    _, backup = protected(wpfs)
    backup.export("--full")
    before = (backup.dir / "manifest").read_bytes()
    backup.number -= 1
    fails(backup.export("--full", status=1), "holds an export already")
    assert (backup.dir / "manifest").read_bytes() == before
    fails(wpfs.wpctl("apply", wpfs.dir, backup.copy, status=1), "no whole export")
    backup.export()
    fails(backup.apply(status=1), "no such file", "--full")
    assert not backup.copy.exists()


DAMAGES = {
    "a page": ("pages", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "checksum"),
    "pages cut": ("pages", lambda data: data[:-PAGE], "not as many"),
    "a digit": ("manifest", lambda data: data.replace(b"size 2", b"size 3"), "checksum"),
    "manifest cut": ("manifest", lambda data: data[:len(data) // 2], "checksum"),
    "no manifest": ("manifest", lambda data: b"", "none of wpctl export"),
    "another": ("manifest", lambda data: data.replace(b"wpfs-export 1\n", b"wpfs-export 2\n"), "later"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda name: name.replace(" ", "-"))
def test_damage_is_found_before_anything_is_changed(wpfs, damage):
    program, backup = protected(wpfs)
    backup.export("--full")
    backup.apply()
    before = digest(backup.copy)
    program.order("store 0 1 77")
    program.order("store 0 9 77")  # the damaged one
    backup.export()
    name, change, word = DAMAGES[damage]
    path = backup.dir / name
    path.write_bytes(change(path.read_bytes()))
    fails(backup.apply(status=1), word)
    assert digest(backup.copy) == before


LARGE = 3000  # pages: three pieces of contents


def filled(wpfs):
    """A program whose LARGE pages are all without zeros, and a first copy of them."""
    program = mapped(wpfs, pages=LARGE)
    program.order(f"store 0 0 1 {LARGE}")
    backup = Backup(wpfs)
    backup.begin()
    program.order(f"store 0 0 2 {LARGE}")
    return backup


def killed_at(wpfs, call, number, *argv):
    """Runs wpctl and kills it as it makes a system call for the n-th time."""
    done = wpfs.command("strace", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                        f"inject={call}:signal=KILL:when={number}", WPCTL, *argv)
    assert done.returncode in (-9, 137), done


@pytest.mark.parametrize("call, number", [("pwrite64", 1), ("pwrite64", 3), ("fsync", 1), ("fsync", 2),
                                          ("renameat", 1), ("fsync", 3), ("renameat", 2)])
def test_an_export_that_is_killed(wpfs, call, number):
    """Is no export, and the same command does it again."""
    backup = filled(wpfs)
    before = digest(backup.copy)
    directory = wpfs.dir / "cut"
    argv = ["export", "--file", FILE, wpfs.mnt, directory]
    killed_at(wpfs, call, number, *argv)
    assert directory.exists() and not (directory / "manifest").exists()
    fails(wpfs.wpctl("apply", directory, backup.copy, status=1), "no whole export")
    assert digest(backup.copy) == before
    wpfs.wpctl(*argv)
    assert sorted(os.listdir(directory)) == ["manifest", "pages"]
    backup.dir = directory
    backup.apply()
    assert backup.equal()


@pytest.mark.parametrize("call, number", [("ftruncate", 1), ("pwrite64", 1), ("pwrite64", 3), ("fsync", 1)])
def test_an_apply_that_is_killed(wpfs, call, number):
    """Is done again."""
    backup = filled(wpfs)
    backup.export()
    killed_at(wpfs, call, number, "apply", backup.dir, backup.copy)
    assert call == "fsync" or not backup.equal()
    backup.apply()
    assert backup.equal()


# ---- LMDB

LMDB = """
import lmdb, random, sys, threading
env = lmdb.open(sys.argv[1], map_size=16 << 20, writemap=True)
stop = threading.Event()
thread = None
def change(seed, count):
    with env.begin(write=True) as txn:
        for _ in range(count):
            txn.put(b"%08d" % random.randrange(4000), random.Random(seed).randbytes(300))
def work():
    while not stop.is_set():
        change(random.random(), 10)
for line in sys.stdin:
    order = line.strip()
    if order == "run":
        thread = threading.Thread(target=work)
        thread.start()
    elif order == "stop":
        stop.set()
        thread.join()
    else:
        change(order, int(order))
    print("ok", flush=True)
"""


def lmdb(wpfs):
    program = wpfs.spawn("/usr/bin/python3", "-c", LMDB, wpfs.mnt, name="db", protect=True)
    assert program.ask("3000") == "ok"
    return program, Backup(wpfs, "/data.mdb", "db")


def test_lmdb_paused_at_the_cut(any_wpfs):
    program, backup = lmdb(any_wpfs)
    backup.begin()
    assert backup.equal()
    pages = backup.source.stat().st_size // PAGE
    for count in (1, 50, 5, 300):
        assert program.ask(str(count)) == "ok"
        before = digest(backup.source)
        said = backup.increment()
        assert said["complete"] and 0 < said["pages"] + said["zero_pages"] < pages // 2
        assert digest(backup.copy) == before == digest(backup.source)
    done = any_wpfs.command("/usr/bin/python3", "-c", "import lmdb, sys\n"
                            "env = lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False)\n"
                            "print(env.stat()['entries'] > 1000)", backup.copy)
    assert done.stdout == "True\n", done.stderr


def test_lmdb_that_runs(wpfs):
    """What is newer than the cut is of the next increment too: the last one, with nobody writing, is exact."""
    program, backup = lmdb(wpfs)
    assert program.ask("run") == "ok"
    backup.begin()
    for _ in range(4):
        backup.increment()
    assert program.ask("stop") == "ok"
    backup.increment()
    assert backup.equal()
    program.kill9()
    assert backup.export_json("--name", "db")["pages"] == 0
