# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page table entries of another process: /proc/PID/pagemap, see the kernel's pagemap.rst."""

import os
import struct

PAGE = 4096
PRESENT = 1 << 63
SWAPPED = 1 << 62  # also the marker that keeps the mark of a page that is not there
MARKED = 1 << 57


def entries(pid, addr, count):
    """The entries of `count` pages from `addr` on, with their frame numbers."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        data = os.pread(fd, count * 8, addr // PAGE * 8)
    finally:
        os.close(fd)
    return struct.unpack(f"{len(data) // 8}Q", data)


def marked(pid, addr, count):
    """Indices of the pages whose entry carries the uffd-wp bit."""
    return {i for i, entry in enumerate(entries(pid, addr, count)) if entry & MARKED}


def kinds(pid, addr, count):
    """What each page is: there, in swap, marked. Not where: the kernel may move a page at any time."""
    return [entry & (PRESENT | SWAPPED | MARKED) for entry in entries(pid, addr, count)]
