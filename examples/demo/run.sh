#!/usr/bin/env bash
# run.sh FPMD: serves the demo on DEMO_ADDR (127.0.0.1:8080) until ^C. make demo
# runs it. Root's demo is served by nobody, from a copy, for nobody may be
# unable to read the folder that this is in; anybody else's is served in place.
# Nothing is left behind.
set -euo pipefail
fpmd=$(realpath "$1")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
addr=${DEMO_ADDR:-127.0.0.1:8080}
die() { echo "demo: $*" >&2; exit 1; }

as=()
if [ "$(id -u)" = 0 ]; then
  as=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups --reset-env --)
fi

# A Python of 3.9 or later that the workers may run: the first of PATH may be in
# somebody's home. env is run before it, for setpriv itself still opens what root may.
python=
while read -r candidate; do
  if (cd / && "${as[@]}" env "$candidate" -Ic 'import sys; sys.exit(sys.version_info < (3, 9))') 2>/dev/null; then
    python=$candidate
    break
  fi
done < <(type -ap python3; echo /usr/bin/python3)
[ -n "$python" ] || die "no python3 (3.9 or later) that ${as[0]:+nobody }can run: apt-get install python3"

# A folder that the workers may enter: TMPDIR may be one's own.
for base in "${TMPDIR:-/tmp}" /tmp /var/tmp; do
  [ -w "$base" ] && "${as[@]}" test -x "$base" && break
done
dir=$(mktemp -d "$base/fpmd-demo.XXXXXX")
pid=
clean() {
  trap '' INT TERM HUP
  if [ -n "$pid" ]; then
    kill -INT "$pid" 2>/dev/null || :
    wait "$pid" 2>/dev/null || :
  fi
  rm -rf "$dir"
}
trap clean EXIT
trap 'exit 0' INT # who ends a demo has done nothing wrong
trap 'exit 143' TERM HUP

chmod 755 "$dir"
app=$here
if [ -n "${as[0]:+root}" ]; then
  app=$dir
  install -m 644 "$here/app.py" "$app/app.py"
fi
# A path as a string of the configuration, whatever is in it.
quoted() { local s=${1//\\/\\\\}; s=${s//\"/\\\"}; printf '"%s"' "${s//\$/\$\$}"; }
cat >"$dir/fpmd.toml" <<EOF
[supervisor]
runtime_dir = $(quoted "$dir/run")
user        = "nobody"

[pool.demo]
listen      = $(quoted "$dir/demo.sock")
listen_mode = "0666" # as open as the port is
wsgi        = "app:application"
directory   = $(quoted "$app")
python      = $(quoted "$python")
workers     = 2
env         = { PYTHONDONTWRITEBYTECODE = "1" } # a checkout stays as it is
EOF

"$fpmd" serve -c "$dir/fpmd.toml" --http "$addr" </dev/null &
pid=$!

# As soon as it answers, say what to try.
while :; do
  status=0
  "$fpmd" request demo /hello -c "$dir/fpmd.toml" >/dev/null 2>&1 || status=$?
  case $status in
    0) break ;;
    69) ;; # it does not listen yet
    *) die "the application does not answer; the reason is above" ;;
  esac
  if ! kill -0 "$pid" 2>/dev/null; then
    status=0
    wait "$pid" || status=$?
    pid=
    die "fpmd has ended with exit code $status; the reason is above. If the address is in use: make demo DEMO_ADDR=127.0.0.1:8081"
  fi
  sleep 0.05
done
try() { printf '  %-52s  %s\n' "$@"; }
printf '\n  The demo is at  http://%s/\n\n' "$addr"
try "curl -i http://$addr/hello"  "one line, and who says it"
try "curl http://$addr/env"       "what a WSGI application is given"
try "curl http://$addr/pool"      "the pool's workers, as JSON"
try "curl -N http://$addr/stream" "an answer that comes line by line"
try "curl -i http://$addr/boom"   "an exception: 500, and its traceback here"
try "$1 status -c $dir/fpmd.toml" "how it is: the pool, and its workers"
try "kill -HUP $pid"              "roll all workers; no request is lost"
try "^C"                          "ends it, and leaves nothing behind"
echo
status=0
wait "$pid" || status=$?
pid=
exit "$status"
