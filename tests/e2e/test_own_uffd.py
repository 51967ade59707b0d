# SPDX-License-Identifier: LGPL-2.1-or-later
"""A program with a userfaultfd of its own: sees what it sees on tmpfs, and its marks outlive it."""

import re
import subprocess

import pytest

import harness
import report

PAGES = 64
OWN = harness.program("ownuffd")


@pytest.fixture
def tmpfs(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True, timeout=60)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True, timeout=60)


def output(done):
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["bare", "tracked", "protected"])
@pytest.mark.parametrize("mode", ["block", "nonblock"])
def test_same_as_on_tmpfs(wpfs, tmpfs, mode, how):
    expected = output(wpfs.command(OWN, "script", mode, tmpfs / "f"))
    assert sum(line.startswith("fault ") for line in expected) > 10, "the script shows too little"
    if how == "bare":
        done = wpfs.command(OWN, "script", mode, wpfs.mnt / "f")
    else:
        done = wpfs.run(OWN, "script", mode, wpfs.mnt / "f", name="t", protect=how == "protected")
    lines = output(done)
    if how == "protected":
        # The kernel lets any userfaultfd of the mm protect what another one has registered.
        expected.remove("protect before register: ENOENT")
        lines.remove("protect before register: 0")
    assert lines == expected


def test_two_step(wpfs, tmpfs):
    """A read of a zapped marked page: no message, read-only; the write after it: exactly one."""
    lines = output(wpfs.run(OWN, "script", "nonblock", wpfs.mnt / "f", name="t"))
    at = lines.index("loaded 11 = 0, messages 0")
    assert lines[at - 1] == "entry 11 present 0 swap 1 mark 1", "not zapped, or not marked"
    assert lines[at + 1:at + 5] == ["entry 11 present 1 swap 0 mark 1", lines[at + 2],
                                    "stored 11, messages 1", "stored 11, messages 0"]
    assert lines[at + 2].startswith("fault 11 ")


def test_reading_a_page_changes_no_neighbour(wpfs, tmpfs):
    expected = output(wpfs.command(OWN, "neighbours", tmpfs / "f"))
    assert expected[-4] == "neighbours changed: 0"
    assert expected[-1] == "stored 32, messages 1"
    assert output(wpfs.run(OWN, "neighbours", wpfs.mnt / "f", name="t")) == expected


def until(program, last):
    lines = []
    while not lines or lines[-1] != last:
        lines.append(program.read())
    return lines


def faulted(lines):
    return [int(found[1]) for found in (re.match(r"fault (\d+) ", line) for line in lines) if found]


def held(wpfs, protect=False):
    program = wpfs.spawn(OWN, "hold", wpfs.mnt / "f", name="t", protect=protect)
    assert faulted(until(program, "ready")) == [3, 5]
    return program


MARKED = sorted(set(range(32)) - {3, 5})


@pytest.mark.parametrize("protect", [False, True])
def test_faults_again_after_kill(wpfs, protect):
    program = held(wpfs, protect)
    assert report.marked(wpfs, "t", owner="program") == set(MARKED)
    program.kill9()
    assert report.marked(wpfs, "t", owner="program") == set(MARKED)
    again = wpfs.spawn(OWN, "again", wpfs.mnt / "f", name="t", protect=protect)
    assert faulted(until(again, "ready")) == []
    assert report.marked(wpfs, "t", owner="program") == set(MARKED), "not armed at its REGISTER"
    again.send("go")
    assert faulted(until(again, "ready")) == MARKED
    assert report.marked(wpfs, "t", owner="program") == set()
    again.kill9()
    third = wpfs.spawn(OWN, "again", wpfs.mnt / "f", name="t", protect=protect)
    until(third, "ready")
    third.send("go")
    assert faulted(until(third, "ready")) == [], "written pages came back protected"


def test_faults_again_after_a_remount(make_wpfs):
    wpfs = make_wpfs(store=True)
    held(wpfs).kill9()
    wpfs.umount()
    mm = report.mm_of(wpfs.wpctl_json("marks", target=wpfs.store), "t")
    assert sorted(report.pages_of(mm, owner="program")) == MARKED
    wpfs.restart()
    again = wpfs.spawn(OWN, "again", wpfs.mnt / "f", name="t")
    until(again, "ready")
    again.send("go")
    assert faulted(until(again, "ready")) == MARKED


def test_another_name_has_no_faults(wpfs):
    held(wpfs).kill9()
    other = wpfs.spawn(OWN, "again", wpfs.mnt / "f", name="other")
    until(other, "ready")
    other.send("go")
    assert faulted(until(other, "ready")) == []


def test_marks_of_a_normal_exit_are_gone(wpfs):
    """The last close of its uffd, unmapping, exit: as in the kernel, nothing comes back."""
    output(wpfs.run(OWN, "script", "nonblock", wpfs.mnt / "f", name="t"))
    assert report.marked(wpfs, "t", owner="program") <= {60, 61, 63}
    assert report.ps(wpfs, "t")["state"] == "detached"


def test_wpfs_steps_aside(wpfs):
    """Its own epoch becomes dirty where the program registers: nothing can be proven there."""
    held(wpfs, protect=True)
    assert report.dirty(wpfs, "t") == set(range(PAGES))
    assert report.marked(wpfs, "t") == set()


def test_stale_bits_are_no_marks(wpfs):
    program = wpfs.spawn(OWN, "stale", wpfs.mnt / "f", name="t")
    lines = until(program, "ready")
    assert lines[-2] == "entry 7 present 1 swap 0 mark 1", "the kernel leaves no stale bits behind"
    assert report.marked(wpfs, "t", owner="program") == set()
    program.send("go")
    assert "stored 7, messages 0" in until(program, "ready")
    program.kill9()
    assert report.marked(wpfs, "t", owner="program") == set()
