# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that are not tracked behave as always; real ones are tracked as they are."""

import subprocess

import pytest

import harness
import report
from harness import PAGE, SHIM, WPCTL
from mapper import ALL, PAGES, killed, map_file, mapped

MAPPER = harness.program("mapper")
PYTHON = "/usr/bin/python3"


# ---- not tracked

ORDERS = ["open 0 {}", f"size 0 {PAGES * PAGE}", f"map 0 0 0 {PAGES * PAGE}", "store 0 3 7",
          "load 0 3", "map 1 0 4096 12288 private", "store 1 2 9", "load 0 3", "map 2 0 0 1",
          "map 2 0 1 4096", "map 2 9 0 4096", "prot 0 0 1 r", "advise 0 3 1 dontneed", "load 0 3",
          "advise 0 3 1 remove", "load 0 3", "pwrite 0 0 5000 1", "punch 0 4096 4096", "load 0 1",
          "msync 0", "fsync 0", "unmap 0 8 8", "unmap 1", "close 0", "unmap 0"]


def answers(program, path):
    """What the program answers to all that, but for the addresses."""
    said = []
    for order in ORDERS:
        answer = program.ask(order.format(path))
        said.append("ok ADDR" if order.startswith("map ") and answer.startswith("ok") else answer)
    program.wait()
    return said


@pytest.fixture
def tmpfs(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True, timeout=60)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True, timeout=60)


def test_without_the_shim(wpfs, tmpfs):
    expected = answers(wpfs.spawn_bare(MAPPER), tmpfs / "f")
    assert "err EBADF" in expected and "err EINVAL" in expected and "ok 7" in expected
    assert answers(wpfs.spawn_bare(MAPPER), wpfs.mnt / "f") == expected
    assert wpfs.wpctl_json("ps")["mms"] == []


@pytest.mark.parametrize("protect", [False, True])
def test_with_the_shim(wpfs, tmpfs, protect):
    expected = answers(wpfs.spawn_bare(MAPPER), tmpfs / "f")
    assert answers(wpfs.spawn(MAPPER, name="t", protect=protect), wpfs.mnt / "f") == expected
    elsewhere = wpfs.spawn(MAPPER, name="t", protect=protect)
    assert answers(elsewhere, tmpfs / "g") == expected
    assert elsewhere.stderr() == ""


def dead(make_wpfs):
    """A mount whose daemon was killed, and a descriptor of a file of it."""
    wpfs = make_wpfs()
    file = open(wpfs.mnt / "f", "w+b")
    file.truncate(PAGES * PAGE)
    return wpfs, file


def test_no_daemon_when_it_maps(make_wpfs):
    """The daemon goes between the start of a program and its first mapping."""
    wpfs, file = dead(make_wpfs)
    for more, said, result in (({}, 1, "ok"), ({"WPFS_QUIET": "1"}, 0, "ok"),
                               ({"WPFS_REQUIRE": "1"}, 1, "err ECONNREFUSED")):
        env = {"LD_PRELOAD": str(SHIM), "WPFS_NAME": "t", "WPFS_PROTECT": "1", **more}
        program = wpfs.spawn_bare(MAPPER, env=env)
        program.order(f"open 0 {wpfs.mnt}/f")
        stop_answering(wpfs)
        answer = program.ask(f"map 0 0 0 {PAGES * PAGE}")
        answer_again(wpfs)
        assert answer.startswith(result), answer
        lines = program.stderr().splitlines()
        assert len(lines) == said and all(line.startswith("wpfs: mount ") for line in lines), lines
        if result == "ok":
            program.order("store 0 1 1")
            assert program.order("load 0 1") == 1
        program.wait()
    file.close()


def stop_answering(wpfs):
    """The mount works and nobody listens on the socket: as a daemon that is about to start."""
    (harness.RUN_DIR / wpfs.id / "sock").rename(harness.RUN_DIR / wpfs.id / "away")


def answer_again(wpfs):
    (harness.RUN_DIR / wpfs.id / "away").rename(harness.RUN_DIR / wpfs.id / "sock")


def test_a_run_is_refused_without_a_daemon(make_wpfs):
    wpfs, file = dead(make_wpfs)
    file.close()
    wpfs.kill9()
    done = wpfs.run(MAPPER, name="t")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "its daemon is gone" in line


# ---- uses without marks


def test_private_and_write_only_programs_are_told(wpfs):
    private = wpfs.spawn(MAPPER, name="private", protect=True)
    private.order(f"open 0 {wpfs.mnt}/f")
    private.order(f"size 0 {PAGES * PAGE}")
    private.order(f"map 0 0 0 {PAGES * PAGE} private")
    private.order("store 0 1 1")
    writer = wpfs.spawn(MAPPER, name="writer", protect=True)
    writer.order(f"open 0 {wpfs.mnt}/f")
    writer.order(f"pwrite 0 0 {PAGE} 1")
    for verb in ("ps", "dirty"):
        (note,) = wpfs.wpctl_json(verb, "--name", "private")["notes"]
        assert note.startswith(f"private (mapper, pid {private.pid}): maps files MAP_PRIVATE only")
        (note,) = wpfs.wpctl_json(verb, "--name", "writer")["notes"]
        assert note.startswith(f"writer (mapper, pid {writer.pid}): ") and "write(2)" in note
        assert wpfs.wpctl_json(verb)["mms"] == []
    writer.wait()
    done = wpfs.wpctl("dirty", wpfs.mnt, "--name", "writer", status=1)
    assert "MAP_PRIVATE mappings and write(2) are not tracked" in done.stderr
    both = mapped(wpfs, "both")
    both.order("map 1 0 0 4096 private")
    (note,) = report.ps(wpfs, "both")["notes"]
    assert "MAP_PRIVATE" in note


def test_write_clears_no_mark(wpfs):
    """As in the kernel: marks are of an mm, not of a file."""
    program = mapped(wpfs)
    program.order(f"pwrite 0 0 {8 * PAGE} 1")
    assert program.order("load 0 2") == 1
    assert report.dirty(wpfs, "t") == set()
    assert report.marked(wpfs, "t") == ALL


# ---- kill -9, and the umount in the next line of the script


@pytest.mark.parametrize("umount", ["umount", harness.UMOUNT_HELPER])
def test_kill_and_umount(make_wpfs, umount):
    wpfs = make_wpfs(store=True)
    for expected in ({1, 2, 3}, {1, 2, 3}):
        script = f"""{WPCTL} run --name t --protect {wpfs.mnt} -- {MAPPER} <in >out &
            exec 3>in 4<out; pid=$!
            echo 'open 0 {wpfs.mnt}/f' >&3; read x <&4; echo 'size 0 {PAGES * PAGE}' >&3; read x <&4
            echo 'map 0 0 0 {PAGES * PAGE}' >&3; read x <&4; echo 'store 0 1 1 3' >&3; read x <&4
            test "$x" = 'ok 0' || exit 9
            kill -9 $pid; wait; {umount} {wpfs.mnt}"""
        wpfs.command("mkfifo", "in", "out")
        done = wpfs.command("bash", "-c", script)
        assert done.returncode == 0, f"{done.returncode} {done.stderr}"
        wpfs.command("rm", "in", "out")
        assert harness.proc.is_over(wpfs.pidfd, harness.SECONDS)
        assert wpfs._reaped() == 0, wpfs.read_log()
        assert report.dirty(wpfs, "t", target=wpfs.store) == expected
        wpfs.restart()
        assert report.dirty(wpfs, "t") == expected
        assert report.marked(wpfs, "t") == ALL - expected
    again = mapped(wpfs, protect=False)
    again.order("store 0 9 1")
    assert killed(wpfs, again) == {1, 2, 3, 9}


# ---- real programs


def differing(before, path):
    """Pages of a file that are not as they were."""
    now = path.read_bytes()
    size = max(len(before), len(now))
    return {at // PAGE for at in range(0, size, PAGE)
            if before[at:at + PAGE].ljust(PAGE, b"\0") != now[at:at + PAGE].ljust(PAGE, b"\0")}


class Script:
    """A Python program that goes one step further at each line, and says ok."""

    def __init__(self, wpfs, text, name="db", protect=False):
        step = "def step():\n    print('ok', flush=True)\n    input()\n"
        self.program = wpfs.spawn(PYTHON, "-c", step + text, wpfs.mnt, name=name, protect=protect)
        assert self.program.read() == "ok"

    def go(self):
        assert self.program.ask("go") == "ok"

    def end(self):
        self.program.send("go")
        self.program.wait()


def covers(wpfs, path, before, most):
    """Dirty are all pages that differ, and few others."""
    differ = differing(before, path)
    dirty = report.dirty(wpfs, "db", "/" + path.name)
    assert differ, "nothing was changed"
    assert not differ - dirty, "changed, and not dirty"
    assert len(dirty) <= most, f"{len(dirty)} pages are dirty where {len(differ)} differ"
    return dirty


def test_python_mmap(wpfs):
    script = Script(wpfs, """
import mmap, os, sys
fd = os.open(sys.argv[1] + "/f", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 64 << 12)
m = mmap.mmap(fd, 64 << 12)
m[0:8] = b"whatever"
step()
m[4096 * 3 + 4000:4096 * 4 + 100] = b"x" * 196
m.seek(4096 * 10)
m.write(b"more")
step()
""")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "db")
    script.go()
    assert report.dirty(wpfs, "db") == {3, 4, 10}
    script.end()  # Python unmaps at its exit
    assert report.names(wpfs) == {"db": "detached"}
    assert report.dirty(wpfs, "db") == {3, 4, 10}


LMDB = """
import lmdb, random, sys
env = lmdb.open(sys.argv[1], map_size=16 << 20, writemap=True, subdir=True)
def put(lo, hi, seed):
    with env.begin(write=True) as txn:
        for key in range(lo, hi):
            txn.put(b"%08d" % key, random.Random(key + seed).randbytes(300))
if env.stat()["entries"] == 0:
    put(0, 20000, 0)
step()
put(5000, 5020, 1)
step()
put(9000, 9010, 2)
step()
while True:
    put(100, 110, random.random())
"""


def test_lmdb(wpfs):
    script = Script(wpfs, LMDB)
    data = wpfs.mnt / "data.mdb"
    before = data.read_bytes()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "db")
    script.go()
    covers(wpfs, data, before, 80)
    script.go()
    dirty = covers(wpfs, data, before, 120)
    script.program.send("go")
    script.program.kill9()
    assert covers(wpfs, data, before, 1000) >= dirty
    again = Script(wpfs, LMDB)
    dirty = covers(wpfs, data, before, 1000)
    assert report.marked(wpfs, "db", "/data.mdb").isdisjoint(dirty)
    again.go()
    assert covers(wpfs, data, before, 1000) >= dirty
    wpfs.wpctl("protect", wpfs.mnt, "--name", "db")
    before = data.read_bytes()
    again.go()
    covers(wpfs, data, before, 80)


def test_gdbm(wpfs):
    """It maps with a size of its own choice, and maps again as the file grows."""
    script = Script(wpfs, """
import dbm.gnu, sys
db = dbm.gnu.open(sys.argv[1] + "/f", "cf")
for i in range(2000):
    db["key%d" % i] = "value" * 20
db.sync()
step()
for i in range(20):
    db["key%d" % i] = "other" * 20
db.sync()
step()
db.close()
""", protect=True)
    path = wpfs.mnt / "f"
    before = path.read_bytes()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "db")
    script.go()
    dirty = covers(wpfs, path, before, 200)
    script.end()
    assert report.dirty(wpfs, "db") >= dirty


def test_sqlite(wpfs):
    """It reads by a mapping that grows, and writes with write(2): armed pages, none dirty."""
    script = Script(wpfs, """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1] + "/f")
assert db.execute("pragma mmap_size=16777216").fetchone() == (16777216,)
db.execute("create table t(x)")
db.executemany("insert into t values (?)", ((i,) for i in range(10000)))
db.commit()
db.execute("select sum(x) from t").fetchone()
step()
db.execute("update t set x = 1 where x = 500")
db.commit()
assert db.execute("select sum(x) from t").fetchone() == (49995000 - 499,)
step()
""", protect=True)
    script.go()
    assert report.dirty(wpfs, "db") == set()
    assert len(report.marked(wpfs, "db")) > 20
    done = wpfs.command("sqlite3", wpfs.mnt / "f", "pragma integrity_check")
    assert done.stdout == "ok\n"
    script.end()


def test_tdb(wpfs):
    """It maps, writes through the mapping and locks with fcntl."""
    path = wpfs.mnt / "f"
    setup = "create {0}\n" + "".join(f"insert k{i} {'v' * 50}\n" for i in range(200)) + "quit\n"
    done = wpfs.run("tdbtool", name="db", protect=True, input=setup.format(path))
    assert done.returncode == 0, done.stderr
    before = path.read_bytes()
    wpfs.wpctl("protect", wpfs.mnt, "--name", "db")
    done = wpfs.run("tdbtool", path, name="db", input="store k7 changed\nquit\n")
    assert done.returncode == 0, done.stderr
    covers(wpfs, path, before, 20)
