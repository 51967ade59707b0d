# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What shells complete a command line of wpctl to: the scripts that are installed, in bash, in zsh and
in fish. zsh completes in its line editor only, so it has a terminal.
"""

import json
import os
import pty
import select
import shlex
import subprocess

import pytest

import harness
from harness import WPCTL
from test_wpctl import COMMANDS, WORDS, fails, mapped, wpctl

SCRIPTS = harness.BUILD / "src/ctl/completion"
PATH = f"{WPCTL.parent}:/usr/bin:/bin"


def bash(wpfs, line):
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    done = wpfs.command("bash", "--norc", "-uc",
                        'source "$1"; shift; COMP_CWORD=$(($# - 1)); COMP_WORDS=("$@"); _wpctl;'
                        'printf "%s\\n" "${COMPREPLY[@]}"', "bash", SCRIPTS / "wpctl", *words,
                        env={"PATH": PATH})
    assert done.returncode == 0 and not done.stderr, done
    return set(done.stdout.split("\n")) - {""}


def fish(wpfs, line):
    done = wpfs.command("fish", "--no-config", "-c", 'source $argv[1]; complete -C $argv[2]',
                        SCRIPTS / "wpctl.fish", line, env={"PATH": PATH, "HOME": str(wpfs.dir)})
    assert done.returncode == 0 and not done.stderr, done
    return {entry.split("\t")[0] for entry in done.stdout.split("\n")} - {""}


# Every candidate goes through compadd; the words of its last call that was no question are kept.
ZSH = """
fpath=($SCRIPTS $fpath)
autoload -U compinit && compinit -u -D
compadd() {
    local -a hits
    if [[ ${@[(i)-[OAD]]} -gt $# ]]; then
        builtin compadd -O hits "$@"
        print -rl -- $hits >>$WORK/hits
    fi
    builtin compadd "$@"
}
ask() {
    zle complete-word
    print -r -- done >>$WORK/end
}
zle -C complete-word complete-word _main_complete
zle -N ask
bindkey '^I' ask
LISTMAX=1000
print -r -- ready >>$WORK/end
"""


def zsh(wpfs, line):
    work = wpfs.dir / f"zsh{len(list(wpfs.dir.glob('zsh*')))}"
    work.mkdir()
    (work / ".zshrc").write_text(ZSH)
    os.mkfifo(work / "end")
    said = os.open(work / "end", os.O_RDWR | os.O_NONBLOCK)
    env = wpfs.env({"PATH": PATH, "HOME": str(work), "ZDOTDIR": str(work), "WORK": str(work),
                    "SCRIPTS": str(SCRIPTS), "TERM": "xterm"})
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(["zsh", "-d", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=env,
                             cwd=work, start_new_session=True)
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = told = b""

    def until(word):
        nonlocal shown, told
        while word not in told.split():
            ready, _, _ = select.select([ours, said], [], [], harness.SECONDS)
            assert ready and shell.poll() is None, shown.decode(errors="replace")
            if ours in ready:
                shown += os.read(ours, 65536)
            if said in ready:
                told += os.read(said, 100)

    try:
        until(b"ready")
        os.write(ours, line.encode() + b"\t")
        until(b"done")
    finally:
        shell.kill()
        shell.wait(harness.SECONDS)
        os.close(ours)
        os.close(said)
    hits = work / "hits"
    return set(hits.read_text().split("\n")) - {""} if hits.exists() else set()


@pytest.fixture(params=[bash, zsh, fish], ids=["bash", "zsh", "fish"])
def asked(request):
    return request.param


def test_commands_and_options(asked, wpfs):
    assert asked(wpfs, "wpctl un") == {"unprotect"}
    assert set(COMMANDS) <= asked(wpfs, "wpctl ") <= {*COMMANDS, *WORDS, "--help", "--version"}
    assert asked(wpfs, "wpctl --") == {"--help", "--version"}
    assert asked(wpfs, "wpctl dirty --") == {"--name", "--file", "--epoch", "--json", "--help"}
    assert asked(wpfs, "wpctl evict --") == {"--json", "--help"}
    assert asked(wpfs, "wpctl hel") == {"help"} and asked(wpfs, "wpctl help unp") == {"unprotect"}
    assert set(COMMANDS) == asked(wpfs, "wpctl help ")
    assert asked(wpfs, "wpctl completion ") == {"bash", "zsh", "fish"}


def test_mounts_names_and_files(asked, wpfs):
    mapped(wpfs, "one")
    mapped(wpfs, "only", file="g")
    (wpfs.mnt / "d").mkdir()
    assert asked(wpfs, "wpctl marks /nowhere/at") == set()
    assert str(wpfs.mnt) in asked(wpfs, f"wpctl marks {str(wpfs.mnt)[:-1]}")
    assert asked(wpfs, f"wpctl marks {wpfs.mnt} --name ") == {"one", "only"}
    assert asked(wpfs, f"wpctl marks {wpfs.mnt} --name onl") == {"only"}
    slash = "" if asked is bash else "/"  # which bash adds itself
    assert asked(wpfs, f"wpctl marks {wpfs.mnt} --file /") == {"/f", "/g", "/d" + slash}
    assert asked(wpfs, f"wpctl marks {wpfs.mnt}/ --file /g") == {"/g"}
    assert asked(wpfs, f"wpctl evict {wpfs.mnt} /") == {"/f", "/g", "/d" + slash}
    assert str(wpfs.mnt) in asked(wpfs, f"wpctl evict {str(wpfs.mnt)[:-1]}")


def test_the_mount_after_what_is_asked(wpfs):
    (wpfs.mnt / "f").touch()
    words = ["wpctl", "marks", "--file", "/", str(wpfs.mnt)]
    done = wpfs.command("bash", "--norc", "-uc",
                        'source "$1"; shift; COMP_CWORD=3; COMP_WORDS=("$@"); _wpctl;'
                        'printf "%s\\n" "${COMPREPLY[@]}"', "bash", SCRIPTS / "wpctl", *words,
                        env={"PATH": PATH})
    assert done.stdout == "/f\n" and not done.stderr, done


def test_the_scripts_know_what_help_knows():
    for shell in ("bash", "zsh", "fish"):
        script = wpctl("completion", shell).stdout
        assert script == json.loads(wpctl("completion", shell, "--json").stdout)["script"]
        for command in COMMANDS:
            assert command in script
        for option in ("--epoch", "--full") if shell != "fish" else ("-l epoch", "-l full"):
            assert option in script
    fails(wpctl("completion", "csh"), 2, "csh", "bash, zsh or fish")
