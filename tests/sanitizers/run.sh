#!/usr/bin/env bash
# Builds the tests with a checker of memory or threads, and runs them. Fails on any report.
#
#   tests/sanitizers/run.sh address          AddressSanitizer and LeakSanitizer: unit and integration tests
#   tests/sanitizers/run.sh address --lib    the same for the unit tests and code of this package only
#   tests/sanitizers/run.sh address --kernels  the same for the CPU kernels only, which hold almost all unsafe code
#   tests/sanitizers/run.sh thread           ThreadSanitizer: the tests that start threads
#   tests/sanitizers/run.sh valgrind         valgrind memcheck: values that were never written, in pure code
#   tests/sanitizers/run.sh miri             Miri: undefined behaviour, in pure code
#
# Each form first runs the defects of `src/kernels/planted.rs` and fails if the checker does not report them. It prints
# what it skips and why, and how many tests passed. `docs/reliability.md` has the results.
#
# Needed: for `address` only rustup's toolchain; for `thread` the component rust-src; for `valgrind` valgrind; for
# `miri` a nightly toolchain (MIRI_TOOLCHAIN, default `nightly`) with the components miri and rust-src.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0

form=${1:-}
parts=(--lib --test it)
case "$*" in
  address | thread) ;;
  valgrind | miri | "address --lib" | "address --kernels") parts=(--lib) ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
rustc=${RUSTC:-rustc}
host=$("$rustc" -vV | sed -n 's/^host: //p')
folder=$(mktemp -d)
log=$folder/log results=$folder/results
trap 'rm -rf "$folder"' EXIT
started=$SECONDS

# Leaves out the tests whose names contain $1, for the reason $2.
skips=()
skip() {
  skips+=(--skip "$1")
  printf '  skipped: %s: %s\n' "$1" "$2"
}

# Builds the tests with the arguments of cargo, and sets `binaries`: the unit tests, then the integration tests.
build() {
  cargo "$@" --locked "${parts[@]}" --no-run 2>&1 | tee "$log"
  mapfile -t binaries < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$log")
  printf '    built in %s s\n' "$((SECONDS - started))"
}

# The same with the sanitizer of this form in all packages. It has a directory of its own, because with other flags
# cargo rebuilds everything. RUSTC_BOOTSTRAP lets a stable compiler accept `-Zsanitizer`. With `--target`, build scripts
# and procedural macros, which run while cargo builds, are not instrumented.
build_sanitized() {
  export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/sanitizers/$form
  RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=$form" build test --target "$host" "$@"
}

# The same with the sanitizer in the unit tests alone, which reuses the packages of the ordinary build. RUSTC_BOOTSTRAP
# would make build scripts run again, so only the call of rustc that has the flag gets it.
build_package_sanitized() {
  printf '#!/bin/sh\ncase " $* " in *" -Zsanitizer="*) export RUSTC_BOOTSTRAP=1 ;; esac\nexec %s "$@"\n' "$rustc" \
    >"$folder/rustc"
  chmod +x "$folder/rustc"
  RUSTC=$folder/rustc cargo rustc --locked --lib --profile test --message-format json-render-diagnostics -- \
    "-Zsanitizer=$form" >"$log"
  mapfile -t binaries < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$log")
  printf '    built in %s s\n' "$((SECONDS - started))"
}

# The same with the sanitizer in the package `tests/sanitizers/kernels` alone.
build_kernels_sanitized() {
  build_sanitized --manifest-path tests/sanitizers/kernels/Cargo.toml
}

# Runs each planted defect whose name begins with $1 in a process of its own. A report with the words $2 must follow.
# The other arguments are a command that runs the test binary.
planted() {
  local prefix=$1 words=$2 test found=0
  shift 2
  while read -r test; do
    if "$@" "${binaries[0]}" --ignored --exact "$test" --nocapture >"$log" 2>&1; then
      grep -q 'not planted' "$log" || { cat "$log"; echo "not found: $test"; return 1; }
      printf '  %s\n' "$(grep -o 'not planted.*' "$log")"
    else
      grep -q "$words" "$log" || { cat "$log"; echo "failed for another reason: $test"; return 1; }
      found=$((found + 1))
    fi
  done < <("${binaries[0]}" --ignored --list kernels::planted | sed -n 's/: test$//p' | grep "::${prefix}_")
  [ "$found" -gt 0 ] || { echo "no planted defect begins with ${prefix}_"; return 1; }
  printf '  planted defects found: %s of the kind "%s"\n' "$found" "$words"
}

# Runs the command, which runs tests, and fails if it fails or if a report is in its output. (Servers that tests start
# fail on a report too, and the tests check how they end.)
run() {
  "$@" "${skips[@]}" 2>&1 | tee "$log"
  if grep -E '(ERROR|WARNING): (Address|Leak|Thread)Sanitizer: [a-z]' "$log"; then exit 1; fi
  grep '^test result:' "$log" >>"$results"
}

# Modules that compute and do nothing else: no sockets, no foreign functions, no mapped files.
pure=(kernels:: input:: fairness:: document:: settings::)

printf '%s: what is left out\n' "$form"
case $form in
  address)
    echo "  not seen: C code (ring), inline assembly, and what a real matrix unit reads and writes"
    skip gpu:: "its kernels run on stacks of their own; tests/gpu/sanitize.sh checks them"
    if [ "${2:-}" = --kernels ]; then
      echo "  skipped: all other code, which is safe or runs in tests/gpu/sanitize.sh: run it without --kernels"
      build_kernels_sanitized
    elif [ "${#parts[@]}" = 1 ]; then
      echo "  skipped: the integration tests and their servers, and code of other packages: run it without --lib"
      build_package_sanitized
    else
      reason="limits the address space, of which AddressSanitizer reserves 16 TiB"
      skip robustness::no_memory "$reason"
      skip torch::a_harmful_checkpoint_is_exit_78_and_takes_no_memory "$reason"
      build_sanitized
    fi
    # Some tests ask for more memory than there is, and expect an error instead of a report.
    export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1
    planted address "AddressSanitizer: heap-buffer-overflow" env
    planted leak "LeakSanitizer: detected memory leaks" env
    for binary in "${binaries[@]}"; do run "$binary"; done
    ;;

  thread)
    if ! [ -e "$("$rustc" --print sysroot)/lib/rustlib/src/rust/library/Cargo.lock" ]; then
      echo "needs the source of the standard library: rustup component add rust-src"
      echo "Without it the library is not instrumented, and every value behind a contended mutex is reported as a race."
      exit 2
    fi
    parts=(--lib)
    skip engine::testing::schedules "its threads are coroutines on one thread, which cannot race"
    skip input:: "starts no threads"
    echo "  skipped: the integration tests, which would need a second build of the same length"
    build_sanitized -Zbuild-std
    # Some tests ask for more memory than there is, and expect an error instead of a report.
    export TSAN_OPTIONS=halt_on_error=1:allocator_may_return_null=1
    planted thread "ThreadSanitizer: data race" env
    run "${binaries[0]}"
    ;;

  valgrind)
    command -v valgrind >/dev/null || { echo "needs valgrind (Debian: apt-get install valgrind)"; exit 2; }
    skip gemm::tests::every_level_and_format_equals_the_slow_twin_on_the_shapes_of_the_models "takes half an hour"
    echo "  not seen: AVX-512 and AMX, which valgrind does not have; the kernels run at the levels portable and avx2"
    build test
    # The helpers of the kernels' pool spin; without fair turns they keep the others waiting.
    memcheck=(valgrind -q --error-exitcode=9 --leak-check=no --fair-sched=yes)
    planted memory "depends on uninitialised value" "${memcheck[@]}"
    run "${memcheck[@]}" "${binaries[0]}" "${pure[@]}"
    ;;

  miri)
    toolchain=${MIRI_TOOLCHAIN:-nightly}
    if ! cargo "+$toolchain" miri --version 2>/dev/null; then
      echo "needs Miri: rustup toolchain install $toolchain --component miri,rust-src"
      exit 2
    fi
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/sanitizers/miri
    reason="hours in an interpreter"
    skip gemm::tests::every_level_and_format_equals_the_slow_twin_on_the_shapes_of_the_models "$reason"
    skip kernels::attention::tests::attention_equals_the_slow_twin_around_the_edges_of_tiles_and_panels "$reason"
    skip kernels::activation::tests::every_activation_is_within "$reason"
    skip kernels::pointwise::tests::erf_and_gelu "$reason"
    skip kernels::limits "measures time"
    echo "  not seen: all levels but the portable one, because Miri reports no other instructions"
    # Modules whose tests read no files, and single tests where a module's name is part of another one's.
    modules=(kernels:: fairness:: document:: settings::tests::values_are_read settings::tests::a_value_that_is_not
      input::text input::error input::settings input::orientation input::flatten input::turn input::image_value
      input::formats::bmp input::formats::gif input::formats::webp input::formats::jpeg::bits
      input::formats::jpeg::source input::formats::jpeg::huffman input::formats::jpeg::lossless
      input::formats::jpeg::frame input::formats::jpeg::scan)
    miri=(cargo "+$toolchain" miri test --locked --lib --)
    for defect in memory_never_written thread_two_parts_write_one_value portable::address_load; do
      if "${miri[@]}" --ignored --exact "kernels::planted::$defect" >"$log" 2>&1; then
        echo "not found: $defect"; exit 1
      fi
      grep -q 'Undefined Behavior' "$log" || { cat "$log"; exit 1; }
    done
    echo "  planted defects found: 3"
    run "${miri[@]}" "${modules[@]}"
    ;;
esac
awk -v seconds="$((SECONDS - started))" -v form="$form" '
  { passed += $4; failed += $6 }
  END { printf "%s: %d tests passed, %d failed, nothing reported, %d s\n", form, passed, failed, seconds
        exit !passed || failed }' "$results"
