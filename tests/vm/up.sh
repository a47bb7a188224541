#!/usr/bin/env bash
#
# up.sh [HOST...] - start the lab: two virtual machines, source and destination, with a private
# link, and /var/nfs of the source on both; and the network of the containers, with a third host in
# it. With names, start only those machines of a lab that is already up.
#
#   RCM_LAB_INIT=systemd|fast    the first process: systemd, or busybox (starts in a third of the time)
#   RCM_LAB_MEMORY=1536          MiB of each machine
#   RCM_LAB_DISK=FILE            a second disk for both, read-only (trainer-disk.sh)
#   RCM_LAB_CPU=MODEL            QEMU's processor model; RCM_LAB_CPU_source, RCM_LAB_CPU_destination for one machine

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

INIT=${RCM_LAB_INIT:-systemd}
MEMORY=${RCM_LAB_MEMORY:-1536}
# QEMU 7.2 corrupts the flags of a guest on cmpxchg16b now and then: oopses in random places.
# Without la57 page tables have a level less.
CPU=${RCM_LAB_CPU:-max,cx16=off,la57=off}
case $INIT in
    fast) init=/usr/local/sbin/lab-init ;;
    systemd) init=/sbin/init ;;
    *) die "RCM_LAB_INIT is \"$INIT\", and can be fast or systemd" ;;
esac
[ -e "$IMAGE/built" ] || die "no image yet: tests/vm/build-image.sh"
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $HOSTS $THIRD
for host in "$@"; do
    ! pid_of "$host" >/dev/null || die "$host is up already: make lab-down"
done

began=$(now_ms)
# The lab stays up only if all of these machines have started.
trap '"$VM/down.sh" "$@"' EXIT
if [[ " $* " == *" $THIRD "* ]]; then
    rm -rf "$RUN"
    mkdir -p "$RUN"
    sockets=$(mktemp -d /tmp/rcm-lab.XXXXXX)
    ln -s "$sockets" "$RUN/sockets"
    # Detached from this script's group, so that Ctrl-C leaves it.
    setsid nice unshare --net python3 "$VM/front.py" "$RUN/sockets" "rcm-lab-$THIRD@$RUN" </dev/null >"$RUN/$THIRD.log" 2>&1 &
    echo $! >"$RUN/$THIRD.pid"
fi

start() {
    local host=$1 peer=$2 number cpu=RCM_LAB_CPU_$1 sockets
    rm -f "$RUN/$host.console"
    number=$(address_of "$host")
    number=${number##*.}
    sockets=$(readlink "$RUN/sockets")
    # One processor each: a second one makes emulation slower. Changes of its disk are lost when a
    # machine ends.
    nice qemu-system-x86_64 -name "rcm-lab-$host@$RUN" -nodefaults -no-user-config -display none -daemonize \
        -pidfile "$RUN/$host.pid" -qmp "unix:$sockets/$host.qmp,server=on,wait=off" \
        -machine q35 -accel tcg,thread=multi,tb-size=256 -cpu "${!cpu:-$CPU}" -smp 1 -m "$MEMORY" \
        -kernel "$IMAGE/vmlinuz" -initrd "$IMAGE/initrd" \
        -append "console=hvc0 quiet loglevel=4 net.ifnames=0 mitigations=off panic=5 lab.init=$init lab.name=$host lab.address=$(address_of "$host")" \
        -drive "file=$IMAGE/root.ext4,if=virtio,format=raw,snapshot=on,cache=unsafe" \
        ${RCM_LAB_DISK:+-drive "file=$RCM_LAB_DISK,if=virtio,format=raw,readonly=on"} \
        -device virtio-serial -chardev "file,id=console,path=$RUN/$host.console" -device virtconsole,chardev=console \
        -netdev "user,id=exec,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22" \
        -device "virtio-net-pci,netdev=exec,romfile=,mac=52:54:00:00:00:0$number" \
        -netdev "dgram,id=link,local.type=unix,local.path=$sockets/$host.link,remote.type=unix,remote.path=$sockets/$peer.link" \
        -device "virtio-net-pci,netdev=link,romfile=,mac=52:54:00:00:01:0$number" \
        -netdev "dgram,id=front,local.type=unix,local.path=$sockets/$host.front,remote.type=unix,remote.path=$sockets/$host.hub" \
        -device "virtio-net-pci,netdev=front,romfile=,mac=52:54:00:00:02:0$number" \
        -device virtio-rng-pci 2>"$RUN/$host.qemu" || die "QEMU: $(tail -n 1 "$RUN/$host.qemu")"
}
for host in "$@"; do
    case $host in
        source) TMPDIR=$RUN start source destination ;;
        destination) TMPDIR=$RUN start destination source ;;
    esac
done

for host in $HOSTS; do
    pid_of "$host" >/dev/null || continue
    # The kernel chose a free port of this machine.
    port=$(monitor "$host" "info usernet" | awk '/HOST_FORWARD/ { print $4 }')
    cat <<CONFIG
Host $host
    Port $port
CONFIG
done >"$RUN/ssh_config"
cat >>"$RUN/ssh_config" <<CONFIG
Host *
    HostName 127.0.0.1
    User root
    IdentityFile $IMAGE/key
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    BatchMode yes
    ConnectTimeout 10
    ControlMaster auto
    ControlPath $(readlink "$RUN/sockets")/%n
    ControlPersist 3600
CONFIG

wait_for() {
    # On a machine that is busy otherwise systemd takes minutes.
    local host=$1 deadline=$((SECONDS + 600))
    # Earlier, QEMU would accept a connection and try to reach the machine again only after 6
    # seconds.
    until grep -q "lab: $host is up" "$RUN/$host.console" 2>/dev/null; do
        [ $SECONDS -lt $deadline ] && pid_of "$host" >/dev/null || die "$host does not start; see $RUN/$host.console"
        sleep 0.2
    done
    until on "$host" true 2>/dev/null; do
        [ $SECONDS -lt $deadline ] || die "$host starts, but has no exec channel; see $RUN/$host.console"
        sleep 0.2
    done
}
for host in "$@"; do
    case $host in source | destination) wait_for "$host" ;; esac
done
if [[ " $* " == *" source "* ]]; then on source lab-nfs serve; fi
if [[ " $* " == *" destination "* ]]; then on destination timeout 60 lab-nfs mount 10.0.0.1; fi
trap - EXIT
say "up in $(seconds_since "$began") s: $*"
