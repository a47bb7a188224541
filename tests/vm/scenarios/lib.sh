# Functions that the scenarios share. Sourced by each of them.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# Bundles lie at the same path on both machines, as the README has it.
readonly BUNDLES=/root/bundles
# A store of each machine's own.
readonly OWN_STORE=/root/store

# clean_up [STATUS] - removes everything that a scenario has left.
clean_up() {
    local status=${1:-$?} host
    trap - EXIT
    # shellcheck disable=SC2046
    kill $(jobs -p) 2>/dev/null || true
    [ "$status" -eq 0 ] || show_criu
    link on || status=1
    for host in $HOSTS; do
        # Receivers that still wait for a container, if a scenario failed.
        on "$host" 'for pid in $(pgrep -f "^rcm .*live-migrate"); do kill "$pid"; done' || true
        # A receiver in the foreground removes its container itself when that has ended, so a
        # deletion may come too late.
        on "$host" 'for tries in $(seq 50); do
                ids=$(rcm list --quiet) && [ -n "$ids" ] || exit 0
                for id in $ids; do rcm delete --force "$id" 2>/dev/null; done
                sleep 0.1
            done
            echo "containers are left: $ids"
            exit 1' || status=1
    done
    on source "rm -rf /var/nfs/* $OWN_STORE" || status=1
    on destination "rm -rf $OWN_STORE" || status=1
    exit "$status"
}
trap clean_up EXIT

# CRIU's errors in the last migrations, and the log lines before them.
show_criu() {
    local host
    for host in $HOSTS; do
        printf -- '--- CRIU on %s\n' "$host"
        timeout 30 "$VM/run.sh" "$host" 'cd /run/rcm/@migrations && for log in */*.log; do ! grep -q "Error (" "$log" || { echo "$log:"; tail -n 40 "$log"; }; done' || true
    done
}

# Called by test.sh if a scenario hangs: prints the processes that wait, and the call of the kernel
# in which they wait. The kernel's own threads are children of the second process.
show_processes() {
    local host
    for host in $HOSTS; do
        printf -- '--- %s\n' "$host"
        timeout 30 "$VM/run.sh" "$host" 'ps -o pid,ppid,stat,wchan:24,etimes,args --ppid 2 -p 2 --deselect' || echo "it does not answer"
    done
}
trap 'trap "" TERM; show_processes; exit 124' TERM

# Functions called make_... work on both machines, or on those in MACHINES.

# make_bundle ID ARGUMENT... - a bundle with a busybox, the workload and a command.
make_bundle() {
    local id=$1 host args
    shift
    args=$(printf '%s\n' "$@" | jq -R . | jq -sc .)
    for host in ${MACHINES:-$HOSTS}; do
        on "$host" "set -e
            mkdir -p $BUNDLES/$id/rootfs/bin
            cd $BUNDLES/$id
            cp /usr/bin/busybox /usr/local/bin/workload rootfs/bin/
            for name in sh cat sleep; do ln -sf busybox rootfs/bin/\$name; done
            rm -f config.json
            rcm spec
            jq '.process.terminal = false | .process.args = \$args' --argjson args '$args' config.json >config.new
            mv config.new config.json"
    done
}

# start_receiver ID OPTION... - in the background of the destination; its output goes to a file
# there. Returns when it waits for the source.
#
# GLOBALS are flags before the verb, STORE is the image path.
start_receiver() {
    local id=$1 log=/tmp/receiver-$1
    shift
    on destination "rm -f $log; cd $BUNDLES/$id
        sudo rcm ${GLOBALS:-} live-migrate $id --image-path=${STORE:-/var/nfs} $* >$log 2>&1 </dev/null &"
    for _ in $(seq 100); do
        ! on destination "grep -q 'waiting on' $log" || return 0
        sleep 0.2
    done
    on destination "cat $log"
    die "the receiver does not wait for the source"
}

# make_stores - without an image path that both machines share.
make_stores() {
    local host
    for host in ${MACHINES:-$HOSTS}; do on "$host" "mkdir -m 700 $OWN_STORE"; done
}

# start_workload ID - on the source, from its bundle. Returns when its memory is filled.
start_workload() {
    on source "cd $BUNDLES/$1 && rcm run --detach $1 </dev/null >/dev/null 2>&1"
    for _ in $(seq 150); do
        # Written with the first tick.
        ! inside source "$1" dev/shm/ticks >/dev/null 2>&1 || return 0
        sleep 0.2
    done
    die "the workload does not start"
}

# check_workload ID - every page of its memory at the destination has the expected contents.
check_workload() {
    local verdict
    on destination "touch /proc/\$(rcm state $1 | jq .pid)/root/dev/shm/check"
    for _ in $(seq 150); do
        verdict=$(inside destination "$1" dev/shm/verdict 2>/dev/null) && break
        sleep 0.2
    done
    expect "the memory at the destination" "${verdict:-not checked}" intact
}

# power_off HOST - without a shutdown; its memory and its disk are gone.
power_off() { "$VM/down.sh" "$1"; }
# power_on HOST - with the programs under test, and nothing else of its former disk.
power_on() {
    "$VM/up.sh" "$1"
    push_programs "$1"
}

# power_cycle HOST - its memory is gone, and its disk is as it was. It neither exports nor mounts
# anything afterwards.
power_cycle() {
    local console=$RUN/$1.console before
    before=$(grep -c "lab: $1 is up" "$console")
    ssh -F "$RUN/ssh_config" -O exit "$1" 2>/dev/null || true
    # An emulated machine hangs now and then when it starts, which is not a fault of rcm.
    for _ in 1 2 3; do
        monitor "$1" system_reset
        for _ in $(seq 300); do
            # QEMU answers a connection that comes too early after some seconds only.
            ! [ "$(grep -c "lab: $1 is up" "$console")" -gt "$before" ] || ! on "$1" true 2>/dev/null || return 0
            sleep 0.2
        done
        say "$1 does not start again, and says: $(tail -n 5 "$console")"
    done
    die "$1 does not start again; see $console"
}

# need_systemd - as the first process of both machines.
need_systemd() {
    local host
    for host in $HOSTS; do
        [ "$(on "$host" cat /proc/1/comm)" = systemd ] && continue
        power_off "$host"
        RCM_LAB_INIT=systemd power_on "$host"
    done
}

# expect_moved ID - the container runs at the destination, and nowhere else.
expect_moved() {
    expect "at the destination" "$(status_of destination "$1")" running
    expect "at the source" "$(status_of source "$1")" absent
}

# inside HOST ID FILE - a file as the container sees it; its first process has it open to every
# reader with root's rights.
inside() {
    on "$1" "pid=\$(rcm state $2 | jq .pid) && cat /proc/\$pid/root/$3"
}

# status_of HOST ID - "running", ..., or "absent".
status_of() {
    on "$1" "rcm state $2 2>/dev/null | jq -r .status | grep . || echo absent"
}

# expect TEXT FOUND WANTED
expect() {
    [ "$2" = "$3" ] || die "$1: \"$2\" instead of \"$3\""
}

# --- a container that reports its host ---

# The log of the third host, and the host part of the container's address, which is the same on both
# machines.
readonly HEARD=$RUN/heard BEACON_ADDRESS=10.0.1.10
readonly LAB_DIR=/root/lab

# make_beacon ID - with a network namespace on each machine and the same address. The one at the
# source is removed after the move.
make_beacon() {
    local id=$1 host
    make_bundle "$id" /bin/beacon 10.0.1.9:7500 7000
    for host in ${MACHINES:-$HOSTS}; do
        make_network "$host"
        on "$host" "set -e
            rm -rf $LAB_DIR && mkdir -p $LAB_DIR/log && ln -s $host $LAB_DIR/host
            cd $BUNDLES/$id
            cp /usr/local/bin/beacon rootfs/bin/ && mkdir -p rootfs/lab
            jq '.mounts += [{destination: \"/lab\", type: \"bind\", source: \"$LAB_DIR\", options: [\"rbind\", \"rw\"]}]
                | (.linux.namespaces[] | select(.type == \"network\")).path = \"/run/netns/lab\"
                | .hooks.poststop = [{path: \"/usr/sbin/ip\", args: [\"ip\", \"-n\", \"lab\", \"link\", \"set\", \"lab0\", \"down\"]}]' config.json >config.new
            mv config.new config.json"
    done
}

# make_network HOST - the namespace for the beacon, with its address.
make_network() {
    on "$1" "set -e
        [ ! -e /run/netns/lab ] || ip netns delete lab
        ip netns add lab
        ip link add lab0 link eth2 netns lab type macvlan mode bridge
        ip -n lab address add $BEACON_ADDRESS/24 dev lab0
        ip -n lab link set lo up
        ip -n lab link set lab0 up"
}

# listen - from now on the third host logs all messages that it hears.
listen() {
    [ -z "${listener:-}" ] || { kill "$listener" && wait "$listener"; } 2>/dev/null || true
    : >"$HEARD"
    nsenter "$(third_net)" python3 "$VM/third.py" log "$HEARD" &
    listener=$!
}

# start_beacon ID HOST - from its bundle. Returns when the third host hears it.
start_beacon() {
    listen
    on "$2" "ip -n lab link set lab0 up && cd $BUNDLES/$1 && rcm run --detach $1 </dev/null >/dev/null 2>&1"
    expect_heard "$2"
}

# expect_heard HOST - the third host still hears the container, from there.
expect_heard() {
    local before
    before=$(wc -l <"$HEARD")
    for _ in $(seq 300); do
        if [ "$(wc -l <"$HEARD")" -gt $((before + 5)) ]; then
            expect "where the container is" "$(tail -n 1 "$HEARD" | cut -d ' ' -f 1)" "$1"
            return
        fi
        sleep 0.1
    done
    die "nothing is heard of the container; the last was: $(tail -n 1 "$HEARD")"
}

# expect_one HOST... - the third host has heard one container, on these hosts, one after the other.
expect_one() {
    local found
    found=$(python3 "$VM/third.py" check "$HEARD") || die "$found"
    expect "where the container was" "${found% *}" "$*"
}

# expect_numbers - by their own logs, which need no network, the machines together executed each
# step once.
expect_numbers() {
    local host
    for host in "$@"; do on "$host" "find $LAB_DIR/log -type l -printf '%l\\n'"; done \
        | sort -n -k 2 | awk '$2 != NR { print $1 " says " $2 " as number " NR; exit 1 }' || die "a step is missing, or was executed twice"
}

# --- a migration of it that stops at a point ---

readonly TOKEN=/root/token

# make_token - the same secret on both machines.
make_token() {
    local host
    secret=${secret:-$(head -c 48 /dev/urandom | base64)}
    for host in ${MACHINES:-$HOSTS}; do on "$host" "umask 077 && cat >$TOKEN" <<<"$secret"; done
}

# begin HOST PHASE - starts a migration and stops that end right after it has entered the phase in
# its journal. STORE may be another image path than each machine's own, MODE another --mode. FLAGS
# are for the source.
begin() {
    local host=$1 phase=$2 pid store=${STORE:-$OWN_STORE}
    say "--- $host at $phase"
    on source 'rm -f /tmp/sender /tmp/status'
    STORE=$store start_receiver web --detach "--token-file=$TOKEN"
    # The source does nothing until the tracer lets it.
    on source "(sh -c 'echo \$\$ >/tmp/pid; kill -STOP \$\$
        exec rcm live-migrate web --image-path=$store --destination=10.0.0.2 --token-file=$TOKEN --mode=${MODE:-stop-and-copy} ${FLAGS:-}'
        echo \$? >/tmp/status) </dev/null >/tmp/sender 2>&1 &"
    until on source "grep -q '^State:.T' /proc/\$(cat /tmp/pid)/status" 2>/dev/null; do sleep 0.1; done
    case $host in
        source) pid='$(cat /tmp/pid)' ;;
        destination) pid="\$(pgrep -n -f '^rcm live-migrate web')" ;;
    esac
    on "$host" "rm -f /tmp/stopped; stop_at $pid /run/rcm/web/migration.json '\"phase\": \"$phase\"' /run/rcm/@migrations/web.json '\"phase\": \"$phase\"' \
        </dev/null >/tmp/stop_at 2>&1 &
        until grep -q '^TracerPid:.[1-9]' /proc/$pid/status; do sleep 0.1; done"
    [ "$host" = source ] || on source 'kill -CONT $(cat /tmp/pid)'
    for _ in $(seq 300); do
        ! on "$host" 'test -e /tmp/stopped' || return 0
        sleep 0.2
    done
    die "$host does not get to $phase: $(on source 'cat /tmp/sender'; on destination 'cat /tmp/receiver-web')"
}
go_on() { on "$1" 'rm /tmp/stopped'; }
# link on|off - the one between the machines.
link() { monitor source "set_link link $1"; }

# end STATUS - waits until the source's rcm ends with that status.
end() {
    for _ in $(seq 600); do
        ! on source 'test -e /tmp/status' || break
        sleep 0.2
    done
    expect "the exit status of the source, which said: $(on source 'tail -n 3 /tmp/sender')" "$(on source 'cat /tmp/status')" "$1"
}
# end_receiver - the destination's rcm has ended.
end_receiver() {
    for _ in $(seq 600); do
        on destination "pgrep -f '[l]ive-migrate web' >/dev/null" || return 0
        sleep 0.2
    done
    die "the receiver does not end: $(on destination 'cat /tmp/receiver-web')"
}
# settle STATUS - runs --resolve at both ends, as documented: first at the destination, which then
# answers the source for a minute. Both exit with that status: 0 if the container has moved, 1 if
# not.
settle() {
    local resolving status=3 there=0
    on destination 'rcm live-migrate web --resolve' &
    resolving=$!
    while [ $status -eq 3 ]; do
        kill -0 "$resolving" 2>/dev/null || die "--resolve at the destination ended before the source could ask"
        status=0
        on source 'rcm live-migrate web --resolve' || status=$?
    done
    wait "$resolving" || there=$?
    expect "--resolve at the ends" "$status $there" "$1 $1"
    end_receiver
}
# stays - the container runs on at the source and nowhere else, and nothing is left.
stays() {
    expect_heard source
    expect "at the source" "$(status_of source web)" running
    expect_one source
}
# moves - the container runs at the destination and nowhere else. The next case begins at the
# source.
moves() {
    expect_heard destination
    expect_moved web
    expect_one source destination
    on destination 'rcm delete --force web'
    for host in $HOSTS; do on "$host" "rm -r $LAB_DIR/log && mkdir $LAB_DIR/log"; done
    start_beacon web source
}

# --- the documentation's commands ---

# commands PAGE - from now on, those of that page that are marked for this scenario.
commands() {
    page=$1
    mapfile -d '' blocks < <(awk -v scenario="$(basename "$0" .sh)" '
        inside && /^ *```$/ { inside = 0; printf "%c", 0; next }
        inside { print }
        /^ *```sh real-hosts / && (NF == 3 ? "docs" : $4) == scenario { inside = 1; print $3 }' "$TOP/$page")
}
# next_block HOST - the next one is for that machine, and is $block now.
next_block() {
    [ ${#blocks[@]} -gt 0 ] || die "$page has no more commands for this scenario"
    expect "the machine of the next commands in $page" "${blocks[0]%%$'\n'*}" "$1"
    block=${blocks[0]#*$'\n'}
    blocks=("${blocks[@]:1}")
}
no_more_blocks() { [ ${#blocks[@]} -eq 0 ] || die "$page has commands that this scenario does not execute: ${blocks[*]}"; }
# execute HOST - the next one.
execute() {
    next_block "$1"
    on "$1" "set -e"$'\n'"$block" || die "$page: failed on $1; the receiver says: $(on destination 'cat /tmp/receiver')"
}
# await - the next one ends with a receiver at the destination. Returns when that waits.
await() {
    next_block destination
    on destination "rm -f /tmp/receiver; cat >/tmp/block; bash -e /tmp/block >/tmp/receiver 2>&1 </dev/null &" <<<"$block"
    for _ in $(seq 100); do
        ! on destination 'grep -q "waiting on" /tmp/receiver' || return 0
        sleep 0.2
    done
    die "$page: no receiver waits: $(on destination 'cat /tmp/receiver')"
}

# make_pool - /pool, a directory that both machines share.
make_pool() {
    local host
    for host in $HOSTS; do on "$host" 'mkdir -p /pool && mount --bind /var/nfs /pool'; done
}
remove_pool() {
    local host
    for host in $HOSTS; do on "$host" '! mountpoint -q /pool || umount /pool'; done
}
