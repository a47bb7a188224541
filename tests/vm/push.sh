#!/usr/bin/env bash
#
# push.sh FILE PATH [HOST...] - copy a file into the lab's machines. It is renamed into place, so
# that a program can be replaced while it runs.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -ge 2 ] || die "usage: push.sh FILE PATH [HOST...]"
file=$1 path=$2
shift 2
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $HOSTS
for host in "$@"; do
    on "$host" "cat >'$path.new' && chmod $(stat -c %a "$file") '$path.new' && mv '$path.new' '$path'" <"$file"
done
