# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that check what they wrote, at work on a mount. Longer ones: tools/soak --fs-programs."""

import os
import sqlite3
import subprocess
import sys

import pytest

import harness


@pytest.fixture
def do(wpfs):
    """Runs a command on the mount that has to succeed; gives what it printed."""
    def run(*argv, cwd=None):
        done = subprocess.run([str(arg) for arg in argv], cwd=cwd or wpfs.mnt, env=wpfs.env(), timeout=120,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout
    return run


def test_git_clone_and_fsck(wpfs, do):
    origin = wpfs.mnt / "origin"
    name = ["-c", "user.name=t", "-c", "user.email=t@t"]
    do("git", "init", "-q", origin)
    do("cp", "-a", harness.SOURCE / "src", origin)
    do("git", "add", ".", cwd=origin)
    do("git", *name, "commit", "-qm", "one", cwd=origin)
    do("git", "mv", "src", "source", cwd=origin)
    do("git", *name, "commit", "-qm", "two", cwd=origin)
    for how in ([], ["--no-hardlinks"], ["--bare"]):
        clone = wpfs.mnt / f"clone{len(how)}{'bare' in ''.join(how)}"
        do("git", "clone", "-q", *how, origin, clone)
        do("git", "fsck", "--strict", "--full", cwd=clone)
    do("git", "repack", "-adq", cwd=wpfs.mnt / "clone0False")
    do("git", "gc", "-q", cwd=wpfs.mnt / "clone0False")
    do("git", "fsck", "--strict", "--full", cwd=wpfs.mnt / "clone0False")
    assert do("git", "status", "--porcelain", cwd=wpfs.mnt / "clone0False") == ""


def test_a_build_with_make(wpfs, do):
    count = 24
    for number in range(count):
        (wpfs.mnt / f"f{number}.c").write_text(f'#include "all.h"\nint f{number}(void) {{ return {number}; }}\n')
    (wpfs.mnt / "all.h").write_text("".join(f"int f{number}(void);\n" for number in range(count)))
    total = " + ".join(f"f{number}()" for number in range(count))
    (wpfs.mnt / "main.c").write_text(
        f'#include "all.h"\n#include <stdio.h>\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n')
    (wpfs.mnt / "Makefile").write_text(
        "OBJECTS := main.o $(patsubst %.c,%.o,$(wildcard f*.c))\n"
        "prog: $(OBJECTS)\n\t$(CC) -o $@ $^\n$(OBJECTS): all.h\nclean:\n\trm -f prog $(OBJECTS)\n")
    do("make", "-j4")
    assert do("./prog") == f"{sum(range(count))}\n"
    assert "up to date" in do("make", "-j4")
    (wpfs.mnt / "f3.c").write_text('#include "all.h"\nint f3(void) { return 1000; }\n')
    do("make", "-j4")
    assert do("./prog") == f"{sum(range(count)) - 3 + 1000}\n"
    do("make", "clean")
    assert not list(wpfs.mnt.glob("*.o"))


def test_sqlite_in_wal_mode(wpfs):
    path = wpfs.mnt / "t.db"
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)")
        db.execute("CREATE INDEX i ON t (b)")
    code = """if True:
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1], timeout=60)
        for number in range(200):
            with db:
                db.execute("INSERT INTO t (b) VALUES (?)", (f"{sys.argv[2]}-{number}" * 20,))
        db.close()
        """
    writers = [subprocess.Popen([sys.executable, "-c", code, path, str(n)]) for n in range(3)]
    for writer in writers:
        assert writer.wait(harness.SECONDS) == 0
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (600,)
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert reader.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    reader.close()
    db.close()


def test_tar_there_and_back(wpfs, do):
    """Documents of some packages, packed on the mount and compared with what they are elsewhere."""
    where = "/usr/share/doc"
    names = sorted(os.listdir(where))[:150]
    do("tar", "-C", where, "-cf", wpfs.mnt / "doc.tar", *names)
    do("tar", "-xpf", "doc.tar")
    do("tar", "-C", where, "-df", wpfs.mnt / "doc.tar")
    do("tar", "-C", wpfs.mnt, "-df", wpfs.mnt / "doc.tar")
    for name in names[::10]:
        do("diff", "-r", "--no-dereference", f"{where}/{name}", wpfs.mnt / name)
