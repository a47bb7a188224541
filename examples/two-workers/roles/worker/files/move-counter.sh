#!/usr/bin/env bash
#
# Move the counter from this worker to another, with no request lost.
#
# usage: move-counter DESTINATION [PORT] [POOL]
#
# The counter is in the host's network, so its connections cannot move with it, and CRIU refuses open ones. New connections are refused
# during the move: the front end tries again until the counter answers at the other worker. (A container with its own address keeps its
# connections: rcm-live-migrate(8), --netns and --tcp-established.)

set -euo pipefail

destination=$1 port=${2:-8080} pool=${3:-/var/nfs}

trap 'nft delete table inet move_counter' EXIT
nft -f - <<RULES
table inet move_counter {
    chain input {
        type filter hook input priority filter;
        tcp dport $port tcp flags & (syn | ack) == syn reject with tcp reset
    }
}
RULES
# Requests that have begun are answered first.
for _ in $(seq 100); do
    [ -n "$(ss --no-header --tcp state established "sport = :$port")" ] || break
    sleep 0.05
done

"${MIGRATE:-rcm-migrate}" counter "$destination" "$pool"
