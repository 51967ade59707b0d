# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A client that says anything: hostile.py SOCKET FILE SEED COUNT. Messages of every op, in any order,
mostly of the right length, with values near those that mean something and descriptors of every
kind. Each must be answered or the connection closed, soon; it prints how many were answered,
and how often it was taken for a program to track.
"""

import ctypes
import fcntl
import mmap
import os
import random
import socket
import struct
import sys

import wire

PAGE = 4096
SECONDS = 40
HELLO, ATTACH, FORKED, MAP, UNMAP, REMOVE, MSYNC, PRE, POST, UNREG, CLOSE, TICKET = 1, *range(16, 27)
REMOVING = 28  # ANNOUNCE, before it, has no answer
STATUS, REPORT, PROTECT, UNPROTECT, SYNC, FORGET, EVICT, LOAD, SETTLE = range(64, 73)
TOP = 74  # WATCH, before it, waits: tests/e2e/test_watch.py
SELFS = SELF_PROTECT, SELF_UNPROTECT, SELF_SYNC, SELF_RUNS = range(96, 100)
SELECTS = (REPORT, PROTECT, UNPROTECT, SYNC, FORGET, EVICT, LOAD)
SIZES = {HELLO: 80, ATTACH: 24, FORKED: 16, MAP: 64, UNMAP: 16, REMOVE: 16, REMOVING: 16, MSYNC: 16, PRE: 32,
         POST: 32, UNREG: 32, CLOSE: 8, TICKET: 16, STATUS: 0, SETTLE: 0, TOP: 0,
         SELF_PROTECT: 48, SELF_UNPROTECT: 48, SELF_SYNC: 0, SELF_RUNS: 48} | {op: 4208 for op in SELECTS}
IOC_NEW_UFFD = 0xAA00


class Client:
    def __init__(self, path, file, seed):
        self.path, self.random = path, random.Random(seed)
        self.fd = os.open(file, os.O_RDWR)
        self.status = os.fstat(self.fd)
        try:
            self.view = mmap.mmap(self.fd, 16 * PAGE)
        except OSError:  # a capped mount does not let just anybody map
            self.view = mmap.mmap(-1, 16 * PAGE)
        self.addr = ctypes.addressof(ctypes.c_char.from_buffer(self.view))
        self.uffds = []
        self.kinds = [os.pipe()[0], os.memfd_create("m"), os.open("/dev/null", os.O_RDWR), self.fd,
                      os.pidfd_open(os.getpid()), os.pidfd_open(os.getppid()), os.open("/", os.O_PATH)]
        self.answered = self.attached = 0
        self.sock = self.role = None

    def number(self, bits):
        r = self.random
        near = [0, 1, PAGE, 16 * PAGE, self.addr, self.addr + PAGE, self.addr + r.randrange(16 * PAGE),
                self.status.st_ino, self.status.st_dev, r.getrandbits(bits), -1, -PAGE, 1 << 63,
                r.randrange(64), self.fd, *self.uffds]
        return r.choice(near) & ((1 << bits) - 1)

    def words(self, count):
        return struct.pack(f"<{count}Q", *(self.number(64) for _ in range(count)))

    def text(self, size):
        some = self.random.choice([b"", b"t", b"db/2", b"/f", b"/../x", b"a" * (size - 1), b"b" * size,
                                   b"\xff\n", b"hostile"])
        return some[:size].ljust(size, b"\0")

    def body(self, op):
        r = self.random
        if op == HELLO:
            return struct.pack("<II", r.choice([0, 0, 1, 2, 2, r.getrandbits(32)]), 0) + self.text(72)
        if op in SELECTS:
            return struct.pack("<IIQQQ", r.getrandbits(4), r.randrange(8), self.number(64),
                               self.number(64), self.number(64)) + self.text(80) + self.text(4096)
        if op == ATTACH and self.uffds and r.randrange(2):  # as a program without a witness would
            return struct.pack("<IiiIQ", 1, -1, -1, 0, self.number(64))
        if op == ATTACH:
            return struct.pack("<IiiIQ", r.choice([0, 1, 2, 2, 9]), r.randrange(-1, 20),
                               r.randrange(-1, 20), r.randrange(3), self.number(64))
        if op == SELF_RUNS:
            return struct.pack("<II", r.randrange(5), 0) + self.words(5)
        return self.words(SIZES[op] // 8)

    def descriptors(self, op):
        if op in (ATTACH, POST) and self.uffds and self.random.randrange(3):
            return [self.uffds[-1]]
        return self.random.sample(self.kinds + self.uffds, self.random.choice([0, 0, 1, 2, 2, 5]))

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self.path)
        self.role = None

    def ask(self, op):
        body = self.body(op)
        if self.random.randrange(20) == 0:
            body = body[:self.random.randrange(len(body) + 1)] or b"x"
        length = 16 + len(body) + (self.random.randrange(30) == 0)
        version = wire.VERSION + (self.random.randrange(40) == 0)
        packet = wire.packet(op, 5, body, length=length, version=version)
        try:
            socket.send_fds(self.sock, [packet], self.descriptors(op))
            while True:
                got, fds, _, _ = socket.recv_fds(self.sock, 65536, 4)
                self.take(op, got, fds)
                if len(got) < 16 or struct.unpack_from("<H", got, 6)[0] != 129:  # not a RECORD
                    break
        except (BrokenPipeError, ConnectionResetError):
            got = b""
        if got:
            self.answered += 1
            self.learn(op, body, struct.unpack_from("<i", got, 12)[0])
        else:
            self.sock.close()
            self.sock = None

    def learn(self, op, body, status):
        if op == HELLO and status == 0:
            self.role = "wpctl" if body[0] & 2 else "program"
        if op == ATTACH and status == 0:
            self.role = "attached"
            self.attached += 1

    def take(self, op, got, fds):
        """Makes uffds with the device it is given."""
        for fd in fds:
            try:
                self.uffds.append(fcntl.ioctl(fd, IOC_NEW_UFFD, os.O_CLOEXEC | os.O_NONBLOCK))
            except OSError:
                pass
            os.close(fd)
        while len(self.uffds) > 4:
            os.close(self.uffds.pop(0))

    def next_op(self):
        """Mostly in turn, as otherwise no conversation gets far."""
        if self.random.randrange(12) == 0:
            return self.random.randrange(130)
        return self.random.choice({None: [HELLO], "program": [ATTACH, ATTACH, FORKED],
                                   "attached": list(range(MAP, TICKET + 1)),
                                   "wpctl": [*range(STATUS, SETTLE + 1), *SELFS]}[self.role])

    def talk(self, count):
        for _ in range(count):
            if self.sock is None:
                self.connect()
            self.ask(self.next_op())


def main():
    path, file, seed, count = sys.argv[1:]
    client = Client(path, file, int(seed))
    for op in range(256):
        SIZES.setdefault(op, 0)
    client.talk(int(count))
    print(client.answered, client.attached)


main()
