#!/usr/bin/env bash
#
# A container of Docker, with rcm as its runtime and systemd for its groups, moves to a machine
# without an engine, with its memory, its writable layer, its limits and the files that Docker has
# made for it.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_systemd

leave() {
    local status=$?
    on source 'docker rm --force counter; systemctl stop docker.socket docker.service containerd.service; rm -rf /etc/docker/daemon.json /tmp/image' \
        >/dev/null 2>&1 || true
    remove_pool || status=1
    clean_up "$status"
}
trap leave EXIT

# numbers HOST COMMAND - the container's file with all numbers so far, each once and in order.
# Prints the last.
numbers() { on "$1" "$2" | awk '$1 != NR { print $1 " as number " NR; exit 1 } END { print NR }' || die "a step is missing, or was executed twice"; }

# The settings as the documentation has them.
awk '/^```json/ { inside = 1; next } inside && /^```/ { exit } inside' "$TOP/docs/engines.md" | on source 'mkdir -p /etc/docker && cat >/etc/docker/daemon.json'
on source 'systemctl start docker'
on source 'set -e
    mkdir -p /tmp/image/bin
    cp /usr/bin/busybox /tmp/image/bin/
    for name in sh cat sleep hostname; do ln -sf busybox /tmp/image/bin/$name; done
    tar -C /tmp/image -c . | docker import - lab >/dev/null'
say "docker $(on source "docker version --format '{{.Server.Version}}'"), groups by $(on source "docker info --format '{{.CgroupDriver}}'")"

# shellcheck disable=SC2016
id=$(on source "docker run --detach --name counter --hostname traveller --memory 64m --pids-limit 50 lab \
    sh -c 'n=0; while :; do n=\$((n + 1)); echo \$n >>/numbers; sleep 0.05; done'")
on source 'docker exec counter sh -c "echo layer >/kept"'
expect "its runtime" "$(on source "docker inspect --format '{{.HostConfig.Runtime}}' counter")" rcm
before=$(numbers source 'docker exec counter cat /numbers')

make_pool
commands docs/reference.md
await
next_block source
on source "${block//3f2a91/${id:0:12}}" || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver')"
no_more_blocks

after=$(numbers destination "rcm exec $id cat /numbers")
sleep 1
later=$(numbers destination "rcm exec $id cat /numbers")
say "the counter: $before before, $after after, $later a second later"
[ "$after" -gt "$before" ] && [ "$later" -gt "$after" ] || die "it stands still"
expect "its layer" "$(on destination "rcm exec $id cat /kept")" layer
expect "its name" "$(on destination "rcm exec $id hostname")" traveller
expect "its limits" "$(on destination "cd /sys/fs/cgroup\$(sed s/^0::// /proc/\$(rcm state $id | jq .pid)/cgroup) && cat memory.max pids.max" | tr '\n' ' ')" "67108864 50 "
for _ in $(seq 50); do
    state=$(on source "docker inspect --format '{{.State.Status}} {{.State.ExitCode}}' counter")
    [ "$state" != "exited 137" ] || break
    sleep 0.2
done
expect "what Docker sees" "$state" "exited 137"
on source 'docker rm counter >/dev/null && docker run --rm lab hostname >/dev/null'
expect "at the destination" "$(status_of destination "$id")" running
