#!/usr/bin/env bash
#
# The address moves with the container: a client on a third host streams through the migration, over
# one connection, and loses no byte. The container reports its host to the third host all the time,
# and is never in two places.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stop=$LAB/stop
rm -f "$stop"
make_beacon web
start_beacon web source
nsenter "$(third_net)" python3 "$VM/third.py" stream "$BEACON_ADDRESS" 7000 "$stop" &
client=$!

start_receiver web --detach --tcp-established
on source 'rcm live-migrate web --image-path=/var/nfs --destination=10.0.0.2 --tcp-established' \
    || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver-web')"
expect_moved web
expect_heard destination
touch "$stop"
wait "$client" || die "the client's connection did not survive"
expect_one source destination
expect_numbers source destination
for host in $HOSTS; do
    expect "left of the lock on $host" "$(on "$host" 'nsenter --net=/run/netns/lab nft list tables')" ""
done
