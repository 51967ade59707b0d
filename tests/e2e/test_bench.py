# SPDX-License-Identifier: LGPL-2.1-or-later
"""tools/bench runs and gives every row. Its figures are nobody's business here."""

import json
import os
import pathlib
import subprocess

import pytest

import harness

ROWS = {
    "first_write", "advantage_sync_uffd", "advantage_mprotect", "own_uffd_fault",
    "own_uffd_protect_page", "own_uffd_protect_gib", "mmap_attached", "mmap_not_attached",
    "rearm_gib", "rearm_64gib", "rearm_alternating", "harvest_gib", "harvest_gib_commits",
    "harvest_gib_one_chunk", "harvest_64gib", "harvest_64gib_commits", "harvest_64gib_one_chunk",
    "db_64gib_half", "db_64gib_all", "kill_to_committed", "harvest_processes", "daemon_memory",
    "harvest_mappings",
}


CAPPED_ROWS = {
    "fits", "fits_first_write", "refault_random", "refault_threads", "refault_sequential", "evict",
    "daemon_memory", "load_zipf", "load_uniform", "daemon_memory_capped",
}

FS_ROWS = {
    "read", "write", "load", "store", "pread", "pwrite", "stat", "lookup", "negative", "statfs", "open",
    "create", "rename", "readdir", "unpack", "status", "remove", "flat_30", "flat_100", "mount",
}

URING = pathlib.Path("/sys/module/fuse/parameters/enable_uring")


def run(what, tmp_path):
    env = dict(os.environ, WPFS_BUILD=str(harness.BUILD), TMPDIR=str(tmp_path),
               LSAN_OPTIONS=f"suppressions={harness.SOURCE}/tests/e2e/lsan.supp:print_suppressions=0")
    done = subprocess.run([harness.SOURCE / "tools/bench", what, "--json", "--tiny"], env=env,
                          timeout=280, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bench"] == what and result["tiny"]
    return result["rows"]


def check(rows):
    for key, row in rows.items():
        assert set(row) == {"unit", "wpfs", "raw", "value", "goal", "bound", "slack_ns", "ok"}, key
        for name in ("wpfs", "value", "raw"):
            figures = row[name]
            assert figures is None or figures["min"] <= figures["median"] <= figures["max"], key
        assert row["wpfs"]["min"] > 0 or row["unit"] in ("", "B"), f"{key}: nothing was measured"


def test_marks_gives_every_row(tmp_path):
    rows = run("marks", tmp_path)
    assert set(rows) == ROWS
    check(rows)


@pytest.mark.alone  # for a moment there is swap
def test_capped_gives_every_row(tmp_path):
    rows = run("capped", tmp_path)
    assert set(rows) == CAPPED_ROWS
    check(rows)


@pytest.mark.alone  # it switches a parameter of the kernel
def test_fs_gives_every_row(tmp_path):
    before = URING.read_text(encoding="ascii")
    rows = run("fs", tmp_path)
    assert URING.read_text(encoding="ascii") == before
    assert set(rows) == FS_ROWS
    for key, row in rows.items():
        assert row["ns"] and all(ns > 0 for ns in row["ns"].values()), key
        assert (row["goal"] is None) == (row["ok"] is None) == (key == "statfs"), key
        assert (row["trips"] is not None) == (key in ("open", "create", "rename", "readdir")), key
        assert (row["store"] is None) == (key.startswith("flat") or key == "mount"), key
        assert (row["uring"] is None) == (row["store"] is None), key
    assert rows["open"]["trips"] == {"OPEN": 1}
