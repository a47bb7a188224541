#!/usr/bin/env bash
#
# run.sh HOST [COMMAND...] - run a command in one of the lab's machines; without one, a shell.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -gt 0 ] || die "usage: run.sh HOST [COMMAND...], HOST being one of: $HOSTS"
address_of "$1" >/dev/null
pid_of "$1" >/dev/null || die "$1 is not up: make lab-up"
on "$@"
