# Two hosts on one machine, for the demonstrations. Sourced, never run. The script sets RCM, and TAG, which is part of every name made here.
#
# The hosts are network namespaces joined by a veth pair. Each has its own state directory and its own place in the cgroup tree. They share
# the files below $work, as two machines with an NFS mount do.
# shellcheck shell=bash

readonly SOURCE_ADDRESS=198.18.0.1
readonly DESTINATION_ADDRESS=198.18.0.2
# The receiver that waits, for each host.
receiver=

# hosts_up - checks the requirements, makes $work and the two hosts.
hosts_up() {
    local tool
    [ "$(id -u)" -eq 0 ] || die "containers need root: run it as root or with sudo"
    [ -x "$RCM" ] || die "$RCM does not exist: run \`make build\`, or set RCM"
    RCM=$(readlink -f "$RCM")
    for tool in ip nsenter unshare awk; do
        command -v "$tool" >/dev/null || die "$tool is missing: run \`make deps\`"
    done
    work=$(mktemp -d "${TMPDIR:-/tmp}/$TAG.XXXXXX")
    trap hosts_down EXIT
    trap 'exit 130' INT TERM
    make_host source
    make_host destination
    on source ip link add veth-source type veth peer name veth-dest
    # The other end is moved by the descriptor that `ip` finds under this process's id.
    exec 9<"$work/net-destination"
    on source ip link set veth-dest netns "/proc/$$/fd/9"
    exec 9<&-
    on source ip addr add "$SOURCE_ADDRESS/30" dev veth-source
    on source ip link set veth-source up
    on destination ip addr add "$DESTINATION_ADDRESS/30" dev veth-dest
    on destination ip link set veth-dest up
    mkdir "$work/store"
}

# A host: a network namespace held by a mount. `nsenter --net` and not `ip netns exec`, which makes a mount namespace of its own
# that CRIU would have to understand.
make_host() {
    : >"$work/net-$1"
    unshare --net="$work/net-$1" true
    # CRIU tries out what TCP can do, and needs an address for that.
    on "$1" ip link set lo up
}

# Only names with $TAG and files below $work are removed, so nothing else can be hit.
hosts_down() {
    local status=$? host top id
    trap - EXIT INT TERM
    set +e
    if [ -n "$receiver" ] && kill -0 "$receiver" 2>/dev/null; then
        kill "$receiver"
        wait "$receiver" 2>/dev/null
    fi
    for host in source destination; do
        for id in $("$RCM" --root "$work/$host" list --quiet 2>/dev/null); do
            "$RCM" --root "$work/$host" delete --force "$id" 2>/dev/null
        done
        umount "$work/net-$host" 2>/dev/null
    done
    for top in /sys/fs/cgroup /sys/fs/cgroup/*; do
        for host in source destination; do
            [ ! -d "$top/$TAG-$host" ] || rmdir "$top/$TAG-$host" 2>/dev/null
        done
    done
    rm -rf --one-file-system "$work"
    exit "$status"
}

# on HOST COMMAND... - in the network of a host.
on() {
    local host=$1
    shift
    nsenter --net="$work/net-$host" "$@"
}

# rcm HOST ARGUMENT... - rcm of a host.
rcm() {
    local host=$1
    shift
    on "$host" "$RCM" --root "$work/$host" "$@"
}

# wait_for_container ID - start a receiver for it at the destination, and wait until it listens.
wait_for_container() {
    rcm destination live-migrate "$1" --image-path "$work/store" --cgroup-parent "/$TAG-destination" --detach \
        </dev/null >"$work/receiver.log" 2>&1 &
    receiver=$!
    for _ in $(seq 200); do
        grep -q 'waiting on' "$work/receiver.log" && break
        kill -0 "$receiver" 2>/dev/null || break
        sleep 0.05
    done
    grep -q 'waiting on' "$work/receiver.log" || die "the receiver does not listen: $(cat "$work/receiver.log")"
}

# container_arrived - waits for the receiver's end, and shows its output.
container_arrived() {
    local status=0
    wait "$receiver" || status=$?
    receiver=
    sed 's/^/   destination  /' "$work/receiver.log"
    [ "$status" -eq 0 ] || die "the receiver failed with status $status"
}
