# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the kernel promises of userfaultfd(2), docs/UFFD-CONFORMANCE.md: the same on a wpfs file as on
tmpfs, tracked or not, also while other threads write to the same mappings; on all kinds of mount.
"""

import re
import subprocess

import pytest

import harness
import proc
import swap

CONF = harness.program("uffdconf")
TABLE = (harness.SOURCE / "docs/UFFD-CONFORMANCE.md").read_text()
ROW = re.compile(r"^\| `([\w-]+)` \| [^|]+ \| `(.*)` \|$", re.M)
CASES, REST = TABLE.split("## Where wpfs has armed")
ARMED, CAPPED = REST.split("## On a capped mount")

# Calls differ where wpfs has something registered, which may change when it looks: only when asked.
NO_LOOKS = ["harvest=0", "flush=0"]
PROMISED = dict(ROW.findall(CASES))
PROMISED_ARMED = PROMISED | dict(ROW.findall(ARMED))
PROMISED_CAPPED = dict(ROW.findall(CAPPED))


def output(done):
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout}{done.stderr}"
    assert done.stderr == ""
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.fixture
def tmpfs(tmp_path, request):
    options = getattr(request, "param", "rw")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", tmp_path], check=True, timeout=60)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True, timeout=60)


def test_the_table_has_rows():
    assert len(PROMISED) > 85
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
    assert output(wpfs.command(CONF, *writers, tmpfs / "f", timeout=200)) == PROMISED


def test_on_wpfs_without_the_shim(wpfs):
    assert output(wpfs.command(CONF, "-w", wpfs.mnt / "f", timeout=200)) == PROMISED


@pytest.mark.parametrize("writers", [[], ["-w"]], ids=["alone", "writers"])
def test_tracked(wpfs, writers):
    done = wpfs.run(CONF, *writers, wpfs.mnt / "f", name="t", timeout=200)
    assert output(done) == PROMISED


@pytest.mark.parametrize("writers", [[], ["-w"]], ids=["alone", "writers"])
def test_protected(make_wpfs, writers):
    wpfs = make_wpfs(options=NO_LOOKS)
    done = wpfs.run(CONF, *writers, wpfs.mnt / "f", name="t", protect=True, timeout=200)
    assert output(done) == PROMISED_ARMED


@pytest.mark.parametrize("writers", [[], ["-w"]], ids=["alone", "writers"])
@pytest.mark.parametrize("protect", [False, True], ids=["tracked", "protected"])
def test_on_a_capped_mount(make_wpfs, writers, protect):
    """A program's userfaultfd keeps its file in memory, and sees nothing of wpfs's own."""
    wpfs = make_wpfs(store=True, options=["resident=64M", *NO_LOOKS])
    done = wpfs.run(CONF, *writers, wpfs.mnt / "f", name="t", protect=protect, timeout=200)
    expected = (PROMISED_ARMED if protect else PROMISED) | PROMISED_CAPPED
    if protect:  # which differs for both reasons
        expected["register-refusals"] = PROMISED_ARMED["register-refusals"].replace(
            "private mapping: 0", "private mapping: EINVAL")
    found = output(done)
    # Whether the lock is had in time beside a handler that is busy, is chance: else it is refused.
    busy, native = "handler-is-busy", "mmap: 0; register: 0; unregister: 0; munmap: 0"
    refused = "mmap: ENODEV; register: EINVAL; unregister: EINVAL; munmap: EINVAL"
    if busy in expected:
        assert found[busy].replace(native, refused) == expected[busy].replace(native, refused)
        expected[busy] = found[busy]
    assert found == expected


# There a store to a missing page makes a huge one, and some cases have nothing to see then; this
# one would wait for ever.
NOT_HUGE = {"unregister-wakes"}


@pytest.mark.parametrize("tmpfs", ["huge=always"], indirect=True)
@pytest.mark.parametrize("writers", [[], ["-w"]], ids=["alone", "writers"])
@pytest.mark.parametrize("protect", [False, True], ids=["tracked", "protected"])
def test_with_huge_pages(make_wpfs, tmpfs, protect, writers):
    """The same as on a tmpfs that has them too. Whether there is one free is chance, each time that one
    is wanted: without one it is as with small pages."""
    proc.make_huge_pages()
    wpfs = make_wpfs(options=["huge=always", *NO_LOOKS])
    differ = set(dict(ROW.findall(ARMED))) if protect else set()
    cases = [name for name in PROMISED if name not in NOT_HUGE | differ]
    found = output(wpfs.run(CONF, wpfs.mnt / "f", *cases, name="t", protect=protect, timeout=200))
    assert len(found) == len(cases)
    for _ in range(8):
        native = output(wpfs.command(CONF, tmpfs / "f", *cases, timeout=200))
        cases = [name for name in cases if found[name] not in (native[name], PROMISED[name])]
        if not cases:
            break
    assert {name: found[name] for name in cases} == {name: native[name] for name in cases}


@pytest.mark.alone
@pytest.mark.parametrize("protect", [False, True], ids=["tracked", "protected"])
def test_with_swap(make_wpfs, protect):
    """MADV_PAGEOUT then takes pages away indeed."""
    wpfs = make_wpfs(options=NO_LOOKS)
    with swap.area(64 << 20):
        done = wpfs.run(CONF, "-w", wpfs.mnt / "f", name="t", protect=protect, timeout=200)
    assert output(done) == (PROMISED_ARMED if protect else PROMISED)
