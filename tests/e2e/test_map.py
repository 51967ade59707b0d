# SPDX-License-Identifier: LGPL-2.1-or-later
"""wpctl map: the same pages that dirty and marks tell, as letters, as SVG and as PNG."""

import os
import re
import resource
import struct
import subprocess
import xml.etree.ElementTree
import zlib

import pytest

import harness
import proc
from harness import PAGE, WPCTL
from mapper import mapped

PAGES = 16
LEGEND = "▄█ dirty, by share  ▒ marked  ░ some marked  · never armed"
DIRTY, MARKED, NEVER = "d9480f", "74b0f4", "dde2e7"  # of the light picture


def program(wpfs, name="t", file="f"):
    """Pages 3, 4 and 9 of 16 are dirty, 12 to 15 are not armed."""
    one = mapped(wpfs, name, pages=PAGES, path=file)
    wpfs.wpctl("unprotect", wpfs.mnt, "--name", name, "--file", f"/{file}", "--range", "48K+16K")
    for page in (3, 4, 9):
        one.order(f"store 0 {page} 1")
    return one


def text(wpfs, *args, columns="80", target=None):
    done = wpfs.command(WPCTL, "map", target or wpfs.mnt, *args, env={"COLUMNS": columns})
    assert done.returncode == 0 and done.stderr == "", done
    return done.stdout.splitlines()


CELLS = "▒" * 3 + "█" * 2 + "▒" * 4 + "█" + "▒" * 2 + "·" * 4


def test_text(wpfs):
    one = program(wpfs)
    lines = text(wpfs)
    end = one.addr + PAGES * PAGE
    assert lines[0].startswith(f"t  pid {one.pid}  live  epoch ")
    assert lines[1] == f"  /f  {one.addr:#x}-{end:#x}"
    assert lines[2] == "  3 pages dirty, 9 marked, 4 never armed; a cell is 4.0K"
    assert lines[3] == "  " + "".join(cell * 4 for cell in CELLS)
    assert lines[4].split() == ["0B", "16.0K", "32.0K", "48.0K", "64.0K"]
    assert lines[4].index("32.0K") == 2 + 32 and lines[4].endswith("64.0K") and len(lines[4]) == 66
    assert lines[5:] == ["", LEGEND]
    narrow = text(wpfs, columns="24")
    assert narrow[1:3] == ["  /f", f"  {one.addr:#x}-{end:#x}"]
    assert narrow[4] == "  " + CELLS and narrow[3].endswith("a cell is 4.0K")


def test_cells_of_many_pages(wpfs):
    """Shares of what is in a cell: 1 of 8, 4 of 8, 8 of 8; one dirty page of very many is seen."""
    one = mapped(wpfs, pages=64 * 8)
    one.order("store 0 8 1")
    one.order("store 0 16 1 4")
    one.order("store 0 24 1 8")
    (row,) = [line for line in text(wpfs, columns="68") if "▒" in line and "dirty" not in line]
    assert row == "  ▒▁▄█" + "▒" * 60
    large = mapped(wpfs, "large", pages=1 << 20, path="g")
    large.order("store 0 0 1")
    (row,) = [line for line in text(wpfs, "--name", "large") if "▒" in line and "dirty" not in line]
    assert row == "  ▁" + "▒" * 75


def test_json_is_the_same(wpfs):
    one = program(wpfs)
    (mm,) = wpfs.wpctl_json("map")["mms"]
    (drawn,) = mm["maps"]
    assert (mm["name"], mm["state"], drawn["file"], drawn["start"]) == ("t", "live", "/f", hex(one.addr))
    assert [cell["dirty"] for cell in drawn["cells"]] == [int(cell == "█") for cell in CELLS]
    assert [cell["marked"] for cell in drawn["cells"]] == [int(cell == "▒") for cell in CELLS]
    assert [cell["pgoff"] for cell in drawn["cells"]] == list(range(PAGES))
    assert (drawn["dirty"], drawn["marked"], drawn["pages"]) == (3, 9, PAGES)


def test_mapped_twice_and_not_at_all(make_wpfs):
    """What is dirty through one mapping is so in the other; what is kept is drawn without addresses."""
    wpfs = make_wpfs(store=True)
    one = mapped(wpfs, pages=PAGES)
    one.order(f"map 1 0 0 {PAGES * PAGE}")
    one.order("store 1 2 1")
    maps = wpfs.wpctl_json("map")["mms"][0]["maps"]
    assert [(m["dirty"], m["marked"]) for m in maps] == [(1, PAGES - 1)] * 2
    one.order("unmap 0")
    one.order("unmap 1")
    assert "  /f  not mapped" in text(wpfs)
    one.kill9()
    wpfs.umount()
    lines = text(wpfs, target=wpfs.store)
    assert lines[0].startswith("t  detached") and "▒▒▒▒▒▒▒▒████▒▒▒▒" in lines[3]


# ---- terminals


@pytest.mark.parametrize("columns", [80, 200])
def test_in_a_terminal(wpfs, columns):
    """As wide as it is, in colour, and no line is wrapped."""
    program(wpfs)
    (wpfs.mnt / "f").rename(wpfs.mnt / "a name with spaces and ünïcode 漢字")
    mapped(wpfs, "large", pages=1 << 18, path="g")
    tmux = ["tmux", "-L", f"wpfs-{os.getpid()}-map{columns}", "-f", "/dev/null"]
    env = wpfs.env({"LC_ALL": "C.UTF-8", "TERM": "xterm-256color"})
    env.pop("COLUMNS", None)

    def run(*args):
        return subprocess.run([*tmux, *args], env=env, timeout=60, check=True, capture_output=True,
                              text=True).stdout

    run("new-session", "-d", "-x", str(columns), "-y", "40", f"{WPCTL} map {wpfs.mnt}; cat")
    try:
        proc.wait_for(lambda: LEGEND in run("capture-pane", "-p"), harness.SECONDS, "the legend")
        plain, painted = run("capture-pane", "-p"), run("capture-pane", "-p", "-e")
    finally:
        run("kill-server")
    lines = plain.splitlines()
    assert "ünïcode 漢字" in plain
    assert "  " + "▒" * (columns - 4) in lines
    assert "".join(cell * 4 for cell in CELLS) in plain
    assert re.search("\x1b\\[33m█", painted) and re.search("\x1b\\[34m▒", painted)


# ---- pictures


def shapes(path, colour):
    """How many shapes of an SVG have this colour."""
    want = [int(colour[i:i + 2], 16) / 2.55 for i in (0, 2, 4)]
    text_ = path.read_text()
    xml.etree.ElementTree.fromstring(text_)
    found = re.findall(r"fill:rgb\(([\d.]+)%, ?([\d.]+)%, ?([\d.]+)%\)", text_)
    return sum(all(abs(float(a) - b) < 0.01 for a, b in zip(one, want)) for one in found)


def png(path):
    """Width, height and the pixels (r, g, b) of a PNG that cairo wrote, as a dictionary of counts."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, head = 8, b"", None
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + size]
        head = body if kind == b"IHDR" else head
        packed += body if kind == b"IDAT" else b""
        at += 12 + size
    assert kind == b"IEND"
    width, height, depth, colour = struct.unpack(">IIBB", head[:10])
    assert (depth, colour) == (8, 2)
    return width, height, zlib.decompress(packed)


def test_svg(wpfs):
    program(wpfs)
    out = wpfs.dir / "map.svg"
    done = wpfs.wpctl("map", wpfs.mnt, "-o", out)
    assert done.stdout == "" and done.stderr == ""
    # one in the legend
    assert shapes(out, DIRTY) == 3 + 1
    assert shapes(out, MARKED) == 9 + 1
    assert shapes(out, NEVER) == PAGES + 1
    light = out.read_text()
    assert wpfs.wpctl_json("map", "--output", out, "--dark")["maps"] == 1
    assert shapes(out, DIRTY) == 0 and shapes(out, "ff922b") == 4
    assert out.read_text() != light
    assert sorted(p.name for p in wpfs.dir.glob("map.*")) == ["map.svg"]


def test_png(wpfs):
    program(wpfs)
    for more in ([], ["--dark"]):
        out = wpfs.dir / "map.png"
        wpfs.wpctl("map", wpfs.mnt, "-o", out, *more)
        width, height, pixels = png(out)
        assert width == 2000 and 300 < height < 800
        assert len(pixels) == height * (3 * width + 1)


@pytest.mark.parametrize("pages", [1, 1 << 24])
def test_sizes(wpfs, pages):
    """4 KiB, and 64 GiB: under a second, its own and the daemon's (sanitizers: three)."""
    one = mapped(wpfs, pages=pages)
    (wpfs.mnt / "f").rename(wpfs.mnt / "a b ü 漢")
    one.order(f"store 0 {pages - 1} 1")
    out = wpfs.dir / "map.svg"
    for args in (["-o", out], []):
        before, daemon = resource.getrusage(resource.RUSAGE_CHILDREN), proc.cpu_ns(wpfs.pid)
        wpfs.wpctl("map", wpfs.mnt, *args)
        after, daemon = resource.getrusage(resource.RUSAGE_CHILDREN), proc.cpu_ns(wpfs.pid) - daemon
        took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, daemon / 1e9
        print(f"wpctl {took[0]:.3f} s, wpfs {took[1]:.3f} s of {pages} pages")
        assert sum(took) < (3 if harness.SANITIZED else 1), took
    assert shapes(out, DIRTY) == 2
    (mm,) = wpfs.wpctl_json("map")["mms"]
    assert mm["maps"][0]["dirty"] == 1 and mm["maps"][0]["marked"] == pages - 1
    assert any("a b ü 漢" in line for line in text(wpfs))


SPILLED = {False: "7048e8", True: "b197fc"}  # of the light picture and of the dark one


def test_spilled(make_wpfs):
    """What is not in memory has a row of its own, and keeps what its marks are."""
    wpfs = make_wpfs(store=True, options=["resident=64M", "settle=10"])
    one = mapped(wpfs, pages=PAGES)
    for page in range(PAGES):
        one.order(f"store 0 {page} 1")
    wpfs.wpctl("protect", wpfs.mnt)
    other = mapped(wpfs, "u", pages=PAGES, path="f")
    (mm, _) = wpfs.wpctl_json("map")["mms"]
    assert mm["maps"][0]["spilled"] == 0 and not any("below" in line for line in text(wpfs))
    proc.wait_for(lambda: wpfs.wpctl("evict", wpfs.mnt, "/f", status=None).returncode == 0 and
                  wpfs.wpctl_json("status")["spilled"] == PAGES * PAGE, harness.SECONDS, "the eviction")
    one.order("store 0 3 1")
    status = wpfs.wpctl_json("status")
    spilled = status["spilled"] // PAGE
    for mm in wpfs.wpctl_json("map")["mms"]:
        (drawn,) = mm["maps"]
        assert drawn["spilled"] == spilled == sum(cell["spilled"] for cell in drawn["cells"]) < PAGES
        assert drawn["cells"][3]["spilled"] == 0
        assert (drawn["dirty"], drawn["marked"]) == ((1, PAGES - 1) if mm["name"] == "t" else (0, PAGES))
    lines = text(wpfs, "--name", "t")
    assert f"{spilled} spilled" in lines[2]
    cells = [cell["spilled"] for cell in wpfs.wpctl_json("map", "--name", "t")["mms"][0]["maps"][0]["cells"]]
    assert lines[4].rstrip() == ("  " + "".join("████" if cell else "    " for cell in cells)).rstrip()
    assert lines[-1] == "▄ below: not in memory, by share"
    for dark in (False, True):
        out = wpfs.dir / "map.svg"
        wpfs.wpctl("map", wpfs.mnt, "--name", "t", "-o", out, *(["--dark"] if dark else []))
        assert shapes(out, SPILLED[dark]) == spilled + 1
    other.kill9()


def test_one_harvest_for_all_of_it(make_wpfs):
    wpfs = make_wpfs(options=["harvest=0"])
    mapped(wpfs, pages=PAGES)
    before = wpfs.wpctl_json("status")["harvests"]
    wpfs.wpctl("map", wpfs.mnt)
    assert wpfs.wpctl_json("status")["harvests"] == before + 2  # one is the status's own


def test_nothing_to_draw(wpfs):
    assert text(wpfs) == ["no program that is attached has mapped a file of this mount shared: start it "
                          "with `wpctl run`"]
    out = wpfs.dir / "map.svg"
    wpfs.wpctl("map", wpfs.mnt, "-o", out)
    assert shapes(out, DIRTY) == 1


def test_failures(wpfs):
    def fails(status, word, *args):
        done = wpfs.wpctl("map", *args, status=status)
        (line,) = done.stderr.splitlines()
        assert word in line and done.stdout == "", line

    fails(2, "ends with neither .svg nor .png", wpfs.mnt, "-o", "map.jpg")
    fails(2, "--dark needs -o", wpfs.mnt, "--dark")
    fails(1, "No such file", wpfs.mnt, "-o", wpfs.dir / "none/map.svg")
    fails(1, "neither a wpfs mount nor a store", wpfs.dir)
    nobody = wpfs.command("setpriv", "--reuid=65534", "--clear-groups", WPCTL, "map", wpfs.mnt)
    assert nobody.returncode == 1 and "Permission denied" in nobody.stderr
