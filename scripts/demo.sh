#!/usr/bin/env bash
#
# Move a running container between two hosts, on one machine.
#
# The hosts are network namespaces joined by a veth pair, each with a state directory and a place in the cgroup tree of
# its own; they share an image store and the bundle, as two machines with an NFS mount do. The container counts in its memory, and writes
# each number with the time to a file that it holds open.
#
# The numbers must go on without a repetition or a gap. The distance in time between the last one at the source and the first one at
# the destination is the downtime that the application sees, with its own pause of 10 ms in it.

set -euo pipefail
export LC_ALL=C

RCM=${RCM:-target/release/rcm}
# How long the container counts before and after it moves, in seconds.
BEFORE=${RCM_DEMO_BEFORE:-2}
AFTER=${RCM_DEMO_AFTER:-2}

readonly ID=counter
readonly TAG=rcm-demo-$$
readonly SOURCE_ADDRESS=198.18.0.1
readonly DESTINATION_ADDRESS=198.18.0.2

die() {
    echo "demo: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || die "containers need root: run it as root or with sudo"
[ -x "$RCM" ] || die "$RCM does not exist: run \`make build\`, or set RCM"
RCM=$(readlink -f "$RCM")
for tool in ip nsenter unshare awk; do
    command -v "$tool" >/dev/null || die "$tool is missing: run \`make deps\`"
done
busybox=$(command -v busybox) || die "busybox is missing: run \`make deps\`"

work=$(mktemp -d "${TMPDIR:-/tmp}/$TAG.XXXXXX")
receiver=

# Everything that this script makes is named after it or below $work, so that nothing else can be hit.
clean_up() {
    local status=$?
    trap - EXIT INT TERM
    set +e
    if [ -n "$receiver" ] && kill -0 "$receiver" 2>/dev/null; then
        kill "$receiver"
        wait "$receiver" 2>/dev/null
    fi
    for host in source destination; do
        "$RCM" --root "$work/$host" delete --force "$ID" 2>/dev/null
        umount "$work/net-$host" 2>/dev/null
    done
    for top in /sys/fs/cgroup /sys/fs/cgroup/*; do
        for host in source destination; do
            [ ! -d "$top/$TAG-$host" ] || rmdir "$top/$TAG-$host" 2>/dev/null
        done
    done
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# A host: a network namespace held by a mount. `nsenter --net` and not `ip netns exec`, which makes a mount namespace of its own
# that CRIU would have to understand.
make_host() {
    : >"$work/net-$1"
    unshare --net="$work/net-$1" true
    # CRIU tries out what TCP can do, and needs an address for that.
    on "$1" ip link set lo up
}

on() {
    local host=$1
    shift
    nsenter --net="$work/net-$host" "$@"
}

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

# The bundle: busybox and one loop.
rootfs=$work/bundle/rootfs
mkdir -p "$rootfs"/{bin,dev,proc,sys,tmp} "$work/store"
cp "$busybox" "$rootfs/bin/busybox"
for applet in sh usleep; do
    ln -s busybox "$rootfs/bin/$applet"
done
# The number lives in the shell's memory, the file is open all the time. The time is the wall clock's: CRIU gives the restored container
# a time namespace in which the monotonic clock did not go on.
cat >"$rootfs/count" <<'COUNT'
exec 3>>/tmp/numbers
number=0
while :; do
    number=$((number + 1))
    echo "$number $EPOCHREALTIME" >&3
    usleep 10000
done
COUNT
cat >"$work/bundle/config.json" <<CONFIG
{
  "ociVersion": "1.2.0",
  "process": {
    "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
    "args": ["sh", "/count"]
  },
  "root": {"path": "rootfs"},
  "hostname": "$ID",
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
  "linux": {
    "cgroupsPath": "/$TAG-source/$ID",
    "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]
  }
}
CONFIG
numbers=$rootfs/tmp/numbers

rcm() {
    local host=$1
    shift
    on "$host" "$RCM" --root "$work/$host" "$@"
}

last() { tail -n 1 "$numbers" | cut -d ' ' -f 1; }

echo "== the container counts at the source ($SOURCE_ADDRESS)"
rcm source run --detach --bundle "$work/bundle" "$ID" </dev/null >/dev/null
sleep "$BEFORE"
rcm source list
echo "   it is at $(last)"

echo "== destination ($DESTINATION_ADDRESS): rcm live-migrate $ID --image-path=DIR"
rcm destination live-migrate "$ID" --image-path "$work/store" --cgroup-parent "/$TAG-destination" --detach \
    </dev/null >"$work/receiver.log" 2>&1 &
receiver=$!
for _ in $(seq 200); do
    grep -q 'waiting on' "$work/receiver.log" && break
    kill -0 "$receiver" 2>/dev/null || break
    sleep 0.05
done
grep -q 'waiting on' "$work/receiver.log" || die "the receiver does not listen: $(cat "$work/receiver.log")"

echo "== source ($SOURCE_ADDRESS): rcm live-migrate $ID --image-path=DIR --destination=$DESTINATION_ADDRESS"
rcm source live-migrate "$ID" --image-path "$work/store" --destination "$DESTINATION_ADDRESS" 2>&1 | sed 's/^/   source       /'
moved=$(last)
status=0
wait "$receiver" || status=$?
receiver=
sed 's/^/   destination  /' "$work/receiver.log"
[ "$status" -eq 0 ] || die "the receiver failed with status $status"

sleep "$AFTER"
echo "== the container counts at the destination"
rcm source list
rcm destination list
echo "   it is at $(last), and was at $moved when the command ended"

awk '
    { number[NR] = $1; time[NR] = $2 }
    NR > 1 && $1 != number[NR - 1] + 1 { print "demo: " $1 " follows " number[NR - 1]; broken = 1 }
    NR > 1 { gap = $2 - time[NR - 1]; if (gap > longest) { longest = gap; at = NR } }
    END {
        if (broken) exit 1
        printf "   last number at the source       %d\n", number[at - 1]
        printf "   first number at the destination %d\n", number[at]
        printf "   every number from 1 to %d came once, in order\n", number[NR]
        printf "   downtime as the container saw it: %d ms\n", longest * 1000
    }' "$numbers"
