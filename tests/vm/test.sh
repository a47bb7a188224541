#!/usr/bin/env bash
#
# Run the scenarios (all, or those named) in the lab. A lab that is up is used and left up; otherwise one is started and stopped.
#
# What is tested: RCM, or target/release/rcm. What runs in the machines and their containers: the programs in GUEST, or target/release. `make test-vm` builds them.
# A scenario that takes longer than RCM_LAB_LIMIT seconds (600) hangs.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly SCENARIO_LIMIT=${RCM_LAB_LIMIT:-600}
for program in "$RCM" $(printf "$GUEST/%s " $PROGRAMS); do
    [ -x "$program" ] || die "$program does not exist: make test-vm builds it"
done
cd "$VM/scenarios"
# These start machines anew. At the end nobody needs systemd in them, which takes its time.
readonly LAST="cpu power"
# shellcheck disable=SC2046,SC2086
[ $# -gt 0 ] || set -- $(find . -name '*.sh' ! -name lib.sh -printf '%f\n' | sed 's/\.sh$//' | grep -vxF "$(printf '%s\n' $LAST)" | sort) $LAST
for name in "$@"; do
    [ -e "$name.sh" ] || die "no scenario \"$name\""
done

began=$(now_ms)
nice "$VM/build-image.sh"
if [[ " $* " == *" trainer "* ]]; then
    RCM_LAB_DISK=$(nice "$VM/trainer-disk.sh")
    export RCM_LAB_DISK
fi
start_lab() {
    "$VM/down.sh"
    "$VM/up.sh"
    push_programs
}
if pid_of source >/dev/null && pid_of destination >/dev/null && pid_of "$THIRD" >/dev/null; then
    say "the lab is up already"
    is_ours=false
    push_programs
else
    is_ours=true
    trap '"$VM/down.sh"' EXIT
    start_lab
fi

failed=""
for name in "$@"; do
    printf '\n=== %s\n' "$name"
    started=$(now_ms) status=0
    case " $LAST " in *" $name "*) ! $is_ours || export RCM_LAB_INIT=fast ;; esac
    # It says what stands still, and removes what it has made, for which a hang leaves it two minutes.
    timeout --kill-after=120 "$SCENARIO_LIMIT" "./$name.sh" || status=$?
    time=$(seconds_since "$started")
    case $status in
        0) times+=$(printf '%8s s  %s' "$time" "$name")$'\n' ;;
        124 | 137) times+=$(printf '%8s s  %s: HANGS' "$time" "$name")$'\n' ;;
        *) times+=$(printf '%8s s  %s: FAILED' "$time" "$name")$'\n' ;;
    esac
    [ $status -ne 0 ] || continue
    failed+=" $name"
    # The next scenario cannot trust these machines. Those of somebody else are left as they are, to be looked into, if they hang.
    if $is_ours; then
        start_lab
    else
        case $status in 124 | 137) break ;; esac
    fi
done

# Not a fault of rcm, but nothing that such a machine says counts.
for host in $HOSTS; do
    if timeout 60 "$VM/run.sh" "$host" dmesg | grep -E 'BUG:|Oops|general protection|WARNING:'; then
        failed+=" (kernel of $host)"
    fi
done
printf '\n=== times\n%s' "$times"
printf '%8s s  all\n' "$(seconds_since "$began")"
[ -z "$failed" ] || die "failed:$failed"
