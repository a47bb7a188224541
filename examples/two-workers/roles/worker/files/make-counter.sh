#!/usr/bin/env bash
#
# Make the bundle of the counter: counter.py in the host's network, with the host's Python, which must be the same on both hosts.
#
# usage: make-counter.sh DIRECTORY PORT

set -euo pipefail

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
bundle=$1 port=$2
mkdir -p "$bundle"/rootfs/{dev,etc,lib,lib64,proc,sys,usr}
cp "$here/counter.py" "$bundle/rootfs/"
rm -f "$bundle/config.json"
"${RCM:-rcm}" spec --bundle "$bundle"
# A container can mount sysfs only if it has its own network.
jq --arg port "$port" '
    .process.terminal = false
    | .process.args = ["/usr/bin/python3", "/counter.py", $port]
    | .hostname = "counter"
    | .linux.namespaces |= map(select(.type != "network"))
    | .mounts |= map(select(.type != "sysfs" and .type != "cgroup"))
    | .mounts += [("/usr", "/lib", "/lib64") | {"destination": ., "type": "none", "source": ., "options": ["rbind", "ro"]}]
' "$bundle/config.json" >"$bundle/config.new"
mv "$bundle/config.new" "$bundle/config.json"
