# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The shim changes no result and no errno: real programs do the same on the same file system without
it and with it, and each call that it stands in front of gives them the same (tests/progs/record.c).
"""

import shutil

import pytest

import harness

PYTHON = "/usr/bin/python3"
RECORD = harness.BUILD / "tests/record.so"

LMDB = """
import lmdb, os, random, sys
env = lmdb.open(sys.argv[1], map_size=1 << 20, writemap=True, subdir=True)
def put(lo, hi):
    with env.begin(write=True) as txn:
        for key in range(lo, hi):
            txn.put(b"%08d" % key, random.Random(key).randbytes(300))
put(0, 1000)
try:
    put(1000, 50000)
except lmdb.MapFullError:
    env.set_mapsize(8 << 20)
put(1000, 5000)
env.sync(True)
os.makedirs(sys.argv[1] + "/copy")
env.copy(sys.argv[1] + "/copy")
env.close()
env = lmdb.open(sys.argv[1], readonly=True, map_size=8 << 20)
with env.begin() as txn:
    assert txn.stat()["entries"] == 5000
"""

GDBM = """
import dbm.gnu, sys
with dbm.gnu.open(sys.argv[1] + "/f", "cf") as db:
    for i in range(600):
        db["key%d" % i] = "value" * 20
    db.sync()
    for i in range(0, 600, 2):
        del db["key%d" % i]
    db.reorganize()
with dbm.gnu.open(sys.argv[1] + "/f", "r") as db:
    assert len(db.keys()) == 300
"""

SQLITE = """
import sqlite3, sys
for mode in "delete", "wal":
    db = sqlite3.connect(sys.argv[1] + "/" + mode)
    db.execute("pragma journal_mode=" + mode)
    db.execute("pragma mmap_size=16777216")
    db.execute("create table t(x, y)")
    for round in range(3):
        db.executemany("insert into t values (?, ?)", ((i, "y" * 200) for i in range(2000)))
        db.commit()
        assert db.execute("select count(*) from t").fetchone() == (2000 * (round + 1),)
    db.execute("delete from t where x % 2")
    db.commit()
    db.execute("vacuum")
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()
"""

MMAP = """
import errno, mmap, os, sys
fd = os.open(sys.argv[1] + "/f", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
m = mmap.mmap(fd, 1 << 20)
m[5000] = 7
m.flush()
m.resize(2 << 20)
m[(1 << 20) + 1] = 9
m.madvise(mmap.MADV_REMOVE, 4096, 4096)
m.madvise(mmap.MADV_DONTNEED)
assert m[5000] == 0
for args in ((fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE, None, 100), (999, 4096), (fd, 1 << 60)):
    try:
        mmap.mmap(*args[:2], **({"offset": 100} if len(args) > 2 else {}))
    except (OSError, ValueError):
        pass
m.close()
child = os.fork()
if child == 0:
    m = mmap.mmap(fd, 4096)
    m[0] = 1
    os.close(fd)
    os.closerange(3, 600)
    os._exit(0)
os.waitpid(child, 0)
os.dup2(fd, 512)
os.dup2(fd, 513)
os.closerange(3, 600)
"""

TDB = "create {0}/f\n" + "".join(f"insert k{i} {'v' * 50}\n" for i in range(500)) + \
    "".join(f"delete k{i}\n" for i in range(0, 500, 3)) + "check\nquit\n"

GIT = """
set -e
cd "$1"
git init -q --template= r
cd r
git config index.threads 1
git config pack.threads 1
git config gc.auto 0
for i in 1 2 3 4 5; do
    seq $i $((i * 3000)) > a; seq $i 500 > b$i
    touch -d 2001-01-0$i a b$i  # what is as new as the index is read once more
    git add .
    git commit -qm "$i" --date=2001-01-01T00:00:00Z
done
git gc -q
git fsck --full 2>&1
git log --stat > log
"""

PROGRAMS = {
    "lmdb": [PYTHON, "-c", LMDB],
    "gdbm": [PYTHON, "-c", GDBM],
    "sqlite": [PYTHON, "-c", SQLITE],
    "mmap": [PYTHON, "-c", MMAP],
    "git": ["sh", "-c", GIT, "sh"],
    "tdb": ["tdbtool"],
}

ENV = {"PYTHONHASHSEED": "0", "PYTHONMALLOC": "malloc",
       "PYTHONDONTWRITEBYTECODE": "1", "GIT_CONFIG_NOSYSTEM": "1",
       "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@a", "GIT_COMMITTER_NAME": "a",
       "GIT_COMMITTER_EMAIL": "a@a", "GIT_COMMITTER_DATE": "2001-01-01T00:00:00Z", "LC_ALL": "C",
       "GIT_TEST_INDEX_THREADS": "1", "HOME": "/nonexistent"}


def run(wpfs, program, shim):
    """Runs it in an empty directory of the mount: what it said, and what each image was given."""
    there, records = wpfs.mnt / "d", wpfs.dir / "records"
    for made in there, records:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
    env = {**ENV, "RECORD": str(records), "LD_PRELOAD": str(RECORD)}
    if shim:
        env.update({"LD_PRELOAD": f"{RECORD} {harness.SHIM}", "WPFS_NAME": "t",
                    "WPFS_MOUNT": wpfs.id, **shim})
    argv, more = [*PROGRAMS[program], there], {}
    if program == "tdb":
        argv, more = argv[:1], {"input": TDB.format(there)}
    done = wpfs.command(*argv, env=env, timeout=100, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr, sorted(file.read_text() for file in records.iterdir())


# Without the shim tdb cannot map there what has grown since it was opened.
CAPPED = ["lmdb", "gdbm", "sqlite", "mmap", "git"]


@pytest.mark.parametrize("program, options", [
    *[pytest.param(name, [], id=name) for name in PROGRAMS],
    *[pytest.param(name, ["resident=64M"], id=f"{name}-capped") for name in CAPPED]])
def test_same_results(make_wpfs, program, options):
    wpfs = make_wpfs("store", options)
    native = run(wpfs, program, None)
    assert any("\nmmap(" in text for text in native[2]), "nothing was recorded"
    for shim in {}, {"WPFS_PROTECT": "1"}:
        found = run(wpfs, program, {"WPFS_REQUIRE": "1", **shim})
        assert found[:2] == native[:2]
        for one, other in zip(native[2], found[2]):
            assert other.splitlines() == one.splitlines()
        assert len(found[2]) == len(native[2])
