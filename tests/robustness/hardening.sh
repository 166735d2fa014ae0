#!/usr/bin/env bash
# Runs a binary as docker-compose.yml would, without a container engine, and asks it everything: uid 65532 without groups
# and capabilities, no new privileges, a read-only root, a /tmp of its own that is the only place to write, no network but
# the loopback.
#
#   tests/robustness/hardening.sh target/release/blip-server
#
# Needs root, unshare and setpriv (util-linux), curl and python3 (which writes down the answers' statuses).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# The second half, inside the namespaces.
inside() {
  local binary=$1
  ip link set lo up
  # Out of the way of the new /tmp, wherever they lie.
  mount --bind "$root" /mnt
  mount --bind "$(dirname "$binary")" /media
  mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev,noexec tmpfs /tmp
  # Everything else is read-only, whatever it was mounted as.
  awk '{print $5}' /proc/self/mountinfo | sort -u | while read -r point; do
    case $point in /tmp | /proc | /proc/*) continue ;; esac
    mount -o remount,bind,ro "$(printf '%b' "$point")" 2>/dev/null || true
  done
  # Paths of devices are no files; the rest of the root has to refuse.
  for folder in / /usr /etc /var /root /var/tmp /home; do
    if [ -d "$folder" ] && touch "$folder/.written" 2>/dev/null; then
      echo "$folder can be written, the test means nothing"; exit 1
    fi
  done
  exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    env -i PATH=/usr/bin:/bin HOME=/nonexistent TMPDIR=/tmp LC_ALL=C.UTF-8 \
    bash /mnt/tests/robustness/hardening.sh --drive "/media/$(basename "$binary")"
}

# The third, as the user without rights.
drive() {
  local binary=$1 failed=0
  cd /
  grep -E '^(Uid|Gid|Groups|CapEff|CapBnd|CapPrm|NoNewPrivs)' /proc/self/status | tr '\t\n' ' ;'; echo
  [ "$(awk '/^CapEff|^CapBnd/ {print $2}' /proc/self/status | sort -u)" = 0000000000000000 ] || { echo "capabilities are left"; exit 1; }
  "$binary" --config "$root/config/docker.toml" --listen 127.0.0.1:18765 >/tmp/log 2>&1 &
  local server=$!
  # The image's HEALTHCHECK, until it says yes.
  local tries=0
  until "$binary" healthcheck --url http://127.0.0.1:18765/health/ready 2>/dev/null; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ] || ! kill -0 $server 2>/dev/null; then cat /tmp/log; exit 1; fi
    sleep 0.1
  done
  ask() {
    local want=$1 path=$2 got; shift 2
    got=$(curl -s -o /tmp/answer -w '%{http_code}' "$@" "http://127.0.0.1:18765$path")
    if [ "$got" = "$want" ]; then echo "  $got $path"; else echo "  $got $path, not $want: $(head -c 300 /tmp/answer)"; failed=1; fi
  }
  local image="$root/demo/scenes/two-cats.png"
  for path in /health /health/live /health/ready /info /metrics /openapi.json /openapi.yaml /openapi-strict.json /docs/; do ask 200 $path; done
  ask 307 /
  ask 200 /caption -F image=@"$image"
  ask 200 /caption -F image=@"$image" -F stream=true -N
  ask 200 /caption --data-binary @"$image" -H 'content-type: image/png'
  ask 200 /caption/batch -F image=@"$image" -F image=@"$image"
  ask 200 /vqa -F image=@"$image" -F question='how many cats are there?'
  ask 200 /vqa/batch -F image=@"$image" -F question='how many cats are there?'
  ask 200 /similarity -F image=@"$image" -F text='two cats'
  ask 200 /similarity/batch -F image=@"$image" -F text='two cats'
  ask 200 /embeddings -F image=@"$image"
  ask 200 /embeddings/batch -F image=@"$image"
  ask 200 /embeddings -H 'content-type: application/json' -d '{"text": "two cats"}'
  ask 415 /caption --data-binary '<svg/>' -H 'content-type: image/svg+xml'
  ask 404 /nothing
  local descriptors threads written
  descriptors=$(find /proc/$server/fd -maxdepth 1 -type l | wc -l)
  threads=$(awk '/^Threads/ {print $2}' /proc/$server/status)
  written=$(find /tmp -mindepth 1 -user 65532 ! -name log ! -name answer | wc -l)
  echo "  descriptors $descriptors, threads $threads, files that it wrote $written"
  [ "$written" = 0 ] || failed=1
  kill -TERM $server
  local status=0
  wait $server || status=$?
  echo "  exit status after SIGTERM: $status"
  [ $status = 0 ] && [ $failed = 0 ]
}

case ${1:-} in
  --inside) inside "$2" ;;
  --drive) drive "$2" ;;
  "") echo "usage: $0 BINARY"; exit 2 ;;
  *) exec unshare --mount --net --propagation private bash "$0" --inside "$(realpath "$1")" ;;
esac
