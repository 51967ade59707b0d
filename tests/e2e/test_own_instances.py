# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Whose marks are whose, and what is left of them, for programs with a userfaultfd of their own: what
test_names.py, test_instances.py and test_failure.py say of those that wpfs has armed.
"""

import os
import sqlite3

import pytest

import harness
import life
import pagemap
import proc
import report
from mapper import ALL, PAGES, Child, map_file, mapped
from test_instances import (CONTAINER, MAPPER, as_after_a_power_cut, kill, pid_of, run_in, with_pid)


def armed(program):
    program.order(f"uffd 0 0 {PAGES}")
    return program


def begun(wpfs):
    return armed(mapped(wpfs, protect=False))


def marked(wpfs, name="t", **target):
    return report.marked(wpfs, name, owner="program", **target)


def given(program, addr):
    """The marks that a run has when it registers."""
    uffd = program.order(f"uffd 0 {PAGES - 1} 1")
    program.order(f"reg {uffd} 0 0 {PAGES}")
    return pagemap.marked(program.pid, addr, PAGES - 1)


def test_the_same_name_at_the_same_time(wpfs):
    programs = [begun(wpfs) for _ in range(3)]
    for number, program in enumerate(programs):
        program.order(f"store 0 {number} 1")
    names = ("t", "t/2", "t/3")
    assert [marked(wpfs, name) for name in names] == [ALL - {number} for number in range(3)]
    programs[1].kill9()
    again = mapped(wpfs, protect=False)
    assert given(again, again.addr) == ALL - {1, PAGES - 1}, "the free number is taken, with its marks"
    assert report.names(wpfs) == dict.fromkeys(names, "live")


@pytest.mark.parametrize("name", ["t", "other"])
@pytest.mark.alone
def test_a_pid_that_somebody_else_has(wpfs, name):
    """The program and the daemon were killed: its marks are gone, and nobody is given any."""
    program = begun(wpfs)
    program.order("store 0 1 1")
    wpfs.kill9()
    program.kill9()
    again = with_pid(lambda: wpfs.spawn_bare(MAPPER, env={
        "LD_PRELOAD": str(harness.SHIM), "WPFS_NAME": name, "WPFS_QUIET": "1"}), program.pid)
    wpfs.restart()
    assert report.names(wpfs) == {"t": "detached"} and marked(wpfs) == set()
    map_file(again, wpfs.mnt / "f")
    assert given(again, again.addr) == set()


def test_pids_of_another_boot(make_wpfs):
    wpfs = make_wpfs(store=True)
    program = begun(wpfs)
    program.order("store 0 1 1")
    with open(wpfs.mnt / "f", "rb") as file:
        os.fsync(file.fileno())
    as_after_a_power_cut(wpfs)
    bystander = wpfs.spawn_bare(MAPPER)
    with sqlite3.connect(f"{wpfs.store}/wpfs.db") as db:
        db.execute("UPDATE mm SET pid = :pid, boot_id = '00000000-0000-0000-0000-000000000000'",
                   {"pid": bystander.pid})
    db.close()
    wpfs.restart()
    assert report.names(wpfs) == {"t": "detached"}
    assert marked(wpfs) == ALL - {1}


def test_in_a_container(wpfs):
    program = armed(run_in(wpfs, *CONTAINER))
    program.order("store 0 1 1")
    assert marked(wpfs) == ALL - {1}
    program.order("store 0 2 1")
    kill(pid_of(wpfs))
    assert report.names(wpfs) == {"t": "detached"} and marked(wpfs) == ALL - {1, 2}


def test_the_end_of_a_container(wpfs):
    program = armed(run_in(wpfs, *CONTAINER))
    program.order("store 0 1 1")
    (init,) = proc.children(program.pid)
    kill(init)
    proc.wait_for(lambda: report.names(wpfs)["t"] == "detached", harness.SECONDS, "its end is seen")
    assert marked(wpfs) in (set(), ALL - {1})


def test_traced_from_its_start(wpfs):
    program = armed(run_in(wpfs, "strace", "-f", "-o", "/dev/null"))
    program.order("store 0 1 1")
    assert marked(wpfs) == ALL - {1}
    kill(pid_of(wpfs))
    assert marked(wpfs) == ALL - {1}


def test_a_daemon_program(wpfs):
    """It registers when it has become one."""
    first = mapped(wpfs)
    middle = Child(wpfs, first)
    middle.order("setsid")
    daemon = Child(wpfs, middle)
    middle.end()
    first.wait()
    armed(daemon)
    daemon.order("store 0 2 1")
    name = f"t/{daemon.pid}"
    assert marked(wpfs, name) == ALL - {2}
    kill(daemon.pid)
    assert report.names(wpfs)[name] == "detached" and marked(wpfs, name) == ALL - {2}
    daemon.close()


def test_a_storm_of_daemons(make_wpfs):
    """Each takes the userfaultfds back; what is written meanwhile nobody has to see for it."""
    wpfs = make_wpfs(store=True)
    lives = [life.Life(wpfs, "own", threads) for threads in (0, 2)]
    for turn in range(12):
        wpfs.kill9()
        for page in range(3):
            wpfs.launch()
            proc.is_over(wpfs.pidfd, 0.03 * page)
            wpfs.kill9()
        lives[0].store(life.BASE + turn)
        wpfs.restart()
    life.check_and_end(lives)
