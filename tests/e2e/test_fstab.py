# SPDX-License-Identifier: LGPL-2.1-or-later
"""
mount(8) and fstab(5), in a mount namespace of the test's own where /sbin has the helpers: a script
of commands that must work, and what they print.
"""

import os
import subprocess

import pytest

import harness

# Mounts of others must not be held here, or they would not end when they are unmounted there.
ENTER = """
set -e
for point in $(awk '$3 == "fuse.wpfs" || $1 == "wpfs" {print $2}' /proc/self/mounts); do
    umount -cil "$point" 2>/dev/null || true
done
mount -t tmpfs -o mode=755 none /mnt # where everybody may look
mkdir -p "$DIR/upper" "$DIR/work" "$DIR/mnt" "$DIR/mnt 2"
mount --bind "$FSTAB" /etc/fstab
sbin=$(realpath /sbin)
mount -t overlay -o "lowerdir=$sbin,upperdir=$DIR/upper,workdir=$DIR/work" none "$sbin"
ln -s "$WPFS" /sbin/mount.fuse.wpfs
ln -s "$HELPER" /sbin/umount.fuse.wpfs
export ASAN_OPTIONS=log_path=$LOG:detect_leaks=0 UBSAN_OPTIONS=log_path=$LOG:halt_on_error=1
finish() { # what a test that failed leaves; on success there is nothing
    for point in "$DIR/mnt" "$DIR/mnt 2"; do
        ! mountpoint -q "$point" || umount -l "$point"
    done
}
trap finish EXIT
"""


@pytest.fixture
def system(tmp_path):
    def run(script, fstab=""):
        table = tmp_path / "fstab"
        place, log = f"/mnt/wpfs-e2e-{os.getpid()}", tmp_path / "san"
        table.write_text(fstab.replace("$DIR", place))
        env = {**os.environ, "DIR": place, "WPFS": str(harness.WPFS), "LOG": str(log),
               "HELPER": str(harness.UMOUNT_HELPER), "FSTAB": str(table)}
        done = subprocess.run(["unshare", "-m", "bash", "-c", ENTER + script], env=env, timeout=120,
                              capture_output=True, text=True, check=False)
        assert not list(tmp_path.glob("san.*")), next(tmp_path.glob("san.*")).read_text()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.replace(place, "$DIR").splitlines()
    return run


def test_mount_a(system):
    """All that fstab has, but for noauto; again it does nothing; umount -a is the way back."""
    assert system("""
mount -a -T "$FSTAB"
mount -a
findmnt -rno SOURCE,FSTYPE,TARGET "$DIR/mnt"
findmnt -rno SOURCE,FSTYPE,TARGET "$DIR/mnt 2" || echo noauto
echo hello >"$DIR/mnt/f"
df --output=size -BM "$DIR/mnt" | tail -1 | tr -d ' '
findmnt -rno OPTIONS "$DIR/mnt" | tr , '\\n' | grep -E '^(noexec|noatime)$'
umount "$DIR/mnt"
mount "$DIR/mnt"
cat "$DIR/mnt/f"
umount "$DIR/mnt"
ls -a "$DIR/mnt" | wc -l
""", """
# comment
$DIR/store  $DIR/mnt  fuse.wpfs  size=64M,flush=0,noexec,noatime,nofail,_netdev,x-systemd.device-timeout=0,x-gvfs-hide,comment=x  0 0
none  $DIR/mnt\\0402  fuse.wpfs  noauto,size=1M  0 0
""") == ["$DIR/store fuse.wpfs $DIR/mnt", "noauto", "64M", "noexec", "noatime", "hello", "2"]


def test_a_place_with_a_blank_and_a_tag(system):
    assert system("""
mount "$DIR/mnt 2"
findmnt -rno SOURCE,FSTYPE,TARGET "$DIR/mnt 2"
echo x >"$DIR/mnt 2/f"
mount -o remount,size=8M "$DIR/mnt 2"
df --output=size -BM "$DIR/mnt 2" | tail -1 | tr -d ' '
cat "$DIR/mnt 2/f"
umount "$DIR/mnt 2"
mountpoint "$DIR/mnt 2" || true
ls "$DIR"
""", "scratch  $DIR/mnt\\0402  fuse.wpfs  noauto,size=1M,mode=1777,uid=root  0 0\n") == [
        "scratch fuse.wpfs $DIR/mnt\\x202", "8M", "x", "$DIR/mnt 2 is not a mountpoint",
        "mnt", "mnt 2", "upper", "work"]


def test_a_capped_mount(system):
    """mount -t, with the options on the command line."""
    assert system("""
mount -t fuse.wpfs -o resident=16M,settle=1,size=1G "$DIR/store" "$DIR/mnt"
head -c 48M /dev/urandom >"$DIR/f"
cp "$DIR/f" "$DIR/mnt/f"
cmp "$DIR/f" "$DIR/mnt/f"
"$(dirname "$WPFS")/../ctl/wpctl" status "$DIR/mnt" | grep -o -m 1 'capped' | head -1
umount "$DIR/mnt"
mount -t fuse.wpfs "$DIR/store" "$DIR/mnt"
cmp "$DIR/f" "$DIR/mnt/f"
umount "$DIR/mnt"
""") == ["capped"]


def test_what_is_wrong_is_said(system):
    """By mount(8)'s status, and in the words of wpfs."""
    assert system("""
mount -a 2>&1 || echo "status $?"
mountpoint -q "$DIR/mnt" || echo not mounted
""", "none  $DIR/mnt  fuse.wpfs  size=lots  0 0\n") == [
        "wpfs: bad size 'lots' in size=: a number with K, M, G, T or %", "status 32", "not mounted"]


def test_only_root_may(system):
    """`user` in fstab lets mount(8) call the helper for a user, which has no power to mount."""
    said = system("""
setpriv --reuid=65534 --regid=65534 --clear-groups mount "$DIR/mnt" 2>&1 || echo refused
mountpoint -q "$DIR/mnt" || echo not mounted
""", "none  $DIR/mnt  fuse.wpfs  noauto,user  0 0\n")
    assert said[-2:] == ["refused", "not mounted"], said
    assert said[0].startswith("wpfs: ") and "root" in said[0], said


def test_root_may_with_user(system):
    assert system("""
mount "$DIR/mnt"
findmnt -rno OPTIONS "$DIR/mnt" | tr , '\\n' | grep -E '^(nosuid|nodev|noexec)$'
umount "$DIR/mnt"
""", "none  $DIR/mnt  fuse.wpfs  noauto,user  0 0\n") == ["nosuid", "nodev", "noexec"]
