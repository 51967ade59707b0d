# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A minute of tools/soak, with the same seed each time: a change that makes a lie is what made it. What
goes wrong prints how to run it again. New seeds are for tools/soak itself.
"""

import subprocess

import pytest

import harness


@pytest.mark.timeout(500)
def test_random_programs_against_the_model():
    done = subprocess.run([harness.SOURCE / "tools/soak", "--marks", "--minutes", "1", "--seed", "99"],
                          env={**harness.os.environ, "WPFS_BUILD": str(harness.BUILD)},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=480,
                          check=False)
    assert done.returncode == 0, done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.endswith("0 failures, 0 lies"), last
    assert int(last.split(" checks")[0].split()[-1]) > 100, last


def test_capped():
    """One round with a small file; the whole is 4 GiB and takes minutes."""
    done = subprocess.run([harness.SOURCE / "tools/soak", "--capped", "--size", "96", "--minutes",
                           "0", "--verbose"],
                          env={**harness.os.environ, "WPFS_BUILD": str(harness.BUILD)}, timeout=280,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rounds are right" in done.stdout, done.stdout
