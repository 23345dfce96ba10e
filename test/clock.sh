#!/usr/bin/env bash
# Runs fpmd's tests of what waits, and what is waited for, with a wall clock that
# jumps by years every second, while time goes on: as if somebody kept setting
# it. It is no clock of this machine's: package time is built with the jumps.
set -euo pipefail
go=${GO:-go}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
time=$($go env GOROOT)/src/time/time.go
awk '
  { print }
  /^func Now\(\) Time \{$/ { now = 1 }
  now && /:= runtimeNow\(\)$/ {
    print "\tif mono != 0 { // in a bubble of testing/synctest there is no clock but this one"
    print "\t\tsec += [...]int64{0, 365 * 86400, -3650 * 86400, 3600, -5, 0, -400 * 86400}[uint64(runtimeNano()-startNano)/1e9%7]"
    print "\t}"
    now = 0; done = 1
  }
  END { exit !done }
' "$time" >"$tmp/time.go" || { echo "clock.sh: $time has no time.Now as it knows it" >&2; exit 1; }
printf '{"Replace": {"%s": "%s"}}\n' "$time" "$tmp/time.go" >"$tmp/overlay.json"
$go test -overlay "$tmp/overlay.json" -count=1 -timeout 15m \
  -run 'Timeout|Queue|Reload|Slow|Stop|Leaves|BootFailed|Killed|Signals|Removed|Deadline|Shutdown|OnDemand|Dynamic|Recycling|Scale' ./fcgi ./protocol ./manager ./cmd/fpmd
