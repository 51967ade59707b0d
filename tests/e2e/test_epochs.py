# SPDX-License-Identifier: LGPL-2.1-or-later
"""Epochs: what one protect begins and the next one closes, and what write(2) changed in them."""

import json
import os
import subprocess
import threading

import pytest

import harness
import proc
import report
from harness import PAGE
from mapper import ALL, Child, mapped
from test_failure import witness_of
from test_witness import lose_witness


def test_the_daemon_waits_for_nobody(wpfs):
    """All threads that would answer it wait for it: it goes on, and knows less."""
    programs = [mapped(wpfs, name=f"t{n}", path=f"f{n}") for n in range(3)]
    stop = threading.Event()

    def sync(path):
        fd = os.open(path, os.O_RDWR)
        while not stop.is_set():
            os.fsync(fd)
        os.close(fd)

    threads = [threading.Thread(target=sync, args=[wpfs.mnt / f"f{n % 3}"]) for n in range(24)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        protect(wpfs)
    stop.set()
    for thread in threads:
        thread.join()
    protect(wpfs)
    assert [write_calls(wpfs, f"t{n}", f"/f{n}") for n in range(3)] == ["no"] * 3
    assert all(program.order("store 0 1 1") == 0 for program in programs)


@pytest.fixture(params=["none", "store"])
def any_wpfs(request, make_wpfs):
    return make_wpfs(store=request.param != "none")


def protect(wpfs, *args):
    return wpfs.wpctl_json("protect", *args)["epoch"]


def closed(wpfs, epoch, name="t", file="/f"):
    """The dirty pages of a closed epoch."""
    answer = wpfs.wpctl_json("dirty", "--name", name, "--epoch", epoch)
    return set(report.pages_of(report.mm_of(answer, name), file))


def write_calls(wpfs, name="t", file="/f", epoch=None, target=None):
    """What `dirty` says of write(2) to the file: one answer in all its maps."""
    args = ["--epoch", epoch] if epoch else []
    mm = report.mm_of(wpfs.wpctl_json("dirty", *args, target=target), name)
    said = {one["write_calls"] for one in mm["maps"] if one["file"] == file}
    assert len(said) == 1, f"not one answer: {mm}"
    told = any("write(2)" in note and file in note for note in mm["notes"])
    assert told == (said != {"no"}), f"a note and {said}: {mm['notes']}"
    return said.pop()


def write_until_seen(wpfs):
    """A daemon looks a moment after its mount answers; what comes in between is not known."""

    def seen():
        with open(wpfs.mnt / "f", "r+b") as other:
            other.write(b"x")
        answer = write_calls(wpfs)
        assert answer != "no"
        return answer == "yes"

    proc.wait_for(seen, harness.SECONDS, "a write is seen")


# ---- closed epochs


def test_a_closed_epoch_keeps_its_dirty_pages(any_wpfs):
    wpfs = any_wpfs
    program = mapped(wpfs)
    program.order("store 0 1 1")
    epochs = [protect(wpfs, "--name", "t") - 1]
    for page in (2, 3):
        program.order(f"store 0 {page} 1")
        epochs.append(protect(wpfs, "--name", "t") - 1)
        assert report.dirty(wpfs, "t") == set()
    assert [closed(wpfs, epoch) for epoch in epochs] == [{1}, {2}, {3}]
    program.order("store 0 4 1")
    wpfs.kill9()
    wpfs.restart()
    assert [closed(wpfs, epoch) for epoch in epochs] == [{1}, {2}, {3}]
    program.kill9()
    assert [closed(wpfs, epoch) for epoch in epochs] == [{1}, {2}, {3}]
    assert report.dirty(wpfs, "t") == {4}


def test_a_closed_epoch_of_a_fork_child(wpfs):
    """It was born in an epoch of its parent's: what it wrote in that is kept with its number."""
    program = mapped(wpfs)
    program.order("store 0 1 1")
    child = Child(wpfs, program)
    child.order("store 0 2 1")
    epoch = protect(wpfs) - 1
    assert report.dirty(wpfs, f"t/{child.pid}") == set()
    assert closed(wpfs, epoch, f"t/{child.pid}") == {1, 2}
    assert closed(wpfs, epoch) == {1}
    child.end()


def test_epochs_of_several_programs_have_one_number(wpfs):
    """Programs that are protected together, and apart: each answers for the time that is asked."""
    first = mapped(wpfs, "a")
    for _ in range(3):
        protect(wpfs)
    second = mapped(wpfs, "b")
    assert {report.ps(wpfs, name)["epoch"] for name in "ab"} == {4}
    first.order("store 0 1 1")
    second.order("store 0 2 1")
    assert protect(wpfs) == 5
    assert closed(wpfs, 4, "a") == {1} and closed(wpfs, 4, "b") == {2}
    assert protect(wpfs, "--name", "a") == 6
    second.order("store 0 3 1")
    assert protect(wpfs) == 7
    # b was in its epoch 5 all the time that a was in 6.
    assert closed(wpfs, 5, "b") == closed(wpfs, 6, "b") == {3}
    assert wpfs.wpctl("dirty", wpfs.mnt, "--epoch", 8, status=1).stderr.count("epoch 8") == 1


def test_numbers_of_epochs_that_are_forgotten(any_wpfs):
    """Nobody else gets one, and what others stored then is told of: they were in one before it."""
    wpfs = any_wpfs
    first, second = mapped(wpfs, "a"), mapped(wpfs, "b")
    protect(wpfs)
    epoch = protect(wpfs, "--name", "b")
    second.kill9()
    wpfs.wpctl("forget", wpfs.mnt, "--name", "b")
    first.order("store 0 1 1")
    assert closed(wpfs, epoch, "a") == {1}, "in its one before, which goes on"
    assert protect(wpfs) == epoch + 1
    assert closed(wpfs, epoch, "a") == {1}
    # Also if all that had a number are gone when a daemon is started.
    third = mapped(wpfs, "b")
    assert protect(wpfs, "--name", "b") == epoch + 2
    third.kill9()
    wpfs.wpctl("forget", wpfs.mnt, "--name", "b")
    wpfs.kill9()
    wpfs.restart()
    assert protect(wpfs) == epoch + 3
    assert wpfs.wpctl("dirty", wpfs.mnt, "--epoch", epoch + 4, status=1).stderr.count("no epoch")


def test_every_store_is_in_one_epoch(wpfs):
    """1,000 protects of a program that stores at full speed; epochcheck.c says what must hold."""
    writer = wpfs.spawn(harness.program("epochwriter"), wpfs.mnt / "f", wpfs.dir / "notes",
                        4096, 2, name="w")
    assert writer.read() == "ok"
    done = wpfs.command(harness.program("epochcheck"), wpfs.id, wpfs.dir / "notes", 1000,
                        timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    writer.wait()


# ---- all programs of a file


def test_the_union(wpfs):
    programs = [mapped(wpfs, name) for name in "ab"]
    protect(wpfs)
    for page, program in enumerate(programs):
        program.order(f"store 0 {page} 1")
        program.order("store 0 9 1")
    answer = wpfs.wpctl_json("dirty", "--file", "/f")
    assert len(answer["mms"]) == 2
    union = answer["union"]
    assert union["file"] == "/f" and union["dirty"] == 3 and union["armed"] == 64
    assert union["write_calls"] == "no"
    assert [(run["pgoff"], run["pages"]) for run in union["runs"]] == [(0, 2), (9, 1)]
    assert "union" not in wpfs.wpctl_json("dirty", "--file", "/f", "--name", "a")
    assert "union" not in wpfs.wpctl_json("dirty")
    assert "all of them  /f  3 of 64 armed pages dirty" in wpfs.wpctl("dirty", wpfs.mnt, "--file",
                                                                      "/f").stdout
    epoch = protect(wpfs, "--file", "/f")
    assert wpfs.wpctl_json("dirty", "--file", "/f")["union"]["runs"] == []
    (wpfs.mnt / "f").write_bytes(b"x")  # truncates as well: all pages are dropped
    union = wpfs.wpctl_json("dirty", "--file", "/f", "--epoch", epoch - 1)["union"]
    assert [(run["pgoff"], run["pages"]) for run in union["runs"]] == [(0, 2), (9, 1)]
    assert wpfs.wpctl_json("dirty", "--file", "/f")["union"]["write_calls"] == "yes"


def test_who_is_not_tracked_is_named(wpfs):
    """So that a backup knows whose stores it does not see; only where all of a file is asked for."""
    mapped(wpfs, "a")
    assert wpfs.wpctl_json("dirty", "--file", "/f")["notes"] == []
    assert wpfs.wpctl_json("protect", "--file", "/f")["notes"] == []
    stranger = wpfs.spawn_bare(harness.program("mapper"))
    stranger.order(f"open 0 {wpfs.mnt}/f")
    opened = f"/f: not tracked: mapper (pid {stranger.pid}, has it open): "
    (note,) = wpfs.wpctl_json("dirty", "--file", "/f")["notes"]
    assert note.startswith(opened)
    stranger.order(f"map 0 0 0 {PAGE}")
    stranger.order("close 0")
    (note,) = wpfs.wpctl_json("protect", "--file", "/f")["notes"]
    assert note.startswith(f"/f: not tracked: mapper (pid {stranger.pid}, maps it): ")
    assert note in wpfs.wpctl("protect", wpfs.mnt, "--file", "/f").stdout.splitlines()
    assert note in wpfs.wpctl("dirty", wpfs.mnt, "--file", "/f").stdout.splitlines()
    assert wpfs.wpctl_json("dirty", "--file", "/f", "--name", "a")["notes"] == []
    assert wpfs.wpctl_json("protect", "--name", "a", "--file", "/f")["notes"] == []
    wpfs.kill9()
    wpfs.restart()
    assert wpfs.wpctl_json("dirty", "--file", "/f")["notes"] == [note]
    stranger.kill9()
    assert wpfs.wpctl_json("dirty", "--file", "/f")["notes"] == []


# ---- write(2)


def test_write_calls_of_anyone_are_told(any_wpfs):
    wpfs = any_wpfs
    program = mapped(wpfs)
    program.order("store 0 1 1")
    assert write_calls(wpfs) == "no", "a store is no write(2)"
    program.order(f"pwrite 0 {5 * PAGE} 10 7")
    assert write_calls(wpfs) == "yes"
    assert report.dirty(wpfs, "t") == {1}
    epoch = protect(wpfs)
    program.order("store 0 2 1")
    assert write_calls(wpfs) == "no" and write_calls(wpfs, epoch=epoch - 1) == "yes"
    with open(wpfs.mnt / "f", "r+b") as other:
        other.seek(9 * PAGE)
        other.write(b"x")
    assert write_calls(wpfs) == "yes"
    assert report.dirty(wpfs, "t") == {2}
    program.kill9()
    assert write_calls(wpfs) == "yes" and write_calls(wpfs, epoch=epoch - 1) == "yes"


def test_an_epoch_that_could_not_begin_has_what_was_written_before(wpfs):
    program = mapped(wpfs)
    program.order(f"pwrite 0 {5 * PAGE} 10 7")
    assert write_calls(wpfs) == "yes"
    lose_witness(program)
    wpfs.wpctl("protect", wpfs.mnt, status=1)
    assert write_calls(wpfs) == "yes"


def test_calls_like_write(wpfs):
    """copy_file_range, which goes through the daemon, and sendfile, which leaves the lower file's
    watches alone; a punch counts too, though its pages are dirty."""
    program = mapped(wpfs)
    (wpfs.mnt / "source").write_bytes(b"x" * PAGE)
    with open(wpfs.mnt / "source", "rb") as source, open(wpfs.mnt / "f", "r+b") as file:
        assert write_calls(wpfs) == "no"
        os.copy_file_range(source.fileno(), file.fileno(), PAGE, 0, 3 * PAGE)
        assert write_calls(wpfs) == "yes"
        protect(wpfs)
        assert write_calls(wpfs) == "no"
        os.sendfile(file.fileno(), source.fileno(), 0, 100)
        assert write_calls(wpfs) == "yes"
    protect(wpfs)
    assert write_calls(wpfs) == "no"
    program.order(f"punch 0 {4 * PAGE} {PAGE}")
    assert write_calls(wpfs) == "yes"
    protect(wpfs)
    program.order(f"size 0 {60 * PAGE}")
    assert write_calls(wpfs) == "yes"
    assert report.dirty(wpfs, "t") == {page for page in ALL if page >= 60}


def test_only_the_file_that_was_written(wpfs):
    mapped(wpfs)
    mapped(wpfs, name="u", path="g")
    (wpfs.mnt / "unmapped").write_bytes(b"x")
    with open(wpfs.mnt / "g", "r+b") as other:
        other.write(b"x")
    assert write_calls(wpfs) == "no" and write_calls(wpfs, "u", "/g") == "yes"
    protect(wpfs, "--name", "u")
    assert write_calls(wpfs, "u", "/g") == "no"


def test_a_part_keeps_what_is_known_of_the_rest(wpfs):
    mapped(wpfs)
    with open(wpfs.mnt / "f", "r+b") as other:
        other.write(b"x")
    protect(wpfs, "--name", "t", "--file", "/f", "--range", f"0+{PAGE}")
    assert write_calls(wpfs) == "yes"


def test_a_fork_child_has_its_parents_answer(wpfs):
    program = mapped(wpfs)
    program.order(f"pwrite 0 0 10 7")
    child = Child(wpfs, program)
    assert write_calls(wpfs, f"t/{child.pid}") == "yes"
    protect(wpfs)
    assert write_calls(wpfs, f"t/{child.pid}") == "no"
    child.order(f"pwrite 0 0 10 7")
    assert write_calls(wpfs, f"t/{child.pid}") == "yes" and write_calls(wpfs) == "yes"
    child.end()


def test_a_file_without_a_name(wpfs):
    program = mapped(wpfs)
    (wpfs.mnt / "f").unlink()
    protect(wpfs)
    (file,) = {one["file"] for one in report.mm_of(wpfs.wpctl_json("dirty"), "t")["maps"]}
    assert write_calls(wpfs, file=file) == "no"
    program.order("pwrite 0 0 10 7")
    assert write_calls(wpfs, file=file) == "yes"


def test_nobody_looked_while_the_daemon_was_dead(any_wpfs):
    wpfs = any_wpfs
    program = mapped(wpfs)
    assert write_calls(wpfs) == "no"
    wpfs.kill9()
    if wpfs.store != "none":
        assert write_calls(wpfs, target=wpfs.store) == "unknown"
    wpfs.restart()
    assert write_calls(wpfs) == "unknown"
    epoch = protect(wpfs)
    assert write_calls(wpfs, epoch=epoch - 1) == "unknown"
    assert write_calls(wpfs) == "unknown", "what goes through its old descriptor is not seen"
    program.order("pwrite 0 0 10 7")
    assert write_calls(wpfs) == "unknown"
    program.order("close 0")
    assert protect(wpfs) and write_calls(wpfs) == "no"
    wpfs.kill9()
    wpfs.restart()
    write_until_seen(wpfs)
    wpfs.kill9()
    wpfs.restart()
    assert write_calls(wpfs) == "yes"


def test_an_ordered_end_loses_nothing(make_wpfs):
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs)
    program.order("store 0 1 1")
    program.kill9()
    wpfs.umount()
    assert write_calls(wpfs, target=wpfs.store) == "no"
    wpfs.restart()
    assert write_calls(wpfs) == "no"
    write_until_seen(wpfs)  # the program is gone, and its epoch goes on
    wpfs.umount()
    assert write_calls(wpfs, target=wpfs.store) == "yes"
    wpfs.restart()
    assert write_calls(wpfs) == "yes"


def test_write_calls_on_a_capped_mount(make_wpfs):
    wpfs = make_wpfs(store=True, options=["resident=64M"])
    program = mapped(wpfs)
    program.order("store 0 0 1 64")
    protect(wpfs)
    wpfs.wpctl("evict", wpfs.mnt, "/f")
    program.order("load 0 5")
    assert write_calls(wpfs) == "no", "a page that comes back is not a write"
    with open(wpfs.mnt / "f", "r+b") as other:
        other.write(b"x")
    assert write_calls(wpfs) == "yes"


def test_a_daemon_killed_while_it_asks_for_a_watch(make_wpfs):
    """It must not wait for its own answer: it would never be gone, and its mount neither."""
    wpfs = make_wpfs(store=True)
    programs = [mapped(wpfs, name=f"t{n}", path=f"f{n}") for n in range(4)]
    for _ in range(6):
        for n in range(4):
            with open(wpfs.mnt / f"f{n}", "r+b") as file:
                file.write(b"x")  # its watch is used up: protect asks for another
        command = [harness.WPCTL, "protect", wpfs.mnt]
        asking = subprocess.Popen(command, env=wpfs.env(), stderr=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL)
        wpfs.kill9()
        asking.wait(harness.SECONDS)
        wpfs.restart()
    assert all(program.order("store 0 1 1") == 0 for program in programs)
    assert [report.dirty(wpfs, f"t{n}", f"/f{n}") >= {1} for n in range(4)] == [True] * 4


def test_armed_again_after_an_unprotect(any_wpfs):
    """It is another epoch: what the one that the unprotect closed ended with is kept."""
    wpfs = any_wpfs
    program = mapped(wpfs)
    program.order("store 0 3 1")
    first = protect(wpfs)
    program.order("store 0 5 1")
    wpfs.wpctl("unprotect", wpfs.mnt, "--name", "t")
    assert closed(wpfs, first) == {5}
    program.order("unmap 0")
    program.order(f"map 1 0 0 {8 * PAGE}")  # it has all protected that it maps
    program.order("store 1 6 1")
    assert report.dirty(wpfs, "t") == {6}
    assert closed(wpfs, first) == {5}
    second = report.ps(wpfs, "t")["epoch"]
    assert second > first
    third = protect(wpfs)
    assert third > second
    assert closed(wpfs, first) == {5}
    assert closed(wpfs, second) == {6}
    program.kill9()
    wpfs.kill9()
    wpfs.restart()
    assert closed(wpfs, first) == {5} and closed(wpfs, third - 1) == closed(wpfs, second)


def held(pid):
    """Is a thread of the process at a call that strace lets fail, and is late with?"""
    def state(task):
        try:
            with open(f"/proc/{pid}/task/{task}/syscall", encoding="ascii") as call, \
                    open(f"/proc/{pid}/task/{task}/stat", encoding="ascii") as stat:
                return call.read().split()[0] == "-1" and ") t " in stat.read()
        except OSError:
            return False

    return any(state(task) for task in os.listdir(f"/proc/{pid}/task"))


def test_what_cannot_be_marked_is_in_both_epochs(make_wpfs):
    """What was stored since the look before it, and nobody has seen, is in the one that ends too."""
    wpfs = make_wpfs(options=["harvest=0"])  # another look would be counted with the protect's
    wpfs.allow_log("cannot protect a mapping")
    program = mapped(wpfs)
    protect(wpfs)
    # The look asks two questions; then the pages are to be marked, and that fails when strace ends.
    strace = proc.Strace(wpfs.pid, "trace=ioctl", "inject=ioctl:error=EIO:delay_enter=200s:when=3",
                         path=f"/proc/{witness_of(program)}/pagemap")
    try:
        with subprocess.Popen([harness.WPCTL, "protect", wpfs.mnt, "--json"], env=wpfs.env(),
                              stdout=subprocess.PIPE) as waits:
            proc.wait_for(lambda: held(wpfs.pid), harness.SECONDS, "protect")
            program.order("store 0 5 1")
            assert waits.poll() is None
            strace.end()
            epoch = json.loads(waits.stdout.read())["epoch"]
    finally:
        strace.end()
    assert 5 in closed(wpfs, epoch - 1)
    assert report.dirty(wpfs, "t") == ALL
    protect(wpfs)
    assert report.dirty(wpfs, "t") == set()
