#!/usr/bin/env bash
# Builds the Debian package, and installs, upgrades, removes and purges it under a real systemd.
#
#   tests/deploy/package.sh target/release/blip-server
#
# systemd runs as process 1 of its own namespaces (processes, mounts, network, ...), on an overlay of this machine's root
# whose changes are in memory. So the machine itself does not change, and needs no free port. The steps inside check:
# the service starts as an unprivileged user and says that it is ready, answers, reloads, is restarted when it does not
# answer the watchdog, is not restarted for a bad setting, and stops; the permissions of its files; that an upgrade keeps
# changed settings; what remains after `remove` and after `purge`.
#
# Needs root on Debian or Ubuntu with systemd and dpkg-dev, and cargo-deb 3.8.0 in PATH. Without one of them, or where
# the kernel does not permit the namespaces, it says so and does nothing. lintian runs if it is installed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

skip() { echo "skipped: the Debian package: $1"; exit 0; }

outside() {
  local binary=$1
  [ -f /etc/debian_version ] || skip "this is not Debian"
  [ "$(id -u)" = 0 ] || skip "needs root"
  [ -x /usr/lib/systemd/systemd ] || skip "systemd is not installed"
  for tool in cargo-deb dpkg-shlibdeps unshare; do
    command -v $tool >/dev/null || skip "$tool is not installed"
  done
  ! getent passwd blip-server >/dev/null || skip "this machine has a user blip-server already"

  folder=$(mktemp -d)
  # systemd leaves cgroups below that of its own.
  trap 'rm -rf "$folder"; [ -z "${group:-}" ] || find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true' EXIT
  export DEB_FAST=1
  "$root/deploy/debian/build.sh" "$binary" "$folder/old" >/dev/null
  # The same binary as a package of a later version.
  "$root/deploy/debian/build.sh" "$binary" "$folder/new" 99.0.0 >/dev/null
  if command -v lintian >/dev/null; then
    # The address of the maintainer is for a distributor to set. There is no bug report that asks for the package. Two
    # files are for root and the service only. A debug binary is not stripped.
    local ignored=bogus-mail-host,bogus-mail-host-in-debian-changelog,initial-upload-closes-no-bugs
    ignored+=,non-standard-file-perm,unstripped-binary-or-object
    lintian --allow-root --fail-on error,warning --suppress-tags "$ignored" "$folder"/old/*.deb
    echo "lintian: no errors or warnings"
  else
    echo "skipped: lintian is not installed"
  fi

  # A cgroup of its own, which is the root of the hierarchy inside.
  local hierarchy=/sys/fs/cgroup
  [ -d /sys/fs/cgroup/systemd ] && hierarchy=/sys/fs/cgroup/systemd
  group=$hierarchy/blip-package-$$
  mkdir "$group" 2>/dev/null || { group=; skip "cannot create a cgroup"; }
  mkdir "$folder/memory"
  cp "${BASH_SOURCE[0]}" "$root/demo/scenes/two-cats.png" "$folder/"
  (
    echo $BASHPID >"$group/cgroup.procs"
    exec timeout --signal KILL 600 unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup --mount-proc \
      bash "$folder/package.sh" --namespaces "$folder" "$hierarchy"
  ) >"$folder/log" 2>&1 &
  # In the background, because process 1 that powers off ends unshare with SIGINT, which would end this script too.
  wait $! || true
  if [ -f "$folder/result" ]; then
    cat "$folder/steps"
    [ "$(cat "$folder/result")" = 0 ] || { cat "$folder/log"; exit 1; }
    return
  fi
  cat "$folder/log"
  [ ! -f "$folder/booted" ] || exit 1
  skip "systemd does not start in namespaces here"
}

# In new namespaces: builds the root and becomes systemd.
namespaces() {
  local folder=$1 hierarchy=$2
  mount --make-rprivate /
  # The upper layer of the overlay is in memory, and has the packages and this script in /srv.
  mount -t tmpfs tmpfs "$folder/memory"
  mkdir "$folder"/memory/{upper,work,root}
  mkdir -p "$folder/memory/upper/srv"
  mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/memory/upper,workdir=$folder/memory/work" "$folder/memory/root"
  local new=$folder/memory/root
  mount --bind "$folder" "$new/srv"
  mount -t proc proc "$new/proc"
  # The kernel is that of the machine: its settings must not change.
  mount --bind "$new/proc/sys" "$new/proc/sys"
  mount -o remount,bind,ro "$new/proc/sys"
  mount -t sysfs -o ro sysfs "$new/sys"
  if [ "$hierarchy" = /sys/fs/cgroup ]; then
    mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
  else
    mount -t tmpfs tmpfs "$new/sys/fs/cgroup"
    mkdir "$new/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$new/sys/fs/cgroup/systemd"
  fi
  for directory in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$new/$directory"; done
  chmod 1777 "$new/tmp"
  for device in null zero full random urandom tty; do
    touch "$new/dev/$device"
    mount --bind "/dev/$device" "$new/dev/$device"
  done
  mkdir "$new/dev/shm" "$new/dev/pts"
  mount -t tmpfs tmpfs "$new/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts"
  ln -s pts/ptmx "$new/dev/ptmx"
  # Services of this machine, and what changes the kernel, do not start. Nothing forbids the service to start.
  rm -f "$new/usr/sbin/policy-rc.d"
  for unit in systemd-sysctl systemd-modules-load systemd-udevd systemd-remount-fs systemd-udev-trigger systemd-logind; do
    ln -sf /dev/null "$new/etc/systemd/system/$unit.service"
  done
  cat >"$new/etc/systemd/system/blip-test.target" <<'UNIT'
[Unit]
Requires=basic.target blip-test.service
After=basic.target
AllowIsolate=yes
UNIT
  cat >"$new/etc/systemd/system/blip-test.service" <<'UNIT'
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash /srv/package.sh --inside
StandardOutput=append:/srv/steps
StandardError=append:/srv/steps
UNIT
  ip link set lo up
  cd "$new"
  mkdir -p mnt
  pivot_root . mnt
  umount -l /mnt
  exec env -i container=blip-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/lib/systemd/systemd --system --unit=blip-test.target --log-target=kmsg
}

# A service of that systemd: the test.
inside() {
  touch /srv/booted
  trap finish EXIT
  export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
  local conffile=/etc/blip-server/blip-server.toml unit=blip-server.service

  echo "# install"
  dpkg --install /srv/old/*.deb >/dev/null 2>&1
  is active "$(systemctl is-active $unit)"
  is enabled "$(systemctl is-enabled $unit)"
  is notify "$(systemctl show -P Type $unit)"
  is ready "$(systemctl show -P StatusText $unit)"
  is "640 root blip-server" "$(stat -c '%a %U %G' $conffile)"
  is "750 root blip-server" "$(stat -c '%a %U %G' /etc/blip-server)"
  is "600 root root" "$(stat -c '%a %U %G' /etc/default/blip-server)"
  is "750 blip-server blip-server" "$(stat -c '%a %U %G' /var/cache/blip-server)"
  local process stopped
  process=$(systemctl show -P MainPID $unit)
  is blip-server "$(stat -c %U "/proc/$process")"
  # A user namespace without capabilities, a filter of system calls, no new privileges.
  is "0000000000000000 2 1" "$(awk '/^CapEff|^Seccomp:|^NoNewPrivs/ {v[$1]=$2} END {print v["CapEff:"], v["Seccomp:"], v["NoNewPrivs:"]}' "/proc/$process/status")"
  has 'two cats' "$(caption)"
  has blip-server "$(man --where blip-server 2>/dev/null || ls /usr/share/man/man1/blip-server.1.gz)"
  bash -n /usr/share/bash-completion/completions/blip-server

  echo "# doctor, as the service's user with its settings"
  systemctl stop $unit
  is inactive "$(systemctl is-active $unit || true)"
  setpriv --reuid blip-server --regid blip-server --clear-groups env -i HF_HOME=/var/cache/blip-server \
    blip-server doctor --config $conffile

  echo "# reload, watchdog, bad settings"
  systemctl start $unit
  systemctl reload $unit
  waits_for "journalctl --unit $unit --output cat | grep -q SIGHUP"
  mkdir -p /run/systemd/system/$unit.d
  printf '[Service]\nWatchdogSec=1s\nRestartSec=0\n' >/run/systemd/system/$unit.d/test.conf
  systemctl daemon-reload
  systemctl restart $unit
  stopped=$(systemctl show -P MainPID $unit)
  # The process stops without ending, so only the watchdog can notice.
  kill -STOP "$stopped"
  waits_for "[ \$(systemctl show -P NRestarts $unit) = 1 ] && systemctl is-active --quiet $unit"
  [ "$stopped" != "$(systemctl show -P MainPID $unit)" ]
  has 'two cats' "$(caption)"
  rm /run/systemd/system/$unit.d/test.conf
  systemctl daemon-reload
  sed -i 's/^#listen = .*/listen = "nowhere"/' $conffile
  systemctl restart $unit 2>/dev/null && { echo "a bad setting was accepted"; exit 1; }
  is 78 "$(systemctl show -P ExecMainStatus $unit)"
  is failed "$(systemctl is-active $unit || true)"
  is 0 "$(systemctl show -P NRestarts $unit)"

  echo "# upgrade with changed settings"
  sed -i 's/^listen = .*/listen = "127.0.0.1:8081"/' $conffile
  systemctl reset-failed $unit
  systemctl start $unit
  dpkg --install /srv/new/*.deb >/dev/null 2>&1
  is 99.0.0-1 "$(dpkg-query --show --showformat '${Version}' blip-server)"
  is active "$(systemctl is-active $unit)"
  grep -q '^listen = "127.0.0.1:8081"$' $conffile
  is "640 root blip-server" "$(stat -c '%a %U %G' $conffile)"
  has 'two cats' "$(caption 8081)"

  echo "# remove"
  touch /var/cache/blip-server/weights
  dpkg --remove blip-server >/dev/null 2>&1
  is inactive "$(systemctl is-active $unit || true)"
  [ ! -e /usr/bin/blip-server ] && [ ! -e /usr/lib/systemd/system/$unit ]
  [ -f $conffile ] && [ -f /var/cache/blip-server/weights ]

  echo "# purge"
  dpkg --purge blip-server >/dev/null 2>&1
  for path in /etc/blip-server /etc/default/blip-server /var/cache/blip-server; do
    [ ! -e $path ] || { echo "$path is left"; exit 1; }
  done
  [ -z "$(find /etc/systemd /usr/share /usr/bin -name '*blip-server*' -not -path '*/info/*')" ]
  getent passwd blip-server >/dev/null
  echo "# all steps passed"
}

finish() {
  local status=$?
  set +e
  if [ $status != 0 ]; then
    systemctl status --no-pager --full blip-server
    journalctl --no-pager --unit blip-server | tail -n 40
  fi
  echo $status >/srv/result
  systemctl poweroff --force --force
}

is() { [ "$1" = "$2" ] || { echo "line ${BASH_LINENO[0]}: expected '$1', found '$2'"; exit 1; }; }
has() { case $2 in *"$1"*) ;; *) echo "line ${BASH_LINENO[0]}: no '$1' in: $2"; exit 1 ;; esac; }
caption() { curl --silent --show-error --max-time 30 --form image=@/srv/two-cats.png "http://127.0.0.1:${1:-8080}/caption"; }
waits_for() {
  local tries=0
  until eval "$1"; do
    tries=$((tries + 1))
    [ $tries -lt 120 ] || { echo "line ${BASH_LINENO[0]}: never true: $1"; exit 1; }
    sleep 0.5
  done
}

case ${1:-} in
  --namespaces) namespaces "$2" "$3" ;;
  --inside) inside ;;
  "") sed -n '2,/^set -e/p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//; /^set -e/d'; exit 2 ;;
  *) outside "$1" ;;
esac
