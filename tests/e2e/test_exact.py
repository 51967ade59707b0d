# SPDX-License-Identifier: LGPL-2.1-or-later
"""
`dirty` against a page-by-page reference kept by the program itself: random sets of protected
pages, random writes by four threads, and every way an address space can end.
"""

import random

import pytest

import harness

PAGES = 16384  # 64 MiB
WRITES = 1_000_000
ENDS = ("unmap", "exit", "kill", "exec", "kill in mid-write")


def runs_of(report, path="/f"):
    """Pages in the runs of all maps of a file, over all mms of a report."""
    pages = []
    for mm in report["mms"]:
        for one in mm["maps"]:
            if one["file"] == path:
                for run in one["runs"]:
                    pages += range(run["pgoff"], run["pgoff"] + run["pages"])
    return pages


def dirty_pages(wpfs, name="h"):
    pages = runs_of(wpfs.wpctl_json("dirty", "--name", name))
    assert len(pages) == len(set(pages)), "a dirty page is listed twice"
    return set(pages)


def protect_random(wpfs, rng):
    """Protects some random ranges; the set of pages that are armed then."""
    armed = set()
    for _ in range(rng.randint(1, 6)):
        first = rng.randrange(PAGES)
        count = rng.randint(1, min(PAGES - first, rng.choice([1, 64, PAGES])))
        wpfs.wpctl("protect", wpfs.mnt, "--name", "h", "--file", "/f", "--range",
                   f"{first * 4096}+{count * 4096}")
        armed |= set(range(first, first + count))
    return armed


def check(wpfs, armed, reference):
    written = {page for page, state in enumerate(reference.read_bytes()) if state == 2}
    begun = {page for page, state in enumerate(reference.read_bytes()) if state == 1}
    dirty = dirty_pages(wpfs)
    assert not (written & armed) - dirty, "a mark lies: pages were written and are not dirty"
    assert not dirty - (written | begun), "pages are dirty that nobody wrote"
    assert dirty <= armed
    if not begun:
        assert dirty == written & armed


@pytest.mark.parametrize("seed", range(25))
def test_dirty_equals_the_reference(wpfs, seed):
    rng = random.Random(seed)
    end = ENDS[seed % len(ENDS)]
    reference = wpfs.dir / "reference"
    prog = wpfs.spawn(harness.program("hammer"), wpfs.mnt / "f", reference, PAGES, 4, seed,
                      name="h")
    assert prog.read() == "ok"
    armed = protect_random(wpfs, rng)
    targets = rng.choice([10, 1000, PAGES, 4 * PAGES])
    assert prog.ask(f"write {targets} {WRITES}") == "ok"
    check(wpfs, armed, reference)

    if end == "unmap":
        assert prog.ask("unmap") == "ok"
    elif end == "exit":
        prog.send("exit")
        prog.wait()
    elif end == "kill":
        prog.kill9()
    elif end == "exec":
        assert prog.ask("exec") == "ok"
    else:
        assert prog.ask(f"flood {targets}") == "ok"
        prog.kill9()
    check(wpfs, armed, reference)
    if end != "unmap":
        states = [mm["state"] for mm in wpfs.wpctl_json("dirty", "--name", "h")["mms"]]
        assert states == ["detached"]


def test_a_second_run_goes_on_where_the_first_ended(wpfs):
    """What was not written is marked again before the program touches it; what was stays dirty."""
    reference = wpfs.dir / "reference"
    for run in range(3):
        prog = wpfs.spawn(harness.program("hammer"), wpfs.mnt / "f", reference, PAGES, 4, run,
                          name="h", protect=True)
        assert prog.read() == "ok"
        assert prog.ask("write 300 3000") == "ok"
        check(wpfs, set(range(PAGES)), reference)
        prog.kill9()
        check(wpfs, set(range(PAGES)), reference)
