# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which process a row means, wherever it runs; and what the next run of a name finds marked."""

import os
import shutil
import sqlite3
import subprocess

import pytest

import harness
import pagemap
import proc
import report
from harness import PAGE, RUN_DIR, WPCTL
from mapper import ALL, PAGES, Child, killed, map_file, mapped

MAPPER = harness.program("mapper")


def pid_of(wpfs, name="t"):
    return report.ps(wpfs, name)["pid"]


def kill(pid):
    """kill -9, and it is over when this returns."""
    pidfd = os.pidfd_open(pid)
    proc.kill(pid)
    assert proc.is_over(pidfd, harness.SECONDS)
    os.close(pidfd)


def run_in(wpfs, *wrapper):
    """A tracked program started through another one."""
    program = wpfs.spawn_bare(*wrapper, WPCTL, "run", "--name", "t", "--protect", wpfs.mnt, "--",
                              MAPPER)
    return map_file(program, wpfs.mnt / "f")


# ---- where it runs


CONTAINER = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
             '"$@"; read -r line', "sh"]


def test_in_a_container(wpfs):
    """Another pid and mount namespace: known by the pid it has outside, exact at its end."""
    program = run_in(wpfs, *CONTAINER)
    program.order("store 0 1 1")
    child = Child(wpfs, program)
    child.order("store 0 2 1")
    program.order("unmap 0 8 8")
    program.order(f"map 1 0 {8 * PAGE} {8 * PAGE}")
    program.order("store 1 0 1")
    assert report.dirty(wpfs, "t") == {1, 8}
    others = {mm["name"]: mm["pid"] for mm in wpfs.wpctl_json("ps")["mms"]}
    outside = others.pop("t")
    ((name, pid),) = others.items()
    assert name == f"t/{pid}" and report.dirty(wpfs, name) == {1, 2}
    assert {outside, pid} <= set(proc.descendants(program.pid)), "not the pids they have outside"
    child.order("store 0 3 1")
    kill(pid)
    program.order("store 0 4 1")
    kill(outside)
    assert report.names(wpfs) == {"t": "detached", name: "detached"}
    assert report.dirty(wpfs, "t") == {1, 4, 8}
    assert report.dirty(wpfs, name) == {1, 2, 3}
    child.close()


def test_the_end_of_a_container(wpfs):
    """It takes the witness with it: whatever was armed and not harvested may have been written."""
    program = run_in(wpfs, *CONTAINER)
    program.order("store 0 1 1")
    (init,) = proc.children(program.pid)
    kill(init)
    proc.wait_for(lambda: report.names(wpfs)["t"] == "detached", harness.SECONDS, "its end is seen")
    # Exact if the program's death was seen before that of its witness.
    assert report.dirty(wpfs, "t") in (ALL, {1})


def test_traced_from_its_start(wpfs):
    """strace -f stops at every call of the program and its children, and never has the witness."""
    program = run_in(wpfs, "strace", "-f", "-o", "/dev/null")
    program.order("store 0 1 1")
    child = Child(wpfs, program)
    child.order("store 0 2 1")
    program.order("unmap 0 8 8")
    program.order("store 0 3 1")
    assert report.dirty(wpfs, f"t/{child.pid}") == {1, 2}
    child.end()
    kill(pid_of(wpfs))
    assert report.dirty(wpfs, "t") == {1, 3}
    assert report.dirty(wpfs, f"t/{child.pid}") == {1, 2}


def test_a_daemon_program(wpfs):
    """Two forks and a session of its own; its parents are gone before it writes."""
    first = mapped(wpfs)
    first.order("store 0 1 1")
    middle = Child(wpfs, first)
    middle.order("setsid")
    daemon = Child(wpfs, middle)
    middle.end()
    first.wait()
    name = f"t/{daemon.pid}"
    daemon.order("store 0 2 1")
    assert report.names(wpfs) == {"t": "detached", name: "live"}
    daemon.order("unmap 0 8 8")
    daemon.order(f"open 1 {wpfs.mnt}/f")
    daemon.order(f"map 1 1 {8 * PAGE} {8 * PAGE}")
    daemon.order("store 1 1 1")
    assert report.dirty(wpfs, name) == {1, 2, 9}
    daemon.end()
    assert report.dirty(wpfs, name) == {1, 2, 9}
    assert report.dirty(wpfs, "t") == {1}


# ---- which process it was


def with_pid(start, pid):
    """Starts processes until one has that pid: next after the last one that was given."""
    for _ in range(500):
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as last:
            last.write(str(pid - 1))
        process = start()
        if process.pid == pid:
            return process
        process.kill9()
    raise AssertionError(f"the kernel never gave pid {pid} again")


@pytest.mark.alone
@pytest.mark.parametrize("who", ["a stranger", "another name", "the same name"])
def test_a_pid_that_somebody_else_has(wpfs, who):
    """It ended while no daemon was there, and another process has its pid by now."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.order("store 0 2 1")
    program.kill9()
    name = {"another name": "other", "the same name": "t"}.get(who)
    if name:  # a wrapper that execs at once: the pid stays
        again = with_pid(lambda: wpfs.spawn_bare(MAPPER, env={
            "LD_PRELOAD": str(harness.SHIM), "WPFS_NAME": name, "WPFS_QUIET": "1"}), program.pid)
    else:
        again = with_pid(lambda: wpfs.spawn_bare(MAPPER), program.pid)
    wpfs.restart()
    assert report.names(wpfs) == {"t": "detached"}
    assert report.dirty(wpfs, "t") == {1, 2}
    map_file(again, wpfs.mnt / "f")
    again.order("store 0 3 1")
    if who == "the same name":
        assert report.dirty(wpfs, "t") == {1, 2, 3}
        assert report.names(wpfs) == {"t": "live"}
    else:
        assert report.dirty(wpfs, "t") == {1, 2}
        assert report.names(wpfs)["t"] == "detached"


def start_time(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as text:
        return int(text.read().rpartition(")")[2].split()[19])


def as_after_a_power_cut(wpfs):
    """Daemon, programs and everything in memory are gone; the store is what it was."""
    wpfs.kill9()
    for program in wpfs.programs:
        for witness in proc.children(program.pid):
            kill(witness)
        program.kill9()
    for point in [str(wpfs.mnt), *(point for point, _ in proc.mounts_below(RUN_DIR / wpfs.id))]:
        subprocess.run(["umount", "-l", point], check=True, timeout=60)
    shutil.rmtree(RUN_DIR / wpfs.id)


@pytest.mark.parametrize("state", ["live", "detached"])
def test_pids_of_another_boot(make_wpfs, state):
    """
    A row of before tells nothing about the processes that have its pids today, even if they have
    the same start times: neither that the program lives, nor that its witness is to be let go.
    """
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs)
    program.order("store 0 1 1")
    with open(wpfs.mnt / "f", "rb") as file:
        os.fsync(file.fileno())  # contents too: without those no mark would be believed
    as_after_a_power_cut(wpfs)
    bystander = wpfs.spawn_bare(MAPPER)
    assert bystander.ask("nothing") == "err ENOSYS"
    with sqlite3.connect(f"{wpfs.store}/wpfs.db") as db:
        live = state == "live"
        db.execute("UPDATE mm SET state = :state, pid = :pid, start_time = :start,"
                   " witness_pid = :witness, witness_start = :start, boot_id = :boot",
                   {"state": 1 if live else 2, "pid": bystander.pid if live else 0,
                    "witness": bystander.pid, "start": start_time(bystander.pid),
                    "boot": "00000000-0000-0000-0000-000000000000"})
    db.close()
    wpfs.restart()
    assert report.names(wpfs) == {"t": "detached"}
    # What was committed last is right for the contents as they were stored.
    assert report.dirty(wpfs, "t") == {1}
    assert report.marked(wpfs, "t") == ALL - {1}
    assert bystander.ask("nothing") == "err ENOSYS", "taken for a witness, and killed"


# ---- what the next run finds


def next_run(wpfs, **more):
    program = wpfs.spawn(MAPPER, name="t", **more)
    program.order(f"open 0 {wpfs.mnt}/f")
    return program


def first_run(wpfs, *written):
    program = mapped(wpfs)
    for page in written:
        program.order(f"store 0 {page} 1")
    assert killed(wpfs, program) == set(written)


def test_overlaps_in_part(wpfs):
    """A range that begins before what was armed and ends within it, and one the other way round."""
    program = mapped(wpfs, protect=False)
    wpfs.wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f", "--range",
               f"{16 * PAGE}+{32 * PAGE}")
    program.order("store 0 20 1")
    program.kill9()
    again = next_run(wpfs)
    low = again.order(f"map 0 0 {8 * PAGE} {16 * PAGE}")
    high = again.order(f"map 1 0 {40 * PAGE} {16 * PAGE}")
    assert pagemap.marked(again.pid, low, 16) == set(range(8, 16)) - {12}
    assert pagemap.marked(again.pid, high, 16) == set(range(8))
    again.order("store 0 0 1 16")  # pages 8 to 23: from 16 on armed
    again.order("store 1 0 1 16")  # pages 40 to 55: up to 47
    assert report.dirty(wpfs, "t") == set(range(16, 24)) | set(range(40, 48))
    assert report.marked(wpfs, "t") == set(range(24, 40))


@pytest.mark.parametrize("pages", [PAGES // 4, PAGES * 2])
def test_a_mapping_of_another_length(wpfs, pages):
    first_run(wpfs, 3, 40)
    again = next_run(wpfs)
    again.order(f"size 0 {max(pages, PAGES) * PAGE}")
    addr = again.order(f"map 0 0 0 {pages * PAGE}")
    assert pagemap.marked(again.pid, addr, min(pages, PAGES)) == set(range(min(pages, PAGES))) - {3, 40}
    again.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == {3, 5, 40}
    again.wait()
    third = next_run(wpfs)
    addr = third.order(f"map 0 0 0 {PAGES * PAGE}")
    assert pagemap.marked(third.pid, addr, PAGES) == ALL - {3, 5, 40}


def test_two_mappings_of_the_same_range(wpfs):
    """Both are armed, and a store through either is one."""
    first_run(wpfs, 3)
    again = next_run(wpfs)
    addrs = [again.order(f"map {i} 0 0 {PAGES * PAGE}") for i in range(2)]
    for addr in addrs:
        assert pagemap.marked(again.pid, addr, PAGES) == ALL - {3}
    again.order("store 0 10 1")
    again.order("store 1 11 1")
    assert report.dirty(wpfs, "t") == {3, 10, 11}
    again.order("unmap 0")
    third = again.order(f"map 0 0 0 {PAGES * PAGE}")
    assert pagemap.marked(again.pid, third, PAGES) == ALL - {3, 10, 11}
    assert killed(wpfs, again) == {3, 10, 11}


def test_a_file_replaced_by_rename(wpfs):
    """A new file: nothing of it was armed; the old one's marks went with its last link."""
    first_run(wpfs, 3)
    (wpfs.mnt / "new").write_bytes(bytes(PAGES * PAGE))
    os.rename(wpfs.mnt / "new", wpfs.mnt / "f")
    again = next_run(wpfs)
    addr = again.order(f"map 0 0 0 {PAGES * PAGE}")
    assert pagemap.marked(again.pid, addr, PAGES) == set()
    again.order("store 0 5 1")
    assert report.dirty(wpfs, "t") == set() == report.marked(wpfs, "t")


def test_a_file_replaced_while_it_is_mapped(wpfs):
    """The old one is tracked for as long as it is mapped, the new one from its mapping on."""
    program = mapped(wpfs)
    program.order("store 0 3 1")
    (wpfs.mnt / "new").write_bytes(bytes(PAGES * PAGE))
    os.rename(wpfs.mnt / "new", wpfs.mnt / "f")
    program.order(f"open 1 {wpfs.mnt}/f")
    program.order(f"map 1 1 0 {PAGES * PAGE}")
    program.order("store 0 4 1")
    program.order("store 1 5 1")
    mm = report.mm_of(wpfs.wpctl_json("dirty"), "t")
    runs = sorted((one["file"], tuple((run["pgoff"], run["pages"]) for run in one["runs"]))
                  for one in mm["maps"])
    assert [pages for _, pages in runs].count(((3, 2),)) == 1
    assert [pages for _, pages in runs].count(((5, 1),)) == 1
    program.order("unmap 0")
    assert killed(wpfs, program) == {5}


@pytest.mark.parametrize("options", [[], ["resident=64M"]])
def test_another_file_of_a_program_that_ended_goes(make_wpfs, options):
    """With its marks; those of the file that stays go on, and are stored."""
    wpfs = make_wpfs("store", options)
    program = mapped(wpfs, "a")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {8 * PAGE}")
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.kill9()
    assert report.pages_of(report.mm_of(wpfs.wpctl_json("marks"), "a"), "/g") == [*range(8)]
    os.unlink(wpfs.mnt / "g")
    proc.wait_for(lambda: not report.pages_of(report.mm_of(wpfs.wpctl_json("marks"), "a"), "/g"),
                  harness.SECONDS, "its marks go")
    os.truncate(wpfs.mnt / "f", 60 * PAGE)
    wpfs.kill9()
    wpfs.restart()
    assert report.dirty(wpfs, "a") == {60, 61, 62, 63}
    assert report.marked(wpfs, "a") == ALL


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("options", [[], ["resident=64M"]])
def test_files_that_are_gone_leave_nothing_in_the_store(make_wpfs, options, asked):
    wpfs = make_wpfs("store", options)
    program = mapped(wpfs, "a")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {8 * PAGE}")
    program.order(f"map 1 1 0 {8 * PAGE}")
    program.order("store 1 2 1")
    program.kill9()
    other = mapped(wpfs, "b", path="h", pages=8)
    other.kill9()
    assert report.dirty(wpfs, "a", "/g") == {2}
    if asked:
        wpfs.wpctl("protect", wpfs.mnt, "--file", "/f")
    os.unlink(wpfs.mnt / "g")
    os.unlink(wpfs.mnt / "h")
    if asked:
        wpfs.wpctl("dirty", wpfs.mnt)
    wpfs.umount()
    wpfs.wpctl("check", wpfs.store)
    assert report.marked(wpfs, "a", target=wpfs.store) == ALL
    wpfs.restart()


def test_a_file_that_nobody_asked_for_leaves_nothing(make_wpfs):
    """Its handle was never learned: there was no daemon when the program ended."""
    wpfs = make_wpfs("store")
    (wpfs.mnt / "g").write_bytes(bytes(8 * PAGE))
    wpfs.kill9()
    wpfs.restart()
    program = wpfs.spawn(harness.program("mapper"), name="a")
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"map 1 1 0 {8 * PAGE}")
    wpfs.kill9()
    program.kill9()
    wpfs.restart()
    wpfs.spawn(harness.program("mapper"), name="a").order(f"open 1 {wpfs.mnt}/g")
    os.unlink(wpfs.mnt / "g")
    wpfs.programs[-1].kill9()
    wpfs.umount()
    wpfs.wpctl("check", wpfs.store)
    wpfs.restart()
