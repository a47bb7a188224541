#!/usr/bin/env bash
#
# Print the settings that make rcm a runtime of Docker, containerd and Podman, as docs/engines.md has them.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -ne 1 ]; then
    echo "usage: scripts/engines.sh PATH-OF-RCM" >&2
    exit 2
fi

echo "To let engines run containers with rcm (docs/engines.md explains it):"
# The code block below each heading that is a path.
awk -v rcm="$1" '
    /^### \// { file = $2; next }
    /^```/ && file { inside = !inside; if (inside) { printf "\n%s:\n\n", file } else { file = "" }; next }
    inside { gsub("/usr/local/sbin/rcm", rcm); print "    " $0 }
' docs/engines.md
