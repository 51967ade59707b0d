# SPDX-License-Identifier: LGPL-2.1-or-later
"""A swap area for one test: zram where the kernel has it, else a file. The test must be `alone`."""

import contextlib
import os
import re
import subprocess
import tempfile
from collections import namedtuple
from pathlib import Path

Area = namedtuple("Area", "name")
CONTROL = Path("/sys/class/zram-control")


def run(*argv):
    subprocess.run([str(arg) for arg in argv], check=True, timeout=60, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _zram(size):
    number = int((CONTROL / "hot_add").read_text())
    block = Path(f"/sys/block/zram{number}")
    try:
        (block / "disksize").write_text(str(size))
        yield Path(f"/dev/zram{number}")
    finally:
        (block / "reset").write_text("1")
        (CONTROL / "hot_remove").write_text(str(number))


@contextlib.contextmanager
def _file(size):
    with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="wpfs-swap-") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        yield Path(file.name)


@contextlib.contextmanager
def area(size):
    """A swap area of `size` bytes, used before any other; its pages come back at the end."""
    if not CONTROL.exists():
        subprocess.run(["modprobe", "zram"], check=False, timeout=60, stderr=subprocess.DEVNULL)
    with (_zram if CONTROL.exists() else _file)(size) as path:
        run("mkswap", path)
        run("swapon", "--priority", "32767", path)
        try:
            yield Area(str(path))
        finally:
            run("swapoff", path)


def pages_of(pid, addr):
    """How many pages of the shared mapping at `addr` are in swap."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as lines:
        inside = False
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.startswith(f"{addr:x}-")
            elif inside and line.startswith("Swap:"):
                return int(line.split()[1]) // 4
    raise AssertionError(f"no mapping at {addr:#x}")
