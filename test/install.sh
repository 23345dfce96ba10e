#!/usr/bin/env bash
# Sees to it that what the tests need is there: root has it installed by apt,
# only what is missing, and no daemon started by that; anybody else is told
# what is missing. Without anything missing it does nothing.
set -euo pipefail

# What is looked for, which may be a pattern, and the package of Debian that brings it.
want=(
  gcc:gcc
  /usr/include/stdio.h:libc6-dev
  /usr/bin/python3:python3
  /usr/lib/python3.*/ensurepip/__init__.py:python3-venv
  /usr/lib/python3/dist-packages/flask/__init__.py:python3-flask
  /usr/lib/python3/dist-packages/django/__init__.py:python3-django
  /usr/sbin/nginx:nginx-light
  cgi-fcgi:libfcgi-bin
  curl:curl
  zsh:zsh
  fish:fish
  ss:iproute2
  systemd-analyze:systemd
)
# What boots a container to try the unit in, which only root can.
if [ "$(id -u)" = 0 ]; then
  want+=(systemd-nspawn:systemd-container pgrep:procps /usr/sbin/logrotate:logrotate)
fi

# A kernel with control groups v2, where this one has their controllers in v1: what it runs is skipped without it.
optional=()
if [ "$(id -u)" = 0 ] && ! grep -qsw memory /sys/fs/cgroup/cgroup.controllers && ! command -v linux.uml >/dev/null; then
  optional=(user-mode-linux)
fi

missing=()
for w in "${want[@]}"; do
  case ${w%%:*} in
    /*) compgen -G "${w%%:*}" >/dev/null || missing+=("${w##*:}") ;;
    *) command -v "${w%%:*}" >/dev/null || missing+=("${w##*:}") ;;
  esac
done
[ $((${#missing[@]} + ${#optional[@]})) -gt 0 ] || exit 0
apt=(apt-get install -y --no-install-recommends "${missing[@]}")
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  [ ${#missing[@]} -gt 0 ] || exit 0
  echo "the tests need what is not installed; on Debian, as root:" >&2
  echo "  ${apt[*]}" >&2
  exit 1
fi

# A policy that is there already is left alone.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q || [ ${#missing[@]} = 0 ]
[ ${#missing[@]} = 0 ] || "${apt[@]}" -q -o DPkg::Lock::Timeout=300
[ ${#optional[@]} = 0 ] || apt-get install -y --no-install-recommends -q -o DPkg::Lock::Timeout=300 "${optional[@]}" ||
  echo "goes on without ${optional[*]}" >&2
