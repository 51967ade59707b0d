# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the kernel promises of userfaultfd(2), docs/UFFD-CONFORMANCE.md: the same on a wpfs file as on
tmpfs, tracked or not, also while other threads write to the same mappings.
"""

import re
import subprocess

import pytest

import harness

CONF = harness.program("uffdconf")
TABLE = (harness.SOURCE / "docs/UFFD-CONFORMANCE.md").read_text()
ROW = re.compile(r"^\| `([\w-]+)` \| [^|]+ \| `(.*)` \|$", re.M)
CASES, ARMED = TABLE.split("## Where wpfs has armed")

PROMISED = dict(ROW.findall(CASES))
PROMISED_ARMED = PROMISED | dict(ROW.findall(ARMED))


def output(done):
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout}{done.stderr}"
    assert done.stderr == ""
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.fixture
def tmpfs(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True, timeout=30)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True, timeout=30)


def test_the_table_has_rows():
    assert len(PROMISED) > 75
    assert set(PROMISED_ARMED) == set(PROMISED)
    # What differs where wpfs has armed is ENOENT of calls on what was never registered, no more.
    for name in dict(ROW.findall(ARMED)):
        assert "ENOENT" in PROMISED[name]


def test_every_test_of_the_kernel_has_cases():
    rows = [line.split("|") for line in CASES.splitlines() if line.startswith("| ")]
    mapped = [row for row in rows if len(row) == 5 and not row[1].strip().startswith("`")]
    assert len(mapped) > 10
    for row in mapped[1:]:
        if row[1].strip() in ("kernel's test", "case"):
            continue
        names = re.findall(r"`([\w-]+)`", row[3])
        assert names and set(names) <= set(PROMISED), row


@pytest.mark.parametrize("writers", [[], ["-w"]], ids=["alone", "writers"])
def test_on_tmpfs(wpfs, tmpfs, writers):
    """The table is true: what it says is the kernel's."""
    assert output(wpfs.command(CONF, *writers, tmpfs / "f", timeout=60)) == PROMISED


def test_on_wpfs_without_the_shim(wpfs):
    assert output(wpfs.command(CONF, "-w", wpfs.mnt / "f", timeout=60)) == PROMISED


@pytest.mark.parametrize("writers", [[], ["-w"]], ids=["alone", "writers"])
def test_tracked(wpfs, writers):
    done = wpfs.run(CONF, *writers, wpfs.mnt / "f", name="t", timeout=100)
    assert output(done) == PROMISED


@pytest.mark.parametrize("writers", [[], ["-w"]], ids=["alone", "writers"])
def test_protected(wpfs, writers):
    done = wpfs.run(CONF, *writers, wpfs.mnt / "f", name="t", protect=True, timeout=100)
    assert output(done) == PROMISED_ARMED
