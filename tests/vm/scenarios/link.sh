#!/usr/bin/env bash
#
# The link between the machines is cut, each time with one end at exactly that point. Whoever listens on the third host hears one container; what is
# not settled, --status tells and --resolve settles.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_stores
make_token
make_beacon web
start_beacon web source

# The destination has the commit, and its answer cannot leave: it is the destination's.
begin destination committed
link off
go_on destination
end 3
expect_heard destination
expect "the source meanwhile" "$(status_of source web)" paused
link on
settle 0
moves

# In the freeze: both ends give up.
begin source frozen
link off
go_on source
end 1
stays
link on
end_receiver
stays

# The commit cannot leave, and the source cannot know that: it stands still until the destination says that it did not get it.
begin source committing
link off
go_on source
end 3
on source 'rcm live-migrate web --status' || true
expect "the source meanwhile" "$(status_of source web)" paused
link on
settle 1
stays
