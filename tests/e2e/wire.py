# SPDX-License-Identifier: LGPL-2.1-or-later
"""The header of a packet of src/ipc/wire.h."""

import re
import struct
from pathlib import Path

_HEADER = Path(__file__).resolve().parents[2] / "src/ipc/wire.h"
VERSION = int(re.search(r"WPFS_WIRE_VERSION (\d+)", _HEADER.read_text(encoding="ascii"))[1])
HDR = struct.Struct("<IHHIi")  # length with it, version, op, seq, status


def packet(op, seq, body=b"", length=None, version=VERSION, status=0):
    return HDR.pack(HDR.size + len(body) if length is None else length, version, op, seq, status) + body
