# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `meson install` installs, that it works from there, and that all of it says one version."""

import fnmatch
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

import harness

PREFIX = Path("usr/local")
FILES = """
    bin/wpfs bin/wpctl
    sbin/mount.fuse.wpfs sbin/umount.fuse.wpfs
    include/wpfs.h
    lib/*/libwpfs.so lib/*/libwpfs.so.0 lib/*/libwpfs.so.VERSION
    lib/*/libwpfs_preload.so lib/*/wpfs/wpfs_sqlite.so lib/*/pkgconfig/wpfs.pc
    share/man/man1/wpctl.1 share/man/man5/wpfs.5
    share/man/man7/wpfs.7 share/man/man7/libwpfs_preload.7
    share/man/man8/wpfs.8 share/man/man8/mount.fuse.wpfs.8 share/man/man8/umount.fuse.wpfs.8
    share/bash-completion/completions/wpctl share/zsh/site-functions/_wpctl
    share/fish/vendor_completions.d/wpctl.fish
    lib/systemd/system/wpfs@.service
    share/doc/wpfs/README.md share/doc/wpfs/examples/* share/doc/wpfs/docs/img/*.svg
    share/man/man3/wpfs_*.3
""".split()


def version():
    """The one place."""
    return re.search(r"^  version: '(.*)',$", (harness.SOURCE / "meson.build").read_text(), re.M)[1]


def said(*argv, **more):
    done = subprocess.run([str(arg) for arg in argv], check=True, capture_output=True, text=True,
                          timeout=60, **more)
    return done.stdout.strip()


def names(installed):
    top = installed / PREFIX
    return {str(path.relative_to(top)) for path in top.rglob("*")
            if path.is_symlink() or path.is_file()}


def test_all_is_there_and_nothing_else(installed):
    left = names(installed)
    for pattern in FILES:
        found = set(fnmatch.filter(left, pattern.replace("VERSION", version())))
        assert found, f"{pattern} is not installed"
        left -= found
    assert not left, "not in the list of this test"
    outside = [path for path in installed.rglob("*")
               if path.is_file() and not path.is_relative_to(installed / PREFIX)]
    assert not outside


def test_the_readme_leads_somewhere(installed):
    """Its links and pictures are there: what is not installed is no link."""
    directory = installed / PREFIX / "share/doc/wpfs"
    readme = (directory / "README.md").read_text()
    there = [name for name in re.findall(r"(?:\]\(|src=\"|srcset=\")([^)\"#]+)", readme) if "://" not in name]
    assert "docs/img/map-dark.svg" in there and "examples" in there
    for name in there:
        assert (directory / name).exists(), f"{name} is not installed"
    source = (harness.SOURCE / "README.md").read_text()
    assert len(readme.split()) == len(source.split()) and "docs/BENCH.md" in readme


def test_nothing_is_odd_about_the_files(installed):
    top = installed / PREFIX
    for name in names(installed):
        path = top / name
        assert path.exists(), f"{name} leads nowhere: {os.readlink(path)}"
        assert not path.is_symlink() or not os.readlink(path).startswith("/"), f"{name} cannot be moved"
        mode = path.stat().st_mode
        assert not mode & (stat.S_IWOTH | stat.S_IWGRP | stat.S_ISUID | stat.S_ISGID), name
        runs = ".so" in name or name.split("/")[0] in ("bin", "sbin")
        assert bool(mode & 0o111) == runs or "/examples/" in name, f"{name} has mode {mode:o}"


def test_every_function_of_the_header_has_its_page(installed):
    top = installed / PREFIX
    symbols = said("nm", "-D", "--defined-only", next(top.glob("lib/*/libwpfs.so.0")))
    exported = set(re.findall(r" T (wpfs_\w+)@@WPFS_0$", symbols, re.M))
    assert len(exported) > 12
    for name in exported:
        assert (top / f"share/man/man3/{name}.3").exists(), f"no {name}(3)"


def test_names_of_the_libraries(installed):
    lib = next((installed / PREFIX).glob("lib/*/libwpfs.so")).parent
    dynamic = said("readelf", "-d", lib / "libwpfs.so")
    assert "soname: [libwpfs.so.0]" in dynamic
    for path in [lib / "libwpfs.so", lib / "libwpfs_preload.so", lib / "wpfs/wpfs_sqlite.so",
                 *(installed / PREFIX / "bin").iterdir()]:
        assert not re.search(r"R(UN)?PATH", said("readelf", "-d", path)), f"{path} has a path of this build"


def test_one_version(installed):
    top = installed / PREFIX
    # Of the build, whose sanitizers may want to be asked by their own names.
    for name in ("wpfs", "wpctl"):
        assert said(top / "bin" / name, "--version") == f"{name} {version()}"
    pkg = {**os.environ, "PKG_CONFIG_PATH": str(next(top.glob("lib/*/pkgconfig")))}
    assert said("pkg-config", "--modversion", "wpfs", env=pkg) == version()
    changes = said("dpkg-parsechangelog", "-l", harness.SOURCE / "debian/changelog", "-S", "Version")
    assert changes == version(), "debian/changelog begins with another version"
    found = []
    for path in said("git", "-C", harness.SOURCE, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        file = harness.SOURCE / path
        if path.startswith("tests/") or not file.is_file() or file.suffix in (".png", ".svg"):
            continue
        if file.suffix == ".symbols":
            continue  # the version that a function came with
        if re.search(rf"(?<![\d.]){re.escape(version())}(?![\d.])", file.read_text(errors="replace")):
            found.append(path)
    assert set(found) <= {"meson.build", "debian/changelog"}, "the version stands in more places"


def test_the_installed_program_finds_its_library(wpfs, installed):
    """wpctl run takes the library of its own prefix, wherever that was moved."""
    done = wpfs.command(installed / PREFIX / "bin/wpctl", "run", "--name", "t", wpfs.mnt, "--",
                        "sh", "-c", "echo $LD_PRELOAD")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(next((installed / PREFIX).glob("lib/*/libwpfs_preload.so")))


def test_the_sqlite_extension_loads(installed):
    module = next((installed / PREFIX).glob("lib/*/wpfs/wpfs_sqlite.so"))
    assert "mark_runs" in said("sqlite3", ":memory:", f".load {module}",
                               "select distinct name from pragma_module_list where name like 'mark%'")
