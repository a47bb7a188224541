#!/usr/bin/env bash
#
# A machine loses its power, each time with one end at exactly that point. Whoever listens on the third host hears one container at most.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_stores
make_token
make_beacon web
start_beacon web source

# power_on_again HOST - with everything that a migration needs.
power_on_again() {
    local MACHINES=$1
    power_on "$1"
    make_stores
    make_token
    make_beacon web
}
# expect_silence - for a while nobody hears the container.
expect_silence() {
    local before
    before=$(wc -l <"$HEARD")
    sleep 5
    expect "what is heard" "$(wc -l <"$HEARD")" "$before"
}

# The destination holds the restored container and the source waits: it runs on there.
begin destination peer-ready
power_off destination
end 1
stays
RCM_LAB_INIT=fast power_on_again destination

# The source has given the container away, and the commit has not left: it is gone with its machine, and the destination does not take it.
begin source committing
power_off source
expect_silence
expect "at the destination" "$(status_of destination web)" absent
on destination 'kill $(jq .writer.pid /run/rcm/@migrations/web.json)'
end_receiver
expect_silence
expect "at the destination" "$(status_of destination web)" absent
expect_one source
power_on_again source

# The destination has the commit, and loses its power and its disk, but not the store that it shares: the source stands still, because nobody can say that the container does not run
# there. That it does not, the destination can say when it is up again.
start_beacon web source
STORE=/var/nfs
begin destination committed
power_off destination
# It asks for a minute.
power_on_again destination
end 3
expect "the source meanwhile" "$(status_of source web)" paused
on source 'rcm live-migrate web --status'
! on source 'rcm live-migrate web --resolve' || die "the source settles what it cannot know"
expect "the source still" "$(status_of source web)" paused
expect_silence
expect_one source
status=0
on destination 'rcm live-migrate web --resolve' || status=$?
expect "--resolve at the destination, without the store" "$status" 1
! on source 'rcm live-migrate web --resolve' || die "nobody has said that it may run"
status=0
on destination 'rcm live-migrate web --resolve --image-path=/var/nfs' || status=$?
expect "--resolve at the destination" "$status" 1
expect_silence
status=0
on source 'rcm live-migrate web --resolve' || status=$?
expect "--resolve at the source" "$status" 1
stays
# The receiver's file, too, which its death has made worthless.
expect "left in the store" "$(on source 'ls /var/nfs | grep -v "^web\..*\.rendezvous$" || true')" ""
expect_numbers source

# The store is the destination's own, and its disk is all that it has left: that is enough to answer for the receiver, which the source still asks for.
begin destination committed
power_cycle destination
make_network destination
status=0
on destination "rcm live-migrate web --resolve --image-path=$OWN_STORE" || status=$?
expect "--resolve at the destination" "$status" 1
end 1
stays
expect "left in the destination's store" "$(on destination "ls $OWN_STORE")" ""

# It never comes back: nobody can answer, and the source's word is taken.
begin destination committed
power_off destination
on source 'kill -KILL $(cat /tmp/pid)'
status=0
on source 'rcm live-migrate web --resolve' || status=$?
expect "--resolve at the source" "$status" 3
expect_silence
status=0
on source 'rcm live-migrate web --resolve --peer-lost' || status=$?
expect "--resolve --peer-lost at the source" "$status" 1
stays
expect_numbers source
# For who cleans up.
power_on destination
