#!/usr/bin/env bash
#
# Move a running container between two hosts, on one machine.
#
# The container counts in its memory, and writes each number with the time to a file that it holds open.
#
# The numbers must continue without a repetition or a gap. The time between the last number at the source and the first one at the
# destination is the downtime that the application sees, including its own pause of 10 ms.

set -euo pipefail
export LC_ALL=C
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
. scripts/hosts.sh

RCM=${RCM:-target/release/rcm}
# How long the container counts before and after it moves, in seconds.
BEFORE=${RCM_DEMO_BEFORE:-2}
AFTER=${RCM_DEMO_AFTER:-2}

readonly ID=counter
readonly TAG=rcm-demo-$$

busybox=$(command -v busybox) || die "busybox is missing: run \`make deps\`"
hosts_up

# The bundle: busybox and one loop.
rootfs=$work/bundle/rootfs
mkdir -p "$rootfs"/{bin,dev,proc,sys,tmp}
cp "$busybox" "$rootfs/bin/busybox"
for applet in sh usleep; do
    ln -s busybox "$rootfs/bin/$applet"
done
# The number is in the shell's memory, and the file is always open. The time is the wall clock's: CRIU gives the restored container a time
# namespace in which the monotonic clock did not advance.
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

last() { tail -n 1 "$numbers" | cut -d ' ' -f 1; }

echo "== the container counts at the source ($SOURCE_ADDRESS)"
rcm source run --detach --bundle "$work/bundle" "$ID" </dev/null >/dev/null
sleep "$BEFORE"
rcm source list
echo "   it is at $(last)"

echo "== destination ($DESTINATION_ADDRESS): rcm live-migrate $ID --image-path=DIR"
wait_for_container "$ID"

echo "== source ($SOURCE_ADDRESS): rcm live-migrate $ID --image-path=DIR --destination=$DESTINATION_ADDRESS"
rcm source live-migrate "$ID" --image-path "$work/store" --destination "$DESTINATION_ADDRESS" 2>&1 | sed 's/^/   source       /'
moved=$(last)
container_arrived

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
