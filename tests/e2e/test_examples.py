# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs of examples/, as their first lines say. (increment.c: test_lib.py.)"""

import re
import subprocess

import lmdb
import pytest

import harness
from harness import BUILD, PAGE, SOURCE, WPCTL
from test_export import digest

EXAMPLES = SOURCE / "examples"
MAP_SIZE = 16 << 20

DATABASE = f"""
import lmdb, sys
env = lmdb.open(sys.argv[1], map_size={MAP_SIZE}, writemap=True)
print("ready", flush=True)
for line in sys.stdin:
    first, count = map(int, line.split())
    with env.begin(write=True) as txn:
        for key in range(first, first + count):
            txn.put(b"%06d" % key, line.encode() * 20)
    print("done", flush=True)
"""

# Stands before wpctl in PATH and kills the script, a session of its own, before or after a step.
KILLER = f"""#!/bin/sh
case $STEP in
before-"$1") kill -9 0; exit 1 ;;
after-"$1") {WPCTL} "$@" || exit; kill -9 0; exit 1 ;;
esac
exec {WPCTL} "$@"
"""


@pytest.fixture
def database(wpfs):
    (wpfs.mnt / "db").mkdir()
    program = wpfs.spawn("/usr/bin/python3", "-c", DATABASE, wpfs.mnt / "db", name="db", protect=True)
    assert program.read() == "ready"
    return program


class Script:
    def __init__(self, wpfs):
        self.wpfs = wpfs
        self.backup = wpfs.dir / "backup"
        self.data = self.backup / "data"
        bin_ = wpfs.dir / "bin"
        bin_.mkdir()
        (bin_ / "wpctl").write_text(KILLER)
        (bin_ / "wpctl").chmod(0o755)
        self.path = f"{bin_}:/usr/bin:/bin"

    def run(self, step="none", status=0):
        done = self.wpfs.command(EXAMPLES / "lmdb-backup.sh", self.wpfs.mnt, "/db/data.mdb", self.backup,
                                 env={"PATH": self.path, "STEP": step}, start_new_session=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def equal(self):
        return digest(self.data) == digest(self.wpfs.mnt / "db/data.mdb")

    def records(self, scratch):
        """Number of records, by LMDB itself, in the copy."""
        scratch.mkdir()
        (scratch / "data.mdb").write_bytes(self.data.read_bytes())
        with lmdb.open(str(scratch), map_size=MAP_SIZE, readonly=True) as env:
            return env.stat()["entries"]


def test_lmdb_backup(wpfs, database, tmp_path):
    """First everything, then what was written; the copy is the file whenever nobody writes."""
    assert database.ask("0 500") == "done"
    script = Script(wpfs)
    script.run()
    assert script.equal()
    assert database.ask("500 5") == "done"
    copied = int(re.search(r"(\d+) page", script.run()).group(1))
    assert script.equal() and 0 < copied < 40
    assert script.records(tmp_path / "copy") == 505
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/db/data.mdb")  # somebody else's epoch
    assert database.ask("505 5") == "done"
    script.run()
    assert script.equal()
    database.wait()


@pytest.mark.parametrize("step", [f"{when}-{what}" for what in ("protect", "export", "apply")
                                  for when in ("before", "after")])
def test_lmdb_backup_is_killed(wpfs, database, tmp_path, step):
    assert database.ask("0 100") == "done"
    script = Script(wpfs)
    script.run()
    assert database.ask("100 3") == "done"
    script.run(step, status=-9)
    assert database.ask("103 3") == "done"
    script.run()  # finishes what was begun: up to its cut at least
    script.run()
    assert script.equal()
    assert script.records(tmp_path / "copy") == 106
    database.wait()


def test_own_uffd(wpfs, tmp_path):
    program = tmp_path / "own_uffd"
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-pthread", EXAMPLES / "own_uffd.c", "-o", program],
                   timeout=harness.SECONDS, check=True)
    file = wpfs.mnt / "file"
    file.write_bytes(bytes(16 * PAGE))

    def run(*args, name="own"):
        done = wpfs.run(program, file, *args, name=name)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    told = "page {} is about to be written".format
    assert run("protect", "3") == [told(3)]
    assert run("again", "3", "4") == [told(4)]
    assert run("again", "3", "4", "5") == [told(5)]
    assert run("again", "3", "6", name="another") == []


def test_sql(make_wpfs):
    wpfs = make_wpfs(store=True)
    wpfs.run("/usr/bin/python3", SOURCE / "tools/docs.d/mydb", wpfs.mnt / "f", "once", name="t", protect=True)
    wpfs.umount()
    with open(EXAMPLES / "marks.sql", encoding="utf-8") as sql:
        done = subprocess.run(["sqlite3", "-cmd", f".load {BUILD}/src/db/wpfs_sqlite",
                               f"{wpfs.store}/wpfs.db"], stdin=sql, capture_output=True, text=True,
                              timeout=harness.SECONDS, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["t", "0", "detached", "1"] in rows
    assert ["t", "/f", str(5 * PAGE), str(PAGE)] in rows
    assert ["t", "/f", "255"] in rows
