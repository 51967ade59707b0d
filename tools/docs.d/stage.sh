# SPDX-License-Identifier: LGPL-2.1-or-later
# Sourced by the shell that types a document's commands, in namespaces of its own (shown.py): an empty
# /mnt with a mountpoint, run directories that nobody else has, and umount(8)'s helper in its place.
set -u
mount -t tmpfs tmpfs /mnt
mkdir /mnt/w
mkdir -p /run/wpfs
mount -t tmpfs tmpfs /run/wpfs
# Where umount(8) looks for what is mounted on /mnt/w: other stories have one, too.
mkdir -p /run/mount
mount -t tmpfs tmpfs /run/mount
mount -t tmpfs tmpfs /var/backups
mkdir "$STORY/.upper"
mount -t tmpfs tmpfs "$STORY/.upper"
mkdir "$STORY/.upper/up" "$STORY/.upper/work"
ln -s "$BUILD/src/ctl/umount.fuse.wpfs" "$STORY/.upper/up/umount.fuse.wpfs"
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$STORY/.upper/up,workdir=$STORY/.upper/work" /usr/sbin

# What must not be there when a story has ended: prints it.
leave() {
	if mountpoint -q /mnt/w; then
		echo "/mnt/w is still mounted"
		umount /mnt/w || umount -l /mnt/w
	fi
	ls -A /run/wpfs
}
