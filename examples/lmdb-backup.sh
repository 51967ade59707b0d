#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Incremental backup of an LMDB database whose programs go on running: the first time all of it,
# then what was written since. The programs map it writable (MDB_WRITEMAP) and are run with
#
#	wpctl run --name NAME --protect MNT -- PROGRAM ...
#
# usage: lmdb-backup.sh MNT FILE BACKUP	FILE: of the database, a path inside MNT, as /db/data.mdb;
#					BACKUP: a directory, made if need be. BACKUP/data is the copy.
#
# The copy is the file at the moment of `protect` if nobody writes until this ends; else it needs one
# more run, later, with nobody writing, to be a database (see wpctl(1), INCREMENTAL BACKUPS).
set -eu

[ $# -eq 3 ] || { echo "usage: $0 MNT FILE BACKUP" >&2; exit 2; }
mnt=$1 file=$2 backup=$3
mkdir -p "$backup"

# An increment that was interrupted is finished first: applying it twice does no harm.
if [ -e "$backup/next" ]; then
	epoch=$(cat "$backup/next")
else
	epoch=$(wpctl protect --file "$file" --json "$mnt" | sed 's/.*"epoch":\([0-9]*\).*/\1/')
	echo "$epoch" >"$backup/next.new"
	mv "$backup/next.new" "$backup/next" # the number of the epoch that began
fi
increment=$backup/increment-$epoch
if [ ! -e "$increment/manifest" ]; then
	rm -rf "$increment"
	if [ -e "$backup/last" ] && [ "$(cat "$backup/last")" -eq $((epoch - 1)) ]; then
		wpctl export --file "$file" --epoch $((epoch - 1)) "$mnt" "$increment"
	else # the first one, or somebody else has ended an epoch in between
		wpctl export --file "$file" --full "$mnt" "$increment"
	fi
fi
wpctl apply "$increment" "$backup/data"
mv "$backup/next" "$backup/last"
rm -rf "$increment"
