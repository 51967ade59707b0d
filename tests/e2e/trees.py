# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is below a directory."""

import os
import stat
from pathlib import Path


def everything(top):
    """What an unmount keeps of each file: all but when it was read last and changed in any way."""
    found, top = {}, os.fsencode(top)
    paths = [top, *(os.path.join(parent, name) for parent, dirs, files in os.walk(top) for name in dirs + files)]
    for path in paths:
        seen, kind = os.lstat(path), None
        if stat.S_ISREG(seen.st_mode):
            kind = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(seen.st_mode):
            kind = os.readlink(path)
        names = sorted(os.listxattr(path, follow_symlinks=False))
        found[path] = (
            oct(seen.st_mode), seen.st_uid, seen.st_gid, seen.st_nlink, seen.st_rdev, seen.st_size, seen.st_mtime_ns,
            seen.st_ino, kind, {name: os.getxattr(path, name, follow_symlinks=False) for name in names})
    return found
