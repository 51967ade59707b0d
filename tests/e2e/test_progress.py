# SPDX-License-Identifier: LGPL-2.1-or-later
"""Long work says how far it is, on a terminal and nowhere else, and leaves no line behind."""

import os
import re
import shlex
import sqlite3
import subprocess

import pytest

import harness
import proc
from harness import PAGE, WPCTL
from mapper import mapped
from terminal import Terminal

LINE = re.compile(r"(evict|load|flush|check: \w+): ")
FULL = re.compile(r"^(evict|load|flush): [\d.]+[KMGB]+ of [\d.]+[KMG], \d+ %, [\d.]+[KMGB]+/s, \d+:\d\d left$")
SIZE = 64 << 20


def shown(terminal):
    """Lines of progress that it shows until it ends, and the screen then."""
    seen = {line for line in terminal.written() if LINE.match(line)}
    return seen, terminal.ended()[1]


def slow(argv, what, ms=20):
    """A command that takes a while: its system calls `what` are held up by strace, each for so long."""
    return shlex.join(["strace", "-f", "-o", "/dev/null", "-e", f"inject={what}:delay_enter={ms * 1000}",
                       *map(str, argv)])


def traced(wpfs):
    """An environment for what is under strace when it ends: LeakSanitizer does not work there."""
    env = wpfs.env()
    env["ASAN_OPTIONS"] += ":detect_leaks=0"
    return env


def held_up(wpfs, *calls):
    """The daemon, with these system calls held up; stopped by ending strace."""
    return proc.Strace(wpfs.pid, "signal=none", f"inject={','.join(calls)}:delay_enter=20000")


@pytest.fixture
def capped(make_wpfs):
    wpfs = make_wpfs(store=True, options=["resident=128M", "settle=10"])
    with open(wpfs.mnt / "f", "wb") as file:
        file.write(os.urandom(SIZE))
    return wpfs


def move(wpfs, verb, columns=80):
    # evictions write to the spill file and punch, loads write to the lower one
    strace = held_up(wpfs, *(["fallocate"] if verb == "evict" else ["pwrite64", "pwritev", "pwritev2"]))
    try:
        with Terminal(f"{WPCTL} {verb} {wpfs.mnt} /f", columns=columns, env=wpfs.env(),
                      record=wpfs.dir / f"{verb}.shown") as terminal:
            return shown(terminal)
    finally:
        strace.end()


def test_evict_and_load(capped):
    for verb, done in (("evict", "evicted"), ("load", "loaded")):
        seen, screen = move(capped, verb)
        assert any(FULL.match(line) for line in seen), (verb, seen)
        assert not any(LINE.match(line) for line in screen), screen
        assert screen[0].startswith(f"{done} {SIZE // PAGE} pages"), screen


def test_narrow_terminal(capped):
    """The line is cut and never wrapped."""
    seen, screen = move(capped, "evict", columns=20)
    assert seen and all(len(line) < 20 for line in seen)
    assert not any(LINE.match(line) for line in screen)


def test_nothing_when_piped(capped):
    strace = held_up(capped, "fallocate")
    done = capped.wpctl("evict", capped.mnt, "/f")
    strace.end()
    assert done.stderr == "" and re.fullmatch(rf"evicted {SIZE // PAGE} pages \(64.0M\)\n", done.stdout)
    assert "\r" not in done.stdout


def test_failure_takes_the_line_away(capped):
    mapped(capped)
    with Terminal(f"{WPCTL} evict {capped.mnt} /nowhere", env=capped.env(), record=capped.dir / "shown") as terminal:
        seen, screen = shown(terminal)
    assert not seen and screen[0].startswith("wpctl: evict: ") and "/nowhere" in screen[0]


# -- the last flush

def written(make_wpfs):
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    wpfs.daemon_env["ASAN_OPTIONS"] = traced(wpfs)["ASAN_OPTIONS"]
    wpfs.start()
    with open(wpfs.mnt / "f", "wb") as file:
        file.write(os.urandom(SIZE))
    return wpfs


def unmounted(wpfs, strace):
    assert proc.is_over(wpfs.pidfd, harness.STORE_SECONDS)
    strace.end()
    assert wpfs._reaped() == 0 and not (harness.RUN_DIR / wpfs.id).exists()
    assert (wpfs.dir / "store/data").exists()


def test_umount(make_wpfs):
    wpfs = written(make_wpfs)
    strace = held_up(wpfs, "pwrite64")
    with Terminal(f"{harness.UMOUNT_HELPER} {wpfs.mnt}", env=wpfs.env(), record=wpfs.dir / "shown") as terminal:
        seen, screen = shown(terminal)
    unmounted(wpfs, strace)
    assert any(FULL.match(line) for line in seen), seen
    assert not any(LINE.match(line) for line in screen)
    assert [line for line in screen if "ended with" in line] == ["ended with 0"]


def test_umount_piped(make_wpfs):
    wpfs = written(make_wpfs)
    strace = held_up(wpfs, "pwrite64")
    done = wpfs.command(harness.UMOUNT_HELPER, wpfs.mnt)
    unmounted(wpfs, strace)
    assert done.returncode == 0 and done.stdout == "" and "\r" not in done.stderr
    assert not any(LINE.match(line) for line in done.stderr.splitlines())


def test_foreground(make_wpfs):
    """wpfs -f on a terminal says it itself."""
    wpfs = make_wpfs(store=True, start=False)
    command = slow([harness.WPFS, "-f", "-o", "flush=0", wpfs.store, wpfs.mnt], "pwrite64")
    watch = proc.MountWatch()
    with Terminal(command, env=traced(wpfs), record=wpfs.dir / "shown") as terminal:
        assert watch.wait(wpfs.answers, harness.SECONDS)
        with open(wpfs.mnt / "f", "wb") as file:
            file.write(os.urandom(SIZE))
        subprocess.run(["umount", "-i", wpfs.mnt], check=True, timeout=harness.SECONDS)
        seen, screen = shown(terminal)
    watch.close()
    assert any(FULL.match(line) for line in seen), seen
    assert not any(LINE.match(line) for line in screen)


def test_service_manager_is_asked_for_time(make_wpfs):
    from test_notify import Manager
    wpfs = make_wpfs(store=True, options=["flush=0"], start=False)
    manager = Manager(wpfs)
    wpfs.daemon_env["ASAN_OPTIONS"] = traced(wpfs)["ASAN_OPTIONS"]
    wpfs.start()
    with open(wpfs.mnt / "f", "wb") as file:
        file.write(os.urandom(SIZE))
    strace = held_up(wpfs, "pwrite64")
    subprocess.run(["umount", "-i", wpfs.mnt], check=True, timeout=harness.SECONDS)
    manager.until("STOPPING")
    assert int(manager.until("EXTEND_TIMEOUT_USEC")["EXTEND_TIMEOUT_USEC"]) >= 30000000
    assert re.fullmatch(r"Writing the store: [\d.]+[KMGB]+ of 64.0M", manager.until("STATUS")["STATUS"])
    unmounted(wpfs, strace)


# -- check

def test_check(make_wpfs):
    wpfs = make_wpfs(store=True)
    for i in range(60):
        (wpfs.mnt / f"f{i}").write_bytes(b"x")
    wpfs.umount()
    with Terminal(slow([WPCTL, "check", wpfs.store], "newfstatat,fstat,statx"), env=traced(wpfs),
                  record=wpfs.dir / "shown") as terminal:
        seen, screen = shown(terminal)
    assert any(re.match(r"check: files: \d+ of 60, \d+ %, \d+/s, \d+:\d\d left$", line) for line in seen), seen
    assert screen[0] == "nothing is wrong"
    done = wpfs.command("sh", "-c", slow([WPCTL, "check", wpfs.store], "newfstatat,fstat,statx"),
                        env={"ASAN_OPTIONS": traced(wpfs)["ASAN_OPTIONS"]})
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing is wrong\n", "")


def test_check_of_the_database(make_wpfs):
    """As long as SQLite is at it nothing is known but the time."""
    wpfs = make_wpfs(store=True)
    wpfs.umount()
    with sqlite3.connect(f"{wpfs.store}/wpfs.db") as database:
        database.execute("create table filler (x)")
        database.execute("with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) "
                         "insert into filler select hex(randomblob(100)) from n")
    database.close()
    with Terminal(slow([WPCTL, "check", wpfs.store], "pread64", 1), env=traced(wpfs),
                  record=wpfs.dir / "shown") as terminal:
        seen, _ = shown(terminal)
    assert any(re.fullmatch(r"check: database: \d+:\d\d", line) for line in seen), seen
