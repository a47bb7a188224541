#!/usr/bin/env bash
#
# The commands of the documentation that need two hosts, word for word, each on the machine that its
# mark names, with checks of their effects.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

exports=$(on source 'cat /etc/exports')
leave() {
    local status=$?
    remove_pool || status=1
    # NFS as the lab has it.
    on destination 'umount -f /var/nfs; ip netns delete web 2>/dev/null; sed -i /node2/d /etc/hosts; rm -rf /var/lib/rcm /etc/rcm /root/*.pem /root/node.key' || true
    on source "ip netns delete web 2>/dev/null; sed -i /node2/d /etc/hosts; rm -rf /var/lib/rcm /etc/rcm /root/.ssh/id_ed25519* /etc/exports.d/rcm.exports
        cat >/etc/exports; exportfs -ua; exportfs -ra; exportfs -f" <<<"$exports" || status=1
    on destination 'lab-nfs mount 10.0.0.1' || status=1
    clean_up "$status"
}
trap leave EXIT

start_web() { on source "cd $BUNDLES/web && rcm run --detach web </dev/null >/dev/null 2>&1"; }
# moved ID - the container runs at the destination, where it is then removed.
moved() {
    local ticks
    expect_moved "$1"
    ticks=$(inside destination "$1" dev/shm/ticks)
    sleep 0.5
    [ "$(inside destination "$1" dev/shm/ticks)" -gt "$ticks" ] || die "it stands still"
    # A receiver in the foreground is the container's parent, and removes it.
    on destination "rcm kill $1 KILL; for tries in \$(seq 50); do pgrep -f '^rcm .*live-migrate' >/dev/null || exit 0; sleep 0.1; done"
}

# shellcheck disable=SC2016
make_bundle web sh -c 'i=0; while :; do i=$((i + 1)); echo $i >/dev/shm/ticks; sleep 0.05; done'

on destination 'umount /var/nfs'
on source ': >/etc/exports; mkdir -p /etc/exports.d; exportfs -ua; exportfs -f'
commands docs/tutorial.md
execute source
execute destination
start_web
await
# First the check, then the move.
execute source
execute source
execute destination
moved web

for host in $HOSTS; do on "$host" 'mkdir -p -m 700 /var/lib/rcm'; done
make_token
for host in $HOSTS; do on "$host" "install -D -m 600 $TOKEN /etc/rcm/token"; done
start_web
await
execute source
moved web
no_more_blocks

commands README.md
start_web
await
execute source
moved web
no_more_blocks

make_pool
commands docs/reference.md
# Certificates: as far as a receiver that waits.
(
    # An assignment of its own: without a directory the script must end, not work and clean up here.
    certificates=$(mktemp -d "$LAB/tls.XXXXXX")
    trap 'rm -r "$certificates"' EXIT
    cd "$certificates"
    {
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=lab -days 2
        openssl req -newkey rsa:2048 -nodes -keyout node.key -out node.csr -subj /CN=node2
        openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out node.pem -days 2 -extfile <(echo subjectAltName=IP:10.0.0.2)
    } 2>/dev/null
    chmod 600 node.key
    for file in ca.pem node.pem node.key; do "$VM/push.sh" "$file" "/root/$file" destination; done
)
await
on destination 'rcm live-migrate web --cancel'

for host in $HOSTS; do on "$host" 'echo 10.0.0.2 node2 >>/etc/hosts'; done
on source 'ssh-keygen -q -t ed25519 -N "" -f /root/.ssh/id_ed25519 && ssh-keyscan node2 >/root/.ssh/known_hosts 2>/dev/null'
key=$(on source 'cat /root/.ssh/id_ed25519.pub')
on destination "echo '$key' >>/root/.ssh/authorized_keys"
start_web
STORE=/var/lib/rcm start_receiver web
execute source
moved web
on destination "sed -i '\\|$key|d' /root/.ssh/authorized_keys"

await
on destination 'rcm live-migrate - --cancel'

start_web
await
on source 'rcm live-migrate web --image-path=/pool --destination=10.0.0.2 --tcp-established'
expect "its network" "$(on destination 'ip netns identify $(rcm state web | jq .pid)')" web
moved web
no_more_blocks

on source "cp -a $BUNDLES/web /var/nfs/bundle"
commands examples/mnist-trainer/README.md
await
execute source
moved trainer
no_more_blocks
