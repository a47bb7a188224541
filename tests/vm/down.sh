#!/usr/bin/env bash
#
# Stop the lab's machines (all, or those named) by the process ids that up.sh has recorded. Their
# disks are discarded.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $HOSTS $THIRD
for host in "$@"; do
    ssh -F "$RUN/ssh_config" -O exit "$host" 2>/dev/null || true
    if pid=$(pid_of "$host"); then
        kill "$pid"
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        if pid=$(pid_of "$host"); then kill -KILL "$pid"; fi
    fi
    rm -f "$RUN/$host.pid"
done
for host in $HOSTS $THIRD; do
    ! pid_of "$host" >/dev/null || exit 0
done
sockets=$(readlink "$RUN/sockets" 2>/dev/null) || exit 0
rm -rf "$sockets" "$RUN/sockets"
