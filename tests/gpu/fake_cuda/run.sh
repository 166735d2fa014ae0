#!/usr/bin/env bash
# Tests src/gpu/cuda with stand-ins for the CUDA driver and cuBLASLt, on a machine without a GPU: every call that the
# server makes, its types, the lifetimes of all objects, uploads, captures and products. It cannot test the kernels.
# Needs a C compiler that knows _Float16 (gcc 12 or clang 15). Further arguments go to the tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

libraries=$(mktemp -d)
trap 'rm -rf "$libraries"' EXIT
source=tests/gpu/fake_cuda
flags=(-O1 -g -Wall -Wno-unused-parameter -fPIC -shared)
cc "${flags[@]}" -Wl,-soname,libcuda.so.1 -o "$libraries/libcuda.so.1" "$source/driver.c"
# $ORIGIN is for the linker.
# shellcheck disable=SC2016
cc "${flags[@]}" -Wl,-soname,libcublasLt.so.12 -Wl,-rpath,'$ORIGIN' -o "$libraries/libcublasLt.so.12" \
  "$source/cublas_lt.c" -L "$libraries" -l:libcuda.so.1

# A driver without cuBLASLt.
mkdir "$libraries/driver"
ln -s ../libcuda.so.1 "$libraries/driver/"
LD_LIBRARY_PATH="$libraries/driver" cargo test --locked --lib gpu::cuda::on_device::usable_devices -- --nocapture |
  grep 'found no libcublasLt'

# One thread: the queues of the stand-ins have no locks.
LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
  cargo test --locked --lib gpu::cuda -- --test-threads 1 "$@"
