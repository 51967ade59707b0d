# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: protect, change, kill -9, mount again, run again, evict; nothing is forgotten."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from stage import PAGE, SECONDS, Marks, Stage, Wrong, claim, pages_that_differ, title

HERE = Path(__file__).resolve().parent
WANTED = 50 << 20  # bytes of real data, at least
FILE = "/db/data.mdb"


def files_below(top):
    for directory, below, names in os.walk(top):
        below.sort()
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def real_data(path):
    """Writes the records of every package the machine knows, filled up with files of /usr/lib."""
    with open(path, "wb") as out:
        subprocess.run(["apt-cache", "dumpavail"], stdout=out, stderr=subprocess.DEVNULL,
                       timeout=SECONDS, check=False)
        for file in files_below("/usr/lib"):
            if out.tell() >= WANTED:
                break
            data = Path(file).read_bytes().replace(b"\n\n", b"\n")
            for at in range(0, len(data), 2000):
                out.write(b"\n\n" + data[at:at + 2000])


def start_db(stage):
    return stage.run("db", "/usr/bin/python3", HERE / "db.py", stage.mnt / "db")


def marks(stage):
    return Marks(stage.ctl_json("marks", "--name", "db", "--file", FILE))


def dirty(stage):
    return Marks(stage.ctl_json("dirty", "--name", "db", "--file", FILE))


def inner_page(pages):
    """One of these pages, where the database has its data and not a hole."""
    return sorted(pages)[len(pages) // 5]


def compare(dirty_pages, differ):
    """Every page that differs is dirty; a page that was written and is the same again may be."""
    missed, others = differ - dirty_pages, dirty_pages - differ
    claim(differ and not missed,
          f"{len(differ)} pages differ from the copy, all of them are among the "
          f"{len(dirty_pages)} dirty ones")
    claim(len(others) <= 16 + len(differ) // 10,
          f"{len(others)} dirty pages do not differ (written, with what was there before)")


def draw(stage, pictures, name):
    """Pictures of the marks, for light and for dark paper, into the directory if there is one."""
    if not pictures:
        return
    for theme, option in ("light", ()), ("dark", ("--dark",)):
        stage.ctl("map", "--name", "db", "--file", FILE, "-o", pictures / f"{name}-{theme}.svg", *option)


def tell(stage, pictures):
    title("1  A store, a mount, and a database that knows nothing of wpfs")
    stage.mount()
    db = start_db(stage)
    real_data(stage.dir / "data")
    loaded = db.order(f"load {stage.dir / 'data'}")
    size = int(loaded.split()[2])
    claim(size >= WANTED, f"LMDB holds {loaded.split()[0]} records in {size >> 20} MB of pages")

    title("2  Protect: one mark per page")
    stage.show(stage.ctl("protect", "--name", "db"))
    copy = stage.dir / "copy"
    shutil.copyfile(f"{stage.mnt}{FILE}", copy)
    first = marks(stage)
    total = os.path.getsize(copy) // PAGE
    claim(first.pages == set(range(total)), f"all {total} pages of {FILE} are marked")

    title("3  A transaction: which pages did it change?")
    print("       " + db.order("change 40"))
    compare(dirty(stage).pages, pages_that_differ(f"{stage.mnt}{FILE}", copy))
    stage.show(stage.ctl("ps"))

    title("4  kill -9 in mid-work")
    db.order("work")
    print(f"   $ kill -9 {db.pid}")
    db.kill9()
    killed = dirty(stage).pages
    compare(killed, pages_that_differ(f"{stage.mnt}{FILE}", copy))
    draw(stage, pictures, "map")

    title("5  Unmount, mount again, run again")
    stage.umount()
    stage.mount()
    compare(dirty(stage).pages, pages_that_differ(f"{stage.mnt}{FILE}", copy))
    db = start_db(stage)
    again = marks(stage)
    claim(again.pages == set(range(total)) - killed,
          f"all {len(again.pages)} pages that it has not written are still marked")
    claim(again.starts and again.starts.isdisjoint(first.starts),
          f"at {', '.join(sorted(again.starts))} now, at {', '.join(sorted(first.starts))} before")
    page = inner_page(again.pages)
    print("       " + db.order(f"poke {page}"))
    poked = dirty(stage).pages
    claim(poked == killed | {page}, f"one write, one page more: {len(poked)} dirty, {page} is new")
    db.quit()

    title("6  On a capped mount: evict, touch, still marked")
    stage.umount()
    stage.mount("resident=1G")
    db = start_db(stage)
    before = marks(stage).pages
    claim(before == set(range(total)) - poked, f"{len(before)} pages marked")
    stage.show(stage.ctl("evict", FILE))
    spilled = stage.status("spilled")
    claim(spilled >= WANTED, f"{spilled >> 20} MB of pages are on disk instead of in memory")
    print("       " + db.order("read 2000"))
    left = stage.status("spilled")
    claim(left < spilled, f"{(spilled - left) >> 20} MB of them came back as they were touched")
    claim(marks(stage).pages == before, "and every mark is as it was")
    draw(stage, pictures, "capped")
    page = inner_page(before)
    print("       " + db.order(f"poke {page}"))
    claim(dirty(stage).pages == poked | {page}, f"a write is still seen: page {page}")
    db.quit()
    stage.umount()


def main(build, pictures=None):
    start = time.monotonic()
    stage = Stage(build)
    try:
        tell(stage, pictures and Path(pictures))
    except (Wrong, OSError, subprocess.SubprocessError) as problem:
        print(f"   NOT SO: {problem}", file=sys.stderr)
        return 1
    finally:
        stage.close()
    print(f"\nAll of it checked, in {time.monotonic() - start:.0f} seconds.")
    return 0


sys.exit(main(*sys.argv[1:]))
