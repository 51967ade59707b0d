# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a mark is bound to, and what it survives: the rules about the life of a mark, one by one."""

import pytest

import harness
import pagemap
import proc
import report
import swap
from harness import PAGE
from mapper import ALL, PAGES, Child, killed, mapped
from pagemap import MARKED, PRESENT, SWAPPED

# ---- one bit per page, mm and address


def test_two_processes_have_marks_of_their_own(wpfs):
    one, two = mapped(wpfs, "one"), mapped(wpfs, "two")
    one.order("store 0 3 1")
    two.order("store 0 5 2 2")
    assert one.order("load 0 5") == 2, "they do not map the same file"
    assert report.dirty(wpfs, "one") == {3}
    assert report.dirty(wpfs, "two") == {5, 6}
    wpfs.wpctl("protect", wpfs.mnt, "--name", "one")
    assert report.dirty(wpfs, "one") == set()
    assert report.dirty(wpfs, "two") == {5, 6}
    one.order("store 0 5 3")
    assert killed(wpfs, one, "one") == {5}
    assert killed(wpfs, two, "two") == {5, 6}


def test_mapped_twice_a_store_through_either_is_seen(wpfs):
    program = mapped(wpfs)
    program.order(f"map 1 0 {16 * PAGE} {16 * PAGE}")  # pages 16 to 31 once more
    program.order("store 0 2 1")
    program.order("store 0 17 1")
    program.order("store 1 3 1")
    expected = {2, 17, 19}
    assert report.dirty(wpfs, "t") == expected
    program.order("unmap 1")
    assert report.dirty(wpfs, "t") == expected, "the written mapping went, and with it the page"
    program.order("unmap 0")
    assert report.dirty(wpfs, "t") == expected
    assert killed(wpfs, program) == expected


def test_two_mappings_of_which_one_is_older_than_the_protection(wpfs):
    program = mapped(wpfs, protect=False)
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order(f"map 1 0 0 {PAGES * PAGE}")
    assert report.dirty(wpfs, "t") == set()
    program.order("store 1 9 1")
    assert report.dirty(wpfs, "t") == {9}


def test_never_armed_is_not_dirty(wpfs):
    program = mapped(wpfs, protect=False)
    program.order("store 0 0 1 8")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f", "--range",
               f"{16 * PAGE}+{16 * PAGE}")
    program.order("store 0 12 1 8")
    assert report.dirty(wpfs, "t") == {16, 17, 18, 19}
    assert report.marked(wpfs, "t") == set(range(20, 32))


def test_a_read_only_mapping_makes_nothing_dirty(wpfs):
    program = mapped(wpfs)
    program.order(f"map 1 0 0 {PAGES * PAGE} ro")
    assert program.order("load 1 7") == 0
    program.order("store 0 1 1")
    program.order("unmap 1")
    assert report.dirty(wpfs, "t") == {1}
    program.order(f"map 2 0 0 {PAGES * PAGE} ro")
    program.order("prot 2 7 1 rw")
    program.order("store 2 7 1")
    assert report.dirty(wpfs, "t") == {1, 7}


# ---- what leaves a mark where it is


def test_dontneed(wpfs):
    program = mapped(wpfs)
    program.order("store 0 0 1 8")
    program.order("load 0 20")
    program.order(f"advise 0 0 {PAGES} dontneed")
    assert report.dirty(wpfs, "t") == set(range(8))
    assert report.marked(wpfs, "t") == ALL - set(range(8))
    program.order("store 0 20 1")
    assert program.order("load 0 3") == 1, "the contents stay"
    assert report.dirty(wpfs, "t") == set(range(8)) | {20}


def test_mprotect(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    program.order(f"prot 0 0 {PAGES} r")
    assert program.order("load 0 2") == 0
    assert report.dirty(wpfs, "t") == {1}
    program.order("prot 0 8 8 none")
    program.order(f"prot 0 0 {PAGES} rw")
    assert report.marked(wpfs, "t") == ALL - {1}
    program.order("store 0 2 1")
    program.order("store 0 9 1")
    assert report.dirty(wpfs, "t") == {1, 2, 9}


def dropped(wpfs, program, drop):
    """Pages 8 to 15 are dropped: contents other than at the protection, so dirty, and marked."""
    program.order("store 0 8 1 4")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 1 1")
    drop()
    assert program.order("load 0 8") == 0, "it was not dropped"
    expected = {1} | set(range(8, 16))
    assert report.dirty(wpfs, "t") == expected
    assert pagemap.marked(program.pid, program.addr, PAGES) == ALL - {1}, "a drop took a mark"
    program.order("store 0 9 1")
    program.order("store 0 30 1")
    assert report.dirty(wpfs, "t") == expected | {30}
    assert killed(wpfs, program) == expected | {30}
    again = mapped(wpfs, protect=False)
    assert report.dirty(wpfs, "t") == expected | {30}, "the next run forgot it"
    assert again.order("load 0 9") == 1


def test_punch(wpfs):
    program = mapped(wpfs)
    dropped(wpfs, program, lambda: program.order(f"punch 0 {8 * PAGE} {8 * PAGE}"))


def test_punch_by_another_process(wpfs):
    program = mapped(wpfs)

    def punch():
        other = wpfs.spawn_bare(harness.program("mapper"))
        other.order(f"open 0 {wpfs.mnt}/f")
        other.order(f"punch 0 {8 * PAGE} {8 * PAGE}")

    dropped(wpfs, program, punch)


@pytest.mark.parametrize("how", ["", "process"])
def test_madv_remove(wpfs, how):
    """By madvise(2), and by process_madvise(2) of one's own process (Linux 6.15)."""
    program = mapped(wpfs)
    dropped(wpfs, program, lambda: program.order(f"advise 0 8 8 remove {how}"))


def test_madv_remove_under_a_filter(wpfs):
    """Nothing is asked then. It is not known which pages it was: all of the file, and for all."""
    program, other = mapped(wpfs), mapped(wpfs, "other")
    program.order("store 0 0 5 16")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    program.order("seccomp")
    program.order("advise 0 8 8 remove")
    assert other.order("load 0 8") == 0
    assert report.dirty(wpfs, "t") == ALL
    assert report.dirty(wpfs, "other") == ALL
    assert killed(wpfs, program) == ALL


@pytest.mark.parametrize("how", ["", "process"])
def test_madv_remove_under_a_filter_of_pages_in_the_store(make_wpfs, how):
    """Nobody can say of a capped mount's that they are not needed any more: they do not come back."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program, other = mapped(wpfs), mapped(wpfs, "other")
    program.order("store 0 0 5 64")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    program.order("seccomp")
    program.order(f"advise 0 8 8 remove {how}")
    assert [other.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 0, 0, 5]
    assert [program.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 0, 0, 5]
    assert report.dirty(wpfs, "t") == ALL == report.dirty(wpfs, "other")


@pytest.mark.parametrize("filtered", [False, True])
def test_madv_remove_of_the_memory_that_says_what_is_to_go(make_wpfs, filtered):
    """The list of process_madvise(2) has gone when it returns; it is one page, others are beside."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program = mapped(wpfs)
    program.order("store 0 0 5 64")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    if filtered:
        program.order("seccomp")
    program.order("advise 0 8 8 remove within")
    assert [program.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 0, 0, 5]


def test_madv_remove_that_is_refused_before_what_is_beside(make_wpfs):
    """At anonymous memory, which comes first: of the pages in the store none goes."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program = mapped(wpfs)
    at = 0x200000000000
    program.order("store 0 0 5 64")
    program.order(f"map 1 0 0 {2 * PAGE} anon at={at}")
    program.order(f"map 2 0 {16 * PAGE} {6 * PAGE} at={at + 2 * PAGE}")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    assert program.ask("advise 1 0 8 remove") == "err EINVAL"
    assert [program.order(f"load 0 {page}") for page in (16, 21)] == [5, 5]


def test_madv_remove_of_a_list_that_is_refused_at_once(make_wpfs):
    """Its first entry is anonymous memory: of the second one, in the store, nothing goes."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program = mapped(wpfs)
    program.order("store 0 0 5 64")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    assert program.ask("advise 0 8 8 remove beside") == "err EINVAL"
    assert [program.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 5, 5, 5]


@pytest.mark.parametrize("how", ["", "process"])
def test_madv_remove_without_a_daemon(make_wpfs, how):
    """Of pages in the store of a capped mount: it waits for the next one, as a touch of them does."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program = mapped(wpfs)
    program.order("store 0 0 5 64")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    wpfs.kill9()
    program.send(f"advise 0 8 8 remove {how}")
    wpfs.restart()
    assert program.read() == f"ok {8 * PAGE if how else 0}"
    assert [program.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 0, 0, 5]
    assert set(range(8, 16)) <= report.dirty(wpfs, "t")


@pytest.mark.parametrize("how", ["", "process"])
@pytest.mark.parametrize("why", ["locked", "ro"])
def test_madv_remove_that_is_refused(make_wpfs, why, how):
    """On a capped mount, through a mapping that is locked, of pages in the store, or read-only."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program, other = mapped(wpfs), wpfs.spawn(harness.program("mapper"), name="o")
    program.order("store 0 0 5 64")
    other.order(f"open 0 {wpfs.mnt}/f {'ro' if why == 'ro' else ''}")
    other.order(f"map 0 0 0 {64 * PAGE} {why}")
    if why == "locked":
        assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    assert other.ask(f"advise 0 8 8 remove {how}") == f"err {'EACCES' if why == 'ro' else 'EINVAL'}"
    assert [program.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 5, 5, 5]


@pytest.mark.parametrize("prot", ["r", "none"])
def test_madv_remove_through_a_mapping_that_may_become_writable(make_wpfs, prot):
    """The kernel takes that: what is in the store of a capped mount goes with it."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program = mapped(wpfs)
    program.order("store 0 0 5 64")
    program.order(f"prot 0 0 64 {prot}")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    program.order("advise 0 8 8 remove")
    program.order("prot 0 0 64 rw")
    assert [program.order(f"load 0 {page}") for page in (7, 8, 15, 16)] == [5, 0, 0, 5]
    assert set(range(8, 16)) <= report.dirty(wpfs, "t")


def test_madv_remove_that_is_refused_under_a_filter(make_wpfs):
    """At its first mapping, which is locked: of pages in the store of the next one none goes either."""
    wpfs = make_wpfs(store=True, options=["resident=256M", "settle=0"])
    program = mapped(wpfs)
    at = 0x200000000000
    program.order("store 0 0 5 64")
    program.order(f"map 1 0 {8 * PAGE} {2 * PAGE} locked at={at}")
    program.order(f"map 2 0 {16 * PAGE} {6 * PAGE} at={at + 2 * PAGE}")
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    program.order("seccomp")
    assert program.ask("advise 1 0 8 remove") == "err EINVAL"
    assert [program.order(f"load 0 {page}") for page in (8, 9, 16, 21)] == [5, 5, 5, 5]


@pytest.mark.parametrize("how", ["often", "raw"])
def test_madv_remove_under_a_filter_and_it_is_not_known_of_what(wpfs, how):
    """More often than there is room to note it, or by a mapping nobody was told of: for all too."""
    program, other = mapped(wpfs), mapped(wpfs, "other")
    program.order("store 0 0 5 16")
    wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    program.order("seccomp")
    if how == "often":
        for first in range(1, 10):
            program.order(f"advise 0 {first} 8 remove")
    else:
        program.order(f"map 1 0 0 {PAGES * PAGE} raw")
        program.order("advise 1 8 8 remove")
    assert other.order("load 0 8") == 0
    assert report.dirty(wpfs, "other") == ALL
    assert report.dirty(wpfs, "t") == ALL


def test_many_mappings_under_a_filter_are_nothing_to_others(wpfs):
    program, other = mapped(wpfs), mapped(wpfs, "other")
    program.order("seccomp")
    for _ in range(20):
        program.order(f"map 1 0 0 {PAGES * PAGE}")
        program.order("unmap 1")
    other.order("store 0 3 1")
    assert report.dirty(wpfs, "other") == {3}
    assert report.dirty(wpfs, "t") == ALL


@pytest.mark.parametrize("options", [[], ["resident=16M"]], ids=["native", "capped"])
def test_map_fixed_where_nothing_is(make_wpfs, options):
    """At the place where the kernel would put the next mapping by itself."""
    wpfs = make_wpfs(store=True, options=options)
    program = mapped(wpfs)
    program.order("store 0 3 1")
    for first in (0, 16):
        program.order(f"unmap 0 {first} {PAGES - first}")
        program.order(f"map 1 0 {first * PAGE} {(PAGES - first) * PAGE} "
                      f"at={program.addr + first * PAGE}")
    program.order("store 0 9 1")
    assert report.dirty(wpfs, "t") == {3, 9}
    assert killed(wpfs, program) == {3, 9}


def test_several_mappings_are_moved_at_once(wpfs):
    """Linux 6.17. The first of them is no file's; what is known of the others goes with them."""
    here, there = 0x200000000000, 0x210000000000
    program = mapped(wpfs, protect=False)
    program.order(f"map 1 0 0 {4 * PAGE} anon at={here}")
    program.order(f"map 2 0 0 {PAGES * PAGE} at={here + 4 * PAGE}")
    program.order("unmap 0")
    program.order(f"remap 1 0 {PAGES + 4} {PAGES + 4} at={there} as=3")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 3 9 1")
    program.order(f"unmap 3 4 {PAGES}")
    assert report.dirty(wpfs, "t") == {5}
    assert killed(wpfs, program) == {5}


@pytest.mark.parametrize("options", [[], ["resident=16M"]], ids=["native", "capped"])
@pytest.mark.parametrize("first", ["anon", "g"])
def test_several_mappings_of_which_one_is_watched_are_moved_at_once(make_wpfs, options, first):
    """The kernel does that of mappings without a userfaultfd, and wpfs's is not to be seen."""
    wpfs = make_wpfs(store=True, options=options)
    here, there = 0x200000000000, 0x210000000000
    program = mapped(wpfs)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {4 * PAGE}")
    program.order(f"map 1 {1 if first == 'g' else 0} 0 {4 * PAGE} at={here}"
                  f"{' anon' if first == 'anon' else ''}")
    program.order(f"map 2 0 0 {PAGES * PAGE} at={here + 4 * PAGE}")
    program.order("unmap 0")
    program.order("store 1 1 7")
    program.order("store 2 3 7")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 2 4 7")
    program.order(f"remap 1 0 {PAGES + 4} {PAGES + 4} at={there} as=3")
    assert [program.order(f"load 3 {page}") for page in (1, 7, 8)] == [7, 7, 7]
    program.order("store 3 9 1")
    program.order(f"unmap 3 4 {PAGES}")
    assert report.dirty(wpfs, "t") == {4, 5}
    assert killed(wpfs, program) == {4, 5}


def test_madv_remove_through_a_mapping_that_nobody_was_told_of(wpfs):
    program = mapped(wpfs)
    other = mapped(wpfs, "other", path="g")
    other.order(f"unmap 0 0 {PAGES}")
    other.order(f"open 1 {wpfs.mnt}/f")
    other.order(f"map 1 1 0 {PAGES * PAGE} raw")
    other.order("advise 1 8 8 remove")
    assert report.dirty(wpfs, "t") == set(range(8, 16))
    assert killed(wpfs, program) == set(range(8, 16))


@pytest.mark.parametrize("how", ["asked", "filter"])
def test_madv_remove_of_a_mapping_and_one_beside_it_that_nobody_was_told_of(wpfs, how):
    """In one call."""
    program, other = mapped(wpfs), mapped(wpfs, "other", path="g")
    at = 0x200000000000
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"map 1 1 {8 * PAGE} {8 * PAGE} raw at={at + 4 * PAGE}")
    program.order(f"map 2 0 0 {4 * PAGE} at={at}")
    if how == "filter":
        program.order("seccomp")
    program.order("advise 2 0 12 remove")
    assert report.dirty(wpfs, "other", "/g") == (set(range(8, 16)) if how == "asked" else ALL)


def test_truncate_and_extend(wpfs):
    program = mapped(wpfs)
    program.order("store 0 60 7")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 1 1")
    program.order(f"size 0 {40 * PAGE + 100}")
    program.order(f"size 0 {PAGES * PAGE}")
    assert program.order("load 0 60") == 0
    # Of page 40 only a part was dropped: it has other contents all the same.
    expected = {1} | set(range(40, PAGES))
    assert report.dirty(wpfs, "t") == expected
    assert pagemap.marked(program.pid, program.addr, PAGES) == ALL - {1}
    program.order("store 0 39 1")
    program.order("store 0 50 1")
    assert killed(wpfs, program) == expected | {39}


def test_populate_write_clears_as_the_kernel_does(wpfs):
    program = mapped(wpfs)
    program.order("advise 0 4 4 populate_write")
    assert report.dirty(wpfs, "t") == {4, 5, 6, 7}


def test_a_file_that_grows(wpfs):
    """Marks beyond the end of the file wait for it; a mapping may be larger than its file."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {8 * PAGE}")
    program.order(f"map 0 0 0 {PAGES * PAGE}")
    program.order("store 0 1 1")
    program.order(f"size 0 {PAGES * PAGE}")
    program.order("store 0 40 1")
    assert report.dirty(wpfs, "t") == {1, 40}


@pytest.mark.alone
def test_swap(wpfs, tmp_path_factory):
    """MADV_PAGEOUT to a real swap area and back."""
    pages = 1024
    program = mapped(wpfs, pages=pages)
    program.order(f"store 0 0 1 {pages}")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 100 2 50")
    written = set(range(100, 150))
    with swap.area(64 << 20) as area:
        program.order(f"advise 0 0 {pages} pageout")
        out = swap.pages_of(program.pid, program.addr)
        assert out > pages / 2, f"only {out} pages were swapped out to {area.name}"
        assert report.dirty(wpfs, "t") == written
        assert pagemap.marked(program.pid, program.addr, pages) == set(range(pages)) - written
        assert program.order("load 0 200") == 1
        assert program.order("load 0 120") == 2
        assert report.dirty(wpfs, "t") == written, "reading a page back lost its mark"
        program.order("store 0 200 3")
        program.order("store 0 300 3")
        written |= {200, 300}
        assert report.dirty(wpfs, "t") == written
        program.order(f"advise 0 0 {pages} pageout")
        assert killed(wpfs, program) == written
    again = mapped(wpfs, protect=False, pages=pages)
    assert again.order("load 0 300") == 3
    assert report.dirty(wpfs, "t") == written
    assert report.marked(wpfs, "t") == set(range(pages)) - written


# ---- neighbours


def wait_kinds(program, kinds):
    """While the kernel moves a page elsewhere in memory it is not there for a moment."""
    proc.wait_for(lambda: pagemap.kinds(program.pid, program.addr, len(kinds)) == kinds, harness.SECONDS,
                  f"pages to be {kinds}")


@pytest.mark.parametrize("zapped", [True, False])
def test_a_read_changes_no_neighbour(wpfs, zapped):
    """One page amid 64 resident ones, every third written since the protection."""
    program = mapped(wpfs, pages=65)
    program.order("store 0 0 1 65")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    written = {page for page in range(65) if page % 3 == 0} - {32}
    for page in written:
        program.order(f"store 0 {page} 2")
    for page in set(range(65)) - {32}:
        program.order(f"load 0 {page}")
    if zapped:
        program.order("advise 0 32 1 dontneed")
    there = {page: PRESENT | (0 if page in written else MARKED) for page in range(65)}
    before = [there[page] if page != 32 or not zapped else SWAPPED | MARKED for page in range(65)]
    wait_kinds(program, before)
    assert program.order("load 0 32") == 1
    wait_kinds(program, [there[page] for page in range(65)])
    assert report.dirty(wpfs, "t") == written


def test_a_read_faults_no_neighbour_in(wpfs):
    """No fault-around: nothing but the page that was read is mapped, marked or not."""
    program = mapped(wpfs)
    program.order(f"store 0 0 1 {PAGES}")
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    program.order("store 0 0 2 20")
    program.order(f"advise 0 0 {PAGES} dontneed")
    kinds = [0] * 20 + [SWAPPED | MARKED] * (PAGES - 20)
    wait_kinds(program, kinds)
    for page in (10, 40):
        program.order(f"load 0 {page}")
        kinds[page] = PRESENT | (kinds[page] & MARKED)
        wait_kinds(program, kinds)
    assert report.dirty(wpfs, "t") == set(range(20))


# ---- mappings that come and go


def test_map_fixed_over_a_tracked_range(wpfs):
    program = mapped(wpfs)
    program.order("store 0 10 1")
    program.order("store 0 20 1")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {PAGES * PAGE}")
    program.order(f"map 1 1 0 {16 * PAGE} at={program.addr + 8 * PAGE}")  # over pages 8 to 23
    program.order("store 1 0 1")
    program.order("store 0 30 1")
    assert report.dirty(wpfs, "t") == {10, 20, 30}
    assert report.dirty(wpfs, "t", "/g") == {0}
    assert report.marked(wpfs, "t", "/g") == set(range(1, 16))
    program.kill9()
    assert report.dirty(wpfs, "t") == {10, 20, 30}
    assert report.dirty(wpfs, "t", "/g") == {0}


def test_map_fixed_again_over_the_same_file(wpfs):
    """A run that goes on with what an earlier one armed replaces the mapping by itself, shifted."""
    mapped(wpfs).kill9()
    program = mapped(wpfs, protect=False)
    program.order("store 0 10 1")
    program.order("store 0 20 1")
    program.order(f"map 1 0 {4 * PAGE} {16 * PAGE} at={program.addr + 8 * PAGE}")
    program.order("store 1 0 1")  # page 4
    program.order("store 0 30 1")
    assert report.dirty(wpfs, "t") == {4, 10, 20, 30}
    assert killed(wpfs, program) == {4, 10, 20, 30}


def test_map_fixed_of_another_file_system_over_a_tracked_range(wpfs):
    (wpfs.dir / "elsewhere").write_bytes(bytes(PAGES * PAGE))
    program = mapped(wpfs)
    program.order("store 0 10 1")
    program.order(f"open 1 {wpfs.dir}/elsewhere")
    program.order(f"map 1 1 0 {16 * PAGE} at={program.addr + 8 * PAGE}")
    program.order("store 1 3 1")
    assert report.dirty(wpfs, "t") == {10}
    program.order("store 0 30 1")
    assert killed(wpfs, program) == {10, 30}


@pytest.mark.parametrize("protect", [True, False])
def test_map_fixed_has_no_unarmed_window(wpfs, protect):
    """A thread stores where it appears, all the while: what landed in the file is dirty."""
    pages = 16384
    if not protect:
        mapped(wpfs, pages=pages).kill9()  # all of it armed under this name, nothing written
    program = wpfs.spawn(harness.program("fixed"), wpfs.mnt / "f", pages, name="t", protect=protect)
    assert program.read() == "ok"
    assert program.ask("go") == "ok"
    contents = (wpfs.mnt / "f").read_bytes()
    landed = {page for page in range(pages) if contents[page * PAGE]}
    assert 0 < len(landed) <= pages * 3 // 8, "the mapping did not appear amid the stores"
    assert report.dirty(wpfs, "t") == landed
    assert report.marked(wpfs, "t") == set(range(pages)) - landed
    assert killed(wpfs, program) == landed


def test_partial_munmap(wpfs):
    program = mapped(wpfs)
    program.order("store 0 10 1")
    program.order("store 0 30 1")
    program.order("unmap 0 8 8")
    assert report.dirty(wpfs, "t") == {10, 30}
    assert report.marked(wpfs, "t") == ALL - {10, 30}, "parked, and not forgotten"
    assert pagemap.marked(program.pid, program.addr, PAGES) == ALL - set(range(8, 16)) - {30}
    program.order("store 0 7 1")
    program.order("store 0 16 1")
    assert report.dirty(wpfs, "t") == {7, 10, 16, 30}
    # What was parked is armed again where the same run maps it again.
    again = program.order(f"map 1 0 {8 * PAGE} {8 * PAGE}")
    assert report.marked(wpfs, "t") == ALL - {7, 10, 16, 30}
    assert pagemap.marked(program.pid, again, 8) == {0, 1, 3, 4, 5, 6, 7}
    program.order("store 1 3 1")
    assert killed(wpfs, program) == {7, 10, 11, 16, 30}


def test_a_raw_munmap_is_conservative(wpfs):
    program = mapped(wpfs)
    program.order("store 0 30 1")
    program.order("rawunmap 0 8 8")
    assert report.dirty(wpfs, "t") == {30} | set(range(8, 16))
    program.order("store 0 40 1")
    program.order("rawunmap 0 0 8")
    program.order("rawunmap 0 16 48")
    assert killed(wpfs, program) == ALL


def test_a_raw_munmap_that_something_else_replaced(wpfs):
    """libc's allocator may put its own memory there: its stores are nobody's business."""
    (wpfs.dir / "elsewhere").write_bytes(bytes(PAGES * PAGE))
    program = mapped(wpfs)
    program.order("rawunmap 0 8 8")
    program.order(f"open 1 {wpfs.dir}/elsewhere")
    program.order(f"map 1 1 0 {8 * PAGE} private at={program.addr + 8 * PAGE}")
    program.order("store 1 0 1 8")
    assert report.dirty(wpfs, "t") == set(range(8, 16))
    assert report.marked(wpfs, "t") == ALL - set(range(8, 16))


@pytest.mark.parametrize("how", ["", " ro"])
@pytest.mark.parametrize("in_place", [True, False])
def test_mremap_grows(wpfs, how, in_place):
    """What comes by growing is armed as by a mapping of its own, wherever it goes."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    room = place(wpfs, program)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {2 * PAGE}")
    program.order(f"map 0 0 0 {2 * PAGE} at={room}{how}")
    if not in_place:
        program.order(f"map 2 1 0 {PAGE} at={room + 2 * PAGE}")
    program.order(f"size 0 {PAGES * PAGE}")
    addr = program.order(f"grow 0 {32 * PAGE}")
    assert (addr == room) == in_place
    assert pagemap.marked(program.pid, addr, 32) == set(range(32))
    assert report.dirty(wpfs, "t") == set()
    assert report.marked(wpfs, "t") == set(range(32))
    if not how:
        program.order("store 0 1 1 2")
        assert killed(wpfs, program) == {1, 2}


def place(wpfs, program):
    """An address where a good deal of room is."""
    program.order(f"open 1 {wpfs.dir}/elsewhere")
    program.order(f"size 1 {2 * PAGES * PAGE}")
    room = program.order(f"map 1 1 0 {2 * PAGES * PAGE}")
    program.order("unmap 1")
    return room


def test_mapped_piece_by_piece(wpfs):
    """Each piece joins the epoch that the first one opened."""
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    program.order(f"open 0 {wpfs.mnt}/f")
    program.order(f"size 0 {PAGES * PAGE}")
    for piece in range(4):
        program.order(f"map {piece} 0 {piece * 16 * PAGE} {16 * PAGE}")
        program.order(f"store {piece} {piece} 1")
    expected = {0, 17, 34, 51}
    assert report.dirty(wpfs, "t") == expected
    assert report.marked(wpfs, "t") == ALL - expected
    (epoch,) = {mm["epoch"] for mm in wpfs.wpctl_json("ps")["mms"]}
    assert epoch == 1
    assert killed(wpfs, program) == expected


# ---- mremap and fork (with the daemon killed: test_daemon_death.py)


def test_mremap_moves_the_marks(wpfs):
    program = mapped(wpfs)
    program.order("store 0 3 1")
    for page in (4, 5, 6):
        addr = program.order("move 0")
        assert addr != program.addr
        program.addr = addr
        assert pagemap.marked(program.pid, addr, PAGES) == ALL - set(range(3, page))
        program.order(f"store 0 {page} 1")
        assert report.dirty(wpfs, "t") == set(range(3, page + 1))
    assert report.marked(wpfs, "t") == ALL - {3, 4, 5, 6}
    assert killed(wpfs, program) == {3, 4, 5, 6}


def test_fork(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    child = Child(wpfs, program)
    name = f"t/{child.pid}"
    assert pagemap.marked(child.pid, program.addr, PAGES) == ALL - {1}
    child.order("store 0 2 1")
    program.order("store 0 3 1")
    assert report.dirty(wpfs, "t") == {1, 3}
    assert report.dirty(wpfs, name) == {1, 2}
    grandchild = Child(wpfs, child)
    grandchild.order("store 0 4 1")
    child.order("store 0 5 1")
    assert report.dirty(wpfs, f"t/{grandchild.pid}") == {1, 2, 4}
    assert report.dirty(wpfs, name) == {1, 2, 5}
    program.kill9()
    child.order("move 0")
    child.order("store 0 6 1")
    assert report.dirty(wpfs, name) == {1, 2, 5, 6}
    assert report.dirty(wpfs, "t") == {1, 3}
    for one in (grandchild, child):
        one.end()
    assert report.dirty(wpfs, name) == {1, 2, 5, 6}
    assert report.dirty(wpfs, f"t/{grandchild.pid}") == {1, 2, 4}


def test_what_was_unprotected_stays_so(wpfs):
    """A mapping that comes later is armed under --protect, and only that."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.wpctl("unprotect", wpfs.mnt, "--name", "t")
    program.order(f"size 0 {(PAGES + 8) * PAGE}")
    program.order(f"map 1 0 {PAGES * PAGE} {8 * PAGE}")
    assert report.dirty(wpfs, "t") == set()
    program.order("store 0 1 2")
    program.order("store 1 2 1")
    assert report.dirty(wpfs, "t") == {PAGES + 2}


def test_a_large_mapping_again(wpfs):
    """What is large is marked while it is stored; a daemon after that one knows as much."""
    pages = 40000
    program = mapped(wpfs, pages=pages)
    for page in (3, 39999):
        program.order(f"store 0 {page} 1")
    assert killed(wpfs, program) == {3, 39999}
    program = mapped(wpfs, pages=pages)
    program.order("store 0 20000 1")
    wpfs.kill9()
    program.order("store 0 20001 1")
    wpfs.restart()
    assert report.dirty(wpfs, "t") == {3, 20000, 20001, 39999}
    program.order("unmap 0")
    program.order(f"map 0 0 0 {pages * PAGE}")
    program.order("store 0 7 1")
    assert killed(wpfs, program) == {3, 7, 20000, 20001, 39999}
