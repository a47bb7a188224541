#!/usr/bin/env bash
#
# The migration of the README, over NFS: the container arrives, and nothing is left behind.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# shellcheck disable=SC2016
make_bundle web sh -c 'i=0; while :; do i=$((i + 1)); echo $i >/dev/shm/ticks; sleep 0.05; done'
on source "cd $BUNDLES/web && rcm run --detach web </dev/null >/dev/null 2>&1"
start_receiver web
before=$(inside source web dev/shm/ticks)

# The two command lines are those of the README's section "Two hosts".
grep -qF 'sudo rcm live-migrate web --image-path=/var/nfs --destination=10.0.0.2' "$TOP/README.md" \
    || die "the README has another command line than this scenario"
on source 'sudo rcm live-migrate web --image-path=/var/nfs --destination=10.0.0.2' \
    || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver-web')"

expect_moved web
after=$(inside destination web dev/shm/ticks)
sleep 1
later=$(inside destination web dev/shm/ticks)
say "the counter: $before before, $after after, $later a second later"
[ "$after" -ge "$before" ] || die "the container did not go on from where it was"
[ "$later" -gt "$after" ] || die "the container stands still at the destination"
# The receiver without --detach stays as the container's parent and exits with its status: 128 +
# SIGKILL.
on destination 'rcm kill web KILL'
for _ in $(seq 50); do
    ! on destination "pgrep -f '[l]ive-migrate web' >/dev/null" || { sleep 0.1 && continue; }
    break
done
expect "after its end" "$(status_of destination web)" absent
expect "left in the image store" "$(on source 'ls /var/nfs')" ""
