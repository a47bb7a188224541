#!/usr/bin/env bash
#
# A machine loses its power, in each phase of a migration, with one end at exactly that point. Whoever listens on the third host hears one container at most, and
# one in the end, unless its own machine took it along.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# power_on_again HOST - with everything that a migration needs; of its disk nothing is left.
power_on_again() {
    local MACHINES=$1
    power_on "$1"
    make_stores
    make_token
    make_beacon web
    on "$1" sync
}
# lose_memory HOST
lose_memory() {
    power_cycle "$1"
    make_network "$1"
}
# expect_silence - for a while nobody hears the container.
expect_silence() {
    local before
    before=$(wc -l <"$HEARD")
    sleep 3
    expect "what is heard" "$(wc -l <"$HEARD")" "$before"
}
# gone - it was lost with the source, and the destination does not take it. Another one starts.
gone() {
    expect_silence
    expect "at the destination" "$(status_of destination web)" absent
    expect_one source
    on source "rm -rf $LAB_DIR/log && mkdir $LAB_DIR/log"
    start_beacon web source
}
# end_writer - the receiver, which has nothing more to do than to answer a source that is gone.
end_writer() {
    on destination 'kill $(jq .writer.pid /run/rcm/@migrations/web.json)'
    end_receiver
}
# resolve HOST STATUS [OPTION...]
resolve() {
    local status=0
    on "$1" "rcm live-migrate web --resolve ${*:3}" || status=$?
    expect "--resolve ${*:3} at the $1" "$status" "$2"
}

make_stores
make_token
make_beacon web
start_beacon web source
for host in $HOSTS; do on "$host" sync; done

# Up to the commit it is the source's.
for phase in negotiated pre-copying frozen; do
    MODE=pre-copy begin source "$phase"
    lose_memory destination
    go_on source
    end 1
    stays
done
begin destination shipped
lose_memory destination
end 1
stays
begin destination peer-ready
power_off destination
end 1
stays
power_on_again destination

# The destination has the commit, and loses its power and its disk, but not the store that it shares: the source stands still, because nobody can say that the
# container does not run there. That it does not, the destination can say when it is up again.
STORE=/var/nfs
begin destination committed
power_off destination
# It asks for a minute.
power_on_again destination
end 3
expect "the source meanwhile" "$(status_of source web)" paused
on source 'rcm live-migrate web --status'
resolve source 3
expect "the source still" "$(status_of source web)" paused
expect_silence
expect_one source
# Without the store it knows nothing.
resolve destination 1
resolve source 3
resolve destination 1 --image-path=$STORE
expect_silence
resolve source 1
stays
expect "left in the store" "$(on source "ls $STORE")" ""
unset STORE

# It dies with the source, and the destination, which has not got the commit, does not take it.
for phase in pre-copying frozen; do
    MODE=pre-copy begin source "$phase"
    lose_memory source
    end_receiver
    gone
done
begin destination shipped
lose_memory source
go_on destination
end_receiver
gone
begin source committing
power_off source
# It notices by itself that nobody is there any more, and then stays for a while to tell a source what it did.
for _ in $(seq 100); do
    [ "$(status_of destination web)" != absent ] || break
    sleep 0.2
done
expect "at the destination" "$(status_of destination web)" absent
end_writer
power_on_again source
gone

# With the commit it is the destination's, and lives without its source.
begin destination committed
lose_memory source
go_on destination
expect_heard destination
# It would answer for a minute.
end_writer
moves

# The store is the destination's own, and its disk is all that it has left: that is enough to answer for the receiver, which the source still asks for.
for phase in fenced committing; do
    begin source "$phase"
    lose_memory destination
    go_on source
    resolve destination 1 --image-path=$OWN_STORE
    end 1
    stays
done
begin destination committed
lose_memory destination
resolve destination 1 --image-path=$OWN_STORE
end 1
stays
expect "left in the destination's store" "$(on destination "ls $OWN_STORE")" ""

# It never comes back: nobody can answer, and somebody's word is taken.
begin destination committed
power_off destination
on source 'kill -KILL $(cat /tmp/pid)'
resolve source 3
expect_silence
resolve source 1 --peer-lost
stays
expect_numbers source
# For who comes after: with NFS.
on source lab-nfs serve
power_on destination
