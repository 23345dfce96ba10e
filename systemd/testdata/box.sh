#!/usr/bin/env bash
# Boots a real systemd as process 1 of a throw-away container:
#
#   box.sh up BOX         BOX: a folder to be made; BOX/root is the container's /
#   box.sh run BOX CMD... runs a command inside
#   box.sh down BOX       shuts it down and removes everything
#
# The container's / is this machine's, copy on write: what is changed is on a
# tmpfs and goes with it. It has no network but lo. Needs root, overlayfs and
# systemd-nspawn, but neither a running systemd nor D-Bus on this machine.
set -euo pipefail

die() { echo "box.sh: $*" >&2; exit 1; }

up() {
  local box=$1 id root h
  id=fpmd-box-$$
  mkdir -p "$box/layer" "$box/root"
  echo "$id" >"$box/id"
  : >"$box/cgroups"
  mount -t tmpfs -o mode=755,size=512m "$id" "$box/layer" || die "mount tmpfs on $box/layer"
  mkdir "$box/layer/up" "$box/layer/work"
  mount -t overlay "$id" -o "lowerdir=/,upperdir=$box/layer/up,workdir=$box/layer/work" "$box/root" || die "mount overlay on $box/root"
  root=$box/root

  # Nothing that this machine enables may start in there.
  find "$root/etc/systemd/system" "$root"/etc/rc?.d -mindepth 1 -delete
  rm -f "$root/etc/machine-id" "$root/etc/hostname" "$root/etc/fstab"
  systemd-id128 new >"$root/etc/machine-id" # an empty one is a first boot, which enables every unit
  echo "$id" >"$root/etc/hostname"
  printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' >"$root/etc/systemd/system/box.target"
  mkdir -p "$root/etc/systemd/journald.conf.d"
  printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >"$root/etc/systemd/journald.conf.d/box.conf"

  # A control group of its own in each hierarchy, so that nothing of it is left.
  for h in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -e "$h/cgroup.procs" ] && mkdir "$h/$id" && echo "$h/$id" >>"$box/cgroups"
  done
  (
    while read -r h; do echo "$BASHPID" >"$h/cgroup.procs"; done <"$box/cgroups"
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec setsid systemd-nspawn --quiet --directory="$root" --boot \
      --register=no --keep-unit --machine="$id" --console=pipe --kill-signal=SIGRTMIN+3 --private-network \
      --resolv-conf=off --timezone=off --link-journal=no systemd.unit=box.target
  ) >"$box/console" 2>&1 </dev/null &
  echo $! >"$box/nspawn"
  for _ in $(seq 600); do
    kill -0 "$(cat "$box/nspawn")" 2>/dev/null || { cat "$box/console" >&2; die "systemd-nspawn ended before the container was up"; }
    if pgrep -P "$(cat "$box/nspawn")" >"$box/init" &&
      [ "$(run "$box" systemctl is-active box.target 2>/dev/null)" = active ]; then
      return 0
    fi
    sleep 0.05
  done
  cat "$box/console" >&2
  die "the container was not up within 30 s"
}

run() {
  local box=$1
  shift
  nsenter -t "$(cat "$box/init")" -m -u -i -n -p -C -r -w -- "$@"
}

down() {
  local box=$1 pid h
  if [ -s "$box/nspawn" ]; then
    pid=$(cat "$box/nspawn")
    kill -TERM "$pid" 2>/dev/null || : # handed on as SIGRTMIN+3: power off
    for _ in $(seq 200); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || :
  fi
  # Nothing is removed below a folder that is still mounted.
  if mountpoint -q "$box/root"; then umount -R "$box/root"; fi
  if mountpoint -q "$box/layer"; then umount "$box/layer"; fi
  while read -r h; do
    if [ -d "$h" ]; then find "$h" -depth -type d -exec rmdir {} \; || :; fi
  done <"$box/cgroups"
  rmdir "/run/systemd/nspawn/propagate/$(cat "$box/id")" 2>/dev/null || :
  rm -rf --one-file-system "$box"
}

case ${1:-} in
  up | run | down) "$@" ;;
  *) sed -n 2,6p "$0" >&2; exit 2 ;;
esac
