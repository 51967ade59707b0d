# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store's database through the sqlite3 command, as wpfs(5) says."""

import re
import sqlite3

import harness
import report
from mapper import mapped

MAN = harness.SOURCE / "man/wpfs.5"
EXTENSION = harness.BUILD / "src/db/wpfs_sqlite.so"


def examples():
    """The commands of wpfs(5), to the letter."""
    text = MAN.read_text().partition("\n.Sh EXAMPLES\n")[2].partition("\n.Sh ")[0]
    blocks = re.findall(r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed$", text, re.M | re.S)
    assert not any("\\" in block for block in blocks), "what roff changes is not what is typed"
    return blocks


def shell(wpfs, command, status=0):
    """Runs a command of wpfs(5) where STORE and LIBDIR are what it says; rows of fields."""
    for name, there in ("STORE", wpfs.store), ("LIBDIR/wpfs", EXTENSION.parent):
        link = wpfs.dir / name
        link.parent.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(there)
    done = wpfs.command("sh", "-c", command)
    assert done.returncode == status, f"{command}: {done.returncode}: {done.stderr}"
    return [line.split("|") for line in done.stdout.splitlines()] if not status else done.stderr


def query(wpfs, text, status=0):
    return shell(wpfs, f'sqlite3 -cmd ".load LIBDIR/wpfs/wpfs_sqlite" STORE/wpfs.db "{text}"',
                 status)


def view_pages(rows):
    return [page for first, pages in rows for page in range(int(first), int(first) + int(pages))]


def test_examples(make_wpfs):
    """Each example of the man page prints what wpctl knows of the store."""
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs, "db")
    program.order("store 0 3 1 2")
    wpfs.wpctl("protect", "--name", "db", wpfs.mnt)  # ends epoch 1: 3 and 4
    program.order("store 0 7 1")
    program.order("store 0 20 1 5")
    program.kill9()
    (wpfs.mnt / "small").write_bytes(b"abc")
    wpfs.umount()
    (mm,) = wpfs.wpctl_json("ps", target=wpfs.store)["mms"]
    answers = [shell(wpfs, one) for one in examples()]
    assert len(answers) == 6, "an example without a test"
    who, dirty, counts, epoch, largest, mended = answers

    assert mm["epoch"] == 2
    assert who == [["db", "detached", "", "2"], ["/f", hex(program.addr), "64", "rw-"]]
    assert dirty == [["/f", str(7 * 4096), "4096"], ["/f", str(20 * 4096), str(5 * 4096)]]
    assert counts == [["db", "/f", str(mm["marked"]), str(mm["dirty"])]]
    assert epoch == [["/f", "3", "2"]]
    assert [int(size) for _, size in largest] == [64 * 4096, 3]
    assert mended == []


def test_views_say_what_wpctl_says(make_wpfs):
    """Of a mounted store with a program that lives, and of the same after its end."""
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs, "t")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {64 * 4096}")
    program.order(f"map 1 1 {8 * 4096} {16 * 4096}")
    program.order("store 0 0 1")
    program.order("store 0 40 1 24")
    program.order("store 1 5 1 2")
    program.order("unmap 0 10 10")
    target = None
    for _ in range(2):
        if target is None:
            wpfs.wpctl("sync", wpfs.mnt)
        for file in "/f", "/g":
            runs = query(wpfs, f"SELECT pgoff, pages FROM dirty_v WHERE path = '{file}'")
            assert set(view_pages(runs)) == report.dirty(wpfs, "t", file, target=target)
            runs = query(wpfs, f"SELECT pgoff, pages FROM run_v WHERE path = '{file}'")
            assert set(view_pages(runs)) == report.marked(wpfs, "t", file, target=target)
        if target is None:
            program.kill9()
            wpfs.umount()
            target = wpfs.store
    assert report.dirty(wpfs, "t", target=target) == {0} | set(range(40, 64))


def test_a_damaged_set_is_an_error(make_wpfs):
    """Rows that hold no set: one line, no rows, and sqlite3 lives to say so."""
    wpfs = make_wpfs(store=True)
    mapped(wpfs, "t").kill9()
    wpfs.umount()
    database = sqlite3.connect(f"{wpfs.store}/wpfs.db")
    database.execute("UPDATE armed_chunk SET armed = x'3b30000001000000ffff'")
    database.commit()
    database.close()
    assert "bytes that are no valid set of pages" in query(
        wpfs, "SELECT * FROM dirty_v", status=1)
    assert query(wpfs, "SELECT name FROM mm_v") == [["t"]]
    assert wpfs.command(harness.WPFS, "-f", wpfs.store, wpfs.mnt).returncode == 1
    shell(wpfs, examples()[-1])  # as wpfs(5) mends it
    wpfs.start()
    assert (wpfs.mnt / "f").stat().st_size == 64 * 4096
    assert "no program" in wpfs.wpctl("dirty", wpfs.mnt).stdout
