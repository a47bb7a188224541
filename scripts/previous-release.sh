#!/usr/bin/env bash
#
# previous-release.sh DIR - builds rcm of the previous release in DIR, unless it is there already, and prints its path.
#
# The tests migrate its containers and settle its records with today's rcm. It is built from the history of this
# repository. Without that history (an archive of the sources) nothing is printed, and these tests are skipped.

set -euo pipefail
readonly DIR=$(realpath -m "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Release 0.1.0.
readonly COMMIT=b6814656ffea44bb8aaa91a36af7c6c956a51197
readonly BINARY=$DIR/$COMMIT/debug/rcm

if [ ! -x "$BINARY" ]; then
    if ! git cat-file -e "$COMMIT" 2>/dev/null; then
        echo "previous-release.sh: commit $COMMIT is not in this repository: no previous release to test with" >&2
        exit 0
    fi
    echo "previous-release.sh: building release 0.1.0" >&2
    trap 'rm -rf "$DIR/source"' EXIT
    mkdir -p "$DIR/source"
    git archive "$COMMIT" | tar -x -C "$DIR/source"
    # Optimization and debugging information would only take time.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 cargo build --locked --quiet --bin rcm \
        --manifest-path "$DIR/source/Cargo.toml" --target-dir "$DIR/$COMMIT" >&2
fi
echo "$BINARY"
