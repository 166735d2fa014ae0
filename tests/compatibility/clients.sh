#!/usr/bin/env bash
# Checks the routes of other APIs with their own client libraries: OpenAI (Python, Node), LangChain, Hugging Face (Python,
# Node), Ollama (Python) and the Model Context Protocol (Python). The scripts call a running server with the demo models, and compare its answers about a demo
# scene. They also check that a library's exception contains the text of the server. `snippets.py` runs the programs in
# docs/clients.md and docs/search.md in the same way. `tests/perf/bulk.py` sends lines to /bulk by plain `requests`, with interactive calls
# beside them and a SIGTERM in the middle. The libraries come from PyPI and npm, Go and Chromium from Debian. Checks whose
# libraries cannot be installed are skipped with a message.
#
#   tests/compatibility/clients.sh target/debug/blip-server
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
binary=$(realpath "$1")
picture=$PWD/demo/scenes/two-cats.png
folder=$(mktemp -d)
trap 'kill "${server_pid:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
cp tests/compatibility/*.{py,mjs,json,txt} tests/perf/bulk.py "$folder"

# The page in docs/clients.md is served at this origin.
ORIGIN=http://localhost:$(python3 -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
export ORIGIN
export BLIP_SERVER=$binary
BLIP__SERVER__CORS_ALLOWED_ORIGINS=$ORIGIN BLIP__MCP__ENABLED=true "$binary" --listen 127.0.0.1:0 --log-format json >"$folder/server.log" 2>&1 &
server_pid=$!
server=
for _ in $(seq 600); do
  server=$(sed -n 's/.*"server.url":"\([^"]*\)".*/\1/p' "$folder/server.log" | head -1)
  [ -n "$server" ] && break
  kill -0 "$server_pid" || { cat "$folder/server.log"; exit 1; }
  sleep 0.1
done
[ -n "$server" ] || { echo "the server has not started within a minute"; cat "$folder/server.log"; exit 1; }
curl -sf --retry 600 --retry-delay 1 --retry-all-errors "$server/health/ready" >/dev/null
cd "$folder"

# A script that fails does not keep the others from running.
failed=
check() {
  "$@" "$server" "$picture" || failed+=" $(basename "$2")"
}

python=
if python3 -m venv python >/dev/null 2>&1 && python/bin/pip install -q -r requirements.txt >/dev/null 2>&1; then
  python=python/bin/python
  for script in openai huggingface ollama langchain mcp; do
    check "$python" "${script}_python.py"
  done
else
  echo "skipped: the Python libraries and the programs of the documents cannot be checked (PyPI)"
fi

if command -v npm >/dev/null && npm install --silent >/dev/null 2>&1; then
  check node clients.mjs
else
  echo "skipped: openai and @huggingface/inference cannot be installed (npm)"
fi

# Installs a package of Debian if its program is missing.
has() {
  command -v "$1" >/dev/null ||
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -o DPkg::Lock::Timeout=120 install -y -q "$2" >/dev/null 2>&1; }
}
has go golang-go || true
has "${CHROMIUM:-/usr/bin/chromium}" chromium || true

# The programs in docs/clients.md and docs/search.md. It comes after npm, as it uses the packages in node_modules.
[ -z "$python" ] || check "$python" snippets.py

# A tenth of the lines that docs/performance.md reports on.
[ -z "$python" ] || "$python" bulk.py "$binary" --lines 2000 || failed+=" bulk.py"

[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
