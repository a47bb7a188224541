#!/usr/bin/env bash
#
# Build the image from which the lab's machines start: Debian trixie with its kernel, CRIU and NFS.
#
#   image/root.ext4  the root file system, which the machines never write to
#   image/vmlinuz    the kernel
#   image/initrd     loads the disk's driver and goes on from there
#   image/key        for the exec channel
#
# The packages come from the mirror that this machine's apt is configured with (or RCM_DEBIAN_MIRROR). An image that was built from the same
# scripts and settings is kept.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

SUITE=${RCM_LAB_SUITE:-trixie}
# The flavour with few drivers is a third of the size; both have soft-dirty.
KERNEL=${RCM_LAB_KERNEL:-cloud-amd64}
EXTRA=${RCM_LAB_PACKAGES:-}
readonly PACKAGES="systemd systemd-sysv dbus udev kmod sudo iproute2 iptables nftables procps openssh-server
    nfs-kernel-server nfs-common criu runc docker.io docker-cli jq busybox-static libseccomp2 python3-minimal $EXTRA"
# The suite of another CRIU, which runs with the libraries of this one.
readonly OLDER=bookworm

[ "$(id -u)" -eq 0 ] || die "debootstrap needs root"

key=$({ echo "$SUITE $OLDER $KERNEL $PACKAGES" && cat "$VM/build-image.sh" "$VM"/guest/*; } | sha256sum | cut -c1-16)
if [ "$(cat "$IMAGE/built" 2>/dev/null)" = "$key" ]; then
    say "the image is up to date"
    exit 0
fi

# Whatever happens, no mount is left behind: they exist in this namespace only.
if [ -z "${RCM_LAB_UNSHARED:-}" ]; then
    RCM_LAB_UNSHARED=1 exec unshare --mount --propagation private "$BASH" "${BASH_SOURCE[0]}"
fi

machine_mirror() {
    apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(LABEL) $(REPO_URI)' 2>/dev/null \
        | awk '$1 == "Packages" && $2 == "main" && $3 == "Debian" { print $4; exit }'
}
mirror=${RCM_DEBIAN_MIRROR:-$(machine_mirror)}
[ -n "$mirror" ] || die "no Debian mirror in this machine's apt configuration: name one with RCM_DEBIAN_MIRROR=URL"

for host in $HOSTS; do
    ! pid_of "$host" >/dev/null || die "the lab is up and uses the image: make lab-down"
done
rm -rf "$IMAGE"
mkdir -p "$IMAGE" "$LAB/packages"
work=$(mktemp -d "$LAB/build.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root log=$LAB/build.log began=$(now_ms)
: >"$log"
logged() { "$@" >>"$log" 2>&1 || die "$1 failed; the end of $log: $(tail -n 3 "$log")"; }
inside() { logged chroot "$root" "$@"; }

say "Debian $SUITE"
logged debootstrap --variant=minbase --merged-usr --cache-dir="$LAB/packages" "$SUITE" "$root" "$mirror"
cp -r "$VM/guest/dpkg.cfg" "$root/etc/dpkg/dpkg.cfg.d/lab"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount --bind "$LAB/packages" "$root/var/cache/apt/archives"
echo "deb $mirror $OLDER main" >"$root/etc/apt/sources.list.d/older.list"
inside apt-get -q update
# shellcheck disable=SC2086
inside apt-get -q -y --no-install-recommends install $PACKAGES

# Unpacked by hand: installed, it would bring in the makers of an initramfs and run them.
package=$(chroot "$root" apt-cache depends "linux-image-$KERNEL" | awk '/Depends: linux-image-/ { print $2; exit }')
say "$package"
inside sh -c "cd /var/cache/apt/archives && apt-get -q download $package"
release=${package#linux-image-}
# apt writes an epoch's colon as %3a; the newest is the one just downloaded.
dpkg-deb -x "$(ls -t "$LAB/packages/$package"_*.deb | head -n 1)" "$root"
inside depmod "$release"
mv "$root/boot/vmlinuz-$release" "$IMAGE/vmlinuz"

older=$(chroot "$root" apt-cache madison criu | awk -v suite="$OLDER/main" '$0 ~ suite { print $3; exit }')
say "CRIU $older beside it"
inside sh -c "cd /var/cache/apt/archives && apt-get -q download criu=$older"
dpkg-deb --fsys-tarfile "$LAB/packages/criu_${older}_amd64.deb" | tar -x -C "$work" ./usr/sbin/criu
install -D "$work/usr/sbin/criu" "$root/usr/local/lib/older-criu/criu"
rm "$root/etc/apt/sources.list.d/older.list"

ssh-keygen -q -t ed25519 -N '' -C rcm-lab -f "$IMAGE/key"
install -D -m 600 "$IMAGE/key.pub" "$root/root/.ssh/authorized_keys"
# One host key: under emulation each costs time whenever sshd starts.
rm -f "$root"/etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f "$root/etc/ssh/ssh_host_ed25519_key"
install -m 644 "$VM/guest/sshd.conf" "$root/etc/ssh/sshd_config.d/00-lab.conf"
install -m 755 "$VM/guest/init" "$root/usr/local/sbin/lab-init"
install -m 755 "$VM/guest/setup" "$root/usr/local/sbin/lab-setup"
install -m 755 "$VM/guest/nfs" "$root/usr/local/sbin/lab-nfs"
install -m 644 "$VM/guest/inittab" "$root/etc/inittab"
install -m 644 "$VM/guest/lab-setup.service" "$root/etc/systemd/system/lab-setup.service"
install -m 644 "$VM/guest/nfs.conf" "$root/etc/nfs.conf"
echo '/var/nfs 10.0.0.0/24(rw,async,no_root_squash,no_subtree_check,fsid=0)' >"$root/etc/exports"
{ echo '127.0.0.1 localhost'; for host in $HOSTS; do echo "$(address_of "$host") $host"; done; } >"$root/etc/hosts"
mkdir -p "$root/var/nfs"
: >"$root/etc/fstab"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
inside systemctl set-default multi-user.target
inside systemctl enable lab-setup.service ssh.service
# A scenario starts it.
inside systemctl disable docker.service docker.socket containerd.service
# Started by lab-nfs, or needed by nobody here and slow under emulation.
inside systemctl mask nfs-server.service nfs-client.target nfs-blkmap.service rpcbind.service rpcbind.socket \
    rpc-statd.service run-rpc_pipefs.mount apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
    e2scrub_all.timer e2scrub_reap.service getty@tty1.service systemd-timesyncd.service \
    systemd-networkd.service systemd-random-seed.service systemd-journal-flush.service

mkdir -p "$work"/initrd/{bin,dev,proc,root}
cp "$root/usr/bin/busybox" "$work/initrd/bin/"
xz -dc "$root/usr/lib/modules/$release/kernel/drivers/block/virtio_blk.ko.xz" >"$work/initrd/virtio_blk.ko"
install -m 755 "$VM/guest/initrd-init" "$work/initrd/init"
(cd "$work/initrd" && find . | cpio -o -H newc --quiet) >"$IMAGE/initrd"

umount "$root/proc" "$root/dev" "$root/run" "$root/var/cache/apt/archives"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root/usr/sbin/policy-rc.d" "$root"/var/log/*
truncate -s 6G "$IMAGE/root.ext4"
logged mkfs.ext4 -q -F -L root -E lazy_itable_init=1,nodiscard -d "$root" "$IMAGE/root.ext4"
chmod 444 "$IMAGE/root.ext4"
echo "$key" >"$IMAGE/built"
say "built in $(seconds_since "$began") s: $(du -h "$IMAGE/root.ext4" | cut -f1), Linux $release," \
    "CRIU $(chroot "$root" dpkg-query -W -f '${Version}' criu)"
