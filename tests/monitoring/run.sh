#!/usr/bin/env bash
# Runs real Prometheus and Alertmanager with deploy/prometheus.yml, deploy/alerts.yml and deploy/alertmanager.yml against
# real servers (the demo models, and mock models under overload), and checks that
#
# - every endpoint of openapi.yaml is called, and every query of every panel of deploy/grafana.json then returns data;
# - every rule of deploy/alerts.yml is evaluated without an error and finds the series that it is about;
# - alerts fire, reach a webhook by the receiver of their severity, and are resolved when the cause is gone;
# - `promtool check metrics` finds nothing in /metrics.
#
#   tests/monitoring/run.sh target/release/blip-server                      # about two and a half minutes
#   tests/monitoring/run.sh target/release/blip-server --short              # without the alerts that take a minute to resolve
#   tests/monitoring/run.sh target/release/blip-server --sheet sheet.png    # also draws all panels into one picture
#
# Changed in the copies that the test uses: addresses, the scrape and evaluation intervals (a second), for the alerts all
# durations (a minute becomes a second) and two constants (the memory limit and the latency objective), for the
# Alertmanager its waits and the webhooks. render.py makes these changes and checks that they change nothing else.
#
# Prometheus and Alertmanager are packages of Debian, PyYAML and (for the picture) matplotlib come from PyPI. The test is
# skipped with a message if they cannot be installed.
set -euo pipefail
binary=$(realpath "$1")
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Installs a package of Debian if its program is missing. The services of the packages are not started.
has() {
  command -v "$1" >/dev/null ||
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=120 install -y -q --no-install-recommends "$2" >/dev/null 2>&1; }
}
if ! has prometheus prometheus || ! has prometheus-alertmanager prometheus-alertmanager; then
  echo "skipped: Prometheus and Alertmanager are not installed (Debian: apt-get install prometheus prometheus-alertmanager)"
  exit 0
fi
python=python3
packages=("PyYAML==6.0.2")
[[ " $* " != *" --sheet "* ]] || packages+=("matplotlib==3.10.0")
# Without the picture, the Python that is there will do if it has PyYAML.
if [ ${#packages[@]} -gt 1 ] || ! python3 -c 'import yaml' 2>/dev/null; then
  python=$folder/bin/python
  if ! python3 -m venv "$folder" >/dev/null 2>&1 || ! "$python" -m pip install -q "${packages[@]}" >/dev/null 2>&1; then
    echo "skipped: ${packages[*]} cannot be installed (PyPI)"
    exit 0
  fi
fi
"$python" -u "$here/check.py" "$binary" "$@"
