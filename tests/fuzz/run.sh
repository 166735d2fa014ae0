#!/usr/bin/env bash
# Builds the fuzzing programs, runs them with libFuzzer, and prints a table of the runs. Needs a nightly toolchain of
# Rust, a C++ compiler (for libFuzzer), and Python for seeds and for --merge.
#
#   tests/fuzz/run.sh                           each target for ten minutes, two at a time
#   tests/fuzz/run.sh --seconds 60 pickle json  these targets, each for a minute
#   tests/fuzz/run.sh --timeout 60              for a machine whose cores do other work: one input may take a minute
#   tests/fuzz/run.sh --replay                  each kept input once, without mutations
#   tests/fuzz/run.sh --merge [TARGET...]       stores a small selection of what runs have found in tests/fuzz/corpus
#
# A target stops at its first finding: a panic, an error of AddressSanitizer, a leak, an input that takes more than five
# seconds by the clock, or memory beyond the limit. The script then prints the input in base64 and exits with 1. To repeat it:
#   base64 -d >input; target/fuzz/x86_64-unknown-linux-gnu/release/TARGET input
# After the fix, store the input as tests/fuzz/corpus/TARGET/found-WHAT; --merge never drops such files.
#
# The flags are those of cargo-fuzz, which works with these programs as well (`cargo +nightly fuzz run --fuzz-dir
# tests/fuzz TARGET`), except that `--cfg fuzzing` is not set: with it, png and fdeflate skip checksums, and would not be
# the code that serves. The program for PNG writes correct checksums instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=tests/fuzz
seconds=600 timeout=5 jobs=2 action=run targets=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=$2; shift ;;
    --timeout) timeout=$2; shift ;;
    --jobs) jobs=$2; shift ;;
    --merge) action=merge ;;
    --replay) action=replay ;;
    -*) sed -n '2,/^set/s/^# \?//p' "$0" | sed '$d'; exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(basename -s .rs "$folder"/bin/*.rs)

host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/fuzz} CARGO_INCREMENTAL=0
work=$CARGO_TARGET_DIR/work programs=$CARGO_TARGET_DIR/$host/release
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-sanitizer-coverage-stack-depth \
-Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Zsanitizer=address -Cdebug-assertions -Ccodegen-units=1"
# Freed memory is kept back for a while, to detect its use. The default of 256 MiB would exceed the limits below.
export ASAN_OPTIONS=quarantine_size_mb=16

# Prints the limits of a target: resident memory and a single allocation in MiB, and the size of an input in bytes.
limits() {
  case $1 in
    pickle | h5) echo 256 64 65536 ;;
    checkpoint) echo 256 64 262144 ;;
    decode_*) echo 1024 1024 1048576 ;;
    prompt) echo 1024 1024 20000 ;;
    image_value | query) echo 1024 1024 8192 ;;
    *) echo 1024 1024 65536 ;;
  esac
}

# Runs a program of a target with its limits: `fuzz TARGET ARGUMENT...`.
fuzz() {
  local target=$1 memory allocation length
  read -r memory allocation length < <(limits "$target")
  shift
  mkdir -p "$work/corpus/$target" "$work/found/$target"
  nice -n 19 "$programs/$target" -artifact_prefix="$work/found/$target/" -timeout="$timeout" -rss_limit_mb="$memory" \
    -malloc_limit_mb="$allocation" -max_len="$length" -print_final_stats=1 -verbosity=1 "$@"
}

run() {
  local target=$1 words=$work/$1.dict sources=("$folder/dictionaries/$1.dict")
  [ "$target" != decode_claims ] || sources=("$folder"/dictionaries/decode_*.dict)
  cat "${sources[@]}" >"$words"
  fuzz "$target" -dict="$words" -max_total_time="$seconds" "$work/corpus/$target" "$folder/corpus/$target" \
    "$work/seeds/$target" >"$work/$target.log" 2>&1 || true
}

replay() {
  fuzz "$1" -runs=0 "$folder/corpus/$1" >"$work/$1.log" 2>&1 || true
}

merge() {
  local target=$1
  rm -f "$work/$target.merge"
  fuzz "$target" -merge=1 -merge_control_file="$work/$target.merge" "$work/merged/$target" "$folder/corpus/$target" \
    "$work/corpus/$target" "$work/seeds/$target" >"$work/$target.merge.log" 2>&1
  python3 "$folder/corpus.py" select "$work/$target.merge" "$folder/corpus/$target"
}

# Prints a line of the table, from the log of a target.
summary() {
  local log=$work/$1.log last seen
  statistic() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
  last=$(grep -o 'cov: .*' "$log" | tail -1) || true
  seen=$(sed -n 's/.* in \([0-9]*\) second(s)$/\1/p' "$log" | tail -1)
  printf '%-14s %11s %8s %7s %8s %9s %7s %7s %9s\n' "$1" "$(statistic number_of_executed_units)" \
    "$(statistic average_exec_per_sec)" "$(sed -n 's/^cov: \([0-9]*\).*/\1/p' <<<"$last")" \
    "$(sed -n 's/.* ft: \([0-9]*\).*/\1/p' <<<"$last")" "$(find "$work/corpus/$1" -type f | wc -l)" \
    "$(statistic peak_rss_mb)" "${seen:--}" "$(find "$work/found/$1" -type f | wc -l)"
}

cargo +nightly build --release --target "$host" --manifest-path "$folder/Cargo.toml" "${targets[@]/#/--bin=}"
mkdir -p "$work"
python3 "$folder/corpus.py" seeds "$work/seeds"
if [ "$action" = merge ]; then
  for target in "${targets[@]}"; do
    mkdir -p "$work/merged/$target"
    merge "$target"
    rm -rf "$work/merged/$target"
  done
  exit
fi
running=0
for target in "${targets[@]}"; do
  mkdir -p "$work/seeds/$target"
  rm -rf "$work/found/$target"
  if [ "$running" -ge "$jobs" ]; then
    wait -n
    running=$((running - 1))
  fi
  if [ "$action" = replay ]; then replay "$target" & else run "$target" & fi
  running=$((running + 1))
done
wait
printf '%-14s %11s %8s %7s %8s %9s %7s %7s %9s\n' target executions exec/s edges features inputs 'RSS MiB' seconds findings
found=0
for target in "${targets[@]}"; do
  summary "$target"
  # A program that could not run at all has found nothing, but has not passed either.
  grep -q 'stat::number_of_executed_units' "$work/$target.log" || { found=1; tail -20 "$work/$target.log"; }
  for input in "$work/found/$target"/*; do
    [ -f "$input" ] || continue
    found=1
    grep -E 'panicked|ERROR|SUMMARY' -A 2 -m 3 "$work/$target.log" || true
    printf '%s\n' "$input"
    base64 "$input"
  done
done
exit "$found"
