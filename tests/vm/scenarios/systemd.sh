#!/usr/bin/env bash
#
# Groups that systemd makes, on cgroup v2: every verb that touches them, also after a migration, and
# an ordinary user's container in the groups that systemd has delegated to this user.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_systemd

readonly SCOPE=rcm-web.scope SLICE=lab-batch.slice
readonly GROUP=/sys/fs/cgroup/lab.slice/$SLICE/$SCOPE
# shellcheck disable=SC2016
make_bundle web sh -c 'i=0; while :; do i=$((i + 1)); echo $i >/dev/shm/ticks; sleep 0.05; done'
for host in $HOSTS; do
    # shellcheck disable=SC2016
    on "$host" "cd $BUNDLES/web && jq '.linux.cgroupsPath = \"$SLICE:rcm:web\"
        | .linux.resources.memory.limit = 67108864 | .linux.resources.pids.limit = 40' config.json >config.new && mv config.new config.json"
done

# rcm_on HOST ARGUMENT...
rcm_on() { on "$1" "cd $BUNDLES/web && rcm --systemd-cgroup ${*:2}"; }
# control HOST FILE - a control file of the container's group.
control() { on "$1" "cat $GROUP/$2"; }
# property HOST NAME - property of the unit, from systemd.
property() { on "$1" "systemctl show --value --property=$2 $SCOPE"; }
# expect_group HOST - the group and its limits are as in the spec.
expect_group() {
    expect "the unit on $1" "$(property "$1" ActiveState)" active
    expect "its group" "$(property "$1" ControlGroup)" "${GROUP#/sys/fs/cgroup}"
    expect "the group of the first process" "$(on "$1" 'cat /proc/$(rcm state web | jq .pid)/cgroup')" "0::${GROUP#/sys/fs/cgroup}"
    expect "its limit on tasks" "$(control "$1" pids.max)" 40
}
expect_no_group() {
    expect "the unit after its end" "$(property "$1" LoadState)" not-found
    ! on "$1" "test -e $GROUP" || die "the group is left on $1"
}

rcm_on source 'run --detach web </dev/null >/dev/null 2>&1'
expect_group source
expect "its memory limit" "$(control source memory.max)" 67108864

rcm_on source 'exec --detach --pid-file /tmp/pid web sleep 1000 </dev/null >/dev/null 2>&1'
expect "the group of another process" "$(on source 'cat /proc/$(cat /tmp/pid)/cgroup')" "0::${GROUP#/sys/fs/cgroup}"
expect "the status of an exec" "$(rcm_on source 'exec web sh -c "exit 7"' || echo $?)" 7
on source "mkdir $GROUP/below"
expect "an exec below the group" "$(rcm_on source 'exec --cgroup below web cat /proc/self/cgroup')" 0::/below
on source "rmdir $GROUP/below"

rcm_on source 'update --memory 33554432 --pids-limit 30 --cpu-quota 50000 --cpu-period 100000 web'
# systemd writes all it knows over the control files.
on source 'systemctl daemon-reload'
expect "the memory limit after an update" "$(control source memory.max) $(property source MemoryMax)" "33554432 33554432"
expect "the limit on tasks after an update" "$(control source pids.max)" 30
expect "the processor time after an update" "$(control source cpu.max)" "50000 100000"
rcm_on source 'update --memory 67108864 --pids-limit 40 --cpu-quota -1 web'

rcm_on source 'pause web'
expect "after pause" "$(status_of source web) $(control source cgroup.freeze)" "paused 1"
rcm_on source 'resume web'
expect "after resume" "$(status_of source web)" running

on source "rcm checkpoint --image-path /tmp/images web"
expect "after a checkpoint" "$(status_of source web)" absent
expect_no_group source
rcm_on source 'restore --detach --image-path /tmp/images web </dev/null >/dev/null 2>&1'
on source 'rm -r /tmp/images'
expect_group source
ticks=$(inside source web dev/shm/ticks)
sleep 1
[ "$(inside source web dev/shm/ticks)" -gt "$ticks" ] || die "the restored container stands still"

GLOBALS=--systemd-cgroup start_receiver web --detach
on source 'rcm live-migrate web --image-path=/var/nfs --destination=10.0.0.2' \
    || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver-web')"
expect_moved web
expect_group destination
expect_no_group source
on destination 'rcm delete --force web'
expect_no_group destination

on source "cd $BUNDLES/web && jq '.process.args = [\"sh\", \"-c\", \"exit 7\"]' config.json >config.new && mv config.new config.json"
expect "the status of a run" "$(rcm_on source 'run web' || echo $?)" 7
expect_no_group source

# A user may move processes only within the delegated tree, so this user's commands are in a group
# below it.
on source 'set -e
    rm -rf /tmp/user
    mkdir -p /tmp/user/rootfs/bin
    cp /usr/bin/busybox /tmp/user/rootfs/bin/
    ln -s busybox /tmp/user/rootfs/bin/sleep
    cat >/tmp/user/script
    chown -R nobody /tmp/user' <<'SCRIPT'
set -e
cd /tmp/user
export XDG_RUNTIME_DIR=/tmp/user
rcm spec --rootless
jq '.process.terminal = false | .process.args = ["sleep", "1000"]
    | .linux.resources.memory.limit = 67108864 | .linux.resources.pids.limit = 20' config.json >config.new
mv config.new config.json
group=/sys/fs/cgroup$(sed 's/^0:://' /proc/self/cgroup)
mkdir "$group/session"
echo $$ >"$group/session/cgroup.procs"
rcm run --detach web </dev/null >/dev/null 2>&1
rcm exec web /bin/busybox true
rcm pause web
rcm resume web
rcm update --pids-limit 15 web
rcm state web | jq -r .status
cat "$group/web/memory.max" "$group/web/pids.max"
rcm delete --force web
[ -e "$group/web" ] || echo gone
SCRIPT
expect "a user's container" "$(on source 'systemd-run --quiet --wait --pipe --collect --uid=nobody -p Delegate=yes sh /tmp/user/script' | tr '\n' ' ')" \
    "running 67108864 15 gone "
on source 'rm -r /tmp/user'
expect "failed units" "$(on source 'systemctl list-units --failed --plain --no-legend "rcm-*"')" ""
