#!/usr/bin/env bash
#
# prose.sh [PATH...] - counts how often "what" stands in the comments of Rust sources, and how wide they are.
#
# Many "what" are a sign of headless clauses, which have to be read twice. At most 2 of 1000 words may be one, in each path and
# over all of them, and no comment may end beyond column 100. Without arguments: src, tests and benches.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly LIMIT=2 WIDTH=100
[ $# -gt 0 ] || set -- src tests benches
status=0

for path in "$@"; do
    find "$path" -name '*.rs' -print0 | sort -z | xargs -0 awk -v path="$path" -v limit="$LIMIT" -v width="$WIDTH" '
        # A comment that has a line of its own; two slashes within code are mostly part of a string.
        /^[ \t]*\/\// {
            # Tables and links cannot be wrapped.
            if (length($0) > width && $0 !~ /^[ \t]*\/\/[\/!]? *[|\[]/ && $0 !~ /:\/\//) {
                printf "%s:%d: a comment of %d columns\n", FILENAME, FNR, length($0); wide++
            }
            text = tolower($0)
            gsub(/[^a-z0-9_'"'"']+/, " ", text)
            words = split(text, word, " ")
            total += words
            for (i = 1; i <= words; i++) if (word[i] == "what") { what++; at[FILENAME]++ }
        }
        END {
            rate = total ? 1000 * what / total : 0
            printf "%-8s %6d words of comment, \"what\" %4d times: %.1f of 1000 (limit %s)\n", path, total, what, rate, limit
            if (rate > limit) for (file in at) printf "%6d  %s\n", at[file], file | "sort -rn | head -n 15"
            exit rate > limit || wide > 0
        }' || status=1
done
exit "$status"
