#!/usr/bin/env bash
# Checks deploy/blip-server.service without starting it: systemd reads it without a warning, its sandbox scores as well as
# it did, and its times and limits fit the default settings.
#
#   tests/deploy/unit.sh
#
# Needs systemd-analyze (Debian package systemd); without it only the values are compared. tests/deploy/package.sh starts
# the unit under a systemd of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
unit=deploy/blip-server.service
# Exposure in tenths, from 0 (none) to 100, as systemd 252 computes it. What remains is the network, the service's own
# sockets, /proc/meminfo, and the system calls for thread priorities.
threshold=15

value() { sed -n "s/^$1=\([0-9]*\).*/\1/p" $unit; }
setting() { sed -n "s/^#$1 = \([0-9]*\)$/\1/p" config/default.toml; }
at_least() { [ "$2" -ge "$3" ] || { echo "$1: $2 is less than $3"; exit 1; }; }
# The drain, two seconds for the last work unit, three for the last responses (src/app/service_manager.rs).
at_least TimeoutStopSec "$(value TimeoutStopSec)" \
  $((($(setting drain_delay_ms) + $(setting drain_timeout_ms)) / 1000 + 5))
# Twice the connections, and files and fetches (src/app/descriptors.rs).
at_least LimitNOFILE "$(value LimitNOFILE)" $(($(setting max_connections) * 2 + 512))
grep -q '^RestartPreventExitStatus=2 78$' $unit
echo "deploy/blip-server.service: times and limits fit the default settings"

if ! command -v systemd-analyze >/dev/null; then
  echo "skipped: systemd-analyze is not installed"
  exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# `verify` wants the binary to exist.
sed 's|^ExecStart=/usr/bin/blip-server|ExecStart=/bin/true|' $unit >"$folder/blip-server.service"
warnings=$(systemd-analyze verify --man=no "$folder/blip-server.service" 2>&1) || { echo "$warnings"; exit 1; }
[ -z "$warnings" ] || { echo "$warnings"; exit 1; }
systemd-analyze security --offline=true --no-pager --threshold=$threshold "$folder/blip-server.service" | tail -n 1
