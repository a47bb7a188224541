#!/usr/bin/env bash
#
# Run the scenarios (all, or those named) in the lab. A lab that is up is used and left up; otherwise one is started and stopped.
#
# What is tested: RCM, or target/release/rcm. What runs in the containers: WORKLOAD, or target/release/workload. `make test-vm` builds both.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

RCM=${RCM:-$TOP/target/release/rcm}
WORKLOAD=${WORKLOAD:-$TOP/target/release/workload}
for program in "$RCM" "$WORKLOAD"; do
    [ -x "$program" ] || die "$program does not exist: make test-vm builds it"
done
cd "$VM/scenarios"
# shellcheck disable=SC2046
[ $# -gt 0 ] || set -- $(find . -name '*.sh' ! -name lib.sh -printf '%f\n' | sort | sed 's/\.sh$//')
for name in "$@"; do
    [ -e "$name.sh" ] || die "no scenario \"$name\""
done

began=$(now_ms)
nice "$VM/build-image.sh"
if pid_of source >/dev/null && pid_of destination >/dev/null; then
    say "the lab is up already"
else
    "$VM/down.sh"
    trap '"$VM/down.sh"' EXIT
    "$VM/up.sh"
fi
"$VM/push.sh" "$RCM" /usr/local/sbin/rcm
"$VM/push.sh" "$WORKLOAD" /usr/local/bin/workload

failed=""
for name in "$@"; do
    printf '\n=== %s\n' "$name"
    started=$(now_ms)
    if timeout 600 "./$name.sh"; then
        times+="$(printf '%8s s  %s' "$(seconds_since "$started")" "$name")"$'\n'
    else
        times+="$(printf '%8s s  %s: FAILED' "$(seconds_since "$started")" "$name")"$'\n'
        failed+=" $name"
    fi
done

# Not a fault of rcm, but nothing that such a machine says counts.
for host in $HOSTS; do
    if on "$host" dmesg | grep -E 'BUG:|Oops|general protection|WARNING:'; then
        failed+=" (kernel of $host)"
    fi
done
printf '\n=== times\n%s' "$times"
printf '%8s s  all\n' "$(seconds_since "$began")"
[ -z "$failed" ] || die "failed:$failed"
