# SPDX-License-Identifier: LGPL-2.1-or-later
"""wpctl: its command line, what it shows of a mount and of a store, and what `run` says."""

import ctypes
import json
import os
import pty
import shutil
import sqlite3
import subprocess

import pytest

import harness
import report
from harness import PAGE, WPCTL
from mapper import Child

COMMANDS = ["status", "run", "ps", "marks", "dirty", "protect", "unprotect", "sync", "forget",
            "evict", "load", "map", "top", "watch", "metrics", "export", "apply", "check", "completion"]
WORDS = ["help", "version"]  # the same as --help, --version
PAGES = 16


def wpctl(*args, **more):
    """wpctl without a daemon of the test's own."""
    return subprocess.run([str(WPCTL), *map(str, args)], capture_output=True, text=True, timeout=60,
                          check=False, **more)


def fails(done, status, *words):
    """It failed as it should: this status, nothing on stdout, one line with these words."""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def mapped(wpfs, name="t", file="f", **more):
    """A tracked program that has protected PAGES pages of a file and written pages 3, 4 and 9."""
    program = wpfs.spawn(harness.program("mapper"), name=name, protect=True, **more)
    program.order(f"open 0 {wpfs.mnt}/{file}")
    program.order(f"size 0 {PAGES * PAGE}")
    program.order(f"map 0 0 0 {PAGES * PAGE}")
    for page in (3, 4, 9):
        program.order(f"store 0 {page} 1")
    return program


def runs(mm):
    return [(run["pgoff"], run["pages"]) for m in mm["maps"] for run in m["runs"]]


# -- the command line

def test_help():
    done = wpctl("--help")
    assert done.returncode == 0 and done.stderr == ""
    for command in COMMANDS:
        assert f"  {command} " in done.stdout
        one = wpctl(command, "--help")
        assert one.returncode == 0 and one.stderr == ""
        assert one.stdout.startswith(f"usage: wpctl {command} ")
        assert "--json" in one.stdout
        assert wpctl("help", command).stdout == one.stdout
    assert wpctl("help").stdout == done.stdout
    assert wpctl("--version").stdout.startswith("wpctl ")
    assert wpctl("version").stdout == wpctl("--version").stdout


def test_manual_has_every_command():
    manual = (harness.SOURCE / "man/wpctl.1").read_text()
    for command in COMMANDS + WORDS:
        assert f"\n.Cm {command}\n" in manual and f"\n.It Cm {command}\n" in manual


@pytest.mark.parametrize("typed, meant", [("mark", "marks"), ("ditry", "dirty"), ("pss", "ps"),
                                          ("statsu", "status"), ("protetc", "protect"), ("wacth", "watch"), ("tpo", "top"),
                                          ("metric", "metrics"), ("hlep", "help"), ("versoin", "version")])
def test_unknown_command_suggests(typed, meant):
    fails(wpctl(typed), 2, f"'{typed}'", f"did you mean '{meant}'?")


@pytest.mark.parametrize("args, words", [
    ([], ["no command"]),
    (["frobnicate"], ["'frobnicate'", "--help"]),
    (["ps"], ["no mount or store given"]),
    (["ps", "--frob", "/"], ["unknown option '--frob'"]),
    (["status", "--name", "x", "/"], ["unknown option '--name'"]),
    (["ps", "/", "/x"], ["one operand too many", "'/x'"]),
    (["marks", "/", "--name"], ["no value after option '--name'"]),
    (["marks", "/", "--name", "a" * 65], ["name", "longer than 64"]),
    (["marks", "/", "--name", "a/b"], ["name 'a/b'", "slash"]),
    (["run", "--name", "a/2", "/", "--", "true"], ["name 'a/2'", "slash"]),
    (["run", "--name", "", "/", "--", "true"], ["name ''", "empty"]),
    (["run", "/"], ["no command given"]),
    (["protect", "/", "--file", "/f", "--range", "1+4K"], ["'1+4K'", "aligned"]),
    (["protect", "/", "--file", "/f", "--range", "0+1"], ["'0+1'", "aligned"]),
    (["protect", "/", "--file", "/f", "--range", "nonsense"], ["'nonsense'", "OFF+LEN"]),
    (["protect", "/", "--range", "0+4K"], ["--range needs --file"]),
    (["protect", "/", "--file", "f"], ["path 'f'", "'/'"]),
    (["dirty", "/", "--file", "/../f"], ["'/../f'", "'..'"]),
    (["dirty", "/", "--epoch", "-1"], ["epoch '-1'", "number"]),
    (["forget", "/"], ["--name"]),
    (["evict", "/"], ["no path given"]),
    (["top", "--interval", "0.05", "/"], ["interval '0.05'", "between 0.1 and 3600"]),
    (["top", "--interval", "1.5x", "/"], ["interval '1.5x'", "number of seconds"]),
    (["watch"], ["no mount given"]),
    (["metrics", "-o", "/tmp/x"], ["no mount given"]),
    (["help", "ditry"], ["'ditry'", "did you mean 'dirty'?"]),
    (["help", "ps", "marks"], ["one operand too many", "'marks'"]),
])
def test_usage_errors(args, words):
    fails(wpctl(*args), 2, *words)


# -- what is no mount and no store

def test_targets_that_are_none(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for command in ("status", "ps", "marks", "dirty"):
        fails(wpctl(command, tmp_path / "missing"), 1, f"{tmp_path}/missing", "No such file")
        fails(wpctl(command, tmp_path), 1, str(tmp_path), "neither a wpfs mount nor a store")
        fails(wpctl(command, file), 1, str(file), "not a directory")
    for command in ("protect", "unprotect", "sync"):
        fails(wpctl(command, tmp_path), 1, str(tmp_path), "not a wpfs mount")
    fails(wpctl("run", tmp_path, "--", "true"), 1, str(tmp_path), "not a wpfs mount")
    fails(wpctl("forget", tmp_path, "--name", "x"), 1, str(tmp_path))


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    fails(wpctl("ps", tmp_path / "\033[31m"), 1, "?[31m")


def test_not_a_database(tmp_path):
    (tmp_path / "wpfs.db").write_text("this is no database, and long enough to be looked at " * 4)
    fails(wpctl("ps", tmp_path), 1, str(tmp_path))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["wpfs.db"]


def test_another_programs_database(tmp_path):
    database = sqlite3.connect(tmp_path / "wpfs.db")
    database.execute("create table other(x)")
    database.commit()
    database.close()
    fails(wpctl("ps", tmp_path), 1, str(tmp_path))


def test_store_with_newer_schema(make_wpfs):
    wpfs = make_wpfs(store=True)
    wpfs.umount()
    database = sqlite3.connect(f"{wpfs.store}/wpfs.db")
    database.execute("pragma user_version = 9999")
    database.commit()
    database.close()
    fails(wpctl("ps", wpfs.store), 1, wpfs.store, "newer")


def test_inside_the_mount_and_dead_mount(make_wpfs):
    wpfs = make_wpfs()
    (wpfs.mnt / "dir").mkdir()
    fails(wpctl("ps", wpfs.mnt / "dir"), 1, "inside a wpfs mount")
    wpfs.kill9()
    for command in ("status", "ps", "protect"):
        fails(wpctl(command, wpfs.mnt), 1, str(wpfs.mnt), "daemon is gone", "umount -l")


def test_answer_that_cannot_be_written(wpfs):
    for command in ("status", "ps"):
        with open("/dev/full", "w", encoding="ascii") as full:
            done = subprocess.run([WPCTL, command, wpfs.mnt], stdout=full, stderr=subprocess.PIPE,
                                  text=True, timeout=60, check=False)
        assert done.returncode == 1 and "No space left" in done.stderr, done.stderr


# -- a mount

def test_status(wpfs):
    status = wpfs.wpctl_json("status")
    assert status["state"] == "mounted" and status["kind"] == "native"
    assert status["mountpoint"] == str(wpfs.mnt) and status["store"] == "none"
    assert status["id"] == wpfs.id and status["pid"] == wpfs.pid
    assert status["passthrough"] is True
    text = wpfs.wpctl("status", wpfs.mnt).stdout
    assert f"pid {wpfs.pid}" in text and str(wpfs.mnt) in text and "\033" not in text


def test_empty_answers_say_why(wpfs):
    for command in ("ps", "marks", "dirty"):
        answer = wpfs.wpctl_json(command)
        assert answer["mms"] == [] and answer["notes"], answer
        assert wpfs.wpctl(command, wpfs.mnt).stdout.strip(), "an empty answer says why"


def test_ps_marks_dirty_of_a_live_program(wpfs):
    program = mapped(wpfs)
    (mm,) = wpfs.wpctl_json("ps")["mms"]
    assert (mm["name"], mm["pid"], mm["uid"], mm["state"]) == ("t", program.pid, 0, "live")
    assert (mm["files"], mm["armed"], mm["marked"], mm["dirty"]) == (1, PAGES, PAGES - 3, 3)
    assert mm["comm"] == "mapper" and "maps" not in mm

    (mm,) = wpfs.wpctl_json("dirty", "--name", "t")["mms"]
    assert runs(mm) == [(3, 2), (9, 1)]
    (one,) = mm["maps"]
    assert (one["file"], one["pgoff"], one["pages"], one["owner"]) == ("/f", 0, PAGES, "wpfs")
    assert int(one["end"], 16) - int(one["start"], 16) == PAGES * PAGE
    assert [int(run["vaddr"], 16) - int(one["start"], 16) for run in one["runs"]] == \
        [3 * PAGE, 9 * PAGE]

    (mm,) = wpfs.wpctl_json("marks", "--file", "/f")["mms"]
    assert runs(mm) == [(0, 3), (5, 4), (10, 6)]

    table = wpfs.wpctl("ps", wpfs.mnt).stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "PID", "UID"]
    assert table[1].split()[:4] == ["t", str(program.pid), "0", "live"]
    text = wpfs.wpctl("dirty", wpfs.mnt).stdout
    assert "3 of 16 armed pages dirty" in text and "3-4" in text and "2 pages" in text


def test_unknown_names_and_files(wpfs):
    mapped(wpfs)
    for command in ("ps", "marks", "dirty", "protect", "unprotect", "sync", "forget"):
        fails(wpctl(command, wpfs.mnt, "--name", "nobody"), 1, "nobody")
    for command in ("marks", "dirty", "protect", "unprotect"):
        fails(wpctl(command, wpfs.mnt, "--file", "/nowhere"), 1, "/nowhere")


def test_protect_and_unprotect(wpfs):
    mapped(wpfs)
    assert wpfs.wpctl_json("dirty")["mms"][0]["dirty"] == 3
    first = wpfs.wpctl_json("protect", "--name", "t")
    assert (first["mms"], first["files"], first["pages"]) == (1, 1, PAGES)
    assert wpfs.wpctl_json("dirty")["mms"][0]["dirty"] == 0
    wpfs.programs[0].order("store 0 7 1")
    (mm,) = wpfs.wpctl_json("dirty")["mms"]
    assert runs(mm) == [(7, 1)] and mm["epoch"] == first["epoch"]
    (closed,) = wpfs.wpctl_json("dirty", "--epoch", first["epoch"] - 1)["mms"]
    assert runs(closed) == [(3, 2), (9, 1)]

    wpfs.wpctl("unprotect", wpfs.mnt, "--name", "t", "--file", "/f", "--range", "0+32K")
    (mm,) = wpfs.wpctl_json("marks")["mms"]
    assert runs(mm) == [(8, 8)]
    assert "protected 16 pages (64.0K) in 1 file of 1 program" in \
        wpfs.wpctl("protect", wpfs.mnt).stdout


def test_range_outside_the_file(wpfs):
    mapped(wpfs)
    before = wpfs.wpctl_json("dirty")
    fails(wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f", "--range", "64K+4K"), 1, "/f")
    fails(wpctl("protect", wpfs.mnt, "--name", "t", "--file", "/f", "--range", "60K+8K"), 1, "/f")
    assert wpfs.wpctl_json("dirty") == before


def test_sync_and_forget(wpfs):
    program = mapped(wpfs)
    assert wpfs.wpctl("sync", wpfs.mnt).stdout == ""
    assert wpfs.wpctl_json("sync", "--name", "t") == {"committed": True}
    program.kill9()
    (mm,) = wpfs.wpctl_json("dirty")["mms"]
    assert (mm["state"], mm["pid"], mm["dirty"]) == ("detached", None, 3)
    assert mm["maps"][0]["start"] is None or mm["maps"][0]["start"].startswith("0x")
    assert wpfs.wpctl_json("forget", "--name", "t") == {"forgotten": "t"}
    assert wpfs.wpctl_json("ps")["mms"] == []
    fails(wpctl("forget", wpfs.mnt, "--name", "t"), 1, "'t'")


def test_evict_on_a_native_mount(wpfs):
    (wpfs.mnt / "f").write_bytes(b"x" * PAGE)
    for command in ("evict", "load"):
        fails(wpctl(command, wpfs.mnt, "/f"), 1, "resident=")


def test_paths_of_any_bytes(wpfs):
    name = os.fsdecode(b"q\"\\\xff\n\xc3\xa4")
    program = wpfs.spawn(harness.program("mapper"), name="t", protect=True)
    (wpfs.mnt / "plain").write_bytes(bytes(PAGE))
    program.order(f"open 0 {wpfs.mnt}/plain")
    program.order(f"map 0 0 0 {PAGE}")
    os.rename(wpfs.mnt / "plain", wpfs.mnt / name)
    (mm,) = wpfs.wpctl_json("marks", "--file", f"/{name}")["mms"]
    (one,) = mm["maps"]
    assert one["file"] == "/q\"\\\ufffd\n\u00e4"
    assert bytes.fromhex(one["file_hex"]) == b"/q\"\\\xff\n\xc3\xa4"
    assert "/q\"\\\\\\xff\\x0a\u00e4" in wpfs.wpctl("marks", wpfs.mnt).stdout


def on_terminal(argv, env):
    """What a command writes to a terminal."""
    main, other = pty.openpty()
    with subprocess.Popen(argv, stdout=other, env=env) as process:
        os.close(other)
        text = b""
        while True:
            try:
                part = os.read(main, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not part:
                break
            text += part
        assert process.wait(30) == 0
    os.close(main)
    return text.decode()


def test_colour_only_on_a_terminal(wpfs):
    mapped(wpfs)
    env = wpfs.env({"TERM": "xterm"})
    assert "\033[" in on_terminal([WPCTL, "ps", wpfs.mnt], env)
    assert "\033" not in on_terminal([WPCTL, "ps", wpfs.mnt], {**env, "NO_COLOR": "1"})
    assert "\033" not in on_terminal([WPCTL, "ps", wpfs.mnt], {**env, "TERM": "dumb"})
    assert "\033" not in on_terminal([WPCTL, "ps", "--json", wpfs.mnt], env)
    assert "\033" not in wpfs.wpctl("ps", wpfs.mnt).stdout


def reachable(path):
    """Where another user can execute a program of the build, which may be in a private place."""
    copy = path / "wpctl"
    shutil.copy(WPCTL, copy)
    os.chmod(path, 0o755)
    return copy


def test_other_users_see_nothing_of_root(wpfs):
    mapped(wpfs)
    copy = reachable(wpfs.dir)
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    seen = wpfs.command(copy, "ps", "--json", wpfs.mnt, **nobody)
    assert seen.returncode == 0 and json.loads(seen.stdout)["mms"] == [], seen.stderr
    assert "no program of yours" in json.loads(seen.stdout)["notes"][0]
    root = "only root sees the programs of other users"
    for command, *args in (["ps"], ["map"], ["dirty", "--file", "/f"]):
        said = wpfs.command(copy, command, *args, wpfs.mnt, **nobody).stdout
        assert " of yours " in said and root in said, said
        assert root not in wpfs.wpctl(command, *args, wpfs.mnt).stdout
    assert "no program of yours is tracked; only root sees" in \
        wpfs.command(copy, "top", "--once", wpfs.mnt, **nobody).stdout
    for command, *args in (["ps", "--name", "t"], ["protect", "--name", "t"], ["protect"],
                           ["sync", "--name", "t"]):
        fails(wpfs.command(copy, command, *args, wpfs.mnt, **nobody), 1, " of yours ", root)
    fails(wpfs.command(copy, "forget", "--name", "t", wpfs.mnt, **nobody), 1, "'t'")
    assert wpfs.wpctl_json("dirty")["mms"][0]["dirty"] == 3


# -- a store

def test_store_mounted_and_not(make_wpfs):
    wpfs = make_wpfs(store=True)
    program = mapped(wpfs)
    by_mount = wpfs.wpctl_json("dirty")
    assert wpfs.wpctl_json("dirty", target=wpfs.store) == by_mount, "its daemon answers"
    assert wpfs.wpctl_json("status", target=wpfs.store)["state"] == "mounted"
    program.kill9()
    wpfs.umount()

    (mm,) = wpfs.wpctl_json("dirty", "--name", "t", target=wpfs.store)["mms"]
    assert (mm["state"], mm["pid"]) == ("detached", None) and runs(mm) == [(3, 2), (9, 1)]
    (mm,) = wpfs.wpctl_json("marks", "--file", "/f", target=wpfs.store)["mms"]
    assert runs(mm) == [(0, 3), (5, 4), (10, 6)]
    status = wpfs.wpctl_json("status", target=wpfs.store)
    assert (status["state"], status["mms_detached"], status["dirty"]) == ("detached", 1, 3)
    assert "detached" in wpfs.wpctl("status", wpfs.store).stdout
    assert "detached" in wpfs.wpctl("ps", wpfs.store).stdout
    fails(wpctl("ps", wpfs.store, "--name", "nobody"), 1, "nobody")
    for command in ("protect", "sync"):
        fails(wpctl(command, wpfs.store), 1, wpfs.store, "not mounted")
    fails(wpctl("run", wpfs.store, "--", "true"), 1, wpfs.store, "not mounted")

    fails(wpctl("forget", wpfs.store, "--name", "nobody"), 1, "nobody")
    wpfs.start()
    second, other = mapped(wpfs, "t"), mapped(wpfs, "tt")
    child = Child(wpfs, second)
    child.order("store 0 1 1")
    child.end()
    second.kill9()
    other.kill9()
    assert set(report.names(wpfs)) == {"t", f"t/{child.pid}", "tt"}
    wpfs.umount()
    wpfs.wpctl("forget", wpfs.store, "--name", "t")  # as a daemon does: with its instances and children
    assert [mm["name"] for mm in wpfs.wpctl_json("ps", target=wpfs.store)["mms"]] == ["tt"]
    wpfs.wpctl("forget", wpfs.store, "--name", "tt")
    answer = wpfs.wpctl_json("ps", target=wpfs.store)
    assert answer["mms"] == [] and answer["notes"]
    wpfs.start()
    assert wpfs.wpctl_json("ps")["mms"] == []


def test_store_of_a_killed_daemon(make_wpfs):
    wpfs = make_wpfs(store=True)
    mapped(wpfs)
    wpfs.wpctl("sync", wpfs.mnt)
    wpfs.kill9()
    answer = wpfs.wpctl_json("dirty", target=wpfs.store)
    (mm,) = answer["mms"]
    assert mm["state"] == "detached" and any("last harvest" in note for note in mm["notes"]), mm
    assert runs(mm) == [(3, 2), (9, 1)]
    wpfs.restart()
    assert wpfs.wpctl_json("dirty", target=wpfs.store)["mms"][0]["state"] == "live"


# -- run

def environment(done):
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_run_sets_the_environment(wpfs):
    done = wpfs.run("/usr/bin/env", name="t", protect=True)
    env = environment(done)
    assert done.returncode == 0 and done.stderr == ""
    assert env["LD_PRELOAD"] == str(harness.SHIM) and env["WPFS_MOUNT"] == wpfs.id
    assert env["WPFS_NAME"] == "t" and env["WPFS_PROTECT"] == "1"

    sanitizer = wpfs.env()["ASAN_OPTIONS"] + ":verify_asan_link_order=0"
    done = wpfs.run("/usr/bin/env", env={"LD_PRELOAD": "libm.so.6", "WPFS_NAME": "old",
                                         "WPFS_PROTECT": "1", "ASAN_OPTIONS": sanitizer})
    env = environment(done)
    assert env["LD_PRELOAD"] == f"{harness.SHIM}:libm.so.6"
    assert "WPFS_NAME" not in env and "WPFS_PROTECT" not in env
    assert done.stderr.splitlines() == [
        "wpctl: run: no --name: the marks of this program end with it"]
    assert wpfs.run("/usr/bin/env", env={"WPFS_QUIET": "1"}).stderr == ""


def test_run_operands(wpfs):
    for args in (["run", wpfs.mnt, "echo", "--json"], ["run", "--name", "t", wpfs.mnt, "--", "echo",
                                                       "--json"],
                 ["run", wpfs.mnt, "--name", "t", "--", "echo", "--json"]):
        assert wpfs.command(WPCTL, *args).stdout == "--json\n"


def test_run_ends_as_the_program_does(wpfs):
    assert wpfs.run("/bin/sh", "-c", "exit 7", name="t").returncode == 7
    done = wpfs.run("no-such-program", name="t")
    fails(done, 127, "no-such-program")
    not_executable = wpfs.dir / "data"
    not_executable.touch()
    fails(wpfs.run(not_executable, name="t"), 126, str(not_executable))
    fails(wpfs.run("/nonexistent/prog", name="t"), 127, "/nonexistent/prog")


def compiled(path, *flags):
    source = path.with_suffix(".c")
    source.write_text("int main(void) { return 5; }\n")
    subprocess.run(["cc", *flags, "-o", path, source], check=True, timeout=60)
    return path


def test_run_says_what_will_not_attach(wpfs):
    static = compiled(wpfs.dir / "static", "-static")
    done = wpfs.run(static, name="t")
    assert done.returncode == 5
    (line,) = done.stderr.splitlines()
    assert f"{static} is statically linked" in line and "untracked" in line
    assert wpfs.run(static, name="t", env={"WPFS_QUIET": "1"}).stderr == ""
    done = wpfs.run(static, name="t", env={"WPFS_REQUIRE": "1"})
    fails(done, 1, "statically linked", "WPFS_REQUIRE")

    pie = compiled(wpfs.dir / "static-pie", "-static-pie")
    assert "statically linked" in wpfs.run(pie, name="t").stderr
    script = wpfs.dir / "script"
    script.write_text(f"#! {static}\n")
    script.chmod(0o755)
    assert f"{static} is statically linked" in wpfs.run(script, name="t").stderr
    script.write_text("#!/usr/bin/env static\n")
    path = f"{wpfs.dir}:{os.environ['PATH']}"
    assert f"{static} is statically linked" in wpfs.run(script, name="t", env={"PATH": path}).stderr
    script.write_text("#!/bin/sh\nexit 4\n")
    done = wpfs.run(script, name="t")
    assert done.returncode == 4 and done.stderr == ""
    script.write_text("exit 3\n")  # run by sh, as execvp(3) does
    assert wpfs.run(script, name="t").returncode == 3

    musl = compiled(wpfs.dir / "musl", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1")
    done = wpfs.run(musl, name="t")
    assert "another C library (/lib/ld-musl-x86_64.so.1)" in done.stderr
    foreign = bytearray(musl.read_bytes())
    foreign[18] ^= 0xff  # e_machine
    (wpfs.dir / "foreign").write_bytes(foreign)
    (wpfs.dir / "foreign").chmod(0o755)
    done = wpfs.run(wpfs.dir / "foreign", name="t", errors="replace")
    assert "64-bit program for another machine" in done.stderr


def test_run_says_what_is_privileged(wpfs):
    copy = reachable(wpfs.dir)
    program = compiled(wpfs.dir / "prog")
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    argv = [copy, "run", "--name", "t", wpfs.mnt, "--", program]
    env = {"WPFS_PRELOAD": str(harness.SHIM)}
    shim = wpfs.dir / "libwpfs_preload.so"
    shutil.copy(harness.SHIM, shim)
    env["WPFS_PRELOAD"] = str(shim)
    for mode, word in ((0o4755, "setuid"), (0o2755, "setgid")):
        program.chmod(mode)
        done = wpfs.command(*argv, env=env, **nobody)
        assert done.returncode == 5 and f"{program} is {word}" in done.stderr, done.stderr
        # for root they change nothing
        assert wpfs.command(*argv, env=env).stderr == ""
    program.chmod(0o755)
    # version 2, effective, CAP_NET_RAW permitted
    os.setxattr(program, "security.capability",
                bytes.fromhex("0100000200200000000000000000000000000000"))
    done = wpfs.command(*argv, env=env, **nobody)
    assert done.returncode == 5 and "file capabilities" in done.stderr, done.stderr
    assert wpfs.command(*argv, env=env).stderr == ""

    libc = ctypes.CDLL(None)
    done = wpfs.command(*argv, env=env, preexec_fn=lambda: libc.prctl(38, 1, 0, 0, 0), **nobody)
    assert done.stderr == "", "NO_NEW_PRIVS: the file's capabilities count for nothing"


def test_run_json(wpfs):
    done = wpfs.command(WPCTL, "run", "--json", "--name", "t", wpfs.mnt, "--", "echo", "x")
    assert done.stdout == "x\n"
    assert json.loads(done.stderr) == {"mount": wpfs.id, "name": "t", "protect": False,
                                       "attach": True, "why": None}
    static = compiled(wpfs.dir / "static", "-static")
    said = json.loads(wpfs.command(WPCTL, "run", "--json", wpfs.mnt, "--", static).stderr)
    assert said["attach"] is False and "statically linked" in said["why"] and said["name"] is None


def test_run_library_with_a_blank(wpfs):
    odd = wpfs.dir / "odd place"
    odd.mkdir()
    shutil.copy(harness.SHIM, odd / "libwpfs_preload.so")
    done = wpfs.run("true", name="t", env={"WPFS_PRELOAD": str(odd / "libwpfs_preload.so")})
    fails(done, 1, "blank or a colon")
    fails(wpfs.run("true", name="t", env={"WPFS_PRELOAD": "/nonexistent.so"}), 1, "/nonexistent.so")
