# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that say anything on the daemon's socket: it answers or hangs up, and nobody else notices."""

import os
import signal
import socket
import struct
from pathlib import Path

import pytest

import harness
import proc
import report
import wire
from mapper import Child, killed, map_file, mapped
from test_failure import armed, written as written_of

HOSTILE = Path(__file__).with_name("hostile.py")
USER = 65534


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("uid", [USER, 0])
@pytest.mark.parametrize("capped", [False, True], ids=["native", "capped"])
def test_anything_on_the_socket(make_wpfs, capped, uid, seed):
    wpfs = make_wpfs(store=True, options=["mode=1777"] + (["resident=64M"] if capped else []))
    os.chmod(wpfs.dir, 0o755)
    victim = mapped(wpfs, name="victim")
    victim.order("store 0 3 1")
    target = wpfs.mnt / "theirs"
    target.write_bytes(bytes(16 * harness.PAGE))
    os.chmod(target, 0o666)
    done = wpfs.command("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
                        "/usr/bin/python3", HOSTILE, harness.RUN_DIR / wpfs.id / "sock", target,
                        seed, 300, timeout=200)
    assert done.returncode == 0, done.stderr
    answered, attached = map(int, done.stdout.split())
    assert answered > 30 and attached > 0, "it never came far enough to do harm"
    if uid == USER:  # root may protect, unprotect and forget what is anybody's
        assert report.dirty(wpfs, "victim") == {3}
        victim.order("store 0 5 1")
        assert report.dirty(wpfs, "victim") == {3, 5}
        victim.kill9()
        assert report.dirty(wpfs, "victim") == {3, 5}
    again = map_file(wpfs.spawn(harness.program("mapper"), name="another", protect=True),
                     wpfs.mnt / "theirs")
    again.order("store 0 1 1")
    assert report.dirty(wpfs, "another", file="/theirs") == {1}


# ---- clients that do not do their part

HELLO_CTL = wire.packet(1, 1, struct.pack("<II", 2, 0) + bytes(72))
STATUS = wire.packet(64, 2)


def connection(wpfs, hello=True):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    sock.connect(str(harness.RUN_DIR / wpfs.id / "sock"))
    if hello:
        sock.send(HELLO_CTL)
    return sock


def fill(sock):
    """Requests until no more can be sent, and no answer is read."""
    sent = 0
    try:
        while sent < 100000:
            sock.send(STATUS)
            sent += 1
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        pass
    return sent


@pytest.fixture(params=["wpfs", "own"])
def kind(request):
    """Who has armed the program's pages: wpfs, or a userfaultfd of its own."""
    return request.param


def ends(wpfs, program, kind, written):
    program.kill9()
    assert written_of(wpfs, kind) == written
    assert wpfs.wpctl_json("status")["conservative"] == 0


def goes_on(wpfs, program, written, kind="wpfs"):
    """It maps, stores, forks and unmaps as if nobody else were there, and every mark is exact."""
    slot = 1 + len(written)
    program.order(f"store 0 {slot} 1")
    program.order(f"map {slot} 0 {32 * harness.PAGE} {harness.PAGE}")
    program.order(f"unmap {slot}")
    child = Child(wpfs, program)
    child.order("store 0 60 1")
    child.end()
    written.add(slot)
    assert written_of(wpfs, kind) == written


def test_answers_that_nobody_reads(wpfs, kind):
    program, written = armed(wpfs, kind), set()
    socks = [connection(wpfs) for _ in range(20)]
    for sock in socks:
        assert fill(sock) > 1
    goes_on(wpfs, program, written, kind)
    for sock in socks:
        sock.close()
    goes_on(wpfs, program, written, kind)
    ends(wpfs, program, kind, written)


def test_thousands_of_connections(wpfs):
    """More than the backlog takes and than are ever served at once: refused, or waiting."""
    program, written = mapped(wpfs), set()
    socks = []
    for n in range(3000):
        try:
            socks.append(connection(wpfs, hello=n % 2))
        except (BlockingIOError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            pass
    assert len(socks) > 100
    goes_on(wpfs, program, written)
    for sock in socks:
        sock.close()
    goes_on(wpfs, program, written)
    assert killed(wpfs, program) == written


def test_a_full_backlog(wpfs, kind):
    """The daemon stands still and everybody wants to speak with it; one who was there is served."""
    program, written = armed(wpfs, kind), set()
    proc.stop(wpfs.pid)
    socks = []
    try:
        while len(socks) < 10000:
            socks.append(connection(wpfs, hello=False))
        raise AssertionError("the backlog has no end")
    except BlockingIOError:
        pass
    program.order("store 0 40 1")
    written.add(40)
    os.kill(wpfs.pid, signal.SIGCONT)
    goes_on(wpfs, program, written, kind)
    for sock in socks:
        sock.close()
    ends(wpfs, program, kind, written)


def test_clients_that_die_in_mid_request(wpfs):
    program, written = mapped(wpfs), set()
    for _ in range(200):
        sock = connection(wpfs)
        fill(sock)
        sock.close()
    goes_on(wpfs, program, written)
    assert killed(wpfs, program) == written
