#!/usr/bin/env bash
# Checks distributed tracing with the official OpenTelemetry packages for Python: an instrumented client (opentelemetry-sdk,
# the instrumentation of requests) and the server send their spans to the same collector, which reads them with
# opentelemetry-proto. Each trace must join the client's spans and the server's. Prints the traces as trees.
# The collector is that of `collector.py`: it takes OTLP over HTTP, as the OpenTelemetry Collector does, but stores nothing.
# Skipped with a message where PyPI cannot be reached.
#
#   tests/tracing/run.sh target/debug/blip-server
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
binary=$(realpath "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

if ! python3 -m venv "$folder/python" ||
  ! "$folder/python/bin/pip" install -q -r tests/tracing/requirements.txt >"$folder/pip.log" 2>&1; then
  printf 'tests/tracing: skipped, the packages of OpenTelemetry cannot be installed: %s\n' \
    "$(tail -n 1 "$folder/pip.log" 2>/dev/null || echo 'no python3-venv')"
  exit 0
fi
"$folder/python/bin/python" tests/tracing/check.py "$binary"
