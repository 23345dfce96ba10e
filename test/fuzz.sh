#!/usr/bin/env bash
# Runs each fuzz target of each package for TIME, one after the other. What
# fails is kept in the package's testdata/fuzz, where every go test finds it
# from then on; it is shown, with how to run it alone. What was of interest is
# kept where go test -fuzz has it, for the next time; with "fresh" nothing is
# kept, and nothing of before is run first, so that TIME is spent on new inputs.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: test/fuzz.sh TIME [fresh]    such as 3s" >&2; exit 64; }
time=$1 fresh=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
go=${GO:-go}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# By default, go minimises each interesting input for a minute, and tries nothing else meanwhile.
run() {
  (cd "$1" && "$tmp/test" -test.run '^$' -test.fuzz "^$2\$" -test.fuzztime "$time" -test.fuzzminimizetime 100x \
    -test.fuzzcachedir "$cache" </dev/null >"$tmp/said" 2>&1)
}

# golang.org/issue/75804: when the time is over go may take its own deadline for
# a failure. That is all it says then, and it names no input.
deadline() {
  [ "$(grep -A1 '^--- FAIL' "$tmp/said")" = "$(grep '^--- FAIL' "$tmp/said")"$'\n    context deadline exceeded' ]
}

tell() {
  grep -v '^fuzz: ' "$tmp/said" || :
  echo "$2 of $1 has failed."
  input=$(sed -n 's|.*Failing input written to testdata/fuzz/||p' "$tmp/said")
  if [ -n "$input" ]; then
    echo "Its input is kept in $1/testdata/fuzz/$input, to be committed with what mends it:"
    head -c 4096 "$1/testdata/fuzz/$input"
    echo
    echo "Again: go test -run '$input' $1"
  else
    echo "Again: go test -run '^$2\$' $1, or, where that passes: go test -run '^\$' -fuzz '^$2\$' $1"
  fi
} >&2

for pkg in $(grep -rl '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u); do
  "$go" test -c -fuzz . -o "$tmp/test" "$pkg"
  cache=$("$go" env GOCACHE)/fuzz/$("$go" list "$pkg")
  [ -z "$fresh" ] || cache=$tmp/$pkg
  for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$pkg"/*_test.go | cut -d' ' -f2); do
    run "$pkg" "$target" || deadline || { tell "$pkg" "$target"; exit 1; }
    echo "$pkg $target: $(sed -n 's/^fuzz: .*execs: \([0-9]*\).*/\1/p' "$tmp/said" | tail -1) inputs"
  done
done
