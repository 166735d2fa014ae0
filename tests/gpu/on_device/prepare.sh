#!/usr/bin/env bash
# Fills a folder with everything that on-device.sh needs, on a machine with a network:
#
#   tests/gpu/on-device.sh --prepare DIR --bert DIR --photos DIR [--small] [--with-torch] [--only STEP]... [--python FILE]
#
# --bert holds vocab.txt and tokenizer.json of bert-base-uncased, --photos chelsea.png, coffee.png and rocket.jpg.
# --python is a Python with tests/fixtures/requirements.txt installed, which makes the checkpoint (by default python3).
# Steps: programs, inputs, checkpoint, libraries, wheels (the last one only with --with-torch). --only selects steps.
# Wheels fit the minor version of Python (3.11, 3.12) that downloads them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)

# Only CUDA 12.8 and newer know sm_120. Libraries of CUDA 12 also work with drivers of CUDA 13.
nvrtc=12.9.86
cublas=12.9.1.4

[ $# -ge 1 ] || { echo "--prepare needs a folder" >&2 && exit 2; }
target=$1 && shift
bert='' photos='' python=python3 small='' with_torch=''
steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --small) small=yes && shift && continue ;;
    --with-torch) with_torch=yes && shift && continue ;;
    --bert | --photos | --python | --only) ;;
    *) echo "unknown option $1; see $0" >&2 && exit 2 ;;
  esac
  [ $# -ge 2 ] || { echo "$1 needs a value" >&2 && exit 2; }
  case $1 in
    --bert) bert=$2 ;;
    --photos) photos=$2 ;;
    --python) python=$2 ;;
    --only) steps+=("$2") ;;
  esac
  shift 2
done
if [ ${#steps[@]} -eq 0 ]; then
  steps=(programs inputs)
  [ -n "$small" ] || steps+=(checkpoint libraries)
  [ -z "$with_torch" ] || steps+=(wheels)
fi
mkdir -p "$target"
target=$(cd "$target" && pwd)

# Prints the executable of one target from cargo's messages.
executable() {
  python3 -c '
import json, sys
found = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
found = [m for m in found if m.get("executable") and sys.argv[2] in m["target"]["kind"]]
print(found[0]["executable"])' "$1" "$2"
}

# Copies a program without symbols.
place() {
  cp "$1" "$target/$2"
  strip "$target/$2"
  if [ -n "$small" ]; then xz --force --threads=0 "$target/$2"; fi
}

programs() {
  local messages
  messages=$(mktemp)
  (cd "$root" && cargo build --release --locked)
  place "${CARGO_TARGET_DIR:-$root/target}/release/blip-server" blip-server
  # The load generator needs no optimised build: its pictures are drawn before the clock starts.
  (cd "$root" && cargo test --locked --lib --bench serve --no-run --message-format=json-render-diagnostics) >"$messages"
  place "$(executable "$messages" lib)" tests
  place "$(executable "$messages" bench)" load-generator
  # The tests look for their fixtures in the folder in which they were built.
  echo "$root" >"$target/tests.folder"
  rm "$messages"
}

inputs() {
  mkdir -p "$target/bert" "$target/photos"
  cp "${bert:?--bert is missing}"/{vocab.txt,tokenizer.json} "$target/bert"
  cp "${photos:?--photos is missing}"/{chelsea.png,coffee.png,rocket.jpg} "$target/photos"
}

checkpoint() {
  PYTHONPATH="$root/tests/perf" "$python" -c '
import sys
from pathlib import Path
from perf import checkpoint
checkpoint.make(Path(sys.argv[1]), Path(sys.argv[2]))' "$target/bert" "$target"
}

libraries() {
  local wheels
  wheels=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheels" \
    "nvidia-cuda-nvrtc-cu12==$nvrtc" "nvidia-cublas-cu12==$cublas"
  mkdir -p "$target/libraries"
  python3 -c '
import pathlib, sys, zipfile
for wheel in pathlib.Path(sys.argv[1]).glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            file = name.rpartition("/")[2]
            if file.startswith(("libnvrtc", "libcublasLt")) and "alt" not in file and ".so" in file:
                pathlib.Path(sys.argv[2], file).write_bytes(archive.read(name))' "$wheels" "$target/libraries"
  rm -r "$wheels"
}

wheels() {
  "$python" -m pip download --disable-pip-version-check --only-binary=:all: --dest "$target/wheels" \
    -r "$root/tests/fixtures/requirements.txt"
}

for step in "${steps[@]}"; do
  case $step in
    programs | inputs | checkpoint | libraries | wheels) printf '==> %s\n' "$step" && "$step" ;;
    *) echo "--only: $step is no step; see $0" >&2 && exit 2 ;;
  esac
done
du -sh "$target"/*
