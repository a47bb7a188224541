#!/usr/bin/env bash
#
# Migration through ssh between machines that share nothing else: no port of rcm is used, and no
# flag for trust is needed.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly KEY=/root/.ssh/lab-scenario
make_stores
on source "rm -f $KEY $KEY.pub; ssh-keygen -q -t ed25519 -N '' -f $KEY && ssh-keyscan 10.0.0.2 >/root/.ssh/known_hosts 2>/dev/null"
key=$(on source "cat $KEY.pub")
on destination "grep -qxF '$key' /root/.ssh/authorized_keys || echo '$key' >>/root/.ssh/authorized_keys"

make_bundle far /bin/workload 32 8 64
start_workload far
STORE=$OWN_STORE start_receiver far --detach --listen=127.0.0.1:7260
on source "RCM_SSH='ssh -i $KEY' rcm live-migrate far --image-path=$OWN_STORE --destination=ssh://root@10.0.0.2" \
    || die "the source failed; the receiver says: $(on destination 'cat /tmp/receiver-far')"
expect_moved far
check_workload far
for host in $HOSTS; do expect "left in the store of $host" "$(on "$host" "ls $OWN_STORE")" ""; done
on destination "sed -i '\\|$key|d' /root/.ssh/authorized_keys"
on source "rm $KEY $KEY.pub"
