#!/usr/bin/env bash
#
# The pool fails: the server stops, refuses root, forgets its exports, has no room, or has another
# directory in its place, each time with the source stopped at an exact point. The container runs on
# at the source, and the next attempt succeeds.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly EXPORT='10.0.0.0/24:/var/nfs' OPTIONS=rw,async,no_subtree_check,fsid=0
mount_with() { on destination "umount -f /var/nfs && mount -t nfs4 -o vers=4.2,noatime,$1 10.0.0.1:/ /var/nfs"; }
# The next scenario needs the pool, even after a failure.
leave() {
    local status=$?
    on destination 'rm -f /tmp/hold' || status=1
    on source "umount -l /var/nfs 2>/dev/null; rpc.nfsd 4; exportfs -ra; exportfs -f" || status=1
    mount_with hard || status=1
    clean_up "$status"
}
trap leave EXIT
STORE=/var/nfs
# The destination may hang for as long as the server is away, the container may not.
FLAGS=--timeout=15s

make_token
make_beacon web
# If asked to, a restore waits at the point where CRIU has opened the images and has not read the
# memory.
for host in $HOSTS; do
    on "$host" "cd $BUNDLES/web && jq '.hooks.prestart = [{path: \"/bin/sh\",
            args: [\"sh\", \"-c\", \"[ ! -e /tmp/hold ] || touch /tmp/held; while [ -e /tmp/hold ]; do sleep 0.1; done\"]}]' config.json >config.new
        mv config.new config.json"
done
start_beacon web source

for way in hard soft,timeo=10,retrans=2; do
    say "--- the server stops, the destination's mount is $way"
    mount_with "$way"
    begin source shipped
    on source 'rpc.nfsd 0'
    go_on source
    end 1
    stays
    on source 'rpc.nfsd 4'
    end_receiver
    expect "at the destination" "$(status_of destination web)" absent
    stays
done
mount_with hard

say "--- the server forgets its exports"
begin source shipped
on source 'exportfs -ua && exportfs -f'
go_on source
end 1
stays
on source 'exportfs -ra'
end_receiver
stays

say "--- the server has another file system there: the destination's handles are stale"
on destination 'rm -f /tmp/held; touch /tmp/hold'
begin destination shipped
go_on destination
on destination 'for tries in $(seq 100); do [ ! -e /tmp/held ] || exit 0; sleep 0.1; done; echo "no restore begins"; exit 1'
on source 'mount -t tmpfs -o size=16m,mode=700 tmpfs /var/nfs && exportfs -f'
on destination 'rm /tmp/hold'
end 1
stays
end_receiver
said=$(on source 'cat /tmp/sender'; on destination 'cat /tmp/receiver-web')
grep -q 'Stale file handle' <<<"$said" || die "nobody says that the handles are stale: $said"
say "$(grep -m 1 'Stale file handle' <<<"$said")"
on source 'exportfs -f; umount -l /var/nfs; exportfs -f'
mount_with hard
stays

say "--- the pool is made again while a receiver waits"
# Not the exported directory itself: that would be the case above.
STORE=/var/nfs/pool
on source "mkdir -m 700 $STORE"
start_receiver web --detach
on source "mv $STORE /root/pool && mkdir -m 700 $STORE"
status=0
said=$(on source "rcm live-migrate web --image-path=$STORE --destination=10.0.0.2 2>&1") || status=$?
expect "the exit status of the source" "$status" 1
grep -q 'is not in this image store' <<<"$said" || die "it does not say what is wrong: $said"
stays
on destination 'rcm live-migrate web --cancel'
on source "rm -r $STORE /root/pool"
STORE=/var/nfs

say "--- the server has no room"
# A file system of its own: the container needs room on the machine's.
on source 'mount -t tmpfs -o size=16m tmpfs /var/nfs && exportfs -f'
mount_with hard
begin source frozen
on source 'dd if=/dev/zero of=/var/nfs/filler bs=4k status=none 2>/dev/null || true'
go_on source
end 1
stays
on source 'rm /var/nfs/filler'
end_receiver
on source 'exportfs -f; umount -l /var/nfs'
mount_with hard

say "--- the server takes root for nobody"
on source "exportfs -ua && exportfs -o $OPTIONS,root_squash $EXPORT"
status=0
said=$(on destination "cd $BUNDLES/web && timeout 60 rcm live-migrate web --image-path=/var/nfs 2>&1 </dev/null") || status=$?
say "$said"
expect "the exit status of a receiver" "$status" 1
grep -q '/var/nfs' <<<"$said" || die "it does not say which path"
on source 'exportfs -ua && exportfs -ra'
stays

begin source negotiated
go_on source
end 0
expect_heard destination
expect_moved web
