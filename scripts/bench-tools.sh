#!/usr/bin/env bash
#
# Provide the runtimes that the benchmarks compare rcm with, besides the runc of the tests: crun, a package of the distribution, and youki,
# which is built on the same library and which no distribution ships.
#
# youki is built from the registry into target/bench-tools, once. The last line of standard output is the path of its binary.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

# The version whose libcontainer rcm uses.
readonly VERSION=0.7.0

root=${CARGO_TARGET_DIR:-target}/bench-tools
case $root in /*) ;; *) root=$PWD/$root ;; esac
youki=$root/bin/youki

scripts/deps.sh --bench >&2

if ! "$youki" --version 2>/dev/null | grep -F "$VERSION" >/dev/null; then
    say "building youki $VERSION into $root, once" >&2
    # The features that rcm builds libcontainer with, so that the two differ in the runtime only.
    cargo install youki --version "$VERSION" --locked --root "$root" --target-dir "$root/build" \
        --no-default-features --features v1,v2,systemd,seccomp,cgroupsv2_devices >&2
    rm -rf "$root/build"
fi
printf '%s\n' "$youki"
