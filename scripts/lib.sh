# Helpers that the scripts of this directory share. Sourced, never run.
# shellcheck shell=bash

# The name that every message starts with.
readonly SCRIPT_NAME=${0##*/}

# say TEXT... - one line about what was done and why.
say() {
    printf '%s: %s\n' "$SCRIPT_NAME" "$*"
}

# warn TEXT... - something the reader should know, but not a failure.
warn() {
    printf '%s: warning: %s\n' "$SCRIPT_NAME" "$*" >&2
}

# die TEXT... - end with a one-line error.
die() {
    printf '%s: error: %s\n' "$SCRIPT_NAME" "$*" >&2
    exit 1
}

# as_root COMMAND... - run a command as root, through sudo when we are not.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "\"$1\" has to run as root: run this as root or install sudo"
    fi
}

# quietly COMMAND... - run a command whose output matters only when it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        sed 's/^/    /' "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# version_at_least HAVE WANT - compare dotted versions ("1.88.0" is at least "1.88").
version_at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# os_release KEY - one value of os-release(5), empty when it is not set.
os_release() {
    local file
    for file in /etc/os-release /usr/lib/os-release; do
        if [ -r "$file" ]; then
            # shellcheck disable=SC1090
            (. "$file" && printf '%s' "${!1-}")
            return
        fi
    done
}
