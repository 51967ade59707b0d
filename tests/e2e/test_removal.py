# SPDX-License-Identifier: LGPL-2.1-or-later
"""MADV_REMOVE takes out what the kernel takes out on tmpfs, no more and no less, wherever pages are."""

import pytest

import report
from harness import PAGE
from mapper import mapped
from seam import Seam

AT = 0x200000000000
CAPPED = ["resident=256M", "settle=0", "flush=0"]


def filled(wpfs, name="t", pages=64, evict=True):
    """A program with as many pages that are 5, in the store."""
    program = mapped(wpfs, name, protect=False, pages=pages)
    program.order(f"store 0 0 5 {pages}")
    if evict:
        assert wpfs.wpctl_json("evict", "/f")["pages"] == pages
    return program


def loaded(program, pages):
    return [program.order(f"load 0 {page}") for page in pages]


@pytest.mark.parametrize("options", [[], CAPPED], ids=["native", "capped"])
@pytest.mark.parametrize("beside", ["anon", "locked"])
@pytest.mark.parametrize("how", ["", "process", "filter"])
def test_what_comes_before_that_which_is_refused(make_wpfs, how, beside, options):
    """It goes, and what is refused stays: in one call, and in an entry of a list."""
    wpfs = make_wpfs(store=True, options=options)
    program = filled(wpfs, evict=False)
    program.order(f"map 1 0 {16 * PAGE} {(12 if beside == 'locked' else 8) * PAGE} at={AT}")
    if beside == "anon":
        program.order(f"map 2 0 0 {4 * PAGE} anon at={AT + 8 * PAGE}")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    if options:
        assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    if beside == "locked":
        program.order("lock 1 8 4")
    program.order("store 0 17 6")
    if how == "filter":
        program.order("seccomp")
    answer = program.ask(f"advise 1 0 12 remove {'process' if how == 'process' else ''}")
    assert answer == (f"ok {6 * PAGE}" if how == "process" else "err EINVAL")
    assert loaded(program, range(15, 29)) == [5] + [0] * 8 + [5] * 5
    gone, dirty = set(range(16, 24)), report.dirty(wpfs, "t")
    assert dirty == gone if beside == "anon" and not how else dirty >= gone


def test_of_a_mapping_that_nobody_was_told_of(make_wpfs):
    """On a capped mount, and after something that is refused: nothing goes."""
    wpfs = make_wpfs(store=True, options=CAPPED)
    program = filled(wpfs, evict=False)
    program.order(f"map 1 0 0 {2 * PAGE} anon at={AT}")
    program.order(f"remap 0 0 0 6 at={AT + 2 * PAGE} as=2 raw")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    assert program.ask("advise 1 0 8 remove") == "err EINVAL"
    assert loaded(program, range(7)) == [5] * 7
    program.order("advise 2 0 6 remove")
    assert loaded(program, range(7)) == [0] * 6 + [5]


def test_a_store_to_what_has_gone(make_wpfs):
    """Who has seen the zeros, and stores, has stored, though the call goes on."""
    wpfs = make_wpfs(store=True, options=CAPPED, start=False)
    seam = Seam(wpfs)
    wpfs.start()
    other = mapped(wpfs, "other", protect=False)
    program = filled(wpfs)
    seam.pause("removed")
    program.send("advise 0 8 8 remove")
    seam.wait_at("removed")
    assert loaded(other, range(7, 17)) == [5] + [0] * 8 + [5]
    other.order("store 0 9 7")
    seam.go("removed")
    assert program.read() == "ok 0"
    assert loaded(other, (8, 9, 10)) == loaded(program, (8, 9, 10)) == [0, 7, 0]


def test_through_a_mapping_without_access_and_there_is_no_daemon(make_wpfs):
    """Nothing can be brought back through that: it waits for who can take it out."""
    wpfs = make_wpfs(store=True, options=CAPPED)
    program = filled(wpfs)
    program.order("prot 0 0 64 none")
    wpfs.kill9()
    program.send("advise 0 8 8 remove")
    wpfs.restart()
    assert program.read() == "ok 0"
    program.order("prot 0 0 64 rw")
    assert loaded(program, (7, 8, 15, 16)) == [5, 0, 0, 5]


@pytest.mark.parametrize("options", [[], CAPPED], ids=["native", "capped"])
@pytest.mark.parametrize("how", ["each", "each_within"])
def test_of_a_long_list(make_wpfs, how, options):
    """As long as may be, and one longer: the kernel refuses that as a whole."""
    wpfs = make_wpfs(store=True, options=options)
    program = filled(wpfs, pages=1100, evict=bool(options))
    if how == "each":
        assert program.ask("advise 0 8 1025 remove each") == "err EINVAL"
        assert loaded(program, (7, 8, 1032, 1033)) == [5] * 4
    assert program.order(f"advise 0 8 1024 remove {how}") == 1024 * PAGE
    assert loaded(program, (7, 8, 9, 71, 72, 500, 1031, 1032)) == [5] + [0] * 6 + [5]


@pytest.mark.parametrize("options", [[], CAPPED], ids=["native", "capped"])
def test_of_more_than_one_call_does(make_wpfs, options):
    """Of 3 GiB process_madvise(2) takes out 2 GiB, but for a page, and says so."""
    wpfs = make_wpfs(store=True, options=options)
    program, last = mapped(wpfs, pages=3 << 18), 0x7fffe
    for page in (0, last, last + 1):
        program.order(f"store 0 {page} 5")
    if options:
        assert wpfs.wpctl_json("evict", "/f")["pages"] == 3
    assert program.order(f"advise 0 0 {3 << 18} remove process") == (last + 1) * PAGE
    assert loaded(program, (0, last, last + 1)) == [0, 0, 5]
    assert report.dirty(wpfs, "t") >= {0, last}


SWAPPED = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
libc.mmap.restype = libc.syscall.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.syscall.argtypes = [ctypes.c_long] * 6
mine = libc.mmap(None, 4 * 4096, 3, 1, os.open(sys.argv[1], os.O_RDWR), 0)
theirs = libc.mmap(None, 4 * 4096, 1, 1, os.open(sys.argv[2], os.O_RDONLY), 0)
print("mapped", flush=True)
sys.stdin.readline()
thread = threading.Thread(target=libc.madvise, args=(mine, 4 * 4096, 9))
thread.start()
sys.stdin.readline()
print(libc.syscall(25, theirs, 4 * 4096, 4 * 4096, 3, mine) == mine, flush=True)
thread.join()
print("over", flush=True)
sys.stdin.readline()
"""


def test_of_what_takes_the_place_meanwhile(make_wpfs):
    """By a raw mremap(2), just when it is known what is to go: a file that the program may only read
    keeps what it has."""
    wpfs = make_wpfs(store=True, options=CAPPED, start=False)
    seam = Seam(wpfs)
    wpfs.start()
    for name in "mine", "theirs":
        (wpfs.mnt / name).write_bytes(name[:1].encode() * 4 * PAGE)
    program = wpfs.spawn("/usr/bin/python3", "-c", SWAPPED, wpfs.mnt / "mine", wpfs.mnt / "theirs")
    assert program.read() == "mapped"
    assert wpfs.wpctl_json("evict", "/mine")["pages"] == 4
    seam.pause("sure")
    program.send("")
    seam.wait_at("sure")
    assert program.ask("") == "True"
    seam.go("sure")
    assert program.read() == "over"
    assert (wpfs.mnt / "theirs").read_bytes() == b"t" * 4 * PAGE
    assert (wpfs.mnt / "mine").read_bytes() == bytes(4 * PAGE)


def test_by_who_has_given_up_waiting(make_wpfs):
    """For a daemon that has no time: it does what can be done without, and what it stores then is not
    taken out when the daemon comes to it; nor do the file's pages stay in memory for that."""
    wpfs = make_wpfs(store=True, options=CAPPED, start=False)
    seam = Seam(wpfs)
    wpfs.start()
    other = mapped(wpfs, "other", protect=False)
    program = filled(wpfs)
    third = mapped(wpfs, "third", protect=False, path="g")  # of which nothing is in the store
    third.order("store 0 0 5 64")
    seam.pause("removed")
    program.send("advise 0 8 8 remove")
    seam.wait_at("removed")
    third.send("advise 0 8 8 remove")
    assert other.order("advise 0 32 8 remove") == 0
    assert third.read() == "ok 0"
    assert "its daemon does not answer" in other.stderr()
    other.order("store 0 33 7")
    seam.go("removed")
    assert program.read() == "ok 0"
    wpfs.wpctl("sync", wpfs.mnt)
    assert loaded(other, (31, 32, 33, 34)) == [5, 0, 7, 0]
    assert wpfs.wpctl_json("evict", "/g")["pages"] > 0
