# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that say anything on the daemon's socket: it answers or hangs up, and nobody else notices."""

import os
from pathlib import Path

import pytest

import harness
import report
from mapper import map_file, mapped

HOSTILE = Path(__file__).with_name("hostile.py")
USER = 65534


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("uid", [USER, 0])
@pytest.mark.parametrize("capped", [False, True], ids=["native", "capped"])
def test_anything_on_the_socket(make_wpfs, capped, uid, seed):
    wpfs = make_wpfs(store=True, options=["mode=1777"] + (["resident=64M"] if capped else []))
    os.chmod(wpfs.dir, 0o755)
    victim = mapped(wpfs, name="victim")
    victim.order("store 0 3 1")
    target = wpfs.mnt / "theirs"
    target.write_bytes(bytes(16 * harness.PAGE))
    os.chmod(target, 0o666)
    done = wpfs.command("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
                        "/usr/bin/python3", HOSTILE, harness.RUN_DIR / wpfs.id / "sock", target,
                        seed, 300)
    assert done.returncode == 0, done.stderr
    answered, attached = map(int, done.stdout.split())
    assert answered > 30 and attached > 0, "it never came far enough to do harm"
    if uid == USER:  # root may protect, unprotect and forget what is anybody's
        assert report.dirty(wpfs, "victim") == {3}
        victim.order("store 0 5 1")
        assert report.dirty(wpfs, "victim") == {3, 5}
        victim.kill9()
        assert report.dirty(wpfs, "victim") == {3, 5}
    again = map_file(wpfs.spawn(harness.program("mapper"), name="another", protect=True),
                     wpfs.mnt / "theirs")
    again.order("store 0 1 1")
    assert report.dirty(wpfs, "another", file="/theirs") == {1}
