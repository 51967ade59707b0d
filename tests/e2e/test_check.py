# SPDX-License-Identifier: LGPL-2.1-or-later
"""
wpctl check: each kind of damage is found, told in a line, left alone without --repair and mended with
it; afterwards nothing is found and the store can be mounted.
"""

import json
import os
import sqlite3
from pathlib import Path

import pytest

import report
from harness import PAGE
from mapper import ALL, mapped

REGULAR = 0o100644


class Store:
    """A store that was mounted once, and what is done to it with other programs."""

    def __init__(self, wpfs):
        self.wpfs = wpfs
        self.path = Path(wpfs.store)

    def sql(self, text, *values):
        db = sqlite3.connect(self.path / "wpfs.db", isolation_level=None)
        try:
            db.create_function("mark_runs", 2, lambda blob, chunk: None)  # of the views, never called
            db.execute("PRAGMA ignore_check_constraints=ON")
            return db.execute(text, values).fetchall()
        finally:
            db.close()

    def id(self, name):
        return self.sql("SELECT id FROM dirent WHERE name = CAST(? AS BLOB)", name)[0][0]

    def data(self, ino):
        return self.path / "data" / f"{ino & 255:02x}" / str(ino)

    def check(self, *options, status):
        done = self.wpfs.wpctl("check", self.path, *options, "--json", status=status)
        return json.loads(done.stdout)

    def kinds(self, *options, status):
        return sorted(finding["kind"] for finding in self.check(*options, status=status)["findings"])

    def everything(self):
        """All that is stored, to see that it is the same."""
        tables = [name for name, in self.sql("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: sorted(self.sql(f'SELECT * FROM "{name}"'), key=repr) for name in tables}
        files = {str(path.relative_to(self.path)): path.is_file() and path.read_bytes()
                 for path in self.path.rglob("*") if not path.name.startswith("wpfs.db")}
        return rows, files

    def mend(self, *kinds, mount=True):
        """These are found, told of, left alone, mended, and gone; the store mounts."""
        before = self.everything()
        assert self.kinds(status=1) == sorted(kinds)
        assert self.everything() == before, "a check that changes something"
        told = self.check("--repair", status=0)
        assert sorted(finding["kind"] for finding in told["findings"]) == sorted(kinds)
        assert told["found"] == told["repaired"] == len(kinds)
        assert self.check(status=0) == {"findings": [], "found": 0, "repaired": 0, "leftovers": 0}
        if mount:
            self.wpfs.restart()


@pytest.fixture
def store(make_wpfs):
    wpfs = make_wpfs(store=True, options=["flush=0"])
    (wpfs.mnt / "d/e").mkdir(parents=True)
    (wpfs.mnt / "f").write_bytes(b"1" * PAGE)
    (wpfs.mnt / "d/g").write_bytes(b"2" * 5000)
    (wpfs.mnt / "d/e/h").write_bytes(b"3" * 100)
    os.link(wpfs.mnt / "f", wpfs.mnt / "d/f2")
    os.symlink("f", wpfs.mnt / "s")
    os.mkfifo(wpfs.mnt / "p")
    os.setxattr(wpfs.mnt / "f", "user.k", b"v")
    wpfs.umount()
    made = Store(wpfs)
    assert made.check(status=0)["findings"] == []
    return made


def test_text_for_people(store):
    wpfs = store.wpfs
    assert wpfs.wpctl("check", store.path).stdout == "nothing is wrong\n"
    ino = store.id("g")
    store.sql("DELETE FROM dirent WHERE id = ?", ino)
    assert wpfs.wpctl("check", store.path, status=1).stdout == \
        f"no-name: file {ino}: no directory has it; --repair: name it /lost+found/{ino}\n" \
        "1 finding, 0 repaired\n"
    assert wpfs.wpctl("check", "--repair", store.path).stdout == \
        f"no-name: file {ino}: no directory has it; repaired: name it /lost+found/{ino}\n" \
        "1 finding, 1 repaired\n"


def test_what_cannot_be_checked(store):
    wpfs = store.wpfs
    assert "no wpfs.db" in wpfs.wpctl("check", wpfs.mnt, status=1).stderr
    assert "no store given" in wpfs.wpctl("check", status=2).stderr
    wpfs.restart()
    assert "in use" in wpfs.wpctl("check", store.path, status=1).stderr
    wpfs.kill9()
    assert "still in memory" in wpfs.wpctl("check", store.path, "--repair", status=1).stderr
    wpfs.restart()
    wpfs.umount()
    store.sql("PRAGMA user_version = 999")
    assert "newer version" in wpfs.wpctl("check", store.path, status=1).stderr
    store.sql("PRAGMA user_version = 1")
    assert "older version" in wpfs.wpctl("check", store.path, status=1).stderr


# ---- the tree


def test_file_without_a_name(store):
    ino = store.id("g")
    store.sql("DELETE FROM dirent WHERE id = ?", ino)
    store.mend("no-name")
    assert (store.wpfs.mnt / f"lost+found/{ino}").read_bytes() == b"2" * 5000


def test_tree_without_a_name(store):
    ino = store.id("d")
    store.sql("DELETE FROM dirent WHERE id = ?", ino)
    store.mend("no-name", "nlink")
    lost = store.wpfs.mnt / "lost+found" / str(ino)
    assert (lost / "e/h").read_bytes() == b"3" * 100
    assert (lost / "f2").stat().st_nlink == 2


def test_lost_and_found_is_something_else(store):
    store.sql("UPDATE dirent SET name = CAST('lost+found' AS BLOB) WHERE name = CAST('s' AS BLOB)")
    store.sql("DELETE FROM dirent WHERE name = CAST('g' AS BLOB)")
    store.mend("no-name")
    assert os.readlink(store.wpfs.mnt / "lost+found") == "f"
    assert len(os.listdir(store.wpfs.mnt / "lost+found.1")) == 1


def test_directory_loop(store):
    store.sql("UPDATE dirent SET parent = ? WHERE id = ?", store.id("e"), store.id("d"))
    store.mend("loop", "nlink", "nlink")
    names = {path.name for path in store.wpfs.mnt.rglob("*")}
    assert {"e", "h", "g"} <= names


def test_directory_with_two_names(store):
    store.sql("INSERT INTO dirent VALUES (?, CAST('again' AS BLOB), ?)", store.id("e"), store.id("d"))
    store.mend("nlink", "two-names")
    assert (store.wpfs.mnt / "d/e/h").exists() and not (store.wpfs.mnt / "d/e/again").exists()


@pytest.mark.parametrize("name", ["x'2f'", "x'2e'", "x'2e2e'", "x'6100'", "x''", "zeroblob(300)"])
def test_name_that_is_none(store, name):
    ino = store.id("g")
    store.sql(f"UPDATE dirent SET name = {name} WHERE id = ?", ino)
    store.mend("name", "no-name")
    assert (store.wpfs.mnt / f"lost+found/{ino}").read_bytes() == b"2" * 5000


def test_name_of_nothing_and_in_nothing(store):
    store.sql("INSERT INTO dirent VALUES (1, CAST('gone' AS BLOB), 999)")
    store.sql("INSERT INTO dirent VALUES (998, CAST('there' AS BLOB), ?)", store.id("f"))
    store.sql("INSERT INTO dirent VALUES (?, CAST('below' AS BLOB), ?)", store.id("g"), store.id("s"))
    store.mend("no-inode", "no-parent", "no-parent", "nlink", "nlink")
    assert sorted(os.listdir(store.wpfs.mnt)) == ["d", "f", "p", "s"]


def test_directory_became_a_file(store):
    """What was in it keeps its contents."""
    store.sql("UPDATE inode SET mode = ? WHERE id = ?", REGULAR, store.id("e"))
    ino = store.id("h")
    store.mend("nlink", "nlink", "no-name", "no-parent")
    assert (store.wpfs.mnt / f"lost+found/{ino}").read_bytes() == b"3" * 100


def test_link_counts(store):
    store.sql("UPDATE inode SET nlink = 7")
    store.mend(*["nlink"] * 8)
    assert store.sql("SELECT nlink FROM inode WHERE id = ?", store.id("f")) == [(2,)]


def test_attributes(store):
    f, g, h = store.id("f"), store.id("g"), store.id("h")
    store.sql("UPDATE inode SET size = -1 WHERE id = ?", f)
    store.sql("UPDATE inode SET uid = 1 << 40, rdev = -1 WHERE id = ?", g)
    store.sql("UPDATE inode SET mode = 0xf1a4 WHERE id = ?", h)
    store.sql("UPDATE inode SET target = x'6100' WHERE id = ?", store.id("s"))
    store.sql("UPDATE inode SET target = x'61' WHERE id = ?", store.id("p"))
    store.mend("attributes", "attributes", "type", "target", "target")
    assert os.readlink(store.wpfs.mnt / "s") == "(lost)"
    assert (store.wpfs.mnt / "d/e/h").read_bytes() == b"3" * 100


def test_root(store):
    store.sql("DELETE FROM inode WHERE id = 1")
    store.mend("root")
    assert (store.wpfs.mnt / "d/g").read_bytes() == b"2" * 5000
    store.wpfs.umount()
    store.sql("UPDATE inode SET mode = ? WHERE id = 1", REGULAR)
    store.mend("root")


def test_xattrs(store):
    store.sql("INSERT INTO xattr VALUES (999, CAST('user.a' AS BLOB), x'00')")
    store.sql("INSERT INTO xattr VALUES (?, CAST('nowhere' AS BLOB), x'00')", store.id("f"))
    store.mend("no-inode", "xattr")
    assert os.listxattr(store.wpfs.mnt / "f") == ["user.k"]


# ---- the database


def test_index(store):
    """An index that lacks a row: made by hand, through the schema."""
    ino = store.id("g")
    db = sqlite3.connect(store.path / "wpfs.db", isolation_level=None)
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX dirent_id ON dirent (id) WHERE id <> ' || ?"
               " WHERE name = 'dirent_id'", (ino,))
    db.close()
    store.sql("REINDEX dirent_id")
    db = sqlite3.connect(store.path / "wpfs.db", isolation_level=None)
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX dirent_id ON dirent (id)' WHERE name = 'dirent_id'")
    db.close()
    store.mend("index")
    assert (store.wpfs.mnt / "d/g").exists()


def test_pages_overwritten(store):
    """What SQLite cannot read is not repaired, and nothing is thrown away."""
    store.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    path = store.path / "wpfs.db"
    whole = path.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    page, = store.sql("SELECT rootpage FROM sqlite_master WHERE name = 'dirent'")[0]
    damaged = whole[:(page - 1) * size] + b"\xff" * size + whole[page * size:]
    path.write_bytes(damaged)
    assert set(store.kinds("--repair", status=1)) == {"database"}
    assert path.read_bytes() == damaged
    path.write_bytes(whole[:size] + b"\xff" * (len(whole) - size))
    assert "damaged" in store.wpfs.wpctl("check", store.path, "--repair", status=1).stderr
    path.write_bytes(whole)


def test_numbers_given_out_again(store):
    store.sql("UPDATE meta SET value = 1 WHERE key = 'id_base'")
    store.mend("numbers")


def test_id_of_the_store(store):
    store.sql("UPDATE meta SET value = '../../etc' WHERE key = 'uuid'")
    store.mend("id")


# ---- contents


def test_contents_without_a_file(store):
    extra = store.data(777)
    extra.parent.mkdir(exist_ok=True)
    extra.write_bytes(b"precious")
    store.mend("orphan")
    assert not extra.exists()
    assert (store.path / "lost+found/777").read_bytes() == b"precious"
    store.wpfs.umount()
    extra.write_bytes(b"another")
    store.mend("orphan", mount=False)
    assert (store.path / "lost+found/777").read_bytes() == b"precious"
    assert (store.path / "lost+found/777.1").read_bytes() == b"another"


def test_contents_of_a_directory(store):
    ino = store.id("d")
    store.data(ino).parent.mkdir(exist_ok=True)
    store.data(ino).write_bytes(b"?")
    store.mend("orphan")


def test_strange_things_in_data(store):
    data = store.path / "data"
    (data / "README").write_text("mine")
    (data / "zz").mkdir()
    one = store.data(store.id("f")).parent
    (one / "notes.txt").write_text("mine too")
    (one / "007").write_text("x")
    g = store.data(store.id("g"))
    kept = g.read_bytes()
    g.unlink()
    g.symlink_to("/etc/passwd")
    store.mend(*["stray"] * 5)
    assert (store.path / "lost+found/README").read_text() == "mine"
    assert (store.wpfs.mnt / "d/g").read_bytes() == bytes(len(kept)), "not what a link leads to"


def test_contents_in_the_wrong_directory(store):
    f, g = store.data(store.id("f")), store.data(store.id("g"))
    wrong = store.path / "data/ff"
    wrong.mkdir()
    os.rename(f, wrong / f.name)
    (wrong / g.name).write_bytes(b"not these")
    store.mend("misplaced", "misplaced")
    assert (store.wpfs.mnt / "f").read_bytes() == b"1" * PAGE
    assert (store.wpfs.mnt / "d/g").read_bytes() == b"2" * 5000
    assert (store.path / "lost+found" / g.name).read_bytes() == b"not these"


@pytest.mark.parametrize("part", ["wpfs.db", "data", "spill"])
def test_a_part_that_is_a_link(store, part):
    """A mount does not follow it, so what it leads to is not looked at."""
    elsewhere, here = store.wpfs.dir / "elsewhere", store.path / part
    if here.exists():
        here.rename(elsewhere)
    here.symlink_to(elsewhere)
    done = store.wpfs.wpctl("check", store.path, "--repair", status=1)
    assert f"{part} is a symbolic link" in done.stderr, done.stderr
    assert here.is_symlink() and not done.stdout


def test_what_a_crash_leaves_is_no_damage(store):
    store.wpfs.restart()
    store.wpfs.lose_power()
    extra = store.data(777)
    extra.parent.mkdir(exist_ok=True)
    extra.write_bytes(b"never named")
    told = store.check(status=0)
    assert told["findings"] == [] and told["leftovers"] == 1
    assert "1 file" in store.wpfs.wpctl("check", store.path).stdout
    store.wpfs.restart()
    assert not extra.exists()
    store.wpfs.umount()
    assert store.check(status=0)["leftovers"] == 0


# ---- marks

BAD = "x'0102'"  # no set of pages


@pytest.fixture
def marked(store):
    """The same with marks of a program that was killed: page 3 is dirty, 8..15 are parked."""
    wpfs = store.wpfs
    wpfs.restart()
    program = mapped(wpfs, "t", path="m")
    program.order("store 0 3 1")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 3 1")
    program.order("unmap 0 8 8")
    program.kill9()
    assert report.dirty(wpfs, "t", "/m") == {3}
    wpfs.umount()
    assert store.check(status=0)["findings"] == []
    store.mm, = store.sql("SELECT id FROM mm")[0]
    store.file, = store.sql("SELECT DISTINCT file FROM armed_chunk")[0]
    return store


def dirty(store, *epoch):
    return report.dirty(store.wpfs, "t", "/m", *epoch, target=store.path)


def test_marks_that_cannot_be_read(marked):
    marked.sql(f"UPDATE mark_chunk SET marked = {BAD}")
    chunks = marked.sql("SELECT count(*) FROM mark_chunk")[0][0]
    marked.mend(*["set"] * chunks)
    marked.wpfs.umount()
    assert dirty(marked) == ALL - set(range(8, 16)), "all but what is parked"


def test_armed_that_cannot_be_read(marked):
    marked.sql(f"UPDATE armed_chunk SET armed = {BAD}")
    marked.mend("set", mount=False)
    assert ALL <= dirty(marked)


def test_dirty_that_cannot_be_read(marked):
    marked.sql("INSERT INTO dirty_chunk (mm, owner, file, chunk, dirty) VALUES (?, 1, ?, 0, x'0102')"
               " ON CONFLICT DO UPDATE SET dirty = excluded.dirty", marked.mm, marked.file)
    marked.mend("set")
    marked.wpfs.umount()
    assert dirty(marked) == ALL, "what is armed, and not more"


def test_epoch_that_cannot_be_read(marked):
    number, = marked.sql("SELECT min(number) FROM epoch")[0]
    marked.sql("INSERT INTO epoch_chunk VALUES (?, ?, ?, 0, x'0102')"
               " ON CONFLICT DO UPDATE SET dirty = excluded.dirty", marked.mm, marked.file, number)
    marked.mend("set", mount=False)
    assert marked.sql("SELECT dirty FROM epoch_chunk") == [(b"",)], "all of it"


def test_dirty_and_not_armed(marked):
    marked.sql("DELETE FROM armed_chunk")
    marked.sql("INSERT OR REPLACE INTO dirty_chunk (mm, owner, file, chunk, dirty)"
               " VALUES (?, 1, ?, 0, x'')", marked.mm, marked.file)
    marked.mend("not-armed")
    marked.wpfs.umount()
    assert ALL <= dirty(marked)


def test_marks_outside_of_mappings(marked):
    marked.sql("INSERT INTO mark_chunk VALUES (?, 1, 1, x'')", marked.mm)
    marked.sql("UPDATE mark_chunk SET marked = x'' WHERE chunk <> 1")
    chunks = marked.sql("SELECT count(*) FROM mark_chunk")[0][0]
    marked.mend(*["stray-marks"] * chunks, mount=False)
    assert marked.sql("SELECT count(*) FROM mark_chunk WHERE chunk = 1") == [(0,)]


@pytest.mark.parametrize("damage", ["pages = -1", "pgoff = -4096", "pages = 1 << 40", "owner = 9"])
def test_mapping_that_cannot_be(marked, damage):
    """What was armed there counts as dirty; marks that lie there no more are removed."""
    marked.sql(f"UPDATE vma SET {damage}")
    told = marked.check("--repair", status=0)
    assert {finding["kind"] for finding in told["findings"]} <= {"mapping", "stray-marks"}
    assert marked.kinds(status=0) == []
    assert dirty(marked) == ALL
    marked.wpfs.restart()


def test_marks_of_a_file_that_is_gone(marked):
    marked.sql("DELETE FROM dirent WHERE id = ?", marked.file)
    marked.sql("DELETE FROM xattr WHERE id = ?", marked.file)
    marked.sql("UPDATE inode SET nlink = nlink WHERE id = ?", marked.file)
    marked.sql("DELETE FROM inode WHERE id = ?", marked.file)
    kinds = marked.kinds("--repair", status=0)
    assert {"file-gone", "orphan"} & set(kinds) == set(kinds) - {"stray-marks"} and "file-gone" in kinds
    assert marked.kinds(status=0) == []
    marked.wpfs.restart()
    marked.wpfs.umount()
    assert marked.sql("SELECT count(*) FROM armed_chunk") == [(0,)]


def test_rows_that_sets_belong_to(marked):
    marked.sql("DELETE FROM file")
    marked.mend("no-file-row")
    marked.wpfs.umount()
    assert dirty(marked) == {3}
    marked.sql("DELETE FROM mm_file")
    marked.mend("no-file-row")
    marked.wpfs.umount()
    assert dirty(marked) == ALL, "nothing says any more that what was marked is durable"


def test_epoch_without_a_row(marked):
    marked.sql("DELETE FROM epoch_chunk")
    marked.sql("INSERT INTO epoch_chunk VALUES (?, ?, 99, 0, x'')", marked.mm, marked.file)
    marked.mend("no-epoch", mount=False)


def test_marks_of_nobody(marked):
    marked.sql("DELETE FROM mm")
    marked.mend("no-mm")
    marked.wpfs.umount()
    assert marked.sql("SELECT count(*) FROM armed_chunk") == [(0,)]
