#!/usr/bin/env bash
#
# The link between the machines is cut, each time with one end stopped at an exact point. The third
# host hears one container. If the migration is not settled, --status reports it and --resolve
# settles it.

set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# asks - the source has sent the commit, has got no answer, and asks until it gets one.
asks() {
    for _ in $(seq 300); do
        ! on source 'grep -q "asking again" /tmp/sender' || return 0
        sleep 0.2
    done
    die "the source does not ask: $(on source 'cat /tmp/sender')"
}

make_stores
make_token
make_beacon web
start_beacon web source

# The destination has the commit, and its answer cannot leave: the container belongs to the
# destination. The source that asks is killed.
begin destination committed
link off
go_on destination
asks
on source 'kill -KILL $(cat /tmp/pid)'
end 137
expect_heard destination
expect "the source meanwhile" "$(status_of source web)" paused
on source 'rcm live-migrate web --status'
link on
# The receiver answers for a minute, but its network may take a moment; when it is gone, --resolve
# there answers.
status=3
while [ $status -eq 3 ] && on destination "pgrep -f '[l]ive-migrate web' >/dev/null"; do
    status=0
    on source 'rcm live-migrate web --resolve' || status=$?
done
case $status in
    0) end_receiver ;;
    3) settle 0 ;;
    *) die "--resolve at the source: $status" ;;
esac
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

# The commit cannot leave, and the source cannot know that: its copy stays frozen until the
# destination answers that it did not get the commit.
begin source committing
link off
go_on source
asks
expect "the source meanwhile" "$(status_of source web)" paused
link on
end 1
stays
end_receiver
stays
