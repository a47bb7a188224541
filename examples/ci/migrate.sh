#!/usr/bin/env bash
#
# Move a container in a CI job. Fails the job with rcm's exit status, and prints the reason from the document of --json.
#
# usage: migrate.sh CONTAINER DESTINATION IMAGE_PATH [FLAG...]
#
# A receiver waits at the destination, for this container or for any (rcm live-migrate --any). FLAGs are passed on, such as --token-file.
#
#   RCM               the command, "rcm" by default: "sudo rcm", "ssh node1 sudo rcm"
#   MAX_DOWNTIME_MS   the job fails, although the container has moved, if the downtime was longer
#
# exit status: 0 moved; 1 not moved, runs on at the source; 2 wrong usage; 3 not settled; 4 moved, but the downtime was too long

set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n 's/^# usage: /usage: /p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
container=$1 destination=$2 image_path=$3
shift 3
read -ra rcm <<<"${RCM:-rcm}"

# The job shows the log and the progress, which stay on stderr. stdout has only the document.
status=0
document=$("${rcm[@]}" live-migrate "$container" --image-path="$image_path" --destination="$destination" --json "$@") || status=$?

# Wrong usage has no document.
if [ -z "$document" ]; then
    echo "migrate: rcm ended with status $status and said nothing" >&2
    exit "$((status == 0 ? 1 : status))"
fi
field() { jq -r "$1" <<<"$document"; }

case $(field .outcome) in
    moved) ;;
    not-moved)
        echo "migrate: $container runs on here: $(field .error)" >&2
        field '.findings[] | "migrate: \(.severity): \(.side): \(.what); \(.remedy)"' >&2
        exit "$status"
        ;;
    *)
        echo "migrate: $(field .outcome): $(field .error)" >&2
        exit "$status"
        ;;
esac

# rcm's exit status and its document belong together.
[ "$status" -eq 0 ] && [ "$(field .exitStatus)" -eq 0 ] || { echo "migrate: moved, with status $status" >&2 && exit 1; }

echo "migrate: $container runs at $(field .peer): downtime $(field .downtimeMs) ms, total $(field .totalMs) ms"
if ! field ".downtimeMs <= ${MAX_DOWNTIME_MS:-1e9}" | grep -qx true; then
    echo "migrate: it was frozen for longer than $MAX_DOWNTIME_MS ms" >&2
    exit 4
fi
