# Functions that the scripts of the lab share. Sourced, never run. See docs/lab.md.
# shellcheck shell=bash

readonly SCRIPT_NAME=${0##*/}
VM=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TOP=$(cd "$VM/../.." && pwd)
# Everything that the lab writes; sockets are elsewhere, because their paths may not be longer than
# 107 bytes.
LAB=${RCM_LAB_DIR:-${CARGO_TARGET_DIR:-$TOP/target}/vm}
mkdir -p "$LAB"
LAB=$(cd "$LAB" && pwd)
readonly VM TOP LAB
# The image from which both machines start, and the files of the running machines: RCM_LAB_RUN, or
# run. Each such directory is a lab of its own.
readonly IMAGE=$LAB/image RUN=$LAB/${RCM_LAB_RUN:-run}
readonly HOSTS="source destination"
# In the network of the containers, and no machine: a network namespace of this one.
readonly THIRD=third
# root's tools; an ordinary PATH may lack them.
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s: %s\n' "$SCRIPT_NAME" "$*"; }
die() {
    printf '%s: error: %s\n' "$SCRIPT_NAME" "$*" >&2
    exit 1
}

# address_of HOST - on the private link.
address_of() {
    case $1 in
        source) echo 10.0.0.1 ;;
        destination) echo 10.0.0.2 ;;
        *) die "no host \"$1\" in the lab: $HOSTS" ;;
    esac
}

# pid_of HOST - its QEMU, or the third host's network, if that still is a process of this lab.
pid_of() {
    local pid
    pid=$(cat "$RUN/$1.pid" 2>/dev/null) || return 1
    { tr '\0' '\n' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qx "rcm-lab-$1@$RUN" && echo "$pid"
}

# on HOST COMMAND... - run a shell command there; input, output and exit status pass through.
on() {
    local host=$1
    shift
    ssh -F "$RUN/ssh_config" "$host" "$@"
}

# The rcm under test, and the directories of the programs that run in the machines and their
# containers.
export RCM=${RCM:-$TOP/target/release/rcm} GUEST=${GUEST:-$TOP/target/release}
readonly PROGRAMS="workload beacon stop_at"
# push_programs [HOST...] - all of that into the machines.
push_programs() {
    local program
    "$VM/push.sh" "$RCM" /usr/local/sbin/rcm "$@"
    for program in $PROGRAMS; do "$VM/push.sh" "$GUEST/$program" "/usr/local/bin/$program" "$@"; done
}

# third_net - the third host's network, in which programs of this machine are executed.
third_net() { echo "--net=/proc/$(pid_of "$THIRD")/ns/net"; }

# monitor HOST COMMAND... - QEMU's own monitor commands, each an argument.
monitor() {
    python3 - "$RUN/sockets/$1.qmp" "${@:2}" <<'PY'
import json, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
stream = peer.makefile('rw')
stream.readline()
def execute(name, **arguments):
    stream.write(json.dumps({'execute': name, 'arguments': arguments}) + '\n')
    stream.flush()
    while True:
        reply = json.loads(stream.readline())
        if 'return' in reply or 'error' in reply:
            return reply
execute('qmp_capabilities')
failed = False
for command in sys.argv[2:]:
    reply = execute('human-monitor-command', **{'command-line': command})
    failed |= 'error' in reply
    print(reply.get('return', reply.get('error')), end='')
sys.exit(failed)
PY
}

# seconds_since MILLISECONDS - "12.3", for lines that report durations.
now_ms() { date +%s%3N; }
seconds_since() {
    local ms=$(($(now_ms) - $1))
    printf '%d.%d' $((ms / 1000)) $((ms % 1000 / 100))
}
