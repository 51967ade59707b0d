# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fixtures: `make_wpfs(store=True, options=[...])` gives a mounted daemon, `wpfs` a plain one with
store "none". A test fails if it leaves a process behind, whatever it asserts itself.
"""

import fcntl
import json
import os
import subprocess

import pytest

import harness
import proc


def pytest_configure(config):
    if os.geteuid() != 0:
        raise pytest.UsageError("the end-to-end tests mount and trace: they need root")
    if not harness.WPFS.exists():
        raise pytest.UsageError(f"{harness.WPFS} is not built (WPFS_BUILD names the build directory)")
    proc.become_subreaper()


@pytest.fixture
def make_wpfs():
    made = []

    def make(store="none", options=(), start=True):
        one = harness.Wpfs(store, options)
        made.append(one)
        return one.start() if start else one

    yield make
    wrong = []
    for one in reversed(made):
        try:
            one.close()
        except AssertionError as problem:
            wrong.append(str(problem))
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def wpfs(make_wpfs):
    return make_wpfs()


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """What `meson install` makes, below a directory; the prefix is the build's."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run(["meson", "install", "-C", str(harness.BUILD), "--no-rebuild", "--quiet",
                    "--skip-subprojects", "--destdir", str(root)],
                   check=True, timeout=120, stdout=subprocess.DEVNULL)
    return root


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """
    A test marked `alone` has the machine for itself: what it measures or changes is everyone's. To wait
    for that takes as long as another test does, and is not within the time limit of this one.
    """
    alone = item.get_closest_marker("alone")
    with open(harness.BUILD / "e2e.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.fixture(autouse=True)
def machine():
    """What the kernel says against itself meanwhile is the test's."""
    kernel_log = proc.KernelLog()
    yield
    trouble = kernel_log.trouble()
    kernel_log.close()
    assert not trouble, "\n".join(["in the kernel log:", *trouble])


@pytest.fixture(autouse=True)
def no_process_left(machine):
    """Runs around every other fixture: what is still our descendant at the end was forgotten."""
    before = set(proc.descendants())
    yield
    left = []
    for pid in set(proc.descendants()) - before:
        pidfd = proc.pidfd_of(pid)
        if pidfd is None:
            continue
        if not proc.is_over(pidfd, harness.SECONDS):
            left.append(proc.describe(pid))
            proc.kill(pid)
            proc.is_over(pidfd, harness.SECONDS)
        os.close(pidfd)
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG | proc.WALL) == (0, 0):
                break
        except ChildProcessError:
            break
    assert not left, f"left behind: {', '.join(left)}"


# Results for tools/check, one line as each test ends; only the controlling process writes.

_seconds = {}


def pytest_runtest_logreport(report):
    path = os.environ.get("WPFS_RESULTS")
    if not path or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    seconds, outcome, why = _seconds.get(report.nodeid, (0, "passed", ""))
    seconds += report.duration
    if report.failed:
        outcome = "failed"
    elif report.skipped and outcome == "passed":
        outcome, why = "skipped", str(report.longrepr[2] if report.longrepr else "")
    _seconds[report.nodeid] = (seconds, outcome, why)
    if report.when in ("teardown", "???"):
        with open(path, "a", encoding="utf-8") as results:
            results.write(json.dumps({"name": f"{harness.BUILD.name} {report.nodeid}", "outcome": outcome,
                                      "seconds": seconds, "why": why}) + "\n")
        del _seconds[report.nodeid]
