# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The life of a mark: whatever can happen to a mapping, a file or a process, once to a program that
wpfs protects and once to one with a userfaultfd of its own, each quietly and while threads write to
other pages of the same mapping. See life.py for what is checked.
"""

import os
import random

import pytest

import life
import proc
import report
import swap
from harness import PAGE
from life import BASE, ELSEWHERE, HOME, PAGES, SPAN, THERE

EVENTS = "remap fork"
BYTES = len(SPAN) * PAGE
CASES = {}


def case(kinds=("wpfs", "own"), after=True, events=EVENTS):
    """`after`: the pages of SPAN can be stored to through mapping 0 when it is done."""

    def add(what):
        CASES[what.__name__] = (what, kinds, after, events)
        return what

    return add


def span(verb, *words):
    return " ".join([verb, "0", str(SPAN[0]), str(len(SPAN)), *words])


# ---- what leaves a mark where it is


@case()
def dontneed(t):
    t.order(span("advise", "dontneed"))


@case()
def pageout(t):
    t.order(span("advise", "pageout"))


@case()
def cold(t):
    t.order(span("advise", "cold"))


@case()
def willneed(t):
    t.order(span("advise", "willneed"))


@case()
def populate_read(t):
    t.order(span("advise", "populate_read"))


@case()
def mlock(t):
    t.order(span("lock"))
    t.order(span("unlock"))


@case()
def msync(t):
    t.order("msync 0")


@case()
def mprotect_splits_and_merges(t):
    t.order(span("prot", "r"))
    t.order(f"prot 0 {SPAN[4]} 4 none")
    t.wpfs.wpctl("sync", t.wpfs.mnt)
    t.order(f"prot 0 {SPAN[4]} 4 r")
    t.order(span("prot", "rw"))


@case()
def stores_of_another_mm(t):
    other = life.another(t)
    other.order(f"store 0 {BASE} 1 64")
    other.order("unmap 0")


@case()
def write_system_calls(t):
    t.order(f"pwrite 0 {SPAN[0] * PAGE} {BYTES} 1")


@case()
def looks_from_outside(t):
    for _ in range(5):
        t.wpfs.wpctl("sync", t.wpfs.mnt)
        t.store(BASE + 31)


# ---- contents that are dropped: marked, and dirty where wpfs says what is


@case()
def punch(t):
    t.order(f"punch 0 {SPAN[0] * PAGE} {BYTES}")
    t.changed |= set(SPAN)


@case()
def madv_remove(t):
    t.order(span("advise", "remove"))
    t.changed |= set(SPAN)


@case()
def truncate_and_extend(t):
    t.order(f"size 0 {SPAN[0] * PAGE + 100}")
    t.order(f"size 0 {PAGES * PAGE}")
    t.changed |= set(range(SPAN[0], PAGES))


# ---- what counts as a store


@case()
def populate_write(t):
    t.order(span("advise", "populate_write"))
    t.changed |= set(SPAN)
    t.gone |= set(SPAN)


@case()
def stores_of_the_kernel(t):
    t.order(f"kstore 0 {BASE + 40}")
    t.written.add(BASE + 40)


@case()
def stores_of_a_debugger(t):
    """Where a userfaultfd would have to be asked first the kernel refuses them."""
    assert life.poke(t.pid, t.addr + (BASE + 41) * PAGE) != t.own
    if not t.own:
        t.written.add(BASE + 41)


# ---- mappings that go, and what comes in their place


@case(after=False)
def munmap_of_a_part(t):
    t.order(span("unmap"))
    t.gone |= set(SPAN)


@case(after=False)
def raw_munmap_of_a_part(t):
    t.order(span("rawunmap"))
    t.gone |= set(SPAN)
    t.changed |= set(SPAN)


@case()
def mapped_again(t):
    """What wpfs armed is armed again; a userfaultfd of the program's own is not there any more."""
    t.order(span("unmap"))
    t.order(f"map 1 0 {SPAN[0] * PAGE} {BYTES} at={t.addr + SPAN[0] * PAGE}")
    t.gone |= set(SPAN)


def over(t, what, file=0, offset=0):
    """A mapping over SPAN: gone in it is what the program armed."""
    t.order(f"map 1 {file} {offset} {BYTES} at={t.addr + SPAN[0] * PAGE} {what}")
    t.gone |= set(SPAN)
    if "raw" in what:
        t.changed |= set(SPAN)


def other_file(t, path):
    t.order(f"open 1 {path}")
    t.order(f"size 1 {BYTES}")


@case(after=False)
def map_fixed_of_another_file(t):
    other_file(t, t.wpfs.mnt / "g")
    over(t, "", file=1)
    t.order("store 1 3 1")
    if not t.own:
        assert report.dirty(t.wpfs, t.name, "/g") == {3}


@case(after=False)
def map_fixed_of_another_file_system(t):
    other_file(t, t.wpfs.dir / "g")
    over(t, "", file=1)
    t.order("store 1 3 1")


@case(after=False)
def map_fixed_of_the_same_file(t):
    """Another part of it: those pages are mapped twice now."""
    over(t, "", offset=(BASE + 40) * PAGE)
    t.store(BASE + 43, mapping=1, first=BASE + 40)
    t.unseen_if_own(BASE + 43)
    t.twice = True


@case(after=False)
def map_fixed_anonymous(t):
    over(t, "anon")
    t.order("store 1 3 1")


@case(after=False)
def map_fixed_private(t):
    over(t, "private", offset=SPAN[0] * PAGE)
    t.order("store 1 3 1")


@case(after=False)
def raw_map_fixed_anonymous(t):
    over(t, "raw anon")
    t.order("store 1 3 1")


@case(after=False)
def raw_map_fixed_private(t):
    over(t, "raw private", offset=SPAN[0] * PAGE)
    t.order("store 1 3 1")


@case(after=False)
def raw_map_fixed_of_another_file(t):
    other_file(t, t.wpfs.mnt / "g")
    over(t, "raw", file=1)
    t.order("store 1 3 1")


@case()
def raw_map_fixed_of_the_same_pages(t):
    """It looks as the one before did, and nobody watches it."""
    over(t, "raw", offset=SPAN[0] * PAGE)
    t.store(BASE + 11)
    t.unseen_if_own(BASE + 11)


@case()
def mapped_again_over_something_else(t):
    """What stood there meanwhile left nothing behind, and takes nothing of what comes after it."""
    over(t, "anon")
    t.order("store 1 3 1")
    t.wpfs.wpctl("sync", t.wpfs.mnt)
    t.order(f"map 1 0 {SPAN[0] * PAGE} {BYTES} at={t.addr + SPAN[0] * PAGE}")
    t.wpfs.wpctl("sync", t.wpfs.mnt)
    if t.own:
        t.order(f"reg {t.uffd} 0 {SPAN[0]} {len(SPAN)}")
        t.order(f"wp {t.uffd} 0 {SPAN[0]} {len(SPAN)} on")
        t.gone -= set(SPAN)
        t.written -= set(SPAN)


# ---- mremap


@case()
def mremap_moves(t):
    t.addr = t.order(f"remap 0 0 {PAGES} {PAGES} at={ELSEWHERE}")
    t.store(BASE + 12)
    t.addr = t.order(f"remap 0 0 {PAGES} {PAGES} at={HOME}")


@case()
def raw_mremap_moves(t):
    """The kernel tells of it, whoever calls."""
    t.addr = t.order(f"remap 0 0 {PAGES} {PAGES} at={ELSEWHERE} raw")
    t.store(BASE + 12)


@case(kinds=["own"], events="")
def mremap_moves_without_events(t):
    t.addr = t.order(f"remap 0 0 {PAGES} {PAGES} at={ELSEWHERE}")
    t.gone |= t.all


@case(after=False)
def mremap_moves_a_part(t):
    t.order(f"remap 0 {SPAN[0]} {len(SPAN)} {len(SPAN)} at={ELSEWHERE} as=1")
    t.store(SPAN[2], mapping=1, first=SPAN[0])


@case(after=False)
def mremap_onto_another_part(t):
    """MREMAP_FIXED: what was there is replaced."""
    t.order(f"remap 0 {SPAN[0]} 8 8 at={t.addr + SPAN[8] * PAGE} as=1")
    t.store(SPAN[3], mapping=1, first=SPAN[0])
    t.gone |= set(SPAN[8:])


@case(kinds=["wpfs"])
def mremap_moves_what_was_put_together(t):
    """A part that comes back with nothing to arm joins its neighbours, as it does on tmpfs."""
    t.store(*SPAN)
    mapped_again(t)
    t.addr = t.order(f"remap 0 0 {PAGES} {PAGES} at={ELSEWHERE}")


@case()
def mremap_shrinks(t):
    t.order(f"remap 0 0 {PAGES} {PAGES - 16}")
    t.gone |= set(range(PAGES - 16, PAGES))


def grown(t, where):
    t.order(f"size 0 {(PAGES + 64) * PAGE}")
    t.addr = t.order(f"remap 0 0 {PAGES} {PAGES + 64} {where}")
    t.store(PAGES + 3)
    t.unseen_if_own(PAGES + 3)
    if not t.own:
        t.all |= set(range(PAGES, PAGES + 64))


@case()
def mremap_grows(t):
    grown(t, "")
    assert t.addr == HOME


@case()
def mremap_grows_elsewhere(t):
    """Other threads know the address, and could have stored there before it was armed."""
    grown(t, f"at={ELSEWHERE}")
    t.changed |= set() if t.own else set(range(PAGES, PAGES + 64))


@case()
def mremap_dontunmap(t):
    """The old mapping stays, without a mark: whatever is armed there can be written unseen."""
    t.order(f"remap 0 {SPAN[0]} {len(SPAN)} {len(SPAN)} at={THERE} as=1 keep")
    t.changed |= set(SPAN)
    t.store(SPAN[3], mapping=1, first=SPAN[0])
    t.twice = True


# ---- several mappings


@case()
def mapped_twice(t):
    t.order(f"map 1 0 0 {PAGES * PAGE}")
    t.store(BASE + 40, mapping=1)
    t.unseen_if_own(BASE + 40)
    t.order("unmap 1")
    t.twice = True


@case()
def raw_mapped_too(t):
    """Nobody watches that one: what it shows may have been written."""
    t.order(f"map 1 0 {SPAN[0] * PAGE} {BYTES} raw")
    t.store(SPAN[3], mapping=1, first=SPAN[0])
    t.unseen_if_own(SPAN[3])
    t.changed |= set(SPAN)
    t.twice = True


@case()
def mapped_read_only_too(t):
    t.order(f"map 1 0 0 {PAGES * PAGE} ro")
    t.order(f"load 1 {BASE + 40}")
    t.twice = True


@case()
def mapped_private_too(t):
    t.order(f"map 1 0 0 {PAGES * PAGE} private")
    t.order(f"store 1 {BASE + 40} 1")


@case()
def mapped_populated(t):
    t.order(f"map 1 0 0 {PAGES * PAGE} populate")
    t.twice = True


@case()
def mapped_locked(t):
    t.order(f"map 1 0 {SPAN[0] * PAGE} {BYTES} locked")
    t.twice = True


@case()
def mapped_beyond_the_end(t):
    t.order(f"map 1 0 {BASE * PAGE} {128 * PAGE}")
    t.order(f"size 0 {(PAGES + 64) * PAGE}")
    t.store(PAGES + 3, mapping=1, first=BASE)
    t.unseen_if_own(PAGES + 3)
    if not t.own:
        t.all |= set(range(PAGES, PAGES + 64))
    t.twice = True


# ---- children


def children(t, how, count=1):
    t.order(f"child {how} 0 {BASE + 40} {count}")
    return set(range(BASE + 40, BASE + 40 + count))


@case()
def fork(t):
    written = children(t, "fork")
    t.family |= set() if t.own else written


@case()
def fork_storm(t):
    for _ in range(3):
        written = children(t, "fork", 12)
    t.family |= set() if t.own else written


@case()
def fork_in_a_thread(t):
    written = children(t, "thread", 2)
    t.family |= set() if t.own else written


@case()
def double_fork(t):
    written = children(t, "double", 2)
    t.family |= set() if t.own else written


@case()
def raw_clone(t):
    written = children(t, "raw", 2)
    t.family |= set() if t.own else written


@case(kinds=["own"], events="")
def fork_without_events(t):
    children(t, "fork", 3)


@case()
def vfork(t):
    t.written |= children(t, "vfork", 2)


@case()
def clone_vm(t):
    t.written |= children(t, "vm", 2)


@case()
def posix_spawn(t):
    children(t, "spawn", 2)


# ---- registrations


@case()
def several_registrations(t):
    """A userfaultfd of the program on a part of the mapping, after the one that was there."""
    if t.own:
        t.order(f"unreg {t.uffd} 0 {SPAN[0]} {len(SPAN)}")
    t.order(span("uffd"))
    t.written -= set(SPAN) if t.own else set()  # protected anew
    t.changed |= set(SPAN)


@case(kinds=["own"])
def unregister(t):
    t.order(f"unreg {t.uffd} 0 {SPAN[0]} {len(SPAN)}")
    t.gone |= set(SPAN)


@case(kinds=["own"])
def unregister_and_register(t):
    """Leftovers are cleared: what is registered anew is not marked."""
    t.order(f"unreg {t.uffd} 0 {SPAN[0]} {len(SPAN)}")
    t.order(f"reg {t.uffd} 0 {SPAN[0]} {len(SPAN)}")
    t.gone |= set(SPAN)


@case(kinds=["own"])
def last_close(t):
    if t.threads:
        t.order("rest")  # nobody would let them go on
    t.order(f"uclose {t.uffd}")
    t.gone |= t.all


# ---- names of the file


@case()
def rename(t):
    os.rename(t.file, t.wpfs.mnt / f"{t.name}.new")
    t.path += ".new"


@case()
def hard_link(t):
    """It keeps the name it is known by, and is found by either."""
    link = t.wpfs.mnt / f"{t.name}.link"
    os.link(t.file, link)
    t.order(f"open 1 {link}")
    t.order(f"map 1 1 0 {PAGES * PAGE}")
    t.store(BASE + 40, mapping=1)
    t.unseen_if_own(BASE + 40)
    t.order("unmap 1")
    t.twice = True


# ---- programs that change what they are, and still say what they do


def goes_on(t, parts=3):
    """Its calls reach the daemon, its children are known, nothing is in doubt."""
    for _ in range(parts):
        mapped_again(t)
    t.family |= set() if t.own else children(t, "fork", 2)


@case()
def chroot(t):
    root = t.wpfs.dir / t.name
    root.mkdir()
    t.order(f"chroot {root}")
    goes_on(t)


@case()
def chuid(t):
    t.order("uid 54321")
    goes_on(t)


@case()
def new_session(t):
    t.order("setsid")
    goes_on(t)


FIRST_OF_OTHERS = 16  # descriptors that the program has not made


@case()
def close_from(t):
    t.order(f"closefrom {FIRST_OF_OTHERS}")
    goes_on(t)


@case()
def close_one_by_one(t):
    t.order(f"closeall {FIRST_OF_OTHERS}")
    goes_on(t)


@case()
def raw_close_range(t):
    """The shim's socket is gone; it makes a new one and writes to nothing that has its number."""
    t.order(f"rawclosefrom {FIRST_OF_OTHERS}")
    mine = t.wpfs.dir / f"{t.name}.mine"
    for fd in range(20):
        t.order(f"open {fd + 2} {mine}")
    goes_on(t)
    assert mine.stat().st_size == 0


@case()
def debugged(t):
    with life.traced(t.pid):
        mapped_again(t)
    goes_on(t)


def lives(names=CASES):
    return [(name, kind) for name in names for kind in CASES[name][1]]


def both(wpfs, name, kind, populated=False, cls=life.Life):
    what, _, after, events = CASES[name]
    both_ = []
    for threads in (0, 2):
        both_.append(cls(wpfs, kind, threads, events, populated))
        life.live(both_[-1], what, after)
    life.check_and_end(both_)


@pytest.mark.parametrize("name,kind", lives())
def test_life(wpfs, name, kind):
    both(wpfs, name, kind)


# ---- huge pages


@case()
def collapse(t):
    """The kernel may refuse it where pages are armed; what it does it must do with their marks."""
    t.program.ask(f"advise 0 0 {PAGES} hugepage")
    t.program.ask(f"advise 0 0 {PAGES} collapse")


HUGE = ["collapse", "dontneed", "punch", "populate_write", "mprotect_splits_and_merges",
        "munmap_of_a_part", "mremap_moves", "mremap_moves_a_part", "fork", "stores_of_the_kernel"]


def huge_pages(pid):
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("ShmemPmdMapped:"))


@pytest.mark.parametrize("name,kind", lives(HUGE))
def test_huge_pages(make_wpfs, name, kind):
    """The pages are there and huge when they are armed, which takes them apart."""
    proc.make_huge_pages()
    wpfs = make_wpfs(options=["huge=always"])
    seen = []

    class Huge(life.Life):
        def arm(self, events, populated):
            seen.append(huge_pages(self.pid))
            super().arm(events, populated)

    both(wpfs, name, kind, populated=True, cls=Huge)
    assert seen == [PAGES * 4] * 2, "no huge pages"


# ---- a capped mount: wpfs's own userfaultfd is a synchronous one there, and pages are in the store

CAPPED = ["dontneed", "madv_remove", "truncate_and_extend", "populate_write", "munmap_of_a_part",
          "mapped_again", "map_fixed_anonymous", "mremap_moves", "mremap_moves_a_part",
          "mremap_grows", "mapped_twice", "fork", "fork_storm", "raw_clone", "vfork", "clone_vm",
          "several_registrations", "chroot", "close_from"]


@pytest.mark.parametrize("name,kind", lives(CAPPED))
def test_on_a_capped_mount(make_wpfs, name, kind):
    wpfs = make_wpfs("store", ["resident=256M", "settle=0"])

    class Evicted(life.Life):
        def arm(self, events, populated):
            super().arm(events, populated)
            if not self.own:
                self.order("store 0 0 3 100")
                self.written |= set(range(100))
                assert wpfs.wpctl_json("evict", self.path)["pages"] == 100

    both(wpfs, name, kind, cls=Evicted)


# ---- what needs more than one program, or the machine


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["wpfs", "own"])
def test_swapoff(wpfs, kind):
    """Out to swap, and back because the swap area goes."""
    with swap.area(128 << 20) as area:
        lives_ = [life.Life(wpfs, kind, threads, populated=True) for threads in (0, 2)]
        for t in lives_:
            t.store(BASE + 1, BASE + 9)
            t.order(f"advise 0 0 {PAGES} pageout")
            assert swap.pages_of(t.pid, t.addr) > 32, f"nothing went to {area.name}"
            t.store(BASE + 2, BASE + 30)
    for t in lives_:
        t.store(BASE + 3)
    life.check_and_end(lives_)


@pytest.mark.parametrize("kind", ["wpfs", "own"])
def test_unlinked(wpfs, kind):
    """Tracked while it is mapped; with the last mapping its marks go, and so for good."""
    for threads in (0, 2):
        t = life.Life(wpfs, kind, threads)
        t.store(BASE + 1)
        os.unlink(t.file)
        t.store(BASE + 2)
        t.rest()
        life.check([t])
        t.kill()
        for verb in ("dirty", "marks"):
            assert not t.pages(wpfs.wpctl_json(verb), "detached")
        (wpfs.mnt / t.name).write_bytes(bytes(PAGES * PAGE))
        assert not t.pages(wpfs.wpctl_json("marks"), "detached"), "another file has its marks"


@pytest.mark.parametrize("kind", ["wpfs", "own"])
def test_exec_chain(wpfs, kind):
    """Each program of a chain goes on where the last one ended, whatever its threads were at."""
    for threads in (0, 2):
        t = life.Life(wpfs, kind, threads)
        for turn in range(3):
            t.store(BASE + turn)
            t.program.send(f"exec {t.program.argv[-1]}")
            t.map()
            if kind == "own":
                fd = t.order("uffd 0 0 1")  # arms what was, nothing else but its first page
                t.order(f"reg {fd} 0 0 {PAGES}")
                t.order(f"wp {fd} 0 0 1 off")
                t.written.add(0)
            life.check([t])
            t.write_on()
        life.check_and_end([t])


# ---- all of it amid stores to the very pages


def unmap_and_map(t):
    t.order(span("unmap"))
    t.order(f"map 1 0 {SPAN[0] * PAGE} {BYTES} at={t.addr + SPAN[0] * PAGE}")


def map_over(t):
    t.order(f"map 1 0 {SPAN[0] * PAGE} {BYTES} at={t.addr + SPAN[0] * PAGE}")


def move_all(t):
    to = ELSEWHERE if t.addr == HOME else HOME
    t.addr = t.order(f"remap 0 0 {PAGES} {PAGES} at={to}")


def move_a_part(t):
    t.order(f"remap 0 {SPAN[0]} {len(SPAN)} {len(SPAN)} at={THERE} as=1")
    t.order(f"remap 1 0 {len(SPAN)} {len(SPAN)} at={t.addr + SPAN[0] * PAGE}")


def shrink_and_map(t):
    t.order(f"remap 0 {PAGES - 16} 16 8")
    t.order(f"map 1 0 {(PAGES - 8) * PAGE} {8 * PAGE} at={t.addr + (PAGES - 8) * PAGE}")


def look(t):
    t.wpfs.wpctl("sync", t.wpfs.mnt)


KEEPS = [dontneed, cold, populate_read, mprotect_splits_and_merges, move_a_part, fork, look]
AMID = {"wpfs": [*KEEPS, punch, unmap_and_map, map_over, move_all, shrink_and_map], "own": KEEPS}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["wpfs", "own"])
def test_amid_stores(wpfs, kind, seed):
    """Threads store to every page; one that is not there for a moment they try again."""
    rng = random.Random(seed)
    t = life.Life(wpfs, kind, 0)
    t.threads = 3
    t.order(f"writers 0 0 {PAGES} {t.threads} {t.reference}")
    for _ in range(25):
        rng.choice(AMID[kind])(t)
    t.family.clear()  # they wrote what others write too
    t.rest()
    life.check([t])
    t.order(f"writers 0 0 {PAGES} {t.threads} {t.reference}")
    t.order("busy 50")
    t.program.kill9()
    life.check([t], "detached")


def test_threads_that_map(wpfs):
    """Each maps parts of the file of its own accord, amid the others' calls, stores and forks."""
    t = life.Life(wpfs, "wpfs", 2)
    for _ in range(3):
        t.program.send("storm 0 0 4 25")
        for _ in range(5):
            look(t)
        assert t.program.read() == "ok 0"
        children(t, "fork", 4)
    t.twice = True
    life.check_and_end([t])
