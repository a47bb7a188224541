#!/usr/bin/env bash
#
# Pre-copy over NFS: a container of 512 MiB that changes memory at a tenth of the link's rate.
# Rounds shrink, the later ones hold changed pages only, little is left for the freeze, and not a
# page is wrong at the destination.
#
#   PRECOPY_MIB=512    the container's memory
#   PRECOPY_FLAGS=     more flags for the source

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly MEMORY_MIB=${PRECOPY_MIB:-512} PROBE_MIB=16
readonly HOT_MIB=$((MEMORY_MIB / 2)) HUGE_BYTES=$((2 << 20))
log=$LAB/precopy.log

on source "dd if=/dev/urandom of=/var/nfs/probe bs=1M count=$PROBE_MIB status=none"
started=$(now_ms)
on destination 'cat /var/nfs/probe >/dev/null'
link_kib=$((PROBE_MIB * 1024 * 1000 / ($(now_ms) - started)))
on source 'rm /var/nfs/probe'
rate_kib=$((link_kib / 10))
say "NFS carries $link_kib KiB/s, the container will change $rate_kib KiB/s of its $MEMORY_MIB MiB"

make_bundle train /bin/workload "$MEMORY_MIB" "$HOT_MIB" "$rate_kib"
start_workload train
start_receiver train
on source 'sudo rcm live-migrate train --image-path=/var/nfs --destination=10.0.0.2 '"${PRECOPY_FLAGS:-}" 2>&1 | tee "$log" \
    || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver-train')"
expect_moved train

# bytes_of TEXT - "1.5 MiB" as a number of bytes.
bytes_of() {
    awk -v value="${1% *}" -v unit="${1#* }" 'BEGIN {
        factor["B"] = 1; factor["KiB"] = 1024; factor["MiB"] = 1024 ^ 2; factor["GiB"] = 1024 ^ 3
        printf "%d", value * factor[unit]
    }'
}

# The size of a round is CRIU's count in stats-dump.
mapfile -t copied < <(sed -n 's/^train: round [0-9]* .* ms  \(.*\) copied, .*/\1/p' "$log")
[ ${#copied[@]} -ge 2 ] || die "${#copied[@]} rounds: nothing to compare"
memory=$((MEMORY_MIB << 20))
first=$(bytes_of "${copied[0]}")
[ "$first" -ge "$memory" ] || die "the first round copied $first bytes of at least $memory"
for ((round = 1; round < ${#copied[@]}; round++)); do
    before=$(bytes_of "${copied[round - 1]}") now=$(bytes_of "${copied[round]}")
    # The last ones may be equally small: a huge page counts as changed as a whole.
    [ "$now" -lt "$before" ] || [ "$now" -le $((3 * HUGE_BYTES)) ] \
        || die "round $round copied ${copied[round]}, the one before it ${copied[round - 1]}"
    [ "$now" -le $(((HOT_MIB + 16) << 20)) ] \
        || die "round $round copied ${copied[round]}, more than was changed"
done

summary=$(grep '^train: moved to' "$log")
frozen=$(bytes_of "$(sed 's/.*, images \(.*\) after .*/\1/' <<<"$summary")")
say "after the freeze: $((frozen * 1000 / memory)) thousandths of the memory"
[ $((frozen * 20)) -le "$memory" ] || die "more than 5 % of the memory was left for the freeze: $summary"
# "downtime 4520.8 ms (predicted 3800.1 ms)": the same within a factor, because the machines share
# their processors with other programs.
read -r measured predicted < <(sed -n 's/.*downtime \([0-9]*\)[.0-9]* ms (predicted \([0-9]*\)[.0-9]* ms).*/\1 \2/p' <<<"$summary")
[ -n "$predicted" ] || die "no prediction: $summary"
say "downtime: $predicted ms predicted, $measured ms measured"
[ $((measured * 8)) -ge "$predicted" ] && [ $((predicted * 8)) -ge "$measured" ] || die "the prediction is wrong: $summary"

check_workload train
say "the longest pause that the container has seen: $(inside destination train dev/shm/gap) ms (by two clocks)"
