#!/usr/bin/env bash
#
# Run the scenarios (those named, or all but "trainer") in the lab. A lab that is up is used and
# left up; otherwise one is started and stopped.
#
# The rcm under test is RCM, or target/release/rcm. The programs for the machines and their
# containers are in GUEST, or target/release, and in TESTS, or target/guest-tests. `make test-vm`
# builds them. A scenario that takes longer than RCM_LAB_LIMIT seconds (600) counts as hanging. One
# that fails is tried RCM_LAB_ATTEMPTS times (1) in all, on fresh machines.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly SCENARIO_LIMIT=${RCM_LAB_LIMIT:-600} ATTEMPTS=${RCM_LAB_ATTEMPTS:-1}
for program in "$RCM" $(printf "$GUEST/%s " $PROGRAMS); do
    [ -x "$program" ] || die "$program does not exist: make test-vm builds it"
done
cd "$VM/scenarios"
# It takes as long as all others without the measuring ones, so it runs beside them on machines of
# its own: one machine works while the other one waits, so two processors are enough for four of
# them.
readonly APART=power
# Then these, with nothing beside them: they measure time, or need both processors.
readonly ALONE="kernel precopy streaming"
apart=""
if [ $# -eq 0 ]; then
    apart=$APART
    # shellcheck disable=SC2046,SC2086
    set -- $(find . -name '*.sh' ! -name lib.sh -printf '%f\n' | sed 's/\.sh$//' | grep -vxF "$(printf '%s\n' $APART $ALONE trainer)" | sort) $ALONE
fi
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
is_ours=false
leave() {
    local status=$?
    trap - EXIT
    [ -z "${lane:-}" ] || { kill "$lane" && wait "$lane"; } 2>/dev/null || true
    ! $is_ours || "$VM/down.sh"
    exit "$status"
}
trap leave EXIT
if pid_of source >/dev/null && pid_of destination >/dev/null && pid_of "$THIRD" >/dev/null; then
    say "the lab is up already"
    push_programs
else
    is_ours=true
    start_lab
fi
if [ -n "$apart" ]; then
    # No scenario there needs systemd, which is slow to start.
    RCM_LAB_RUN=run-apart RCM_LAB_INIT=fast "$VM/test.sh" "$apart" >"$LAB/apart.log" 2>&1 </dev/null &
    lane=$!
fi
# join - the other lab has ended.
join() {
    [ -n "${lane:-}" ] || return 0
    wait "$lane" || failed+=" (of $apart)"
    lane=""
    cat "$LAB/apart.log"
}

failed="" unsteady=""
for name in "$@"; do
    case " $ALONE " in *" $name "*) join ;; esac
    started=$(now_ms)
    for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
        printf '\n=== %s\n' "$name"
        status=0
        # The scenario prints the waiting processes and cleans up. After a hang it has two minutes
        # for this.
        timeout --kill-after=120 "$SCENARIO_LIMIT" "./$name.sh" || status=$?
        [ $status -ne 0 ] || break
        # The next scenario cannot trust these machines. If the lab was up before, its machines are
        # left as they are, for inspection.
        if $is_ours; then
            start_lab
        else
            case $status in 124 | 137) break ;; esac
        fi
    done
    case $status in
        0) result="" ;;
        124 | 137) result=": HANGS" ;;
        *) result=": FAILED" ;;
    esac
    if [ $status -ne 0 ]; then
        failed+=" $name"
    elif [ "$attempt" -gt 1 ]; then
        unsteady+=" $name"
        result=": FAILED, and did not the next time"
    fi
    times+=$(printf '%8s s  %s%s' "$(seconds_since "$started")" "$name" "$result")$'\n'
    $is_ours || case $status in 124 | 137) break ;; esac
done

join
# Not a fault of rcm, but results of such a machine do not count.
for host in $HOSTS; do
    if timeout 60 "$VM/run.sh" "$host" dmesg | grep -E 'BUG:|Oops|general protection|WARNING:'; then
        failed+=" (kernel of $host)"
    fi
done
printf '\n=== times\n%s' "$times"
printf '%8s s  all\n' "$(seconds_since "$began")"
[ -z "$unsteady" ] || say "failed once, and did not the next time:$unsteady"
[ -z "$failed" ] || die "failed:$failed"
