#!/usr/bin/env bash
#
# Pre-copy between machines that share nothing but a token: the rounds cross the network, and by the
# source's report each later one holds only the pages that were changed since the one before it. A
# container that changes its memory slowly enough meets the limit on downtime that a rehearsal has
# shown to be possible; one that changes it as fast as the link carries it is moved when rounds no
# longer help.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# At both ends of the changed memory a whole huge page counts as changed, and the workload's own
# stack and heap change, too.
readonly SLACK_BYTES=$((6 << 20))

make_stores
make_token

# start ID HOT_MIB - starts a container at the source with $memory_mib, of which it changes
# $rate_kib a second, and a receiver at the destination.
start() {
    make_bundle "$1" /bin/workload "$memory_mib" "$2" "$rate_kib"
    start_workload "$1"
    STORE=$OWN_STORE start_receiver "$1" --detach "--token-file=$TOKEN"
}

# send ID OPTION... - its report is then in $report. Without compression: every page is full of one
# number, so compression would hide the amount of data.
send() {
    local id=$1
    shift
    report=$LAB/streaming-$id.json
    on source "rcm live-migrate $id --image-path=$OWN_STORE --destination=10.0.0.2 --token-file=$TOKEN --compress=none --json $*" >"$report" \
        || die "the source failed: $(cat "$report"); the receiver says: $(on destination "cat /tmp/receiver-$id")"
}

# ask FILTER - of the report.
ask() { jq --argjson memory $((memory_mib << 20)) --argjson rate $((rate_kib << 10)) --argjson slack "$SLACK_BYTES" "$@" "$report"; }
# holds TEXT FILTER - the filter must return true.
holds() {
    [ "$(ask "${@:2}")" = true ] || die "not so: $1; rounds: $(ask -c .rounds), $(ask -c '{predictedMs, downtimeMs, imagesBytes, sentBytes}')"
}

# check_bytes - checks the bytes of the rounds and on the network.
check_bytes() {
    holds "the first round has all memory" '.rounds[0].writtenBytes >= $memory'
    # Between two stops lies at most the size of both rounds together.
    holds "later rounds have only what was changed" \
        '[.rounds[:-1], .rounds[1:]] | transpose | map(.[1].writtenBytes <= $slack + $rate * (.[0].tookMs + .[1].tookMs) / 1000) | all'
    holds "a page is either copied or unchanged" \
        '.rounds[0].writtenBytes as $all | .rounds[1:] | map((.writtenBytes + .unchangedBytes - $all | fabs) <= $slack) | all'
    holds "what was sent is the images, and once" '(([.rounds[].imagesBytes] | add) + .imagesBytes) as $images
        | .sentBytes >= 0.98 * $images and .sentBytes <= 1.02 * $images + 1048576'
}

summary() {
    say "$1: $(ask -r '[.rounds[].writtenBytes / 1048576 | . * 10 | round / 10 | tostring] | join(", ")') MiB in rounds," \
        "$(ask '.imagesBytes / 1048576 * 10 | round / 10') MiB frozen; downtime $(ask '.predictedMs | round') ms predicted, $(ask '.downtimeMs | round') ms measured"
}

memory_mib=64 rate_kib=512
start calm $((memory_mib / 2))
send calm --rehearse
check_bytes
expect "after a rehearsal" "$(status_of source calm) $(status_of destination calm)" "running absent"
limit_ms=$(ask ".downtimeMs * 5 | round")
say "a rehearsal was frozen for $(ask '.downtimeMs | round') ms"

send calm "--downtime-limit=${limit_ms}ms"
summary calm
expect_moved calm
check_bytes
holds "rounds shrink" '[.rounds[:-1], .rounds[1:]] | transpose | map(.[1].writtenBytes < .[0].writtenBytes or .[1].writtenBytes <= $slack) | all'
holds "the prediction meets the limit" --argjson limit "$limit_ms" '.predictedMs <= $limit'
# The machines share their processors with other programs.
holds "the prediction is right within a factor" '.downtimeMs <= 8 * .predictedMs and .predictedMs <= 8 * .downtimeMs'
check_workload calm
on destination 'rcm delete --force calm'

# Faster than anything between the machines.
memory_mib=24 rate_kib=262144
start storm $memory_mib
send storm --progress=json 2>"$LAB/streaming-storm.events" || die "$(tail -n 3 "$LAB/streaming-storm.events")"
summary storm
expect_moved storm
check_bytes
expect "why the rounds ended" "$(jq -r 'select(.event == "freezing").reason' "$LAB/streaming-storm.events")" "the rounds no longer shrink"
holds "no round was in vain twice" '.rounds | length <= 3'
check_workload storm

for host in $HOSTS; do expect "left in the store of $host" "$(on "$host" "ls $OWN_STORE")" ""; done
