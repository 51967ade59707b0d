# SPDX-License-Identifier: LGPL-2.1-or-later
"""wpctl metrics: the format as its own parser reads it, the numbers, and the file that is replaced."""

import os
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

import harness
from harness import PAGE, WPCTL
from mapper import mapped


def described(text):
    """
    {name: type} of a text in Prometheus' format, whose reader (of Go, stricter than Python's) takes a
    description for the samples of exactly that name; each stands before its samples.
    """
    types, helped = {}, set()
    for line in text.splitlines():
        words = line.split(" ")
        if words[:2] == ["#", "TYPE"]:
            assert words[2] not in types, f"{words[2]} is described twice"
            types[words[2]] = words[3]
        elif words[:2] == ["#", "HELP"]:
            helped.add(words[2])
        else:
            assert not line.startswith("#"), line
            assert line.split("{")[0] in types, f"untyped: {line}"
    assert helped == set(types) and text.endswith("\n")
    return types


def parsed_prometheus(text):
    """The same of the format that the node exporter reads."""
    types = described(text)
    for name, kind in types.items():
        assert kind == ("counter" if name.endswith("_total") else "gauge")
    return values(prometheus_families(text))


def parsed(text):
    """{sample name, or (name, state): value}; what is wrong with the format is a ValueError."""
    assert text.endswith("# EOF\n")
    families = list(text_string_to_metric_families(text))
    for family in families:
        if "bytes" in family.name or "seconds" in family.name:
            assert family.unit and family.name.endswith(family.unit), family.name
    return values(families)


def values(families):
    samples, mounts = {}, set()
    for family in families:
        assert family.name.startswith("wpfs_") and family.documentation.endswith(".")
        assert family.type in ("gauge", "counter"), "the node exporter's text format has no other"
        for sample in family.samples:
            mounts.add(sample.labels["mount"])
            state = sample.labels.get("state")
            samples[(sample.name, state) if state else sample.name] = sample.value
    (mount,) = mounts
    return mount, samples


def metrics(wpfs, *args):
    return parsed(wpfs.wpctl("metrics", "--openmetrics", wpfs.mnt, *args).stdout)


def test_native(make_wpfs):
    wpfs = make_wpfs(store=True)
    mount, empty = metrics(wpfs)
    assert mount == str(wpfs.mnt)
    assert empty["wpfs_up"] == 1 and empty["wpfs_programs", "live"] == 0
    assert empty["wpfs_mapped_bytes"] == empty["wpfs_dirty_bytes"] == 0
    assert "wpfs_last_commit_timestamp_seconds" not in empty and "wpfs_resident_bytes" not in empty
    one, two = mapped(wpfs, pages=16), mapped(wpfs, "u", pages=4, path="g")
    one.order("store 0 3 1")
    two.order("store 0 0 1")
    _, full = metrics(wpfs)
    assert full["wpfs_programs", "live"] == 2
    assert full["wpfs_mapped_bytes"] == full["wpfs_armed_bytes"] == 20 * PAGE
    assert (full["wpfs_dirty_bytes"], full["wpfs_marked_bytes"]) == (2 * PAGE, 18 * PAGE)
    assert full["wpfs_store_failing"] == full["wpfs_store_failing_files"] == full["wpfs_database_failing"] == 0
    assert full["wpfs_harvests_total"] > empty["wpfs_harvests_total"]
    assert full["wpfs_last_commit_timestamp_seconds"] > 1.7e9
    two.kill9()
    _, after = metrics(wpfs)
    assert (after["wpfs_programs", "live"], after["wpfs_programs", "detached"]) == (1, 1)
    assert wpfs.wpctl_json("metrics", "--openmetrics")["text"].endswith("# EOF\n")
    assert parsed_prometheus(wpfs.wpctl_json("metrics")["text"])[1].keys() == after.keys()


def test_capped(make_wpfs):
    wpfs = make_wpfs(store=True, options=["resident=64M"])
    _, capped = metrics(wpfs)
    assert capped["wpfs_resident_limit_bytes"] == 64 << 20
    for name in ("faults", "evicted_bytes", "refaulted_bytes", "fence_seconds", "store_errors"):
        assert capped[f"wpfs_{name}_total"] == 0
    mount, samples = parsed_prometheus(wpfs.wpctl("metrics", wpfs.mnt).stdout)
    assert mount == str(wpfs.mnt) and samples.keys() == capped.keys()
    assert samples["wpfs_resident_limit_bytes"] == 64 << 20


def test_file_is_replaced_as_a_whole(wpfs):
    target = wpfs.dir / "wpfs.prom"
    target.write_text("before")
    before = target.stat().st_ino
    assert wpfs.wpctl("metrics", "-o", target, wpfs.mnt).stdout == ""
    assert target.stat().st_ino != before and target.stat().st_mode & 0o777 == 0o644
    assert parsed_prometheus(target.read_text())[1]["wpfs_up"] == 1
    wpfs.wpctl("metrics", "--openmetrics", "-o", target, wpfs.mnt)
    assert parsed(target.read_text())[1]["wpfs_up"] == 1
    assert [name for name in os.listdir(wpfs.dir) if name.startswith("wpfs.prom")] == ["wpfs.prom"]
    assert wpfs.wpctl_json("metrics", "-o", target) == {"output": str(target)}
    done = wpfs.wpctl("metrics", "-o", "/nowhere/x.prom", wpfs.mnt, status=1)
    assert "/nowhere/x.prom" in done.stderr


def test_daemon_gone(wpfs):
    """The file does not go on telling that all is well."""
    target = wpfs.dir / "wpfs.prom"
    wpfs.wpctl("metrics", "-o", target, wpfs.mnt)
    wpfs.kill9()
    done = wpfs.wpctl("metrics", "-o", target, wpfs.mnt, status=1)
    assert "daemon is gone" in done.stderr
    assert parsed_prometheus(target.read_text()) == (str(wpfs.mnt), {"wpfs_up": 0})
    done = wpfs.wpctl("metrics", wpfs.mnt, status=1)
    assert done.stdout == "" and "daemon is gone" in done.stderr


@pytest.mark.parametrize("name", ['a "quoted" \\ one', "two\nlines", "漢字 ä"])
def test_mountpoints_of_any_letters(make_wpfs, name):
    wpfs = make_wpfs(start=False)
    wpfs.mnt = wpfs.dir / name
    wpfs.mnt.mkdir()
    wpfs.start()
    assert metrics(wpfs)[0] == str(wpfs.mnt)
    assert parsed_prometheus(wpfs.wpctl("metrics", wpfs.mnt).stdout)[0] == str(wpfs.mnt)


def test_no_mount(tmp_path):
    done = subprocess.run([WPCTL, "metrics", tmp_path], capture_output=True, text=True,
                          timeout=harness.SECONDS, check=False)
    assert done.returncode == 1 and done.stdout == "" and "not a wpfs mount" in done.stderr
