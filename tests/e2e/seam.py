# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes steps of a capped mount's daemon fail, or wait for the test (src/track/capped_test.h)."""

import os

import harness
import proc


class Seam:
    def __init__(self, wpfs):
        """Before the daemon is started."""
        self.dir = wpfs.dir / "seam"
        self.dir.mkdir()
        wpfs.daemon_env["WPFS_TEST_DIR"] = str(self.dir)

    def fail(self, step, err):
        new = self.dir / "new"
        new.write_text(str(err))
        new.rename(self.dir / f"fail-{step}")

    def fail_once(self, step, err, after):
        """It is done `after` times, and then fails once."""
        new = self.dir / "new"
        new.write_text(f"{err} {after}")
        new.rename(self.dir / f"fail-{step}")

    def has_failed(self, step):
        """Did it come so far?"""
        return not (self.dir / f"fail-{step}").exists()

    def works(self, step):
        (self.dir / f"fail-{step}").unlink()

    def pause(self, step, after=0):
        """Whoever comes there waits; the first `after` do not."""
        new = self.dir / "new"
        new.write_text(str(after) if after else "")
        new.rename(self.dir / f"pause-{step}")

    def wait_at(self, step):
        proc.wait_for(lambda: (self.dir / f"pause-{step}").read_text() == "at", harness.SECONDS, f"the step {step}")

    def slow(self, step):
        (self.dir / f"slow-{step}").touch()

    def go(self, step):
        (self.dir / f"pause-{step}").unlink()


def waiting(pid, threads=1):
    """Do so many threads of the process wait for a userfault?"""
    nr = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/wchan", encoding="ascii") as wchan:
                nr += "userfault" in wchan.read()
        except (FileNotFoundError, ProcessLookupError):
            pass
    return nr >= threads


def wait_waiting(pid):
    proc.wait_for(lambda: waiting(pid), harness.SECONDS, f"a fault of pid {pid}")
