# SPDX-License-Identifier: LGPL-2.1-or-later
"""FUSE over io_uring: only who asks for it gets it, and where the kernel has it not one line says so."""

import os
import pathlib

import pytest

PARAMETER = pathlib.Path("/sys/module/fuse/parameters/enable_uring")
LINE = "FUSE over io_uring is not in use"


@pytest.fixture
def parameter():
    """Sets it; the kernel looks at it when a file system is mounted."""
    before = PARAMETER.read_text(encoding="ascii")
    yield lambda value: PARAMETER.write_text(value, encoding="ascii")
    PARAMETER.write_text(before, encoding="ascii")


def use(top):
    for number in range(300):
        (top / f"file{number}").write_bytes(b"x" * number)
    assert len(list(top.iterdir())) == 300
    assert (top / "file299").read_bytes() == b"x" * 299
    os.rename(top / "file0", top / "else")
    with pytest.raises(FileNotFoundError):
        os.stat(top / "file0")


def use_from_each_processor(wpfs):
    """Each has a queue of its own."""
    before = os.sched_getaffinity(0)
    try:
        for cpu in before:
            os.sched_setaffinity(0, {cpu})
            (wpfs.mnt / f"d{cpu}").mkdir()
            use(wpfs.mnt / f"d{cpu}")
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.alone  # the parameter is the machine's
@pytest.mark.parametrize("enabled", ["Y", "N"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "default"])
def test_io_uring(make_wpfs, parameter, enabled, asked):
    parameter(enabled)
    wpfs = make_wpfs(store=True, options=["io_uring"] if asked else [])
    parameter("N")  # what is in use stays in use
    use_from_each_processor(wpfs)
    assert wpfs.wpctl_json("status")["io_uring"] is (asked and enabled == "Y")
    assert wpfs.read_log().count(LINE) == (1 if asked and enabled == "N" else 0)
