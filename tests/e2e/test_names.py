# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who gets which name, what a name brings back, and programs that have none or no witness."""

import os

import harness
import pagemap
import report
from harness import PAGE, SHIM, WPCTL
from mapper import ALL, PAGES, Child, killed, map_file, mapped

MAPPER = harness.program("mapper")
USER = 200000 + os.getpid()  # runs nothing else on this machine


def test_a_wrapper_takes_no_name(wpfs):
    argv = ["sh", "-c", f"true; {MAPPER}; true"]
    program = map_file(wpfs.spawn(*argv, name="t", protect=True), wpfs.mnt / "f")
    (mm,) = wpfs.wpctl_json("ps")["mms"]
    assert (mm["name"], mm["comm"]) == ("t", "mapper") and mm["pid"] != program.pid
    program.order("store 0 1 1")
    program.wait()
    assert report.names(wpfs) == {"t": "detached"}
    assert report.dirty(wpfs, "t") == {1}


def test_the_same_name_again_at_another_address(wpfs):
    first = mapped(wpfs)
    first.order("store 0 1 1 3")
    first.wait()
    second = wpfs.spawn(MAPPER, name="t")
    second.order(f"open 0 {wpfs.mnt}/f")
    elsewhere = first.addr - (1 << 30)
    assert second.order(f"map 0 0 0 {PAGES * PAGE} at={elsewhere}") == elsewhere
    assert pagemap.marked(second.pid, elsewhere, PAGES) == ALL - {1, 2, 3}, "mmap returned"
    assert report.dirty(wpfs, "t") == {1, 2, 3}
    (one,) = report.mm_of(wpfs.wpctl_json("marks"), "t")["maps"]
    runs = one["runs"]
    assert [int(run["vaddr"], 16) for run in runs] == [elsewhere, elsewhere + 4 * PAGE]
    second.order("store 0 10 1")
    assert killed(wpfs, second) == {1, 2, 3, 10}
    third = mapped(wpfs, protect=False)
    assert pagemap.marked(third.pid, third.addr, PAGES) == ALL - {1, 2, 3, 10}
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    third.order("store 0 2 1")
    assert killed(wpfs, third) == {2}


def test_a_part_of_what_was_armed_is_mapped_again(wpfs):
    mapped(wpfs).kill9()
    program = wpfs.spawn(MAPPER, name="t")
    program.order(f"open 0 {wpfs.mnt}/f")
    addr = program.order(f"map 0 0 {16 * PAGE} {16 * PAGE}")
    program.order("store 0 1 1")
    assert pagemap.marked(program.pid, addr, 16) == set(range(16)) - {1}
    assert report.dirty(wpfs, "t") == {17}
    assert report.marked(wpfs, "t") == ALL - {17}, "what is not mapped is parked"
    program.wait()
    assert report.dirty(wpfs, "t") == {17}


def test_the_same_name_at_the_same_time(wpfs):
    one, two, three = (mapped(wpfs) for _ in range(3))
    assert report.names(wpfs) == {"t": "live", "t/2": "live", "t/3": "live"}
    for number, program in enumerate((one, two, three)):
        program.order(f"store 0 {number} 1")
    assert report.dirty(wpfs, "t/2") == {1}
    two.kill9()
    again = mapped(wpfs, protect=False)
    assert report.dirty(wpfs, "t/2") == {1}, "the free number is taken, with its marks"
    again.order("store 0 9 1")
    assert [report.dirty(wpfs, name) for name in ("t", "t/2", "t/3")] == [{0}, {1, 9}, {2}]


def test_a_fork_child(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    child, idle = Child(wpfs, program), Child(wpfs, program)
    name = f"t/{child.pid}"
    child.order("store 0 2 1")
    assert report.names(wpfs) == {"t": "live", name: "live", f"t/{idle.pid}": "live"}
    child.end()
    idle.end()
    assert report.names(wpfs) == {"t": "live", name: "detached"}, "kept is what wrote something"
    assert report.dirty(wpfs, name) == {1, 2}
    assert report.dirty(wpfs, "t") == {1}


def test_without_a_name_marks_end_with_the_program(wpfs):
    program = mapped(wpfs, name=None)
    program.order("store 0 1 1")
    assert "the marks of this program end with it" in program.stderr()
    assert report.dirty(wpfs, None) == {1}
    child = Child(wpfs, program)
    child.order("store 0 2 1")
    child.end()
    program.kill9()
    assert wpfs.wpctl_json("ps")["mms"] == []
    again = mapped(wpfs, name=None, protect=False)
    assert pagemap.marked(again.pid, again.addr, PAGES) == set()


def test_without_wpctl_run(wpfs):
    """The three variables do all that `wpctl run` does."""
    env = {"LD_PRELOAD": str(SHIM), "WPFS_NAME": "t", "WPFS_PROTECT": "1"}
    program = map_file(wpfs.spawn_bare(MAPPER, env=env), wpfs.mnt / "f")
    program.order("store 0 1 1")
    assert report.dirty(wpfs, "t") == {1}
    assert killed(wpfs, program) == {1}
    del env["WPFS_PROTECT"]
    again = map_file(wpfs.spawn_bare(MAPPER, env=env), wpfs.mnt / "f")
    again.order("store 0 2 1")
    assert report.dirty(wpfs, "t") == {1, 2}
    assert program.stderr() + again.stderr() == ""


def test_exec_ends_the_mm(wpfs):
    program = mapped(wpfs)
    program.order("store 0 1 1")
    program.send(f"exec {MAPPER}")
    map_file(program, wpfs.mnt / "f")
    assert report.names(wpfs) == {"t": "live"}, "the new program goes on under the name"
    assert report.dirty(wpfs, "t") == {1}
    program.order("store 0 2 1")
    assert report.dirty(wpfs, "t") == {1, 2}


def test_a_name_belongs_to_its_user(make_wpfs):
    wpfs = make_wpfs(options=["mode=1777"])
    os.chmod(wpfs.dir, 0o755)
    mapped(wpfs).order("store 0 1 1")
    os.chmod(wpfs.mnt / "f", 0o666)
    other = map_file(wpfs.spawn_bare(*as_user(), WPCTL, "run", "--name", "t", "--protect", wpfs.mnt,
                                     "--", MAPPER), wpfs.mnt / "f")
    other.order("store 0 2 1")
    mms = sorted((mm["uid"], mm["name"], mm["dirty"]) for mm in wpfs.wpctl_json("ps")["mms"])
    assert mms == [(0, "t", 1), (USER, "t", 1)]
    other.kill9()
    states = {mm["uid"]: mm["state"] for mm in wpfs.wpctl_json("ps")["mms"]}
    assert states == {0: "live", USER: "detached"}


# ---- a witness that cannot be made


def as_user(*limits):
    return ["prlimit", *limits, "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


def test_no_witness(make_wpfs):
    """At its limit of processes: it runs, live dirty is exact, after its end conservative."""
    wpfs = make_wpfs(options=["mode=1777"])
    os.chmod(wpfs.dir, 0o755)
    program = wpfs.spawn_bare(*as_user("--nproc=1:1"), WPCTL, "run", "--name", "t", "--protect",
                              wpfs.mnt, "--", MAPPER)
    map_file(program, wpfs.mnt / "f")
    program.order("store 0 1 1")
    assert os.listdir(f"/proc/{program.pid}/task") == [str(program.pid)]
    assert harness.proc.children(program.pid) == [], "it has a witness"
    assert report.dirty(wpfs, "t") == {1}
    program.order("store 0 2 1")
    program.order("unmap 0 8 8")
    assert report.dirty(wpfs, "t") == {1, 2}
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t")
    assert report.dirty(wpfs, "t") == set()
    program.order("store 0 3 1")
    # Pages that were parked by then could not be written by it any more.
    assert killed(wpfs, program) >= ALL - set(range(8, 16))


def test_a_filter_against_new_processes(wpfs):
    """Under a filter nobody is told anything: what the program did since then counts, all of it."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    program.order("seccomp")
    assert report.dirty(wpfs, "t") == {1}
    program.order(f"map 1 0 0 {8 * PAGE}")
    program.order("store 1 2 1")
    program.order("unmap 1")
    assert program.ask("fork /dev/null /dev/null").startswith("err ")
    assert report.dirty(wpfs, "t") >= {1, 2}
    assert killed(wpfs, program) >= {1, 2}


def test_a_filter_before_the_first_mapping(wpfs):
    """Without `wpctl run` it is too late then: it runs as always."""
    env = {"LD_PRELOAD": str(SHIM), "WPFS_NAME": "t", "WPFS_PROTECT": "1"}
    program = wpfs.spawn_bare(MAPPER, env=env)
    program.order("seccomp")
    map_file(program, wpfs.mnt / "f")
    program.order("store 0 1 1")
    assert program.stderr() == ""
    assert wpfs.wpctl_json("ps")["mms"] == []
