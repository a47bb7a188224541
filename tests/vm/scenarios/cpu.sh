#!/usr/bin/env bash
#
# Different processors. A container that is restored on a processor without one of its features may
# later die of SIGILL. rcm refuses this before it stops the container, and names the feature. The
# other direction is allowed.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The next scenario needs equal machines, even after a failure.
leave() {
    local status=$?
    trap - EXIT
    power_off destination
    power_on destination || status=1
    clean_up "$status"
}
power_off destination
trap leave EXIT
RCM_LAB_INIT=fast RCM_LAB_CPU_destination=max,cx16=off,la57=off,avx=off,avx2=off power_on destination
! on destination "grep -qw avx /proc/cpuinfo" || die "the destination has AVX all the same"
on source "grep -qw avx /proc/cpuinfo" || die "the source has no AVX"

# shellcheck disable=SC2016
make_bundle web sh -c 'i=0; while :; do i=$((i + 1)); echo $i >/dev/shm/ticks; sleep 0.05; done'
on source "cd $BUNDLES/web && rcm run --detach web </dev/null >/dev/null 2>&1"
start_receiver web --detach
for flag in --dry-run ""; do
    status=0
    said=$(on source "rcm live-migrate web --image-path=/var/nfs --destination=10.0.0.2 $flag 2>&1") || status=$?
    expect "the exit status with \"$flag\"" "$status" 1
    grep -q 'the processor lacks .*\bavx\b' <<<"$said" || die "the feature is not named: $said"
done
say "$(grep -o 'the processor lacks .*' <<<"$said" | head -n 1)"
ticks=$(inside source web dev/shm/ticks)
sleep 1
[ "$(inside source web dev/shm/ticks)" -gt "$ticks" ] || die "the container stands still"
# The receiver still waits.
on destination 'kill $(pgrep -n -f "^rcm live-migrate web")'
end_receiver
expect "at the destination" "$(status_of destination web)" absent
on source 'rcm delete --force web'

# From the lesser processor to the greater one.
on destination "cd $BUNDLES/web && rcm run --detach web </dev/null >/dev/null 2>&1"
on source "rm -f /tmp/receiver; cd $BUNDLES/web; rcm live-migrate web --image-path=/var/nfs --detach >/tmp/receiver 2>&1 </dev/null &"
until on source 'grep -q "waiting on" /tmp/receiver'; do sleep 0.2; done
on destination 'rcm live-migrate web --image-path=/var/nfs --destination=10.0.0.1' || die "the source says: $(on source 'cat /tmp/receiver')"
expect "at the greater one" "$(status_of source web)" running
expect "at the lesser one" "$(status_of destination web)" absent
