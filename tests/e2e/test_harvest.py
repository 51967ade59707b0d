# SPDX-License-Identifier: LGPL-2.1-or-later
"""Harvests at any moment, amid mmap, munmap, mremap and fork: none is misled by what it sees."""

import contextlib
import random
import threading

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, PAGES, killed, mapped
from test_children import in_call, trace

MREMAP = 25  # a system call of x86-64


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


@pytest.mark.parametrize("kind", ["", " ro"], ids=["", "read-only"])
@pytest.mark.parametrize("options", [None, ["resident=64M", "settle=0"]], ids=["native", "capped"])
def test_before_a_mapping_is_moved_over_another(make_wpfs, options, kind):
    """What is there still has been harvested, and nobody can have stored to it since."""
    wpfs = make_wpfs("store", options) if options else make_wpfs()
    program = mapped(wpfs)
    program.order("store 0 3 1")
    program.order("store 0 9 1")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {PAGES * PAGE}")
    strace = trace(program, "trace=mremap", "inject=mremap:delay_enter=100s")
    program.send(f"map 1 1 0 {8 * PAGE}{kind} at={program.addr}")
    proc.wait_for(lambda: in_call(program.pid, MREMAP), harness.SECONDS, "the call")
    for _ in range(2):
        wpfs.wpctl("sync", wpfs.mnt)
    strace.kill()
    strace.wait()
    assert program.read() == f"ok {program.addr}"
    assert report.dirty(wpfs, "t") == {3, 9}
    if not kind:
        program.order("store 1 5 1")
    program.order("store 0 10 1")
    assert killed(wpfs, program) == {3, 9, 10}
    assert report.dirty(wpfs, "t", "/g") == (set() if kind else {5})


def test_a_mapping_is_moved_over_another_when_memory_is_short(make_wpfs):
    """The same as it happens without anybody's doing: the daemon looks itself when memory is short."""
    wpfs = make_wpfs("store", ["resident=128K", "settle=0"])
    program = mapped(wpfs, pages=28)  # with the other one it is more than may be in memory
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {PAGES * PAGE}")
    program.order(f"map 1 1 0 {8 * PAGE} at={program.addr}")
    assert report.dirty(wpfs, "t") == set()
