#!/usr/bin/env bash
#
# Move the counter from this worker to another, with no request lost.
#
# usage: move-counter DESTINATION [PORT] [POOL]
#
# It is in the host's network, so its connections cannot go with it, and CRIU refuses what is open. So new ones are refused for the
# moment: the front end tries again until the counter answers at the other worker. (A container with an address of its own keeps its connections:
# rcm-live-migrate(8), --netns and --tcp-established.)

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
# What was under way is answered.
for _ in $(seq 100); do
    [ -n "$(ss --no-header --tcp state established "sport = :$port")" ] || break
    sleep 0.05
done

"${MIGRATE:-rcm-migrate}" counter "$destination" "$pool"
