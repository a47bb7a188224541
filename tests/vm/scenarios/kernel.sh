#!/usr/bin/env bash
#
# Tests of `make test` that differ with this kernel, which has only control groups of version 2 and
# tracks changed memory. They are in this tree's test program `it`.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly TESTS=${TESTS:-$TOP/target/guest-tests} PLACE=/root/tests
[ -d "$TESTS" ] || die "no tests in $TESTS: make test-vm builds them"
# The path at which the tests expect the rcm that was built with them.
readonly EXPECTED=${GUEST%/release}/debug/rcm

# run_tests HOST FILTER... - one after the other.
run_tests() {
    local host=$1 began log=$LAB/kernel-$1.log
    began=$(now_ms)
    "$VM/push.sh" "$TESTS/it" "$PLACE/it" "$host"
    on "$host" "cd $PLACE && RCM_SKIP_LOG=$PLACE/skips ./it --test-threads=1 ${*:2}" >"$log" 2>&1 </dev/null \
        || die "${*:2} on $host: $(grep -v ' ok$' "$log")"
    # A filter that no test matches passes, too.
    ! grep -q '^test result: ok. 0 passed' "$log" || die "no test on $host is called ${*:2}"
    say "${*:2} on $host, $(seconds_since "$began") s: $(sed -n 's/^test result: ok. //p' "$log")"
}

for host in $HOSTS; do
    on "$host" "rm -rf $PLACE && mkdir -p $PLACE $(dirname "$EXPECTED")"
    "$VM/push.sh" "$RCM" "$EXPECTED" "$host"
done
# Every round of pre-copy is interrupted in every way.
run_tests destination a_round_of_pre_copy_is_interrupted auto_uses_pre_copy_or_says_why_not &
rounds=$!
run_tests source oci::lifecycle:: oci::update:: oci::rootless:: oci::exec::
wait "$rounds" || die "the rounds of pre-copy failed on destination"
for host in $HOSTS; do
    expect "tests that say they cannot run on $host" "$(on "$host" "cat $PLACE/skips 2>/dev/null || true")" ""
    on "$host" "rm -r $PLACE"
done
