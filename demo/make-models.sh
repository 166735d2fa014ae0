#!/usr/bin/env bash
# Makes the demo models again, from nothing to demo/models and demo/scenes: `demo/make-models.sh WORK`.
# WORK is a folder for the Python environment, the trainer's state and its log; a run that was interrupted goes on there.
# Needs Python 3.11, and Debian's fonts-noto-color-emoji and libjemalloc2 (or the same files elsewhere).
# About two hours on two cores.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:?usage: demo/make-models.sh WORK}
mkdir -p "$work"
work=$(cd "$work" && pwd)

if [ ! -x "$work/venv/bin/python" ]; then
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
fi

# With glibc's allocator a step takes three times as long. A finite decay gives memory back; without one it only grows.
jemalloc=$(ldconfig -p | awk '/libjemalloc\.so\.2/ { print $NF; exit }')
if [ -z "$jemalloc" ]; then
  echo "libjemalloc.so.2 is missing: apt-get install libjemalloc2" >&2
  exit 1
fi
LD_PRELOAD=$jemalloc MALLOC_CONF=dirty_decay_ms:10000,muzzy_decay_ms:10000 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
  "$work/venv/bin/python" "$here/train.py" --work "$work"
"$work/venv/bin/python" "$here/export.py" --work "$work"
"$work/venv/bin/python" "$here/samples.py"
echo "made; now build the server, start it and run demo/evaluate.py and demo/compare.py"
