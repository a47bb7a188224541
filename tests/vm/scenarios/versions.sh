#!/usr/bin/env bash
#
# Different versions of CRIU at the ends. Images can go from an older version to a newer one, but
# not back: rcm refuses this before it stops the container, and names both versions.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly OLDER=/usr/local/lib/older-criu/criu
version_of() { on source "$1 --version" | sed -n 's/^Version: //p'; }
older=$(version_of "$OLDER") newer=$(version_of criu)
say "CRIU $older and $newer"

# shellcheck disable=SC2016
make_bundle web sh -c 'i=0; while :; do i=$((i + 1)); echo $i >/dev/shm/ticks; sleep 0.05; done'
on source "cd $BUNDLES/web && rcm run --detach web </dev/null >/dev/null 2>&1"

GLOBALS="--criu $OLDER" start_receiver web
status=0
said=$(on source 'rcm live-migrate web --image-path=/var/nfs --destination=10.0.0.2 2>&1') || status=$?
expect "the exit status" "$status" 1
grep -qF "CRIU $older is older than the source's $newer; install the same CRIU on both hosts" <<<"$said" || die "the versions are not named: $said"
ticks=$(inside source web dev/shm/ticks)
sleep 1
[ "$(inside source web dev/shm/ticks)" -gt "$ticks" ] || die "the container stands still"
on destination 'rcm live-migrate web --cancel'

start_receiver web --detach
on source "rcm --criu $OLDER live-migrate web --image-path=/var/nfs --destination=10.0.0.2" \
    || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver-web')"
expect_moved web
ticks=$(inside destination web dev/shm/ticks)
sleep 1
[ "$(inside destination web dev/shm/ticks)" -gt "$ticks" ] || die "the container stands still"
