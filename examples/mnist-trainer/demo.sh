#!/usr/bin/env bash
#
# Train twice with the same seed: once on one host, and once with a migration to another host in the middle of an epoch. Both must print the
# same lines, to the last digit of every loss. Their output, the report of the migration and a picture of the losses are left in
# target/example/results.

set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. scripts/lib.sh
. scripts/hosts.sh

RCM=${RCM:-target/release/rcm}
SEED=${RCM_EXAMPLE_SEED:-7}
EPOCHS=${RCM_EXAMPLE_EPOCHS:-5}
# More than one pass over the digits of scikit-learn, so that an epoch lasts a while.
STEPS=${RCM_EXAMPLE_STEPS:-200}
# The steps after which it is moved: in the middle of the third epoch.
MOVE_AFTER=${RCM_EXAMPLE_MOVE_AFTER:-450}

readonly TAG=rcm-example-$$
readonly OUT=${RCM_EXAMPLE_DIR:-target/example}
readonly RESULTS=$OUT/results

[ -e "$OUT/built" ] || die "there is no bundle in $OUT: run \`make example\`"
bundle=$(readlink -f "$OUT/bundle")
mkdir -p "$RESULTS"
hosts_up

# make_bundle NAME ARGUMENT... - the bundle with a configuration of its own: arguments, cgroup, and /results, which both hosts share.
make_bundle() {
    local name=$1
    shift
    mkdir -p "$work/$name" "$work/results"
    jq --arg root "$bundle/rootfs" --arg results "$work/results" --arg cgroup "/$TAG-source/$name" '
        .process.args += $ARGS.positional | .root.path = $root | .linux.cgroupsPath = $cgroup
        | .mounts += [{"destination": "/results", "type": "none", "source": $results, "options": ["rbind", "rw"]}]
    ' "$bundle/config.json" --args -- "$@" >"$work/$name/config.json"
}
mkdir -p "$bundle/rootfs/results"

say "training without a migration, seed $SEED, $EPOCHS epochs"
make_bundle unmoved --seed "$SEED" --epochs "$EPOCHS" --steps "$STEPS"
rcm source run --bundle "$work/unmoved" unmoved </dev/null >"$RESULTS/unmoved.log"
tail -n 1 "$RESULTS/unmoved.log"

say "the same, to be migrated after $MOVE_AFTER steps"
make_bundle trainer --seed "$SEED" --epochs "$EPOCHS" --steps "$STEPS" --times /results/times
rcm source run --detach --bundle "$work/trainer" trainer </dev/null >"$RESULTS/moved.log"
wait_for_container trainer
while [ "$(wc -l <"$RESULTS/moved.log")" -lt "$MOVE_AFTER" ]; do
    [ "$(rcm source state trainer | jq -r .status)" = running ] || die "it has ended: $(tail -n 3 "$RESULTS/moved.log")"
    sleep 0.05
done
pid=$(rcm source state trainer | jq .pid)
say "it has $(awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$pid/status") MiB in memory, $(ls "/proc/$pid/task" | wc -l) threads and" \
    "$(wc -l <"/proc/$pid/maps") mappings, and is at: $(tail -n 1 "$RESULTS/moved.log")"
rcm source live-migrate trainer --image-path "$work/store" --destination "$DESTINATION_ADDRESS" --report "$RESULTS/report.json" 2>&1 \
    | sed 's/^/   source       /'
container_arrived
say "at the destination: $(tail -n 1 "$RESULTS/moved.log")"
while [ "$(rcm destination state trainer | jq -r .status)" = running ]; do sleep 0.2; done
cp "$work/results/times" "$RESULTS/times"

say "the picture"
make_bundle plot
jq '.process.args = ["/opt/plot/bin/python", "/opt/plot/plot.py", "moved.log", "unmoved.log", "times", "losses.png"] | .process.cwd = "/results"' \
    "$work/plot/config.json" >"$work/plot/new" && mv "$work/plot/new" "$work/plot/config.json"
cp "$RESULTS/moved.log" "$RESULTS/unmoved.log" "$work/results/"
rcm source run --bundle "$work/plot" plot </dev/null
cp "$work/results/losses.png" "$RESULTS/"

cmp "$RESULTS/unmoved.log" "$RESULTS/moved.log" || die "the migrated training printed something else"
say "$(wc -l <"$RESULTS/moved.log") lines, and both runs printed the same; the picture is $RESULTS/losses.png"
