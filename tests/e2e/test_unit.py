# SPDX-License-Identifier: LGPL-2.1-or-later
"""
wpfs@.service: by systemd-analyze, and run by systemd itself, on a machine of its own (tools/machine),
under everything that the unit restricts.
"""

import os
import re
import stat
import subprocess

import pytest

import harness

UNIT = harness.BUILD / "systemd/wpfs@.service"

# Each of these gives a service a mount namespace, in which nobody else sees what is mounted.
HIDES_MOUNTS = re.compile(
    r"^(Private(Mounts|Tmp|Devices|Users|Network|IPC)|Protect(System|Home|Kernel\w+|ControlGroups|Proc)|"
    r"ProcSubset|Root(Directory|Image)|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths|Bind\w*Paths|"
    r"MountAPIVFS|TemporaryFileSystem|DynamicUser|LogNamespace|User|RestrictSUIDSGID|DeviceAllow|ProtectClock)=",
    re.M)


@pytest.fixture
def unit(tmp_path):
    """The unit, of the programs of this build."""
    text = UNIT.read_text()
    for name, path in (("bin/wpfs ", harness.WPFS), ("sbin/umount.fuse.wpfs ", harness.UMOUNT_HELPER)):
        assert f"/{name}" in text
        text = re.sub(rf"/\S*/{name}", f"{path} ", text)
    place = tmp_path / "wpfs@.service"
    place.write_text(text)
    return place


def analyze(*argv):
    return subprocess.run(["systemd-analyze", *map(str, argv)], capture_output=True, text=True,
                          timeout=60, check=False)


def test_verify(unit):
    done = analyze("verify", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_security(unit):
    """No worse than it was; what is left is what a file system for all users needs."""
    done = analyze("security", "--offline=yes", "--threshold=53", "--no-pager", unit)
    assert done.returncode == 0, done.stdout
    assert not HIDES_MOUNTS.search(unit.read_text())


LIFE = """
set -eEuo pipefail
trap 'echo "FAILED at line $LINENO: $BASH_COMMAND"; cat $WORK/daemon.log; systemctl status wpfs@srv-db' ERR
wait_for() { # COMMAND...: until it succeeds
    local end=$((SECONDS + 60))
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "waited in vain for: $*"; return 1; }
        read -rt 0.1 <> <(:) || true
    done
}
property() { systemctl show -P "$1" "$unit"; }
is() { [[ $(property "$1") == "$2" ]]; }
dirty() { "$WPCTL" dirty /srv/db --name t | awk '/pages?$/ && !/of/ {print $1}' | paste -sd ' '; }

mkdir -p /run/systemd/system/wpfs@.service.d /srv/model
cp "$WORK/wpfs@.service" /run/systemd/system/
cat >/run/systemd/system/wpfs@.service.d/test.conf <<END
[Service]
Environment=ASAN_OPTIONS=log_path=$WORK/san:detect_leaks=0 UBSAN_OPTIONS=log_path=$WORK/san:halt_on_error=1
StandardError=append:$WORK/daemon.log
TimeoutStartSec=60
RestartSec=100ms
END
watchdog() { # SECONDS: of what is started from now on; a busy machine is to be taken for no hang
    printf '[Service]\nWatchdogSec=%s\n' "$1" >/run/systemd/system/wpfs@.service.d/watchdog.conf
    systemctl daemon-reload
}
watchdog 100
unit=wpfs@srv-db.service

echo "== start"
systemctl enable --now wpfs@srv-db 2>/dev/null
systemctl is-enabled "$unit"
findmnt -rno SOURCE,FSTYPE /srv/db
pid=$(property MainPID)
[[ $(readlink /proc/$pid/ns/mnt) == "$(readlink /proc/1/ns/mnt)" ]]
grep -E '^(NoNewPrivs|Seccomp):' /proc/$pid/status | tr -d '\\t'
stat -c '%a %U' /var/lib/wpfs

echo "== a file system for everybody"
mount -t tmpfs model /srv/model
python3 "$BATTERY" /srv/model >$WORK/model.json
python3 "$BATTERY" /srv/db >$WORK/wpfs.json

echo "== marks"
cat >$WORK/prog.py <<END
import mmap
with open("/srv/db/f", "w+b") as f:
    f.truncate(16 * 4096)
    view = mmap.mmap(f.fileno(), 0)
    view[3 * 4096] = view[9 * 4096] = 1
END
"$WPCTL" run --name t --protect /srv/db -- python3 $WORK/prog.py
dirty

echo "== killed"
watchdog 5
kill -9 "$pid"
wait_for is NRestarts 1
wait_for is ActiveState active
stat -c %s /srv/db/f
dirty

echo "== hung"
kill -STOP "$(property MainPID)"
watchdog 100
wait_for is NRestarts 2
wait_for is ActiveState active
stat -c %s /srv/db/f
dirty

echo "== stopped while in use"
(cd /srv/db && exec sleep 1000) &
user=$!
wait_for grep -q sleep "/proc/$user/comm"
systemctl --no-block stop "$unit"
wait_for grep -q 'in use: sleep' $WORK/daemon.log
is ActiveState deactivating
kill "$user"
wait_for is ActiveState inactive
is Result success
! mountpoint -q /srv/db

echo "== started again"
systemctl start "$unit"
stat -c %s /srv/db/f
dirty
umount /srv/db
wait_for is ActiveState inactive
is Result success

echo "== configured: capped"
unit=wpfs@srv-capped.service
mkdir -p /etc/wpfs
cat >/etc/wpfs/srv-capped.conf <<END
# comment
STORE=$WORK/a store
OPTIONS=resident=8M,settle=1,size=1G,noexec
END
systemctl start "$unit"
head -c 32M /dev/urandom >$WORK/data
cp $WORK/data /srv/capped/data
cmp $WORK/data /srv/capped/data
"$WPCTL" evict /srv/capped /data | grep -o evicted
cmp $WORK/data /srv/capped/data
findmnt -rno SOURCE,OPTIONS /srv/capped | grep -oE 'a.x20store|noexec'
systemctl stop "$unit"
is Result success

echo "== a place with a blank"
unit=$(systemd-escape --path --template=wpfs@.service "/srv/a place")
echo "$unit"
systemctl start "$unit"
findmnt -rno TARGET "/srv/a place"
systemctl stop "$unit"
is Result success

echo "== a place that is not empty"
mkdir -p /srv/full/x
unit=wpfs@srv-full.service
! systemctl start "$unit" 2>/dev/null
is Result exit-code
tail -1 $WORK/daemon.log
"""


@pytest.mark.timeout(500)
def test_life_of_a_unit(unit, tmp_path):
    (shown,) = re.findall(r"^\.Dl (systemctl .*)$", (harness.SOURCE / "man/wpfs.8").read_text(), re.M)
    assert shown in LIFE
    script = tmp_path / "life.sh"
    script.write_text(LIFE)
    env = {**os.environ, "WORK": str(tmp_path)}
    variables = {"WPCTL": harness.WPCTL, "BATTERY": harness.SOURCE / "tests/e2e/fs_battery.py"}
    done = subprocess.run([str(harness.SOURCE / "tools/machine"), "env",
                           *(f"{key}={value}" for key, value in variables.items()), "bash", str(script)],
                          env=env, capture_output=True, text=True, timeout=480, check=False)
    log = (tmp_path / "machine.log").read_text() + done.stdout + done.stderr
    assert done.returncode == 0, log
    assert not list(tmp_path.glob("san.*")), next(tmp_path.glob("san.*")).read_text()
    assert (tmp_path / "model.json").read_text() == (tmp_path / "wpfs.json").read_text()
    assert log.splitlines() == f"""\
== start
enabled
/var/lib/wpfs/srv-db fuse.wpfs
NoNewPrivs:1
Seccomp:2
700 root
== a file system for everybody
== marks
3 9
== killed
65536
3 9
== hung
65536
3 9
== stopped while in use
== started again
65536
3 9
== configured: capped
evicted
a\\x20store
noexec
== a place with a blank
wpfs@srv-a\\x20place.service
/srv/a\\x20place
== a place that is not empty
wpfs: the mountpoint /srv/full is not empty: give an empty directory""".splitlines(), log
