# What the scenarios share. Sourced by each of them.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# Bundles lie at the same path on both machines, as the README has it.
readonly BUNDLES=/root/bundles

# Nothing of a scenario is left for the next one.
clean_up() {
    local status=$? host
    trap - EXIT
    for host in $HOSTS; do
        # A receiver in the foreground removes its container itself when that has ended, so a deletion may come too late.
        on "$host" 'for tries in $(seq 50); do
                ids=$(rcm list --quiet) && [ -n "$ids" ] || exit 0
                for id in $ids; do rcm delete --force "$id" 2>/dev/null; done
                sleep 0.1
            done
            echo "containers are left: $ids"
            exit 1' || status=1
    done
    on source 'rm -rf /var/nfs/*' || status=1
    exit "$status"
}
trap clean_up EXIT

# make_bundle ID ARGUMENT... - a bundle with a busybox, the workload and a command, on both machines.
make_bundle() {
    local id=$1 host args
    shift
    args=$(printf '%s\n' "$@" | jq -R . | jq -sc .)
    for host in $HOSTS; do
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

# start_receiver ID OPTION... - in the background of the destination; its output goes to a file there. Returns when it waits for the source.
#
# GLOBALS are flags before the verb.
start_receiver() {
    local id=$1 log=/tmp/receiver-$1
    shift
    on destination "rm -f $log; cd $BUNDLES/$id
        sudo rcm ${GLOBALS:-} live-migrate $id --image-path=/var/nfs $* >$log 2>&1 </dev/null &"
    for _ in $(seq 100); do
        ! on destination "grep -q 'waiting on' $log" || return 0
        sleep 0.2
    done
    on destination "cat $log"
    die "the receiver does not wait for the source"
}

# expect_moved ID - it runs at the destination, and nowhere else.
expect_moved() {
    expect "at the destination" "$(status_of destination "$1")" running
    expect "at the source" "$(status_of source "$1")" absent
}

# inside HOST ID FILE - a file as the container sees it; its first process has it open to every reader with root's rights.
inside() {
    on "$1" "pid=\$(rcm state $2 | jq .pid) && cat /proc/\$pid/root/$3"
}

# status_of HOST ID - "running", ..., or "absent".
status_of() {
    on "$1" "rcm state $2 2>/dev/null | jq -r .status | grep . || echo absent"
}

# expect WHAT FOUND WANTED
expect() {
    [ "$2" = "$3" ] || die "$1: \"$2\" instead of \"$3\""
}
