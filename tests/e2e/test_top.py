# SPDX-License-Identifier: LGPL-2.1-or-later
"""wpctl top: on a terminal of several sizes, as a table, as JSON, and what it costs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import time

import pytest

import harness
import proc
from harness import PAGE, WPCTL
from mapper import map_file, mapped
from terminal import Terminal

WIDE_NAME = "漢字 ä b"  # a command: two columns for each of the first two letters


def top(wpfs, *args, **more):
    command = shlex.join([str(WPCTL), "top", *map(str, args), str(wpfs.mnt)])
    return Terminal(command, env=wpfs.env(), **more)


def odd_command(wpfs):
    """A program whose command name has spaces and wide letters."""
    copy = wpfs.dir / WIDE_NAME
    shutil.copy(harness.program("mapper"), copy)
    return map_file(wpfs.spawn(copy, name="odd", protect=True), wpfs.mnt / "odd", 16)


def rows(lines):
    """{name: line} below the titles."""
    (title,) = [i for i, line in enumerate(lines) if line.startswith("NAME")]
    return {line.split()[0]: line for line in lines[title + 1:] if line and not line.startswith("q quit")}


def cells(width):
    """Columns that a text takes on a terminal."""
    return sum(2 if "\u2e80" <= letter <= "\u9fff" else 1 for letter in width)


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal(wpfs, columns):
    one = mapped(wpfs, pages=16)
    for page in (1, 2, 3):
        one.order(f"store 0 {page} 1")
    odd = odd_command(wpfs)
    with top(wpfs, "--interval", "0.2", columns=columns) as terminal:
        lines = terminal.wait(lambda lines: any(line.startswith("odd ") for line in lines), "the table")
        table = rows(lines)
        assert lines[0].split() == [str(wpfs.mnt), "native"]
        assert lines[1].startswith("2 live, 0 detached") and "marks committed" in lines[1]
        assert lines[23].startswith("q quit  h help  sort:")
        assert list(table) == ["t", "odd"], "sorted by dirty pages"
        assert table["t"].split()[1] == str(one.pid) and table["odd"].split()[1] == str(odd.pid)
        assert "12.0K" in table["t"] and table["t"].endswith("  mapper")
        assert table["odd"].endswith("  " + WIDE_NAME)
        titles = next(line for line in lines if line.startswith("NAME"))
        assert ("UID" in titles) == ("ARMED" in titles) == (columns == 200)
        assert titles.index("COMMAND") == table["t"].index("mapper")
        assert all(cells(line) <= columns for line in lines)
        terminal.wait(lambda lines: "0/s" in rows(lines)["t"], "rates")
        terminal.keys("q")
        assert terminal.ended()[0] == 0


def test_wide_letters_are_cut_whole(wpfs):
    """Where a command is cut, on a narrow terminal, no letter is halved and nothing is shifted."""
    odd_command(wpfs)
    seen = set()
    for columns in range(62, 72):
        with top(wpfs, columns=columns) as terminal:
            lines = terminal.wait(lambda lines: any(line.startswith("odd ") for line in lines), "the table")
            line = rows(lines)["odd"]
            assert cells(line) <= columns
            seen.add(line.split("  ")[-1])
            terminal.keys("q")
            terminal.ended()
    assert any(text.endswith("~") for text in seen), seen
    assert all(text in WIDE_NAME or WIDE_NAME.startswith(text[:-1]) for text in seen), seen


def test_keys_and_sizes(wpfs):
    programs = {name: mapped(wpfs, name, pages=pages, path=name)
                for name, pages in (("a", 4), ("b", 64), ("c", 16))}
    programs["a"].order("store 0 0 1")

    def order(lines):
        return list(rows(lines)) if any(line.startswith("NAME") for line in lines) else []

    with top(wpfs, "--interval", "30") as terminal:
        terminal.wait(lambda lines: order(lines) == ["a", "b", "c"], "dirty first, then by name")
        terminal.keys("m")
        terminal.wait(lambda lines: order(lines) == ["b", "c", "a"], "by size")
        terminal.keys("R")
        terminal.wait(lambda lines: order(lines) == ["a", "c", "b"], "the other way round")
        terminal.keys("n")
        terminal.wait(lambda lines: order(lines) == ["c", "b", "a"], "by name, still reversed")
        terminal.keys("h")
        terminal.wait(lambda lines: any("the other way round" in line for line in lines), "help")
        terminal.keys("h")
        terminal.resize(120, 10)
        terminal.wait(lambda lines: any("ARMED" in line for line in lines) and lines[9].startswith("q quit"),
                      "more columns")
        terminal.resize(60, 6)
        terminal.wait(lambda lines: lines[5].startswith("q quit") and order(lines) == ["c"], "fewer lines")
        terminal.keys("Down")
        terminal.wait(lambda lines: order(lines) == ["b"], "scrolled")
        terminal.resize(10, 2)
        terminal.resize(80, 24)
        terminal.wait(lambda lines: order(lines) == ["c", "b", "a"], "all again")
        terminal.keys("C-c")
        assert terminal.ended()[0] == 0


def test_new_programs_and_none(wpfs):
    with top(wpfs, "--interval", "0.1") as terminal:
        terminal.wait(lambda lines: any("no program is tracked" in line for line in lines), "why it is empty")
        one = mapped(wpfs, pages=4)
        terminal.wait(lambda lines: any(line.startswith("t ") for line in lines), "the program")
        one.kill9()
        terminal.wait(lambda lines: any("0 live, 1 detached" in line for line in lines), "its end")
        terminal.keys("q")


def test_daemon_killed(wpfs):
    with top(wpfs, "--interval", "0.1") as terminal:
        terminal.wait(lambda lines: any("live" in line for line in lines), "the first look")
        wpfs.kill9()
        status, lines = terminal.ended()
        text = "".join(lines)
        assert status == 1 and "daemon is gone" in text and "q quit" not in text


def test_terminal_goes(wpfs):
    """It ends, which Terminal.close() sees."""
    env = wpfs.env()
    env["ASAN_OPTIONS"] += ":detect_leaks=0"  # whose tracer cannot stop what has lost its terminal
    with Terminal(f"{WPCTL} top {wpfs.mnt}", env=env) as terminal:
        terminal.wait(lambda lines: any("live" in line for line in lines), "the first look")


def test_unmounted(wpfs):
    with top(wpfs, "--interval", "0.1") as terminal:
        terminal.wait(lambda lines: any("live" in line for line in lines), "the first look")
        wpfs.umount()
        status, lines = terminal.ended()
        assert status == 1 and "it was unmounted" in "".join(lines)


def test_no_terminal_and_an_unknown_one(wpfs):
    done = wpfs.wpctl("top", wpfs.mnt, status=1)
    assert "--once" in done.stderr and "no terminal" in done.stderr and done.stdout == ""
    with Terminal(f"TERM=nosuch {WPCTL} top {wpfs.mnt}", env=wpfs.env()) as terminal:
        status, lines = terminal.ended()
        assert status == 1 and "'nosuch'" in "".join(lines) and "--once" in "".join(lines)


def test_once(wpfs):
    assert "no program is tracked" in wpfs.wpctl("top", "--once", wpfs.mnt).stdout
    one = mapped(wpfs, pages=16)
    one.order("store 0 3 1")
    odd_command(wpfs)
    lines = wpfs.wpctl("top", "--once", wpfs.mnt).stdout.splitlines()
    assert lines[0].split() == ["NAME", "PID", "UID", "MAPPED", "ARMED", "MARKED", "DIRTY", "DIRTIED",
                                "FAULTS", "COMMAND"]
    assert re.split("  +", lines[1]) == ["t", str(one.pid), "0", "16 (64.0K)", "16 (64.0K)", "15 (60.0K)",
                                         "1 (4.0K)", "-", "-", "mapper"]
    assert lines[2].endswith("  " + WIDE_NAME) and lines[3].startswith("marks committed ")
    again = wpfs.wpctl("top", "--once", "--interval", "0.1", wpfs.mnt).stdout.splitlines()
    assert "0/s" in again[1]


def test_json_and_rates(wpfs):
    one = mapped(wpfs, pages=16)
    (mm,) = wpfs.wpctl_json("top", "--once")["mms"]
    assert (mm["name"], mm["pid"], mm["mapped"], mm["dirty"]) == ("t", one.pid, 16, 0)
    assert mm["dirty_rate"] is None and mm["fault_rate"] is None and mm["faults"] > 0
    with subprocess.Popen([WPCTL, "top", "--json", "--interval", "0.2", wpfs.mnt], env=wpfs.env(),
                          stdout=subprocess.PIPE, text=True) as many:
        first = json.loads(many.stdout.readline())
        assert first["mms"][0]["dirty_rate"] == 0
        for page in range(16):
            one.order(f"store 0 {page} 1")
        rates = []
        while sum(rates) == 0:
            rates.append(json.loads(many.stdout.readline())["mms"][0]["dirty_rate"])
        assert json.loads(many.stdout.readline())["mms"][0]["dirty"] == 16
        many.terminate()


def test_a_user_sees_its_own(wpfs):
    mapped(wpfs, pages=4)
    copy = shutil.copy(WPCTL, wpfs.dir / "wpctl")
    os.chmod(wpfs.dir, 0o755)
    done = subprocess.run([copy, "top", "--once", "--json", wpfs.mnt], user=65534, group=65534,
                          extra_groups=[], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["mms"] == []


@pytest.mark.timeout(300)
def test_cost(wpfs):
    """Of 100 programs, its own and the daemon's share: under 2 % of a core (sanitizers: of five)."""
    for i in range(100):
        mapped(wpfs, f"p{i}", pages=16, path=f"f{i}")
    with top(wpfs, lines=40) as terminal:
        terminal.wait(lambda lines: any("100 live" in line for line in lines), "the table")
        (pid,) = [pid for pid in proc.descendants() if proc.describe(pid).startswith("wpctl")]
        before, begin = (proc.cpu_ns(pid), proc.cpu_ns(wpfs.pid)), time.monotonic()
        looks = wpfs_harvests(wpfs)
        proc.wait_for(lambda: time.monotonic() - begin > 10, 20, "ten seconds")
        seconds = time.monotonic() - begin
        shares = [(after - then) / 1e7 / seconds for after, then in zip((proc.cpu_ns(pid), proc.cpu_ns(wpfs.pid)), before)]
        print(f"wpctl {shares[0]:.2f} %, wpfs {shares[1]:.2f} % of a core")
        assert wpfs_harvests(wpfs) - looks >= 300, "it looked"
        terminal.keys("q")
    assert sum(shares) < (10 if harness.SANITIZED else 2), shares


def wpfs_harvests(wpfs):
    return wpfs.wpctl_json("status")["harvests"]
