#!/usr/bin/env bash
# Runs the GPU kernels on the CPU with AddressSanitizer and UndefinedBehaviorSanitizer, over edge shapes and in three
# orders of the GPU's threads. Fails on any report, and if two planted defects are not reported.
#
#   tests/gpu/sanitize.sh
#
# Needed: a C++ compiler with the sanitizers (CXX, or c++). Takes about a minute on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
compiler=${CXX:-c++}
if ! command -v "$compiler" >/dev/null; then
  echo "skipped: no C++ compiler"
  exit 0
fi

kernels=src/gpu/kernels
{
  cat "$kernels/prelude/host.hpp"
  # The list of the kernels, in their order, is in source.rs.
  sed -n 's/.*include_str!("\(.*\.cu\)").*/\1/p' "$kernels/source.rs" | while read -r name; do cat "$kernels/$name"; done
  cat src/gpu/host/defects.cu tests/gpu/sanitize.cpp
} >"$folder/sanitize.cpp"
"$compiler" -O1 -g -std=c++17 -ffp-contract=off -fno-strict-aliasing -fno-omit-frame-pointer \
  -fsanitize=address,undefined -fno-sanitize-recover=all -o "$folder/sanitize" "$folder/sanitize.cpp"

export ASAN_OPTIONS=detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1
for defect in overrun shared; do
  if "$folder/sanitize" "$defect" >"$folder/log" 2>&1; then
    echo "FAILED: the planted defect '$defect' was not reported"
    exit 1
  fi
  grep -q 'ERROR: AddressSanitizer\|runtime error' "$folder/log" || { cat "$folder/log"; exit 1; }
done
"$folder/sanitize"
