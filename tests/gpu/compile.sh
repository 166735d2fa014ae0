#!/usr/bin/env bash
# Compiles the GPU kernels for sm_80, sm_90 and sm_120 without a GPU, and prints registers and shared memory of each
# kernel. Fails if a kernel does not compile, spills registers, has arrays in local memory or uses more than 48 KiB of
# shared memory, and if the committed PTX is not what the sources compile to.
#
#   tests/gpu/compile.sh            checks
#   tests/gpu/compile.sh --write    writes src/gpu/kernels/kernels.ptx
#
# Needed: Python 3 with venv, and PyPI the first time (420 MB on disk, kept in BLIP_CUDA_WHEELS, by default a folder below
# ~/.cache). Where the wheels cannot be had, it says "skipped" and succeeds. Takes about 30 s.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The PTX is compiled by an old NVRTC, because a driver accepts the PTX versions of its own time only: CUDA 12.1 writes
# PTX 8.1, for drivers from 530 on. Only CUDA 12.8 and newer know sm_120.
old=12.1.105
new=12.9.86
cache=${BLIP_CUDA_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/blip-cuda-wheels}

# Installs wheels into a virtual environment of their own: two versions of one package do not fit into the same.
install() {
  local folder=$cache/$1
  shift
  if [ ! -e "$folder/complete" ]; then
    rm -rf "$folder"
    python3 -m venv "$folder" && "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" || return
    touch "$folder/complete"
  fi
}

if ! install "$old" "nvidia-cuda-nvrtc-cu12==$old" ||
  ! install "$new" "nvidia-cuda-nvrtc-cu12==$new" "nvidia-cuda-nvcc-cu12==$new"; then
  echo "skipped: no NVRTC and ptxas from PyPI"
  exit 0
fi

# Prints the path of a file of the wheels.
file() {
  echo "$cache/$1"/lib/python3*/site-packages/nvidia/"$2"
}

python3 tests/gpu/compile.py --old-nvrtc "$(file "$old" cuda_nvrtc/lib/libnvrtc.so.12)" \
  --nvrtc "$(file "$new" cuda_nvrtc/lib/libnvrtc.so.12)" --ptxas "$(file "$new" cuda_nvcc/bin/ptxas)" "$@"
