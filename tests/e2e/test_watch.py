# SPDX-License-Identifier: LGPL-2.1-or-later
"""wpctl watch: what it tells, to whom, how it ends, and that a slow reader is in nobody's way."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess

import pytest

import harness
import proc
import wire
from harness import PAGE, WPCTL
from mapper import mapped

HELLO, SYNC, WATCH = 1, 68, 73
REPLY, RECORD = 128, 129
HELLO_CTL = 2
KEPT = 4096  # WPFS_WATCH_KEPT
LOST = 7  # WPFS_EVENT_LOST
QUIET = ["harvest=0"]  # no event but for what the test does


class Watch:
    """wpctl watch in the background, from its first answer on: it has begun when this returns."""

    def __init__(self, wpfs, *args, more=None, argv=(WPCTL,)):
        self.popen = subprocess.Popen([*argv, "watch", *args, wpfs.mnt], env=wpfs.env(), text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, **(more or {}))
        proc.wait_for(self.asked, harness.SECONDS, "the first request")

    def asked(self):
        """It waits for an answer, or for the signals that end it: it sleeps in poll(2)."""
        fds = f"/proc/{self.popen.pid}/fd"
        with open(f"/proc/{self.popen.pid}/wchan", encoding="ascii") as wchan, contextlib.suppress(FileNotFoundError):
            return any("signalfd" in os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)) and "poll" in wchan.read()
        return False

    def line(self):
        line = self.popen.stdout.readline()
        assert line, f"ended: {self.popen.wait(harness.SECONDS)}: {self.popen.stderr.read()}"
        return line.rstrip("\n")

    def event(self, *kinds):
        """The next event of one of these kinds; those before it are passed over."""
        while True:
            event = json.loads(self.line())
            if event["event"] in kinds:
                return event

    def end(self, number=None):
        if number:
            self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=harness.SECONDS)
        return self.popen.returncode, out, err


@pytest.fixture
def wpfs(make_wpfs):
    return make_wpfs(options=QUIET)


def test_life_of_a_program(make_wpfs):
    wpfs = make_wpfs(store=True, options=QUIET)
    watch = Watch(wpfs, "--json")
    one = mapped(wpfs, pages=16)
    attach = watch.event("attach")
    assert (attach["name"], attach["pid"], attach["uid"], attach["comm"]) == ("t", one.pid, 0, "mapper")
    assert watch.event("commit")["programs"] == 1
    one.order("store 0 3 1")
    wpfs.wpctl("sync", wpfs.mnt)
    harvest = watch.event("harvest")
    assert (harvest["armed"], harvest["marked"], harvest["dirty"]) == (16, 15, 1)
    commit = watch.event("commit")
    assert (commit["uid"], commit["programs"], commit["synced"], commit["error"]) == (0, 1, True, None)
    one.order("store 0 4 1")
    one.kill9()
    detach = watch.event("detach")
    assert (detach["pid"], detach["dirty"], detach["kept"], detach["conservative"]) == (one.pid, 2, True, 0)
    wpfs.umount()
    assert watch.event("end")["time_ms"] >= detach["time_ms"]
    assert watch.end() == (0, "", "")


def test_lines_for_people(make_wpfs):
    wpfs = make_wpfs(options=QUIET)
    watch = Watch(wpfs)
    one = mapped(wpfs, pages=16)
    one.order("store 0 3 1")
    one.kill9()
    wpfs.umount()
    status, out, err = watch.end()
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3}  \w+ +\w", line) for line in lines), out
    kinds = [line.split()[1] for line in lines]
    assert kinds[0] == "attach" and kinds[-2:] == ["detach", "end"]
    assert lines[0].split(None, 1)[1] == f"attach  t  pid {one.pid}  mapper"
    assert lines[-2].split(None, 1)[1] == \
        f"detach  t  pid {one.pid}  mapper  1 of 16 armed pages dirty (4.0K), kept"


def test_one_name(wpfs):
    """What is of that name and its instances, and nothing else but the end."""
    watch = Watch(wpfs, "--json", "--name", "db")
    for name in ("db", "db2", "db"):
        mapped(wpfs, name, pages=4, path=name)
    assert watch.event("attach")["name"] == "db" and watch.event("attach")["name"] == "db/2"
    wpfs.wpctl("sync", wpfs.mnt)
    for program in reversed(wpfs.programs):
        program.kill9()
    wpfs.umount()
    status, out, err = watch.end()
    events = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "") and events[-1]["event"] == "end"
    assert {event["name"] for event in events[:-1]} == {"db", "db/2"}
    assert {event["event"] for event in events[:-1]} == {"harvest", "detach"}


def test_children_and_many_in_one_commit(wpfs):
    programs = [mapped(wpfs, name, pages=4, path=name) for name in "abc"]
    watch = Watch(wpfs, "--json")
    wpfs.wpctl("sync", wpfs.mnt)
    assert {watch.event("harvest")["name"] for _ in programs} == {"a", "b", "c"}
    assert watch.event("commit")["programs"] == 3
    wpfs.wpctl("protect", wpfs.mnt)
    assert watch.event("commit")["programs"] == 1
    watch.end(signal.SIGTERM)


def test_evictions(make_wpfs):
    wpfs = make_wpfs(store=True, options=["resident=64M", "settle=10"])
    watch = Watch(wpfs, "--json")
    one = mapped(wpfs, pages=256)
    for page in range(256):
        one.order(f"store 0 {page} 1")

    def evicted(nr):
        return wpfs.wpctl("evict", wpfs.mnt, "/f", status=None).returncode == 0 and \
            wpfs.wpctl_json("status")["evictions"] >= nr

    pages = 0
    for nr in (256, 512):
        proc.wait_for(lambda nr=nr: evicted(nr), harness.SECONDS, "the eviction")
        while pages < nr:
            event = watch.event("evict")
            assert event["bytes"] == event["pages"] * PAGE and event["pages"] > 0
            pages += event["pages"]
        wpfs.wpctl("load", wpfs.mnt, "/f")
    assert pages == wpfs.wpctl_json("status")["evictions"]
    watch.end(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(wpfs, number):
    watch = Watch(wpfs)
    assert watch.end(number) == (0, "", "")


def test_reader_that_leaves(wpfs):
    """It ends at once, without another event."""
    watch = Watch(wpfs)
    watch.popen.stdout.close()
    assert watch.popen.wait(harness.SECONDS) == 0
    assert watch.popen.stderr.read() == ""
    watch.popen.stderr.close()


def test_daemon_killed(wpfs):
    watch = Watch(wpfs)
    wpfs.kill9()
    status, out, err = watch.end()
    assert (status, out) == (1, "")
    assert str(wpfs.mnt) in err and "daemon is gone" in err and len(err.splitlines()) == 1


def test_no_mount(tmp_path):
    done = subprocess.run([WPCTL, "watch", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "not a wpfs mount" in done.stderr and done.stdout == ""


def test_a_user_sees_its_own(wpfs):
    os.chmod(wpfs.dir, 0o755)
    os.chmod(wpfs.mnt, 0o777)
    copy = shutil.copy(WPCTL, wpfs.dir / "wpctl")
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    theirs = Watch(wpfs, "--json", more=nobody, argv=[copy])
    ours = Watch(wpfs, "--json")
    mapped(wpfs, "root", pages=4)
    wpfs.wpctl("sync", wpfs.mnt)
    ours.event("harvest")
    for program in wpfs.programs:
        program.kill9()
    ours.event("detach")
    wpfs.umount()
    assert [json.loads(line)["event"] for line in theirs.end()[1].splitlines()] == ["end"]
    assert ours.end()[0] == 0


# -- a client of our own, which does as it likes

class Client:
    def __init__(self, wpfs):
        self.seq = 0
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(harness.SECONDS)
        self.sock.connect(str(harness.RUN_DIR / wpfs.id / "sock"))
        self.ask(HELLO, struct.pack("<II72s", HELLO_CTL, 0, b""))
        self.answer()

    def ask(self, op, body=b""):
        self.seq += 1
        self.sock.send(wire.packet(op, self.seq, body))

    def answer(self):
        """Status and the records (type, body) of the answer."""
        records = []
        while True:
            packet = self.sock.recv(65536)
            assert packet, "the connection was closed"
            _, _, op, seq, status = wire.HDR.unpack_from(packet)
            assert seq == self.seq
            if op == REPLY:
                return status, records
            at = 16
            while at < len(packet):
                length, kind = struct.unpack_from("<II", packet, at)
                records.append((kind, packet[at + 8:at + length]))
                at += length


def test_slow_reader_loses_and_is_told(wpfs):
    """Who does not ask costs nothing and holds nobody up; what it lost is counted exactly."""
    mapped(wpfs, pages=4)
    slow, busy = Client(wpfs), Client(wpfs)
    before = wpfs.wpctl_json("status")["harvests"]
    slow.ask(WATCH)
    select = struct.pack("<IIQQQ80s4096s", 0, 0, 0, 0, 0, b"", b"")
    busy.ask(SYNC, select)
    assert busy.answer()[0] == 0
    status, records = slow.answer()
    assert status == 0 and records
    told, syncs = len(records), 1
    while syncs < KEPT:
        busy.ask(SYNC, select)
        assert busy.answer()[0] == 0
        syncs += 1
    slow.ask(WATCH)
    status, records = slow.answer()
    assert status == 0
    (_, first), rest = records[0], records[1:]
    kind, = struct.unpack_from("<I", first, 8)
    lost, = struct.unpack_from("<Q", first, 48)
    assert kind == LOST and len(rest) == KEPT
    harvests = wpfs.wpctl_json("status")["harvests"] - 1 - before  # the last one is this status's
    assert harvests >= syncs
    assert told + lost + len(rest) == 2 * harvests, "each harvest, and the commit of it"


def test_out_of_turn(wpfs):
    """One request at a time, as everywhere: a second one is an error, and the daemon lives."""
    client = Client(wpfs)
    client.ask(WATCH)
    client.ask(WATCH)
    assert client.sock.recv(65536)
    assert client.sock.recv(65536) == b""
    wpfs.wpctl("ps", wpfs.mnt)
