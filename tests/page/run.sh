#!/usr/bin/env bash
# Checks the pages for people: types (tsc), and the pages in Chromium by mouse, by keyboard and on a phone (page.mjs). npm
# provides playwright-core, axe-core and TypeScript, Debian the browser. What cannot be installed is skipped with a message.
#
#   tests/page/run.sh target/debug/blip-server [FOLDER_FOR_SCREENSHOTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
binary=$(realpath "$1")
screenshots=${2:+$(realpath "$2")}
root=$PWD
KEY=key-of-the-page-check
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
cp tests/page/{package.json,page.mjs} "$folder"

if ! command -v npm >/dev/null || ! (cd "$folder" && npm install --silent >/dev/null 2>&1); then
  echo "skipped: the pages are not checked, because npm cannot install playwright-core"
  exit 0
fi
sed "s#\.\./\.\./src#$root/src#" tests/page/tsconfig.json >"$folder/tsconfig.json"
"$folder/node_modules/.bin/tsc" -p "$folder/tsconfig.json"
echo "ok types"

CHROMIUM=${CHROMIUM:-/usr/bin/chromium}
export CHROMIUM
if ! command -v "$CHROMIUM" >/dev/null &&
  ! { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -o DPkg::Lock::Timeout=120 install -y -q chromium >/dev/null 2>&1; }; then
  echo "skipped: the pages are not used in a browser, because chromium is not installed (Debian: apt-get install chromium)"
  exit 0
fi

# Starts a server with these settings. Sets `url`.
start() {
  local log=$folder/$1.log
  env "${@:2}" "$binary" --listen 127.0.0.1:0 --log-format json >"$log" 2>&1 &
  local pid=$!
  for _ in $(seq 600); do
    url=$(sed -n 's/.*"server.url":"\([^"]*\)".*/\1/p' "$log" | head -1)
    [ -n "$url" ] && break
    kill -0 "$pid" || { cat "$log"; exit 1; }
    sleep 0.1
  done
  curl -sf --retry 600 --retry-delay 1 --retry-all-errors "$url/health/ready" >/dev/null
}
start open
open_url=$url
start with-keys "BLIP__AUTH__KEYS=page:$KEY"
(cd "$folder" && node page.mjs "$open_url" "$url" "$KEY" "$root/demo/scenes" ${screenshots:+"$screenshots"})
