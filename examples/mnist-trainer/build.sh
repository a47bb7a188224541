#!/usr/bin/env bash
#
# Build the bundle of the training job: root file system and config.json, in target/example (or RCM_EXAMPLE_DIR).
#
# With Docker if an engine runs (or RCM_EXAMPLE_WITH=docker), else with debootstrap and pip (RCM_EXAMPLE_WITH=debootstrap), from the mirror that this
# machine's apt is configured with (or RCM_DEBIAN_MIRROR) and the index of its pip. A root file system that was built from the same files is kept.
#
#   build.sh           the bundle
#   build.sh rootfs    only its root file system, which needs no rcm
#   MNIST=DIR          a directory with MNIST's IDX files, which the container sees as /data

set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. scripts/lib.sh

readonly SUITE=bookworm
readonly HERE=examples/mnist-trainer
readonly OUT=${RCM_EXAMPLE_DIR:-target/example}
readonly ROOTFS=$OUT/bundle/rootfs
RCM=${RCM:-target/release/rcm}

[ "$(id -u)" -eq 0 ] || die "a root file system needs root: run this as root or with sudo"
mkdir -p "$OUT"

engine_runs() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }

with_docker() {
    local container
    # With this machine's network, as with debootstrap.
    docker build --network host --quiet --tag rcm-mnist-trainer "$HERE" >/dev/null
    container=$(docker create rcm-mnist-trainer)
    mkdir -p "$ROOTFS"
    docker export "$container" | tar -x -C "$ROOTFS"
    docker rm "$container" >/dev/null
}

machine_mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(LABEL) $(REPO_URI)' 2>/dev/null \
        | awk '$1 == "Packages" && $2 == "main" && $3 == "Debian" { print $4; exit }'
}

logged() { "$@" >>"$OUT/build.log" 2>&1 || die "$1 failed; the end of $OUT/build.log: $(tail -n 3 "$OUT/build.log")"; }

# install_wheels NAME REQUIREMENTS - installs them into an environment /opt/NAME of the tree.
install_wheels() {
    local version pip wheels=$OUT/wheels
    # This machine's Python runs the tree's pip, because it has the network and the configuration of an index. The wheels are for the tree's
    # Python.
    logged chroot "$ROOTFS" python3 -m venv "/opt/$1"
    version=$(chroot "$ROOTFS" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    pip=$ROOTFS/opt/$1/lib/python$version/site-packages
    mkdir -p "$ROOTFS/mnt/wheels" "$wheels"
    logged env PYTHONPATH="$pip" python3 -m pip download --python-version "$version" --only-binary=:all: \
        --requirement "$HERE/$2" --dest "$wheels"
    mv "$wheels"/*.whl "$ROOTFS/mnt/wheels/"
    cp "$HERE/$2" "$ROOTFS/opt/$1/"
    logged chroot "$ROOTFS" "/opt/$1/bin/pip" install --no-cache-dir --no-index --find-links /mnt/wheels \
        --requirement "/opt/$1/$2"
    rm -rf "$wheels" "$ROOTFS/mnt/wheels"
}

with_debootstrap() {
    local mirror
    command -v debootstrap >/dev/null || die "debootstrap is missing: run \`make deps-example\`"
    mirror=${RCM_DEBIAN_MIRROR:-$(machine_mirror)}
    [ -n "$mirror" ] || die "no Debian mirror in this machine's apt configuration: name one with RCM_DEBIAN_MIRROR=URL"
    : >"$OUT/build.log"
    mkdir -p "$OUT/packages" "$OUT/bundle"
    logged debootstrap --variant=minbase --merged-usr --cache-dir="$(readlink -f "$OUT/packages")" \
        --include=ca-certificates,python3,python3-venv "$SUITE" "$ROOTFS" "$mirror"
    install_wheels trainer requirements.txt
    install_wheels plot plot-requirements.txt
    rm -rf "$OUT/packages" "$ROOTFS"/var/lib/apt/lists/* "$ROOTFS"/var/cache/apt/* "$ROOTFS"/var/log/*
}

key=$(cat "$HERE"/*requirements.txt "$HERE/Dockerfile" "$HERE/build.sh" | sha256sum | cut -c1-16)
if [ "$(cat "$OUT/built" 2>/dev/null)" != "$key" ]; then
    rm -rf --one-file-system "$ROOTFS"
    rm -f "$OUT/built"
    way=${RCM_EXAMPLE_WITH:-$(engine_runs && echo docker || echo debootstrap)}
    say "building the root file system with $way"
    began=$SECONDS
    case $way in
        docker | debootstrap) "with_$way" ;;
        *) die "RCM_EXAMPLE_WITH is docker or debootstrap, not \"$way\"" ;;
    esac
    echo "$key" >"$OUT/built"
    say "built in $((SECONDS - began)) s: $(du -sh "$ROOTFS" | cut -f1)"
fi

install -m 644 "$HERE/train.py" "$ROOTFS/opt/trainer/"
install -m 644 "$HERE/plot.py" "$ROOTFS/opt/plot/"
mkdir -p "$ROOTFS/data"

[ "${1-}" != rootfs ] || exit 0

[ -x "$RCM" ] || die "$RCM does not exist: run \`make build\`, or set RCM"
RCM=$(readlink -f "$RCM")
command -v jq >/dev/null || die "jq is missing: run \`make deps\`"
# The same settings as in the Dockerfile.
rm -f "$OUT/bundle/config.json"
"$RCM" spec --bundle "$OUT/bundle"
jq --arg mnist "${MNIST:+$(readlink -f "${MNIST:-/}")}" '
    .process.terminal = false
    | .process.args = ["python", "/opt/trainer/train.py"] + (if $mnist == "" then [] else ["--data", "/data"] end)
    | .process.env = ["PATH=/opt/trainer/bin:/usr/sbin:/usr/bin:/sbin:/bin", "KERAS_BACKEND=jax", "KERAS_HOME=/tmp/keras",
        "JAX_PLATFORMS=cpu", "TF_CPP_MIN_LOG_LEVEL=2"]
    | .root.readonly = false
    | .hostname = "trainer"
    | if $mnist == "" then . else
        .mounts += [{"destination": "/data", "type": "none", "source": $mnist, "options": ["rbind", "ro"]}] end
' "$OUT/bundle/config.json" >"$OUT/config.new"
mv "$OUT/config.new" "$OUT/bundle/config.json"
say "the bundle is $OUT/bundle"
