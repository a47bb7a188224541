#!/usr/bin/env bash
#
# The training job of the examples moves in the middle of an epoch, while a second one trains on the
# other machine and does not move. Both print the same losses.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly RESULTS=/var/nfs/results EPOCHS=2 EPOCH_STEPS=120
readonly STEPS=$((EPOCHS * EPOCH_STEPS))

for host in $HOSTS; do
    on "$host" '[ -e /dev/vdb ]' || die "the machines have no disk with the training: RCM_LAB_DISK=\$(tests/vm/trainer-disk.sh) make lab-up"
done
leave() {
    local status=$? host
    trap - EXIT
    for host in $HOSTS; do on "$host" 'rcm delete --force trainer; rcm delete --force unmoved; umount -l /srv' >/dev/null 2>&1 || true; done
    clean_up "$status"
}
trap leave EXIT

on source "mkdir -p $RESULTS"
for host in $HOSTS; do
    # Under emulation most of the time is for the compiler, and vectors are slow.
    on "$host" "set -e
        mount -o ro /dev/vdb /srv
        mkdir -p $BUNDLES/trainer && cd $BUNDLES/trainer
        rm -f config.json && rcm spec
        jq '.process.terminal = false | .root = {path: \"/srv\", readonly: true}
            | .mounts += [{destination: \"/tmp\", type: \"tmpfs\", source: \"tmpfs\"},
                {destination: \"/mnt\", type: \"bind\", source: \"$RESULTS\", options: [\"rbind\", \"rw\"]}]
            | .process.env = [\"PATH=/opt/trainer/bin:/usr/bin:/bin\", \"KERAS_BACKEND=jax\", \"KERAS_HOME=/tmp/keras\", \"JAX_PLATFORMS=cpu\",
                \"XLA_FLAGS=--xla_backend_optimization_level=0 --xla_cpu_max_isa=SSE4_2\"]
            | .process.args = [\"sh\", \"-c\", \"exec python /opt/trainer/train.py --seed 7 --epochs $EPOCHS --steps $EPOCH_STEPS --batch 8 </dev/null >/mnt/$host 2>/mnt/$host.errors\"]' \
            config.json >config.new
        mv config.new config.json"
done
# steps HOST - number of steps of the training that began there.
steps() { on source "cat $RESULTS/$1 2>/dev/null | wc -l"; }
# await_steps HOST COUNT
await_steps() {
    for _ in $(seq 500); do
        [ "$(steps "$1")" -lt "$2" ] || return 0
        sleep 1
    done
    die "the training of $1 has made $(steps "$1") steps; it says: $(on source "tail -n 3 $RESULTS/$1.errors")"
}

on destination "cd $BUNDLES/trainer && rcm run --detach unmoved </dev/null >/dev/null 2>&1"
on source "cd $BUNDLES/trainer && rcm run --detach trainer </dev/null >/dev/null 2>&1"
await_steps source 20
start_receiver trainer --detach
before=$(steps source)
on source 'rcm live-migrate trainer --image-path=/var/nfs --destination=10.0.0.2 --rootfs=none --max-rounds=1' \
    || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver-trainer')"
expect_moved trainer
moved=$(steps source)
[ "$moved" -lt $STEPS ] || die "it was done before it moved"
await_steps source $STEPS
await_steps destination $STEPS
on source "cmp $RESULTS/source $RESULTS/destination" || die "the losses differ"
say "$STEPS losses are the same; it moved between step $before and step $moved"
