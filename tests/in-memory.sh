#!/usr/bin/env bash
#
# usage: tests/in-memory.sh COMMAND...
#
# Run a command whose temporary files are in memory, if there is enough of it. Hundreds of root file systems are made and removed by the
# tests, and every record of a migration is synchronized: a disk would be most of their time.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

# What two hosts and the images of a container with a gibibyte take, and some room.
readonly ENOUGH_KIB=$((8 << 20))

available_kib=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
[ "${available_kib:-0}" -ge "$ENOUGH_KIB" ] || exec "$@"

# A short name: sockets are below it, and their paths are limited.
dir=$(mktemp -d /tmp/rcm.XXXX)
cleanup() {
    # Lazily: what a failed test has left may still be there.
    as_root umount --lazy "$dir" || true
    rmdir "$dir" || true
}
trap cleanup EXIT
as_root mount -t tmpfs -o mode=1777 rcm-tests "$dir"
TMPDIR=$dir "$@"
