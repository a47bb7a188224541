#!/usr/bin/env bash
#
# A machine loses its power in each phase of a migration, with one end stopped at exactly that
# point. The third host hears at most one container at any time, and one in the end, unless the
# container was lost with its own machine.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# power_on_again HOST - starts it with everything that a migration needs; its disk is empty.
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
# expect_silence - for a while the third host does not hear the container.
expect_silence() {
    local before
    before=$(wc -l <"$HEARD")
    sleep 3
    expect "what is heard" "$(wc -l <"$HEARD")" "$before"
}
# gone - the container was lost with the source, and the destination does not run it. Another one
# starts.
gone() {
    expect_silence
    expect "at the destination" "$(status_of destination web)" absent
    expect_one source
    on source "rm -rf $LAB_DIR/log && mkdir $LAB_DIR/log"
    start_beacon web source
}
# end_writer - ends the receiver, which only waits to answer a source that is gone.
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

# Up to the commit the container belongs to the source.
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

# The destination has the commit, and loses its power and its disk, but not the shared store. The
# copy at the source stays frozen, because it is unknown whether the container runs at the
# destination. The destination can answer this after its reboot.
STORE=/var/nfs
begin destination committed
power_off destination
# The source asks for a minute.
power_on_again destination
end 3
expect "the source meanwhile" "$(status_of source web)" paused
on source 'rcm live-migrate web --status'
resolve source 3
expect "the source still" "$(status_of source web)" paused
expect_silence
expect_one source
# Without the store the destination knows nothing.
resolve destination 1
resolve source 3
resolve destination 1 --image-path=$STORE
expect_silence
resolve source 1
stays
expect "left in the store" "$(on source "ls $STORE")" ""
unset STORE

# The container is lost with the source: the destination has not got the commit, so it does not run
# it.
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
# The receiver notices by itself that the source is gone, then stays for a while to answer it.
for _ in $(seq 100); do
    [ "$(status_of destination web)" != absent ] || break
    sleep 0.2
done
expect "at the destination" "$(status_of destination web)" absent
end_writer
power_on_again source
gone

# With the commit the container belongs to the destination, and runs without the source.
begin destination committed
lose_memory source
go_on destination
expect_heard destination
# The receiver would answer for a minute.
end_writer
moves

# The store is the destination's own, and only its disk is left. This suffices to answer the source,
# which still asks for the receiver.
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

# The destination never comes back and cannot answer, so the operator decides with --peer-lost.
begin destination committed
power_off destination
on source 'kill -KILL $(cat /tmp/pid)'
resolve source 3
expect_silence
resolve source 1 --peer-lost
stays
expect_numbers source
# The next scenarios need NFS.
on source lab-nfs serve
power_on destination
