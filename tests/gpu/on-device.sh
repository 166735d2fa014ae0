#!/usr/bin/env bash
# Checks and measures everything on a machine with an NVIDIA GPU, and prints one table at the end.
#
#   tests/gpu/on-device.sh --prepare DIR --bert DIR --photos DIR [--small] [--with-torch]   on a machine with a network
#   tests/gpu/on-device.sh --work DIR [--part NAME]...                                      on the machine with the GPU
#
# The machine with the GPU needs: Linux on x86-64, a glibc at least as new as that of the machine that prepared, bash,
# Python 3.11 or newer, a driver for CUDA 12.0 or newer (525 or newer), a GPU of compute capability 8.0 or newer, and this
# repository. It needs no network, no Rust and no CUDA toolkit; only the part peers-compiled needs a C compiler.
# DIR carries (sizes as of this writing):
#   blip-server, load-generator, tests   the server, tests/perf/serve.rs and the unit tests (57, 10 and 91 MB)
#   base-caption-varied/                 a base-size checkpoint with random weights (0.9 GB)
#   bert/, photos/                       what makes it, and what the peers caption (1.5 MB)
#   libraries/                           NVRTC and cuBLASLt of CUDA 12 (0.9 GB), used where the host has none
#   wheels/                              with --with-torch: PyTorch with its CUDA libraries, transformers (3 GB, estimated)
# --small compresses the programs (the server to 25 MB, the tests to 29 MB), and leaves out the checkpoint (Python with
# torch and transformers makes it again, in 12 s on two cores) and the libraries (those of a CUDA toolkit, or of the
# packages of PyTorch, are used). Wheels and libraries are not needed if Python there has PyTorch with CUDA.
#
# Parts, in this order:
#   machine         the GPU, the driver, and which libraries are found
#   parity          Rust tests on the GPU: the device, and the models against transformers in f32, bf16 and f16
#   bench           blip-server bench: vision, caption and caption-known of 1, 8 and 64 items, in bf16 and f32
#   http            blip-server over HTTP: captions of distinct JPEGs for 1, 16, 64 and 256 clients, 20 s each
#   peers           PyTorch (as shipped; with fused attention) and blip-server bench in turns
#   peers-compiled  PyTorch compiled with max-autotune and CUDA graphs, and blip-server bench in turns
#   sanitizer       compute-sanitizer (memcheck, racecheck) on a few tests
# A part takes at most --limit seconds (480). A part that lacks something says "skipped: ..."; a part that fails does not
# stop the others. The exit code is 1 if a part failed. --part may be repeated; the table also shows what earlier runs
# with the same results folder found.
#
# Other options: --results DIR (by default WORK/results), --python FILE (by default WORK/venv/bin/python, made from
# wheels/, or python3), --server FILE (by default WORK/blip-server, or that of target/release), --batches 1,8,64,
# --clients 1,16,64,256, --window SECONDS of a load, --rounds N of the peers. --device cpu tries this script itself on
# a machine without a GPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [ "${1-}" = --prepare ]; then
  shift
  exec "$root/tests/gpu/on_device/prepare.sh" "$@"
fi

all=(machine parity bench http peers peers-compiled sanitizer)
parts=()
work=$root/target/on-device results='' python='' limit=480
options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit ;;
    --part | --work | --results | --python | --limit | --server | --batches | --clients | --window | --rounds | --device) ;;
    *) echo "unknown option $1; see --help" >&2 && exit 2 ;;
  esac
  [ $# -ge 2 ] || { echo "$1 needs a value" >&2 && exit 2; }
  case $1 in
    --part)
      [[ " ${all[*]} " == *" $2 "* ]] || { echo "--part: $2 is not one of ${all[*]}" >&2 && exit 2; }
      parts+=("$2")
      ;;
    --work) work=$2 ;;
    --results) results=$2 ;;
    --python) python=$2 ;;
    --limit) limit=$2 ;;
    *) options+=("$1" "$2") ;;
  esac
  shift 2
done
[ ${#parts[@]} -gt 0 ] || parts=("${all[@]}")
mkdir -p "$work"
work=$(cd "$work" && pwd)
mkdir -p "${results:=$work/results}"
results=$(cd "$results" && pwd)

if [ -z "$python" ]; then
  if [ -d "$work/wheels" ] && [ ! -e "$work/venv/complete" ]; then
    echo "==> installing PyTorch from $work/wheels"
    if python3 -m venv "$work/venv" && "$work/venv/bin/python" -m pip install --quiet --no-index --no-compile \
      --disable-pip-version-check --find-links "$work/wheels" torch torchvision transformers pillow numpy; then
      touch "$work/venv/complete"
    fi
  fi
  if [ -e "$work/venv/complete" ]; then python=$work/venv/bin/python; else python=python3; fi
fi

export PYTHONPATH="$root/tests/gpu:$root/tests/perf" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
failed=()
for part in "${parts[@]}"; do
  printf '\n==> %s\n' "$part"
  started=$SECONDS status=0
  rm -f "$results/$part.json"
  timeout --kill-after=30 "$limit" "$python" -m "on_device.${part//-/_}" \
    --work "$work" --results "$results" ${options[@]+"${options[@]}"} || status=$?
  printf '    %s s\n' "$((SECONDS - started))"
  # 77: skipped.
  case $status in 0 | 77) ;; *) failed+=("$part") ;; esac
done

printf '\n==> results\n'
"$python" -m on_device.table --results "$results" --ran "$(IFS=,; echo "${parts[*]}")"
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
