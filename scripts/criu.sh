#!/usr/bin/env bash
#
# Provide a CRIU that works on the running kernel.
#
# CRIU depends on kernel details, so the version in a distribution can be too old for the kernel that
# runs (3.17 of Debian 12 fails from about Linux 6.13 on). The first of these that passes `criu check` wins:
#
#   1. the `criu` on PATH;
#   2. the distribution's package, tried from a scratch directory and installed only if it passes;
#   3. the package of a later Debian suite, unpacked with its libraries, its libc and its loader into a
#      private prefix, with a launcher named `criu` on PATH.
#
# The system's libc, package lists and an installed criu package are never changed by 3. apt itself checks the
# signatures and hashes of everything that is downloaded.

set -euo pipefail
export LC_ALL=C

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# The suites of step 3, best first: forky has the version that rcm is tested with.
readonly SUITES=${RCM_CRIU_SUITES:-forky trixie sid}
# The prefix of unpacked versions; one directory for each.
readonly BASE=/usr/local/lib/rcm
# sbin, because CRIU is root's tool, and because root's PATH has it before every directory of the distribution.
readonly LAUNCHER=${RCM_CRIU_LAUNCHER:-/usr/local/sbin/criu}
# Marks a launcher as ours, so that nothing else is ever overwritten or removed.
readonly MARK='# written by scripts/criu.sh of rcm'

quiet=false
remove=false
mirror=${RCM_DEBIAN_MIRROR:-}
keyring=${RCM_DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}

usage() {
    cat <<USAGE
usage: scripts/criu.sh [--quiet] [--mirror URL] [--remove]

Provide a CRIU that passes \`criu check\` on the running kernel.

  --quiet       say nothing when the installed CRIU already works
  --mirror URL  Debian mirror for step 3 (default: the machine's own, from its apt configuration)
  --remove      remove the private CRIU and its launcher

environment:
  RCM_DEBIAN_MIRROR   same as --mirror
  RCM_DEBIAN_KEYRING  keyring that signs the mirror (default: debian-archive-keyring's)
  RCM_CRIU_SUITES     Debian suites to try, in order (default: forky trixie sid)
  RCM_CRIU_PREFIX     directory to unpack into (default: $BASE/criu-VERSION)
  RCM_CRIU_LAUNCHER   path of the launcher (default: /usr/local/sbin/criu)
USAGE
}

while [ $# -gt 0 ]; do
    case $1 in
        --quiet) quiet=true ;;
        --remove) remove=true ;;
        --mirror)
            [ $# -ge 2 ] || die "--mirror needs a URL"
            mirror=$2
            shift
            ;;
        --mirror=*) mirror=${1#*=} ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) die "unknown argument \"$1\" (see --help)" ;;
    esac
    shift
done

# Everything below needs root, `criu check` included.
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "run this as root or install sudo"
    args=()
    if $quiet; then args+=(--quiet); fi
    if $remove; then args+=(--remove); fi
    if [ -n "$mirror" ]; then args+=(--mirror "$mirror"); fi
    exec sudo --preserve-env=RCM_DEBIAN_KEYRING,RCM_CRIU_SUITES,RCM_CRIU_PREFIX,RCM_CRIU_LAUNCHER \
        -- "${BASH_SOURCE[0]}" "${args[@]}"
fi
# A user's PATH may lack the directories where CRIU and the tools that it runs are.
export PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH"

is_ours() {
    [ -f "$1" ] && grep -qxF "$MARK" "$1"
}

# prefix_of LAUNCHER - the directory that one of our launchers runs CRIU from.
prefix_of() {
    sed -n 's/^prefix="\(.*\)"$/\1/p' "$1"
}

if $remove; then
    if ! is_ours "$LAUNCHER"; then
        say "nothing to remove: $LAUNCHER was not written by this script"
        exit 0
    fi
    prefix=$(prefix_of "$LAUNCHER")
    rm -f "$LAUNCHER"
    # The stamp makes sure that no directory is removed but one that was unpacked here.
    if [ -f "$prefix/.rcm-criu" ]; then
        rm -rf "$prefix"
        # Only if no other version is left.
        rmdir "$BASE" 2>/dev/null || true
    fi
    say "removed $LAUNCHER and $prefix"
    exit 0
fi

work=$(mktemp -d /var/tmp/rcm-criu.XXXXXX)
trap 'rm -rf "$work"' EXIT
# apt downloads as its own unprivileged user.
chmod 755 "$work"

# passes COMMAND... - does this CRIU pass its own check? If not, $reason says why.
reason=
passes() {
    if "$@" check >"$work/check.log" 2>&1 </dev/null; then
        return 0
    fi
    # CRIU's first error names the cause, those after it are consequences. The one about RLIMIT_NOFILE is harmless:
    # every log of a root without CAP_SYS_RESOURCE has it.
    reason=$(sed -n '/RLIMIT_NOFILE/d; /[Ee]rror/ { p; q }' "$work/check.log")
    reason=${reason:-$(tail -n 1 "$work/check.log")}
    reason=${reason:-no output}
    return 1
}

# criu_version COMMAND... - "4.2.1".
criu_version() {
    "$@" --version 2>/dev/null | sed -n 's/^Version: *//p'
}

# tools_present - CRIU runs these by name; `criu check` does not notice that one is missing.
tools_present() {
    local tool missing=()
    for tool in tar ip iptables-restore; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        warn "CRIU runs ${missing[*]}, not found on PATH: install tar, iproute2 and iptables"
    fi
}

# --- 1. the installed CRIU ----------------------------------------------------

if found=$(command -v criu); then
    if passes criu; then
        $quiet || say "$found ($(criu_version criu)) passes criu check on Linux $(uname -r): nothing to do"
        tools_present
        exit 0
    fi
    say "$found ($(criu_version criu || true)) does not pass criu check on Linux $(uname -r): $reason"
fi

command -v apt-get >/dev/null || die "no working CRIU, and no apt-get to get one with: install CRIU 4.1 or newer \
and put it on PATH"

# apt_conf DIR - an apt configuration whose state and caches lie in DIR. The machine's own settings (proxy,
# credentials, certificates) still apply; hooks are left out because they act on the system's caches.
apt_conf() {
    local dir=$1
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    # An empty status file makes apt resolve the whole dependency closure, libc6 included.
    : >"$dir/status"
    cat >"$dir/apt.conf" <<CONF
Dir::State "$dir";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Cache::archives "$dir/cache/archives";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Default-Release "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
CONF
}

# unpack DIR TREE - download criu and everything it needs, with DIR's configuration, and unpack it into TREE.
unpack() {
    local dir=$1 tree=$2 deb
    quietly apt-get -c "$dir/apt.conf" -qq -y --no-install-recommends --download-only install criu || return 1
    mkdir -p "$tree"
    for deb in "$dir"/cache/archives/*.deb; do
        # A tree of links and files owned by root, as dpkg would make it; maintainer scripts do not run.
        dpkg-deb -x "$deb" "$tree" || return 1
    done
    rm -f "$dir"/cache/archives/*.deb
    # The launcher makes CRIU look for plugins here; without the directory CRIU fails every dump.
    mkdir -p "$tree/usr/lib/criu"
}

# loader_of TREE - the dynamic loader in an unpacked tree, relative to it.
loader_of() {
    (cd "$1" && find . -name 'ld-linux*.so.*' -type f -printf '%P\n' | head -n 1)
}

# write_launcher PREFIX FILE - a command that runs the CRIU of an unpacked tree with that tree's libraries.
#
# The loader is given the library path as an argument: it stays out of the environment, so that the programs
# which CRIU runs (tar, ip, iptables, sh) load the system's libraries. CRIU never executes /proc/self/exe, which would be the
# loader here: `swrk`, the daemons and the restored tasks are all forked.
write_launcher() {
    local prefix=$1 file=$2 loader arch
    loader=$(loader_of "$prefix")
    [ -n "$loader" ] || die "no dynamic loader in $prefix"
    arch=$(basename "$(dirname "$loader")")
    cat >"$file.new" <<LAUNCH
#!/bin/sh
$MARK
prefix="$prefix"
# The distribution's plugins, if any, are built for another version.
: "\${CRIU_LIBS_DIR:=\$prefix/usr/lib/criu}"
export CRIU_LIBS_DIR
# CRIU runs ip, iptables and tar by name.
PATH="\${PATH:-/usr/bin:/bin}:/usr/sbin:/sbin"
export PATH
exec "\$prefix/$loader" --inhibit-cache \\
    --library-path "\$prefix/usr/lib/$arch:\$prefix/lib/$arch:\$prefix/usr/lib:\$prefix/lib" \\
    "\$prefix/usr/sbin/criu" "\$@"
LAUNCH
    chmod 755 "$file.new"
    mv -f "$file.new" "$file"
}

# --- 2. the distribution's package -------------------------------------------

# The machine's package lists may be absent (container images ship none).
has_candidate() {
    [[ $(apt-cache policy criu 2>/dev/null) =~ Candidate:\ [^\(] ]]
}

if [[ $(dpkg-query -W -f '${Status}' criu 2>/dev/null) != *"ok installed" ]]; then
    if ! has_candidate; then
        quietly apt-get -qq update || warn "apt-get update failed"
    fi
    if has_candidate; then
        apt_conf "$work/own"
        # The lists are only read here.
        sed -i 's|^Dir::State "|Dir::State::lists "/var/lib/apt/lists";\n&|' "$work/own/apt.conf"
        if unpack "$work/own" "$work/own-tree"; then
            write_launcher "$work/own-tree" "$work/own-criu"
            if passes "$work/own-criu"; then
                quietly env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install criu \
                    || die "apt-get could not install criu"
                passes criu || die "the installed criu fails criu check although its package passed: $reason"
                say "installed the distribution's criu $(criu_version criu): it passes criu check on Linux $(uname -r)"
                tools_present
                exit 0
            fi
            say "the distribution's criu $(criu_version "$work/own-criu" || true) does not pass criu check on" \
                "Linux $(uname -r): $reason"
        fi
        rm -rf "$work/own" "$work/own-tree" "$work/own-criu"
    else
        say "the distribution has no criu package"
    fi
fi

# --- 3. a later Debian suite, in a private prefix ------------------------------

codename=$(os_release VERSION_CODENAME)

# machine_mirror - the mirror of the machine's Debian archive. apt answers from its own configuration, whatever the
# format of the files (deb822 or one-line), and mirror lists work as well.
machine_mirror() {
    apt-get indextargets --format '$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)' 2>/dev/null \
        | awk -v release="$codename" '$1 == "Packages" && $2 == "main" && $3 == release { print $4; exit }'
}

if [ -z "$mirror" ]; then
    if [ "$(os_release ID)" = debian ]; then
        mirror=$(machine_mirror)
        [ -n "$mirror" ] || die "no Debian mirror in the machine's apt configuration: name one with --mirror URL or \
RCM_DEBIAN_MIRROR"
    else
        die "no working CRIU on Linux $(uname -r), and the mirrors of $(os_release NAME) carry no Debian suite. \
Either install CRIU 4.1 or newer yourself, or name a Debian mirror to take it from: \
make deps RCM_DEBIAN_MIRROR=URL (the package debian-archive-keyring is needed to verify it)"
    fi
fi
if [ ! -r "$keyring" ]; then
    quietly env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install debian-archive-keyring \
        || true
    [ -r "$keyring" ] || die "$keyring is missing, so that packages of $mirror cannot be verified: install \
debian-archive-keyring or name a keyring with RCM_DEBIAN_KEYRING"
fi
if [ -e "$LAUNCHER" ] && ! is_ours "$LAUNCHER"; then
    die "$LAUNCHER exists and was not written by this script: remove it or name another path with RCM_CRIU_LAUNCHER"
fi

# open_suite SUITE DIR - let apt read one Debian suite with DIR's configuration, and nothing else.
open_suite() {
    local suite=$1 dir=$2
    apt_conf "$dir"
    cat >>"$dir/apt.conf" <<CONF
Dir::State::lists "$dir/lists";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
CONF
    printf 'deb [arch=%s target=Packages signed-by=%s] %s %s main\n' \
        "$(dpkg --print-architecture)" "$keyring" "$mirror" "$suite" >"$dir/sources.list"
    apt-get -c "$dir/apt.conf" -qq update >"$dir/update.log" 2>&1 </dev/null
}

# newer_keyring - replace a keyring that is too old to verify today's suites (Ubuntu 22.04's is) by the one that an older
# suite carries. The old keyring verifies that suite, so the chain of signatures has no gap.
newer_keyring() {
    local suite dir
    for suite in bookworm bullseye; do
        dir=$work/keyring-$suite
        if open_suite "$suite" "$dir" \
            && (cd "$dir" && quietly apt-get -c apt.conf -qq download debian-archive-keyring) \
            && dpkg-deb -x "$dir"/debian-archive-keyring_*.deb "$dir/tree"; then
            keyring=$dir/tree/usr/share/keyrings/debian-archive-keyring.gpg
            return 0
        fi
    done
    return 1
}

for suite in $SUITES; do
    # Step 2 has tried that one.
    if [ "$suite" = "$codename" ]; then continue; fi

    state=$work/$suite
    opened=false
    if open_suite "$suite" "$state"; then
        opened=true
    elif grep NO_PUBKEY "$state/update.log" >/dev/null && newer_keyring && open_suite "$suite" "$state"; then
        opened=true
    fi
    if ! $opened; then
        say "$suite cannot be read from $mirror: $(grep -m 1 '^[EW]: ' "$state/update.log" || echo "E: no reason given")"
        continue
    fi
    tree=$state/tree
    if ! unpack "$state" "$tree"; then
        say "$suite has no installable criu: trying the next suite"
        continue
    fi
    write_launcher "$tree" "$work/criu"
    if ! passes "$work/criu"; then
        say "criu $(criu_version "$work/criu" || true) of Debian $suite does not pass criu check on" \
            "Linux $(uname -r): $reason"
        continue
    fi

    version=$(criu_version "$work/criu")
    prefix=${RCM_CRIU_PREFIX:-$BASE/criu-$version}
    if [ -e "$prefix" ] && [ ! -f "$prefix/.rcm-criu" ]; then
        die "$prefix exists and was not made by this script: remove it or name another directory with RCM_CRIU_PREFIX"
    fi
    mkdir -p "$(dirname "$prefix")" "$(dirname "$LAUNCHER")"
    printf 'criu %s of Debian %s\n' "$version" "$suite" >"$tree/.rcm-criu"
    chmod 755 "$tree"
    # It gets its name when it is complete, so that an interrupted run leaves nothing that looks finished.
    rm -rf "$prefix.new"
    cp -a "$tree" "$prefix.new"
    rm -rf "$prefix"
    mv "$prefix.new" "$prefix"
    write_launcher "$prefix" "$LAUNCHER"
    passes "$LAUNCHER" || die "$LAUNCHER fails although its scratch copy passed: $reason"
    say "unpacked criu $version of Debian $suite with its own libraries into $prefix, run by $LAUNCHER"
    say "why: it passes criu check on Linux $(uname -r); no package of the system was changed"
    hash -r
    if [ "$(command -v criu)" != "$LAUNCHER" ]; then
        warn "$(command -v criu || echo nothing) comes before $LAUNCHER on PATH: set RCM_CRIU=$LAUNCHER"
    fi
    tools_present
    exit 0
done

die "no CRIU that works on Linux $(uname -r) was found in the suites $SUITES of $mirror: install CRIU 4.1 or newer \
yourself and put it on PATH, or name another mirror with RCM_DEBIAN_MIRROR"
