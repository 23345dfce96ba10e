#!/usr/bin/env bash
# Installs what the tests need on Debian, where it is missing: as root; anybody
# else is told what to install. No daemon is started by it.
set -euo pipefail

# What is looked for, and the package that brings it.
want=(
  gcc:gcc
  python3:python3
  /usr/bin/python3:python3
  /usr/sbin/nginx:nginx-light
  /usr/lib/python3/dist-packages/flask/__init__.py:python3-flask
  /usr/lib/python3/dist-packages/django/__init__.py:python3-django
  cgi-fcgi:libfcgi-bin
  ss:iproute2
  systemd-analyze:systemd
  systemd-nspawn:systemd-container
  pgrep:procps
  /usr/include/stdio.h:libc6-dev
)
missing=()
for w in "${want[@]}"; do
  what=${w%%:*} package=${w##*:}
  case $what in
    /*) [ -e "$what" ] || missing+=("$package") ;;
    *) command -v "$what" >/dev/null || missing+=("$package") ;;
  esac
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "the tests need packages that are not installed; as root:" >&2
  echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
made=
if [ ! -e /usr/sbin/policy-rc.d ]; then # an existing policy is left alone
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  made=1
fi
trap '[ -z "$made" ] || rm -f /usr/sbin/policy-rc.d' EXIT
apt-get update -q
apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends "${missing[@]}"
