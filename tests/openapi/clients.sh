#!/usr/bin/env bash
# Checks that programs can use the OpenAPI document. Four client generators read it from a running server; the generated
# clients are compiled and call every operation. A browser uploads an image with "Try it out" in every operation of
# /docs. The tools come from PyPI and npm, Chromium from Debian. Checks whose tools cannot be installed are skipped with
# a message.
#
#   tests/openapi/clients.sh target/debug/blip-server
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
binary=$1
picture=$PWD/demo/scenes/two-cats.png
folder=$(mktemp -d)
trap 'kill "${server_pid:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
cp -r tests/openapi/clients/. "$folder"
cp tests/openapi/swagger.mjs "$folder"

"$binary" --listen 127.0.0.1:0 --log-format json >"$folder/server.log" 2>&1 &
server_pid=$!
server=
for _ in $(seq 600); do
  server=$(sed -n 's/.*"server.url":"\([^"]*\)".*/\1/p' "$folder/server.log" | head -1)
  [ -n "$server" ] && break
  kill -0 "$server_pid" || { cat "$folder/server.log"; exit 1; }
  sleep 0.1
done
curl -sf --retry 600 --retry-delay 1 --retry-all-errors "$server/health/ready" >/dev/null
cd "$folder"
curl -sf "$server/openapi.json" >openapi.json

# Runs a generator. Fails and shows its output if it fails, or if a line of its output matches the pattern.
generate() {
  local unwanted=$1
  shift
  "$@" >generator.log 2>&1 && ! grep -Eq "$unwanted" generator.log || { cat generator.log; exit 1; }
}

if python3 -m venv python >/dev/null 2>&1 && python/bin/pip install -q -r requirements.txt >/dev/null 2>&1; then
  # The generator leaves out only the YAML response; it still generates the call.
  generate 'skipping|Unable to (parse|process)|ERROR' \
    env PATH="$PWD/python/bin:$PATH" openapi-python-client generate --url "$server/openapi.json" --output-path generated_python_client
  PYTHONPATH=generated_python_client python/bin/python generated_python.py "$server" "$picture" openapi.json

  generate 'ERROR' python/bin/openapi-generator-cli generate -g python -i "$server/openapi.json" -o openapi_generator_python
  python/bin/pip install -q ./openapi_generator_python >/dev/null 2>&1
  python/bin/python openapi_generator_python.py "$server" "$picture" openapi.json
  # Without skipFormModel=false the generator imports the types of forms but does not generate them.
  generate 'ERROR' python/bin/openapi-generator-cli generate -g typescript-fetch -i "$server/openapi.json" -o openapi_generator \
    --global-property=skipFormModel=false --additional-properties=importFileExtension=.js
else
  echo "skipped: openapi-python-client and openapi-generator cannot be installed (PyPI)"
  rm openapi_generator.ts
fi

if ! command -v npm >/dev/null || ! npm install --silent >/dev/null 2>&1; then
  echo "skipped: openapi-typescript, @hey-api/openapi-ts and playwright-core cannot be installed (npm)"
  exit 0
fi
PATH="$PWD/node_modules/.bin:$PATH"
generate 'WARN|ERROR' openapi-typescript "$server/openapi.json" -o schema.ts
generate 'WARN|ERROR' openapi-ts -i "$server/openapi.json" -o hey_api -p @hey-api/client-fetch @hey-api/sdk @hey-api/typescript
tsc
for client in openapi_typescript hey_api openapi_generator; do
  [ ! -f "$client.ts" ] || node "built/$client.js" "$server" "$picture" openapi.json
done

if [ -x "${CHROMIUM:-/usr/bin/chromium}" ] ||
  { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -y -q chromium >/dev/null 2>&1; }; then
  node swagger.mjs "$server" "$picture"
else
  echo "skipped: Swagger in a browser, there is no Chromium (Debian: apt-get install chromium)"
fi
