#!/usr/bin/env bash
#
# Install the requirements for building, running and testing rcm, on Debian 12/13 and Ubuntu 22.04/24.04.
#
# Installs only missing requirements, and prints nothing if none is missing. A requirement is a command or a library, not a
# package, so other forms of it stay (Docker's own packages, a container runtime built by hand).

set -euo pipefail
export LC_ALL=C

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

# The directory of root's tools; an ordinary user's PATH lacks it.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

usage() {
    cat <<USAGE
usage: scripts/deps.sh [--check] [--bench] [--example] [--vm]

Install the packages, and a CRIU, that rcm needs for building, running and testing.

  --check   install nothing; list the packages that are missing and fail if there are any
  --bench   what the benchmarks compare rcm with, too
  --example what the training job of the examples is built with, too
  --vm      what the lab of two virtual machines needs, too

environment: see scripts/criu.sh --help for the variables that choose the CRIU
USAGE
}

check_only=false
with_bench=false
with_example=false
with_vm=false
while [ $# -gt 0 ]; do
    case $1 in
        --check) check_only=true ;;
        --bench) with_bench=true ;;
        --example) with_example=true ;;
        --vm) with_vm=true ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) die "unknown argument \"$1\" (see --help)" ;;
    esac
    shift
done

have_command() { command -v "$1" >/dev/null; }
have_file() { [ -e "$1" ]; }
# have_library MODULE [VERSION] - asks as the build scripts of the crates do.
have_library() { pkg-config --exists "$1${2:+ >= $2}" 2>/dev/null; }
# have_static COMMAND - is it static, so that it runs in a root file system without libraries?
have_static() { have_command "$1" && ! ldd "$(command -v "$1")" >/dev/null 2>&1; }

# One line per requirement: package(s), and the test whether it is installed.
# Of several packages, separated by "|", the first that the distribution has is installed.
requirements() {
    cat <<'LIST'
# building: the linker, libseccomp, and the libbpf that libbpf-sys compiles from its own copy
gcc                       have_command cc
libc6-dev                 have_file /usr/include/stdio.h
make                      have_command make
git                       have_command git
pkgconf|pkg-config        have_command pkg-config
libseccomp-dev            have_library libseccomp 2.5
libelf-dev                have_library libelf
zlib1g-dev                have_library zlib
ca-certificates           have_file /etc/ssl/certs/ca-certificates.crt
# running: the programs that CRIU and rcm execute
tar                       have_command tar
iproute2                  have_command ip
iptables                  have_command iptables-restore
kmod                      have_command modprobe
procps                    have_command ps
util-linux                have_command nsenter
# testing: root file systems, workloads, engines, and runc to compare with
busybox-static            have_static busybox
jq                        have_command jq
python3                   have_command python3
ruby                      have_command ruby
nftables                  have_command nft
openssh-client            have_command ssh
openssh-server            have_file /usr/sbin/sshd
redis-server              have_command redis-server
redis-tools               have_command redis-cli
runc                      have_command runc
containerd                have_command containerd
docker.io                 have_command dockerd
docker-cli|docker.io      have_command docker
docker-compose            have_command docker-compose
podman                    have_command podman
conmon                    have_command conmon
uidmap                    have_command newuidmap
slirp4netns               have_command slirp4netns
LIST
    if $with_bench; then
        cat <<'LIST'
# the benchmarks: another runtime
crun                      have_command crun
LIST
    fi
    if $with_example || $with_vm; then
        cat <<'LIST'
# root file systems of Debian
debootstrap               have_command debootstrap
debian-archive-keyring    have_file /usr/share/keyrings/debian-archive-keyring.gpg
LIST
    fi
    if $with_vm; then
        cat <<'LIST'
# the lab: machines, the tools that make their image, and ssh into them
qemu-system-x86           have_command qemu-system-x86_64
e2fsprogs                 have_command mkfs.ext4
cpio                      have_command cpio
openssl                   have_command openssl
xz-utils                  have_command xz
LIST
    fi
}

# in_archive PACKAGE - does apt know a version of it?
in_archive() {
    [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]
}

missing=()
while read -r packages question; do
    case $packages in '' | '#'*) continue ;; esac
    $question || missing+=("$packages")
done < <(requirements)

if [ ${#missing[@]} -gt 0 ]; then
    if $check_only; then
        die "missing packages: ${missing[*]%%|*} (make deps installs them)"
    fi
    have_command apt-get || die "this system has no apt-get: install the equivalents of ${missing[*]} and a CRIU 4.1 \
or newer by hand"
    case $(os_release ID)-$(os_release VERSION_ID) in
        debian-12 | debian-13 | ubuntu-22.04 | ubuntu-24.04) ;;
        *) warn "not tested on $(os_release PRETTY_NAME): trying anyway" ;;
    esac

    quietly as_root apt-get -qq update || die "apt-get update failed"
    packages=()
    for alternatives in "${missing[@]}"; do
        IFS='|' read -ra names <<<"$alternatives"
        for name in "${names[@]}"; do
            if in_archive "$name"; then
                # One package can answer two requirements.
                [[ " ${packages[*]} " == *" $name "* ]] || packages+=("$name")
                continue 2
            fi
        done
        die "no package ${alternatives//|/ or } in the configured archives"
    done

    # The daemons are for the tests, which start their own with private directories. Without a policy the package scripts
    # would start them now; an operator's own policy is left alone.
    policy=/usr/sbin/policy-rc.d
    cleanup() { :; }
    if [ ! -e "$policy" ]; then
        cleanup() { as_root rm -f "$policy"; }
        trap cleanup EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -y --no-install-recommends -o Dpkg::Options::=--force-confold install "${packages[@]}" \
        || die "apt-get could not install: ${packages[*]}"
    cleanup
    trap - EXIT

    say "installed ${packages[*]}: needed to build, run or test rcm"
    if have_command systemctl; then
        for name in "${packages[@]}"; do
            case $name in
                redis-server) units="redis-server.service" ;;
                docker.io) units="docker.service docker.socket" ;;
                containerd) units="containerd.service" ;;
                podman) units="podman.socket podman.service podman-restart.service podman-auto-update.timer" ;;
                openssh-server) units="ssh.service ssh.socket" ;;
                *) continue ;;
            esac
            # shellcheck disable=SC2086
            as_root systemctl --quiet disable $units 2>/dev/null || continue
            say "left $units disabled: the tests start their own (systemctl enable --now starts yours)"
        done
    fi
fi

if ! $check_only; then
    scripts/criu.sh --quiet
fi

# --- the Rust toolchain ------------------------------------------------------

# Not installed here: it belongs to the user who builds, and distributions ship older ones than this.
msrv=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
# rustup's installer edits the profile of later shells only.
if ! have_command cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    warn "cargo is not on PATH: add ${CARGO_HOME:-$HOME/.cargo}/bin to it"
fi
have_command cargo || die "no Rust toolchain: install Rust $msrv or newer with rustup, see https://rustup.rs \
(rcm's tests need its default components rustfmt and clippy, too)"
rust=$(rustc --version | awk '{ print $2 }')
if ! version_at_least "$rust" "$msrv"; then
    if have_command rustup; then
        die "Rust $rust is older than $msrv: rustup update stable"
    fi
    die "Rust $rust is older than $msrv: install a newer one with rustup, see https://rustup.rs"
fi
# The runner of the tests, see .config/nextest.toml.
nextest=0.9.143
if ! cargo nextest --version >/dev/null 2>&1; then
    if $check_only; then
        die "cargo-nextest is missing, make test needs it (make deps installs it)"
    fi
    quietly cargo install --locked --quiet cargo-nextest --version "$nextest" \
        || die "cargo could not install cargo-nextest $nextest"
    say "installed cargo-nextest $nextest: make test needs it"
fi
for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 \
        || warn "cargo $component is missing, make check needs it: rustup component add rustfmt clippy"
done
