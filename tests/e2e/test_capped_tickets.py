# SPDX-License-Identifier: LGPL-2.1-or-later
"""A capped mount hands out the descriptor of a lower file for a ticket, and for nothing else."""

import errno
import os
import re

import pytest

import harness
import proc
from harness import PAGE
from mapper import mapped

# Attaches by hand; orders: "ticket FILE MODE" -> token, "redeem TOKEN" -> access mode and first byte,
# "announce INO": that 64 pages of it are about to be mapped.
CLIENT = """
import fcntl, os, socket, struct, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
def ask(op, body, fds=()):
    packet = struct.pack("=IHHIi", 16 + len(body), int(sys.argv[2]), op, 5, 0) + body
    socket.send_fds(sock, [packet], fds)
    got, fds, _, _ = socket.recv_fds(sock, 65536, 4)
    return struct.unpack_from("=i", got, 12)[0], fds
status, (dev, life) = ask(1, bytes(80))
uffd = fcntl.ioctl(dev, 0xaa00, os.O_CLOEXEC | os.O_NONBLOCK)
kept = []
status, _ = ask(16, struct.pack("=IiiIQ", 1, -1, -1, 0, 0), [uffd])
print("attached", status, flush=True)
for line in sys.stdin:
    what, value, *mode = line.split()
    if what == "ticket":
        fd = os.open(value, getattr(os, mode[0]) | os.O_DIRECT)
        try:
            print(fcntl.ioctl(fd, 0x80105771, bytes(16)).hex(), flush=True)
        except OSError as error:
            print(error.errno, flush=True)
        os.close(fd)
    elif what == "announce":
        body = struct.pack("=6Q4I", 0, 64 * 4096, 0, 0, 0, int(value), 3, 1, 0, 0)
        sock.send(struct.pack("=IHHIi", 16 + len(body), int(sys.argv[2]), 27, 5, 0) + body)
        print("said", flush=True)
    else:
        status, fds = ask(26, bytes.fromhex(value))
        if fds:
            mode = fcntl.fcntl(fds[0], fcntl.F_GETFL) & os.O_ACCMODE
            print(["O_RDONLY", "O_WRONLY", "O_RDWR"][mode], os.pread(fds[0], 1, 0)[0], flush=True)
            kept.append(fds[0])
        else:
            print(status, flush=True)
"""


@pytest.fixture
def wpfs(make_wpfs):
    return make_wpfs("store", ["resident=64M", "settle=0", "flush=0"])


def client(wpfs):
    version = re.search(r"WPFS_WIRE_VERSION (\d+)",
                        (harness.SOURCE / "src/ipc/wire.h").read_text(encoding="ascii"))
    program = wpfs.spawn_bare("/usr/bin/python3", "-c", CLIENT, harness.RUN_DIR / wpfs.id / "sock",
                              version[1])
    assert program.read() == "attached 0"
    return program


def test_tickets(wpfs):
    """One descriptor for each, of that file, with no more rights than the open had."""
    for name, byte in (("f", b"f"), ("g", b"g")):
        (wpfs.mnt / name).write_bytes(byte * PAGE)
    program = client(wpfs)
    assert program.ask("redeem " + bytes(16).hex()) == str(-errno.ESTALE)
    assert program.ask("redeem " + os.urandom(16).hex()) == str(-errno.ESTALE)
    assert program.ask(f"ticket {wpfs.mnt}/f O_WRONLY") == str(errno.EACCES)
    reader = program.ask(f"ticket {wpfs.mnt}/f O_RDONLY")
    writer = program.ask(f"ticket {wpfs.mnt}/g O_RDWR")
    assert reader != writer
    assert program.ask(f"redeem {writer}") == f"O_RDWR {ord('g')}"
    assert program.ask(f"redeem {writer}") == str(-errno.ESTALE), "it is good once"
    assert program.ask(f"redeem {reader}") == f"O_RDONLY {ord('f')}"
    assert program.ask(f"redeem {reader}") == str(-errno.ESTALE)


def test_a_file_that_is_about_to_be_mapped_stays(wpfs):
    """Between its descriptor and its mapping a removed file's pages are not let go of."""
    (wpfs.mnt / "f").write_bytes(b"f" * (64 * PAGE))
    ino = os.stat(wpfs.mnt / "f").st_ino
    program = client(wpfs)
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    token = program.ask(f"ticket {wpfs.mnt}/f O_RDWR")
    assert program.ask(f"redeem {token}") == "O_RDWR 0", "it is in the store"
    assert program.ask(f"announce {ino}") == "said"
    os.unlink(wpfs.mnt / "f")
    os.statvfs(wpfs.mnt)  # which has what nobody needs let go of
    assert wpfs.wpctl_json("status")["spilled"] == 64 * PAGE
    assert program.ask("redeem " + bytes(16).hex()) == str(-errno.ESTALE)  # it does something else
    os.statvfs(wpfs.mnt)
    assert wpfs.wpctl_json("status")["spilled"] == 0


def registered(pid, path):
    """For each mapping of a file of that name: is it registered for missing pages?"""
    found, here = [], False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-", line):
                here = line.rstrip().endswith(path)
            elif here and line.startswith("VmFlags:"):
                found.append(" um" in line)
    return found


def test_registered_when_its_first_page_leaves(wpfs):
    """Missing faults cost: a file that nothing was ever moved out of has none."""
    program = mapped(wpfs, protect=False)
    program.order(f"open 1 {wpfs.mnt}/g")
    program.order(f"size 1 {64 * PAGE}")
    program.order(f"map 1 1 0 {64 * PAGE}")
    for page in range(64):
        program.order(f"store 0 {page} 1")
        program.order(f"store 1 {page} 1")
    assert registered(program.pid, "/f") == [False] and registered(program.pid, "/g") == [False]
    before = wpfs.wpctl_json("status")["faults"]
    assert before == 0
    assert wpfs.wpctl_json("evict", "/f")["pages"] == 64
    assert registered(program.pid, "/f") == [True] and registered(program.pid, "/g") == [False]
    for page in range(64):
        assert program.order(f"load 1 {page}") == 1
    assert wpfs.wpctl_json("status")["faults"] == before
    # From now on each new mapping of it is, and a child's.
    program.order(f"map 2 0 0 {64 * PAGE}")
    assert registered(program.pid, "/f") == [True, True]
    assert program.order("load 2 5") == 1
    proc.wait_for(lambda: wpfs.wpctl_json("status")["faults"] > before, harness.SECONDS, "a fault")
