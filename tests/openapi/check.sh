#!/usr/bin/env bash
# Checks that openapi.yaml is valid and that parsers of YAML 1.1 read the same document. It uses openapi-spec-validator,
# PyYAML and redocly, installed into a temporary folder from PyPI and npm. A check whose tools cannot be installed is
# skipped with a message, and the script still succeeds.
#
#   tests/openapi/check.sh target/debug/blip-server
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
server=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

if python3 -m venv "$folder/python" >/dev/null 2>&1 &&
  "$folder/python/bin/pip" install -q openapi-spec-validator==0.9.0 pyyaml==6.0.4 >/dev/null 2>&1; then
  "$server" openapi --json >"$folder/plain.json"
  "$server" openapi --strict >"$folder/strict.json"
  "$folder/python/bin/python" - "$folder" <<'PYTHON'
import json
import sys

import yaml
from openapi_spec_validator import validate

plain, strict = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("plain", "strict"))
validate(plain)
validate(strict)
assert yaml.safe_load(open("openapi.yaml")) == plain, "YAML 1.1 reads something else"
print("openapi-spec-validator: both documents are valid; YAML 1.1 reads the same")
PYTHON
else
  echo "skipped: openapi-spec-validator cannot be installed (PyPI)"
fi

if command -v npm >/dev/null && npm install --silent --prefix "$folder" @redocly/cli@2.77.0 >/dev/null 2>&1; then
  "$folder/node_modules/.bin/redocly" lint openapi.yaml >"$folder/redocly.log" 2>&1 || { cat "$folder/redocly.log"; exit 1; }
  echo "redocly: no errors"
else
  echo "skipped: redocly cannot be installed (npm)"
fi
