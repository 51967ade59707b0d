# SPDX-License-Identifier: LGPL-2.1-or-later
"""Harvests at any moment, amid mmap, munmap, mremap and fork: none is misled by what it sees."""

import contextlib
import random
import threading

import pytest

import harness
import report
from harness import PAGE
from mapper import ALL, PAGES, killed, mapped


@contextlib.contextmanager
def looked_at(wpfs):
    """Two others harvest all the while, one after the other."""
    stop = threading.Event()
    failed, looks = [], [0, 0]

    def look(who):
        while not stop.is_set():
            done = wpfs.wpctl("sync", wpfs.mnt, status=None)
            if done.returncode:
                failed.append(done.stderr)
                return
            looks[who] += 1

    threads = [threading.Thread(target=look, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield looks
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed[0]


@pytest.mark.parametrize("kind", ["native", "capped"])
def test_maps_and_unmaps(make_wpfs, kind):
    wpfs = make_wpfs("store", ["resident=64M"] if kind == "capped" else [])
    mapped(wpfs).kill9()
    program = wpfs.spawn(harness.program("mapper"), name="t")
    program.order(f"open 0 {wpfs.mnt}/f")
    rng, written = random.Random(1), set()
    with looked_at(wpfs) as looks:
        turn = 0
        while turn < 300 or sum(looks) <= 10:
            turn += 1
            first = rng.randrange(PAGES)
            count = rng.randint(1, PAGES - first)
            program.order(f"map 0 0 {first * PAGE} {count * PAGE}")
            if turn % 20 == 0:
                page = rng.randrange(count)
                program.order(f"store 0 {page} 1")
                written.add(first + page)
            program.order("unmap 0")
    assert report.dirty(wpfs, "t") == written
    assert report.marked(wpfs, "t") == ALL - written
    assert killed(wpfs, program) == written


def test_moves_and_forks(wpfs):
    reference = wpfs.dir / "reference"
    program = wpfs.spawn(harness.program("churn"), wpfs.mnt / "f", reference, 4096, name="c",
                         protect=True)
    assert program.read() == "ok"
    with looked_at(wpfs) as looks:
        assert program.ask("go") == "ok"
        harness.proc.wait_for(lambda: min(looks) > 20, harness.STORE_SECONDS, "looks")
        moves = int(program.ask("stop").split()[1])
    assert moves > 10
    written = {page for page, state in enumerate(reference.read_bytes()) if state}
    assert report.dirty(wpfs, "c") == written


def test_one_munmap_of_several_mappings(wpfs):
    """The harvest for the second sees the first, which is to go, and forgets it again."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {PAGES * PAGE}")
    addr = program.order(f"map 0 0 0 {PAGES * PAGE}")
    program.order(f"map 1 0 {40 * PAGE} {8 * PAGE} at={addr + 16 * PAGE}")
    program.order(f"map 2 0 {20 * PAGE} {8 * PAGE} at={addr + 24 * PAGE}")
    program.order("store 0 3 1")
    program.order("store 1 2 1")
    program.order("store 2 1 1")
    expected = {3, 42, 21}
    program.order("unmap 0 8 32")
    assert report.dirty(wpfs, "t") == expected
    program.order("store 0 50 1")
    assert report.dirty(wpfs, "t") == expected | {50}
    program.order("unmap 0")
    assert report.dirty(wpfs, "t") == expected | {50}
    assert killed(wpfs, program) == expected | {50}
