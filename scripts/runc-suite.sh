#!/usr/bin/env bash
#
# Run the runc project's integration suite against a runtime and print a table: for each file, the tests that passed, failed and were skipped.
#
# Nothing of runc is part of this repository: its sources are an argument, and only copied. Requirements of the suite alone are no
# dependency of rcm: their packages are installed here, and the Go that runc asks for is unpacked beside the copy.

set -euo pipefail
export LC_ALL=C

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<USAGE
usage: scripts/runc-suite.sh SOURCES RUNTIME [FILE.bats...]

Run tests/integration/*.bats of runc's sources, or only the files named, as root.

  SOURCES   a checkout or an unpacked archive of a runc release, with its vendor directory
  RUNTIME   the binary to test, or "runc" for the one that is built from SOURCES

environment: RUNC_SUITE_DIR       the copy, its Go, the images and the logs; kept for the next run (/var/tmp/rcm-runc-suite)
             RUNC_SUITE_TIMEOUT   seconds that one file may take (600)
USAGE
}

case ${1-} in "" | -h | --help) usage && exit ;; esac
[ $# -ge 2 ] || die "name the sources of runc and a runtime (see --help)"
[ "$(id -u)" -eq 0 ] || die "the suite makes containers as root: run this as root"

sources=$(realpath -e "$1")
[ -d "$sources/tests/integration" ] || die "$sources has no tests/integration: give the sources of runc"
runtime=$2
[ "$runtime" = runc ] || runtime=$(realpath -e "$2")
shift 2

work=${RUNC_SUITE_DIR:-/var/tmp/rcm-runc-suite}
tree=$work/runc
testdata=$tree/tests/integration/testdata
logs=$work/logs/${runtime##*/}
mkdir -p "$work" "$logs"

install_packages() {
    local missing
    missing=$(printf '%s\n' "$@" | sort |
        comm -23 - <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null | awk '$2 == "installed" { print $1 }' | sort) | xargs)
    [ -n "$missing" ] || return 0
    say "installing $missing"
    quietly apt-get update
    # shellcheck disable=SC2086
    quietly apt-get install -y --no-install-recommends $missing
}

# unpack_go PREFIX - the newest Go of Debian's testing. Its tools are static, and its links stay within PREFIX.
unpack_go() {
    local prefix=$1 mirror package apt
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -m 1 '/debian/$')
    mkdir -p "$prefix/apt/lists/partial" "$prefix/apt/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror testing main" >"$prefix/apt/sources.list"
    apt=(-o "Dir::Etc::SourceList=$prefix/apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$prefix/apt/lists"
        -o "Dir::Cache=$prefix/apt" -o APT::Sandbox::User=root)
    quietly apt-get "${apt[@]}" update
    package=$(apt-cache "${apt[@]}" pkgnames golang-1 | sed -n 's/^\(golang-1\.[0-9]*\)-go$/\1/p' | sort -V | tail -n 1)
    (cd "$prefix/apt" && quietly apt-get "${apt[@]}" download "$package-go" "$package-src")
    for deb in "$prefix"/apt/*.deb; do
        dpkg -x "$deb" "$prefix"
    done
    rm -rf "$prefix/apt"
    ln -s "usr/lib/go-${package#golang-}/bin" "$prefix/bin"
}

# provide_go - a Go as new as runc's go.mod asks for, on PATH.
provide_go() {
    local want have
    want=$(awk '$1 == "go" { print $2; exit }' "$tree/go.mod")
    have=$(GOTOOLCHAIN=local go version 2>/dev/null | sed 's/^go version go\([0-9.]*\).*/\1/') || true
    if [ -z "$have" ] || ! version_at_least "$have" "$want"; then
        [ -e "$work/go/bin" ] || { say "unpacking a Go for go.mod's $want" && unpack_go "$work/go"; }
        PATH=$work/go/bin:$PATH
    fi
    export GOTOOLCHAIN=local GOFLAGS=-mod=vendor GOCACHE=$work/go-cache
}

# make_images - the images that get-images.sh would download, under the same names, but not compressed: each test unpacks one.
make_images() {
    local arch root applet
    arch=$(go env GOARCH)
    root=$(mktemp -d -p "$work")
    if [ ! -e "$testdata/busybox-$arch.tar.xz" ]; then
        say "making the busybox image"
        mkdir -p "$root"/{bin,dev,etc,home,root,tmp,usr/{bin,sbin},var/{spool/mail,www}}
        chmod 755 "$root"
        chmod 1777 "$root/tmp"
        cp "$(command -v busybox)" "$root/bin/busybox"
        for applet in $(busybox --list | grep -v '^busybox$'); do
            ln "$root/bin/busybox" "$root/bin/$applet"
        done
        printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/usr/sbin:/bin/false nobody:x:65534:65534:nobody:/home:/bin/false >"$root/etc/passwd"
        printf '%s\n' root:x:0: daemon:x:1: tty:x:5: nobody:x:65534: >"$root/etc/group"
        tar -C "$root" -cf "$testdata/busybox-$arch.tar.xz" .
    fi
    rm -rf "$root"
    if [ ! -e "$testdata/debian-$arch.tar.xz" ]; then
        say "making the Debian image"
        quietly debootstrap --variant=minbase stable "$root"
        rm -rf "$root"/usr/share/{doc,i18n,info,locale,man,perl,zoneinfo} "$root"/usr/lib/*/{gconv,perl-base} "$root"/var/{cache,lib/apt,log}
        tar -C "$root" -cf "$testdata/debian-$arch.tar.xz" .
        rm -rf "$root"
    fi
}

install_packages bats build-essential busybox-static debootstrap gawk iproute2 jq libseccomp-dev pkg-config sshfs uidmap xz-utils
if [ ! -d "$tree" ]; then
    cp -a "$sources" "$tree.part"
    mv "$tree.part" "$tree"
fi
provide_go
make_images
say "building the suite's programs"
quietly make -C "$tree" RUNC_BUILDTAGS=-libpathrs COMMIT="v$(cat "$tree/VERSION")" runc test-binaries
[ "$runtime" = runc ] && runtime=$tree/runc
# The suite expects help and version texts under this name.
mkdir -p "$work/bin"
ln -sfT "$runtime" "$work/bin/runc"

# A pipe without a writer's data and without an end.
mkfifo "$work/silence.$$"
exec {silence}<>"$work/silence.$$"
rm "$work/silence.$$"

cd "$tree"
[ $# -gt 0 ] || { cd tests/integration && set -- *.bats && cd "$tree"; }
printf '%-30s %6s %6s %7s\n' file passed failed skipped
total=(0 0 0)
for file in "$@"; do
    log=$logs/${file%.bats}.tap
    status=0
    # Some tests open /dev/tty: script(1) gives them one, and hangs them up when it ends. It would turn the end of its input into a ^D.
    RUNC=$work/bin/runc timeout --kill-after=10 "${RUNC_SUITE_TIMEOUT:-600}" \
        script -qec "bats -t 'tests/integration/$file' >'$log' 2>&1" /dev/null >/dev/null <&"$silence" || status=$?
    count=("$(grep -c '^ok ' "$log")" "$(grep -c '^not ok ' "$log")" "$(grep -c '^ok .* # skip' "$log")") || true
    count[0]=$((count[0] - count[2]))
    planned=$(sed -n 's/^1\.\.\([0-9]*\)$/\1/p' "$log")
    # The tests that a file did not reach count as failed.
    count[1]=$((${planned:-1} - count[0] - count[2]))
    printf '%-30s %6d %6d %7d%s\n' "$file" "${count[@]}" "$([ "$status" -ne 124 ] || echo '  timed out')"
    for i in 0 1 2; do total[i]=$((total[i] + count[i])); done
done
printf '%-30s %6d %6d %7d\n' total "${total[@]}"
say "the output of each file is in $logs"
[ "${total[1]}" -eq 0 ]
