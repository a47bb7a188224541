#!/usr/bin/env bash
#
# Make the disk with the root file system of the training job (`make example-rootfs`), which is too
# large for the image, and print its path. A disk that is up to date is kept.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly EXAMPLE=${RCM_EXAMPLE_DIR:-${CARGO_TARGET_DIR:-$TOP/target}/example} DISK=$LAB/trainer.ext4
readonly ROOTFS=$EXAMPLE/bundle/rootfs
[ -e "$EXAMPLE/built" ] || die "no root file system of the training job in $EXAMPLE: make example-rootfs"
key=$({ cat "$EXAMPLE/built" "${BASH_SOURCE[0]}" && sha256sum "$ROOTFS/opt/trainer/train.py"; } | sha256sum | cut -c1-16)
if [ "$(cat "$DISK.key" 2>/dev/null)" != "$key" ]; then
    rm -f "$DISK" "$DISK.key"
    mkfs.ext4 -q -F -L trainer -E lazy_itable_init=1,nodiscard -d "$ROOTFS" "$DISK" 2G >/dev/null
    echo "$key" >"$DISK.key"
fi
echo "$DISK"
